"""Folders and manifests become labelled clips; what cannot be used is listed, what is wrong is an error that names it."""

import contextlib
import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dissonance.engine.scan.sources import Sources
from dissonance.errors import DissonanceError, UsageError
from dissonance.synth import SynthConfig, describe, plan_clip
from dissonance.synth.dataset import COLUMNS
from dissonance.training.datasets import DatasetConfig, open_dataset
from dissonance.training.fakeavceleb import read_fakeavceleb
from dissonance.training.kodf import choose_subset, read_file_list, read_kodf, write_file_list
from dissonance.training.labels import Clip, Skipped
from dissonance.training.manifest import read_manifest, write_manifest

REAL_COLUMNS = ["source", "target1", "target2", "method", "category", "type", "race", "gender", "path", ""]
# source, method, category, type, race, file: one of each kind, as FakeAVCeleb v1.2 names them
ROWS = [
    ("id00076", "real", "A", "RealVideo-RealAudio", "African", "00109.mp4"),
    ("id00391", "rtvc", "B", "RealVideo-FakeAudio", "Asian (East)", "00052_fake.mp4"),
    ("id04055", "faceswap", "C", "FakeVideo-RealAudio", "Caucasian (American)", "00160_0_id00696_eQTviHjyISo.mp4"),
    ("id07686", "fsgan-wav2lip", "D", "FakeVideo-FakeAudio", "Asian (South)", "00254_id06437_3BZvvzBhj8s_id00043_wavtolip.mp4"),
    ("id00282", "wav2lip", "D", "FakeVideo-FakeAudio", "Caucasian (European)", "00268_id04034_wavtolip.mp4"),
]


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not looked into here")
    return path


def fakeavceleb(folder: Path, rows: list[list[str]] | None = None, columns: list[str] = REAL_COLUMNS) -> Path:
    """The data set as it is unpacked: meta_data.csv, and a file for each row (of `ROWS`, where none are given)."""
    if rows is None:
        rows = []
        for source, method, category, kind, race, file in ROWS:
            rows.append([source, "-", "-", method, category, kind, race, "men", file, f"FakeAVCeleb/{kind}/{race}/men/{source}"])
            touch(folder / kind / race / "men" / source / file)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "meta_data.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return folder


def edited(folder: Path, row: int, column: str, value: str) -> Path:
    """The folder with one cell of its table changed."""
    with (folder / "meta_data.csv").open(newline="") as stream:
        table = list(csv.reader(stream))
    table[row + 1][table[0].index(column)] = value
    with (folder / "meta_data.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(table)
    return folder


# --------------------------------------------------------------------------------------------------------- FakeAVCeleb


def test_labels_are_per_modality_and_the_split_is_by_ethnicity(tmp_path: Path) -> None:
    found = read_fakeavceleb(fakeavceleb(tmp_path / "FakeAVCeleb_v1.2"))
    assert found.skipped == ()
    assert [(clip.picture_fake, clip.sound_fake, clip.manipulation, clip.category, clip.split, clip.identity) for clip in found.clips] == [
        (False, False, "none", "A", "validation", "id00076"),
        (False, True, "rtvc", "B", "train", "id00391"),
        (True, False, "faceswap", "C", "train", "id04055"),
        (True, True, "fsgan-wav2lip", "D", "train", "id07686"),
        (True, True, "wav2lip", "D", "test", "id00282"),
    ]


def test_uris_are_those_of_a_scan_of_the_same_folder(tmp_path: Path) -> None:
    folder = fakeavceleb(tmp_path / "data")
    scanned = {found.uri for found in Sources([str(folder)], extensions=[".mp4"])}
    assert {clip.uri for clip in read_fakeavceleb(folder).clips} == scanned


def test_what_synth_plans_is_read_as_it_was_planned(tmp_path: Path) -> None:
    folder, config = tmp_path / "synth", SynthConfig(compressions=("c28", "c35"))
    plans = [plan_clip(3, index, config) for index in range(50)]
    rows = [describe(plan) for plan in plans]
    for row in rows:
        touch(folder / row.file)
    fakeavceleb(folder, [row.cells() for row in rows], list(COLUMNS))
    found = read_fakeavceleb(folder)
    assert [clip.manipulation for clip in found.clips] == [plan.forgery for plan in plans]
    assert [clip.compression for clip in found.clips] == [plan.compression for plan in plans]
    assert [clip.split for clip in found.clips] == [row.split for row in rows]
    forged = {"none": (0, 0), "visual_timing": (1, 0), "visual_artefact": (1, 0), "audio_timing": (0, 1), "audio_artefact": (0, 1), "both": (1, 1)}
    assert {clip.manipulation: (clip.picture_fake, clip.sound_fake) for clip in found.clips} == forged


def test_missing_and_extra_files_are_counted_and_listed(tmp_path: Path) -> None:
    folder = fakeavceleb(tmp_path)
    gone = next(folder.rglob("00052_fake.mp4"))
    gone.unlink()
    extra = touch(folder / "FakeVideo-RealAudio" / "African" / "women" / "id1" / "extra.mp4")
    touch(folder / "FakeVideo-RealAudio" / "notes.txt")
    with (folder / "meta_data.csv").open("a") as stream:
        stream.write("id00076,-,-,real,A,RealVideo-RealAudio,African,men,00109.mp4,FakeAVCeleb/RealVideo-RealAudio/African/men/id00076\r\n")
        stream.write("id00076,-,-,real,D,RealVideo-RealAudio,African,men,9.mp4,FakeAVCeleb/RealVideo-RealAudio/African/men/id00076\r\n")
    found = read_fakeavceleb(folder)
    assert len(found.clips) == 4
    assert Counter(skip.reason for skip in found.skipped) == {"missing": 1, "unlisted": 1, "repeated": 1, "contradictory": 1}
    assert {skip.path for skip in found.skipped if skip.reason in ("missing", "unlisted")} == {gone, extra}


def test_folders_whose_names_spell_the_race_with_an_underscore_are_found(tmp_path: Path) -> None:
    folder = fakeavceleb(tmp_path)
    east = folder / "RealVideo-FakeAudio" / "Asian (East)"
    east.rename(east.with_name("Asian_East"))
    found = read_fakeavceleb(folder)
    assert found.skipped == ()
    assert found.clips[1].path.parts[-4] == "Asian_East"


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("race", "Martian", "line 2: invalid 'race' ('Martian')"),
        ("type", "RealVideo", "line 2: invalid 'type' ('RealVideo')"),
        ("category", "E", "line 2: invalid 'category' ('E')"),
        ("source", "", "line 2: invalid 'source' ('')"),
        ("path", "../00109.mp4", "line 2: invalid 'path'"),
        ("", "FakeAVCeleb/../../etc", "line 2: invalid ''"),
        ("path", "a\0.mp4", "line 2: invalid 'path'"),
    ],
)
def test_a_wrong_value_names_line_field_and_value(tmp_path: Path, column: str, value: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_fakeavceleb(edited(fakeavceleb(tmp_path), 0, column, value))
    assert told in str(caught.value)


def test_a_split_column_must_be_the_ethnicity_s(tmp_path: Path) -> None:
    row = describe(plan_clip(3, 0, SynthConfig()))  # African
    touch(tmp_path / row.file)
    fakeavceleb(tmp_path, [row.cells()], list(COLUMNS))
    assert read_fakeavceleb(tmp_path).clips[0].split == "validation"
    with pytest.raises(UsageError, match=r"line 2: invalid 'split' \('test'\)\. Supported values are 'validation', .*African"):
        read_fakeavceleb(edited(tmp_path, 0, "split", "test"))


def test_what_is_no_fakeavceleb_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no meta_data\.csv"):
        read_fakeavceleb(tmp_path)
    fakeavceleb(tmp_path, [["x"]], ["uri"])
    with pytest.raises(UsageError, match="has no column 'source'"):
        read_fakeavceleb(tmp_path)
    folder = fakeavceleb(tmp_path / "whole")
    for path in folder.rglob("*.mp4"):
        path.unlink()
    with pytest.raises(UsageError, match="None of the 5 rows"):
        read_fakeavceleb(folder)


# ------------------------------------------------------------------------------------------------------------ manifest


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            table = csv.DictWriter(stream, fieldnames=list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_manifest_of_each_format_gives_the_same_clips(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b", "c"):
        touch(tmp_path / "clips" / f"{name}.mp4")
    rows: list[dict[str, object]] = [
        {"uri": "clips/a.mp4", "video_label": 0, "sound_fake": "real", "manipulation": "", "split": "train", "identity": 7},
        {"uri": "clips/b.mp4", "video_label": 1, "sound_fake": "FALSE", "manipulation": "dubbing", "split": "", "identity": 8},
        {"uri": "clips/c.mp4", "video_label": 0, "sound_fake": "fake", "manipulation": "", "split": "", "identity": 9},
    ]
    found = read_manifest(write_rows(tmp_path / f"labels{suffix}", rows))
    assert [clip.path for clip in found.clips] == [tmp_path / "clips" / f"{name}.mp4" for name in "abc"]
    assert [(clip.picture_fake, clip.sound_fake) for clip in found.clips] == [(False, False), (True, False), (False, True)]
    assert [clip.manipulation for clip in found.clips] == ["none", "dubbing", "unknown"]
    assert [(clip.split, clip.identity) for clip in found.clips] == [("train", "7"), ("test", "8"), ("test", "9")]


def test_clips_without_an_identity_are_people_of_their_own(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        touch(tmp_path / name)
    rows: list[dict[str, object]] = [{"uri": name, "picture_fake": 0, "sound_fake": 0} for name in ("a.mp4", "b.mp4")]
    assert len({clip.identity for clip in read_manifest(write_rows(tmp_path / "m.csv", rows)).clips}) == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"picture_fake": "maybe"}, "line 3: invalid 'picture_fake' ('maybe')"),
        ({"picture_fake": None}, "line 3: invalid 'picture_fake' (None)"),
        ({"picture_fake": 2}, "line 3: invalid 'picture_fake' (2)"),
        ({"sound_fake": [1]}, "line 3: invalid 'sound_fake' ([1])"),
        ({"video_label": 1, "picture_fake": 0}, "line 3: invalid 'picture_fake' (0)"),
        ({"split": "dev"}, "line 3: invalid 'split' ('dev')"),
        ({"uri": ""}, "line 3: invalid 'uri' ('')"),
        ({"uri": "\ud800.mp4"}, "line 3: invalid 'uri'"),
        ({"identity": 1.5}, "line 3: invalid 'identity' (1.5)"),
        ({"manipulation": "dubbing"}, "line 3: invalid 'manipulation' ('dubbing')"),
        ({"manipulation": "none", "sound_fake": 1}, "line 3: invalid 'manipulation' ('none')"),
        ({"uri": "a.mp4", "sound_fake": 1}, "line 3: "),  # the first row's, labelled otherwise
    ],
)
def test_a_wrong_manifest_row_names_line_field_and_value(tmp_path: Path, change: dict[str, object], told: str) -> None:
    touch(tmp_path / "a.mp4")
    touch(tmp_path / "b.mp4")
    good: dict[str, object] = {"uri": "a.mp4", "picture_fake": 0, "sound_fake": 0, "split": "train"}
    path = write_rows(tmp_path / "labels.jsonl", [good, {}, {**good, "uri": "b.mp4", **change}])
    path.write_text(path.read_text().replace("{}\n", "\n"))  # an empty line counts as a line
    with pytest.raises(UsageError) as caught:
        read_manifest(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


def test_rows_without_a_usable_file_are_listed(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    uris = ["a.mp4", "a.mp4", "b.mp4", "http://host/c.mp4", "x" * 5000]
    rows: list[dict[str, object]] = [{"uri": uri, "picture_fake": 0, "sound_fake": 0} for uri in uris]
    found = read_manifest(write_rows(tmp_path / "labels.csv", rows))
    assert [clip.path.name for clip in found.clips] == ["a.mp4"]
    assert [(skip.path.name, skip.reason) for skip in found.skipped[:3]] == [("a.mp4", "repeated"), ("b.mp4", "missing"), ("c.mp4", "refused")]
    assert found.skipped[3].reason == "missing"
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(UsageError, match="names no file that is there"):
        read_manifest(tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("m.csv", b"uri,uri\na,b\n", "more than one column 'uri'"),
        ("m.csv", b"uri,picture_fake\na.mp4\n", "line 2: 1 cells under a header of 2"),
        ("m.csv", b"uri\n\xff\n", "not UTF-8"),
        ("m.jsonl", b"{\n", "line 1: not JSON"),
        ("m.jsonl", b"[1]\n", "line 1: '[1]' is not an object"),
        ("m.parquet", b"PAR1", "not a Parquet file"),
        ("m.txt", b"", "Supported suffixes are .csv, .jsonl, .parquet"),
        ("none.csv", None, "Cannot read table"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, name: str, content: bytes | None, told: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=r"\.") as caught:
        read_manifest(tmp_path / name)
    assert told in str(caught.value)


_CELL = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=2))
_FIELDS = ("uri", "picture_fake", "sound_fake", "video_label", "split", "identity", "manipulation")


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.dictionaries(st.sampled_from(_FIELDS), _CELL), max_size=4), raw=st.binary(max_size=60))
def test_no_table_makes_anything_but_clips_or_an_error_that_is_told(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], raw: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    touch(folder / "a.mp4")
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    header = b"uri,picture_fake,sound_fake\n"
    (folder / "m.csv").write_bytes(header + b"a.mp4,0,1\n" + raw)
    (folder / "meta_data.csv").write_bytes(",".join(REAL_COLUMNS).encode() + b"\n" + raw)
    (folder / "m.parquet").write_bytes(raw)
    for read, path in (
        (read_manifest, folder / "m.jsonl"), (read_manifest, folder / "m.csv"), (read_manifest, folder / "m.parquet"), (read_fakeavceleb, folder),
    ):  # fmt: skip
        with contextlib.suppress(DissonanceError):
            assert all(type(clip.picture_fake) is bool and type(clip.sound_fake) is bool for clip in read(path).clips)


# ---------------------------------------------------------------------------------------------------------------- KoDF


@pytest.fixture
def kodf(tmp_path: Path) -> Path:
    """20 real clips of 4 people; 6 fakes of each of two models and 2 of a third that only the metadata name; 3 attacked ones."""
    folder = tmp_path / "KoDF"
    for number in range(20):
        touch(folder / "real_videos" / f"p{number % 4}" / f"r{number}.mp4")
    for model in ("FaceSwap", "audio-driven"):
        for number in range(6):
            touch(folder / "synthesized_videos" / model / f"p{number % 4}" / f"{model}{number}.mp4")
    for number in range(2):
        touch(folder / "synthesized_videos" / "more" / f"m{number}.mp4")
    for number in range(3):
        touch(folder / "synthesized_videos" / "adversarial" / f"x{number}.mp4")
    touch(folder / "elsewhere" / "y.mp4")
    (folder / "meta.csv").write_text("filename,Model,subject\nm0.mp4,DFL,p9\nm1.mp4,DFL,p8\ngone.mp4,DFL,p8\n")
    return folder


def test_kodf_tells_class_model_and_person_from_folders_and_metadata(kodf: Path) -> None:
    found = read_kodf(kodf)
    assert Counter((clip.manipulation, clip.picture_fake, clip.sound_fake) for clip in found.clips) == {
        ("none", False, False): 20,
        ("faceswap", True, False): 6,
        ("atfhp", True, False): 6,
        ("deepfacelab", True, False): 2,
    }
    assert {clip.split for clip in found.clips} == {"test"}
    assert {clip.path.name: clip.identity for clip in found.clips if clip.path.parent.name == "more"} == {"m0.mp4": "p9", "m1.mp4": "p8"}
    assert {clip.identity for clip in found.clips} == {"p0", "p1", "p2", "p3", "p8", "p9"}
    assert Counter(skip.reason for skip in found.skipped) == {"adversarial": 3, "unlabelled": 1, "missing": 1}
    assert found.skipped[0] == Skipped(kodf / "gone.mp4", "missing", "meta.csv, line 4")


def test_a_kodf_subset_depends_on_its_seed_and_paths_alone(kodf: Path, tmp_path: Path) -> None:
    clips = read_kodf(kodf).clips
    chosen = choose_subset(clips, root=kodf, per_class=9, seed=5)
    assert chosen == choose_subset(reversed(clips), root=kodf, per_class=9, seed=5)
    assert chosen != choose_subset(clips, root=kodf, per_class=9, seed=6)
    moved = kodf.rename(tmp_path / "elsewhere")
    again = choose_subset(read_kodf(moved).clips, root=moved, per_class=9, seed=5)
    assert [clip.path.relative_to(moved) for clip in again] == [clip.path.relative_to(kodf) for clip in chosen]
    counts = Counter(clip.manipulation for clip in chosen)
    assert counts.pop("none") == 9
    assert counts["deepfacelab"] == 2  # all there are; the rest is shared evenly
    assert sorted(counts.values()) == [2, 3, 4]
    with pytest.raises(UsageError, match=r"Invalid per_class \(15\).*1 to 14"):
        choose_subset(read_kodf(moved).clips, root=moved, per_class=15)


def test_a_published_file_list_gives_the_same_subset_in_another_copy(kodf: Path, tmp_path: Path) -> None:
    chosen = choose_subset(read_kodf(kodf).clips, root=kodf, per_class=5)
    write_file_list(tmp_path / "list.jsonl", chosen, root=kodf)
    assert read_file_list(tmp_path / "list.jsonl", root=kodf).clips == chosen
    moved = kodf.rename(tmp_path / "copy")
    elsewhere = tuple(replace(clip, path=moved / clip.path.relative_to(kodf), uri=str(moved / clip.path.relative_to(kodf))) for clip in chosen)
    assert read_file_list(tmp_path / "list.jsonl", root=moved).clips == elsewhere
    lines = [json.loads(line) for line in (tmp_path / "list.jsonl").read_text().splitlines()]
    assert {(line["dataset"], line["seed"]) for line in lines} == {("KoDF", 20250225)}


# ------------------------------------------------------------------------------------------------------------- opening


def test_manifests_written_are_read_back_whatever_the_names(tmp_path: Path) -> None:
    names = ["plain.mp4", "two words, and a comma.mp4", "b\udcffad.mp4", "back\\x41slash.mp4", "sub/ünï.mp4"]
    clips = []
    for name in names:
        path = touch(tmp_path / name)
        clips.append(Clip(str(path), path, True, False, "m", "C", "i", "g", "train", "c23"))
    write_manifest(tmp_path / "m.jsonl", clips, root=tmp_path)
    found = read_manifest(tmp_path / "m.jsonl", root=tmp_path)
    assert [clip.path for clip in found.clips] == [clip.path for clip in clips]
    assert [replace(clip, uri="") for clip in found.clips] == [replace(clip, uri="") for clip in clips]
    assert len({clip.uri for clip in found.clips}) == len(names)


def test_the_layout_is_guessed_from_what_is_there(kodf: Path, tmp_path: Path) -> None:
    folder = fakeavceleb(tmp_path / "data")
    assert open_dataset(DatasetConfig(path=folder)) == read_fakeavceleb(folder)
    touch(tmp_path / "a.mp4")
    manifest = write_rows(tmp_path / "m.csv", [{"uri": "a.mp4", "picture_fake": 0, "sound_fake": 1}])
    assert open_dataset(DatasetConfig(path=manifest)) == read_manifest(manifest)
    assert open_dataset(DatasetConfig(path=kodf, layout="kodf")) == read_kodf(kodf)
    for config, told in (
        (DatasetConfig(path=kodf), "Cannot tell the layout"),
        (DatasetConfig(path=tmp_path / "nowhere"), "No folder"),
        (DatasetConfig(path=tmp_path / "nowhere.csv"), "Cannot read table"),
        (DatasetConfig(path=folder, root=tmp_path), "only a manifest has one"),
        (DatasetConfig(path=tmp_path / "data" / "RealVideo-RealAudio", layout="kodf"), "holds no clip of KoDF"),
    ):
        with pytest.raises(UsageError, match=told):
            open_dataset(config)
