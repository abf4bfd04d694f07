"""A folder of clips: complete, described, repeatable; read here as FakeAVCeleb is read elsewhere."""

import csv
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from pydantic import ValidationError

from dissonance.errors import UsageError
from dissonance.synth import ClipRow, SynthConfig, describe, generate, plan_clip, render_clip

COUNT = 12
SHORT = SynthConfig(width=160, height=120, duration_s=1.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "FakeAVCeleb_v1.2"
    assert len(list(generate(out, count=COUNT, seed=4, config=SHORT))) == COUNT
    return out


def read_rows(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """The usual reader: the tenth column has no name (pandas calls it "Unnamed: 9") and holds the folder, `path` the file's name."""
    with (folder / "meta_data.csv").open(newline="") as stream:
        header, *lines = csv.reader(stream)
    assert header[:10] == ["source", "target1", "target2", "method", "category", "type", "race", "gender", "path", ""]
    for line in lines:
        assert len(line) == len(header)
        row = dict(zip(header, line, strict=True))
        yield folder / line[9].removeprefix("FakeAVCeleb/") / row["path"], row


def test_every_file_has_a_row_and_every_row_a_file(folder: Path) -> None:
    listed = [path for path, _ in read_rows(folder)]
    assert len(set(listed)) == COUNT
    assert sorted(listed) == sorted(folder.rglob("*.mp4"))
    assert not list(folder.rglob("*.partial"))


def test_clips_have_the_promised_frames_and_sound(folder: Path) -> None:
    for path, _ in read_rows(folder):
        with av.open(str(path)) as container:
            video = container.streams.video[0]
            assert (video.width, video.height, video.average_rate) == (160, 120, 25)
            times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
            assert [round(float(time * 25), 6) for time in times] == list(range(30))
        with av.open(str(path)) as container:
            heard = sum(frame.samples for frame in container.decode(audio=0))
            assert container.streams.audio[0].rate == 16000
            assert 1.2 * 16000 <= heard < 1.2 * 16000 + 1024


def test_columns_agree_with_each_other(folder: Path) -> None:
    type_of = {
        "none": "RealVideo-RealAudio",
        "visual_timing": "FakeVideo-RealAudio",
        "visual_artefact": "FakeVideo-RealAudio",
        "audio_timing": "RealVideo-FakeAudio",
        "audio_artefact": "RealVideo-FakeAudio",
        "both": "FakeVideo-FakeAudio",
    }
    category_of = {"RealVideo-RealAudio": "A", "RealVideo-FakeAudio": "B", "FakeVideo-RealAudio": "C", "FakeVideo-FakeAudio": "D"}
    forgeries = set()
    for path, row in read_rows(folder):
        forgeries.add(row["forgery"])
        assert row["type"] == type_of[row["forgery"]]
        assert row["category"] == category_of[row["type"]]
        assert path.parent.parts[-4:] == (row["type"], row["race"], row["gender"], row["identity"])
        assert row["source"] == row["identity"]
        assert (row["method"] == "real") == (row["forgery"] == "none") == (row["target1"] == "-")
        assert row["target1"] in ("-", row["source"]) or row["forgery"].endswith("_timing"), "artefacts keep the person's own speech"
        assert (row["shift_frames"], row["renderer"], row["compression"]) == ("0", "relief", "c23")
    assert forgeries == set(type_of)


def test_splits_are_by_race_and_share_nobody() -> None:
    """Also not through companions, who are seen, and donors, who are heard."""
    split_of_race = {"African": "validation", "Caucasian (European)": "test"}
    people: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    config = SynthConfig(two_person_share=0.5)
    for index in range(1000):
        row = describe(plan_clip(1, index, config))
        assert row.split == split_of_race.get(row.race, "train")
        people[row.split] |= {row.identity, row.target1, row.companion} - {"-"}
    assert all(len(names) > 10 for names in people.values())
    assert not people["train"] & people["test"]
    assert not people["train"] & people["validation"]
    assert not people["validation"] & people["test"]


def test_half_of_each_identitys_clips_are_real_and_its_forgeries_of_every_kind() -> None:
    rows = [describe(plan_clip(1, index, SynthConfig())) for index in range(200)]
    kinds: dict[str, list[str]] = {}
    for row in rows:
        kinds.setdefault(row.identity, []).append(row.forgery)
    assert len(kinds) == 20
    forged = ["audio_artefact", "audio_timing", "both", "visual_artefact", "visual_timing"]
    assert all(sorted(names) == [*forged[:3], *["none"] * 5, *forged[3:]] for names in kinds.values())
    for race in {row.race for row in rows}:
        assert {row.gender for row in rows if row.race == race} == {"men", "women"}


def test_compression_is_drawn_whatever_the_forgery() -> None:
    plans = [plan_clip(1, index, SynthConfig(compressions=("c18", "c35"))) for index in range(400)]
    for forged in (False, True):
        strong = [plan.compression == "c35" for plan in plans if (plan.forgery != "none") == forged]
        assert len(strong) == 200
        assert 0.4 < sum(strong) / 200 < 0.6


def test_stronger_compression_leaves_smaller_files(tmp_path: Path) -> None:
    sizes = []
    for level in ("c18", "c23", "c28", "c35"):
        (row,) = generate(tmp_path / level, count=1, seed=4, config=SHORT.model_copy(update={"compressions": (level,)}))
        assert row.compression == level
        sizes.append((tmp_path / level / row.file).stat().st_size)
    assert all(larger > 1.2 * smaller for larger, smaller in pairwise(sizes)), sizes


def test_renderers_share_neither_pictures_nor_sounds() -> None:
    config = SHORT.model_copy(update={"renderer": "cel"})
    plain, other = (render_clip(plan_clip(4, 0, options), options) for options in (SHORT, config))
    assert describe(plan_clip(4, 0, config)).renderer == "cel"
    differing = [(a != b).any(axis=2).mean() for a, b in zip(plain.frames, other.frames, strict=True)]
    assert min(differing) > 0.9
    assert abs(np.corrcoef(plain.samples, other.samples)[0, 1]) < 0.1


def test_a_clip_depends_on_seed_and_index_only(folder: Path, tmp_path: Path) -> None:
    again = list(generate(tmp_path / "again", count=3, seed=4, config=SHORT))
    assert len(again) == 3
    for row in again:
        assert (tmp_path / "again" / row.file).read_bytes() == (folder / row.file).read_bytes()
    (other,) = generate(tmp_path / "other", count=1, seed=5, config=SHORT)
    assert (tmp_path / "other" / other.file).read_bytes() != (folder / again[0].file).read_bytes()


def test_a_shifted_set_is_all_real(tmp_path: Path) -> None:
    rows = list(generate(tmp_path / "out", count=2, seed=1, config=SHORT.model_copy(update={"shift_frames": 3})))
    assert [(row.forgery, row.type, row.shift_frames) for row in rows] == [("none", "RealVideo-RealAudio", 3)] * 2


def test_csv_comes_last(tmp_path: Path) -> None:
    out = tmp_path / "out"
    clips = generate(out, count=2, seed=1, config=SHORT)
    first: ClipRow = next(clips)
    assert (out / first.file).is_file()
    assert not (out / "meta_data.csv").exists()
    next(clips)
    assert list(clips) == []
    assert (out / "meta_data.csv").is_file()


def test_other_files_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "RealVideo-RealAudio").mkdir()
    precious = tmp_path / "RealVideo-RealAudio" / "precious.mp4"
    precious.write_bytes(b"data")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="did not write"):
            generate(tmp_path, count=1, seed=1, config=SHORT, overwrite=overwrite)
    assert precious.read_bytes() == b"data"


def test_overwrite_replaces_an_earlier_set(tmp_path: Path) -> None:
    out = tmp_path / "out"
    list(generate(out, count=2, seed=1, config=SHORT))
    with pytest.raises(UsageError, match="--overwrite"):
        generate(out, count=1, seed=1, config=SHORT)
    (row,) = generate(out, count=1, seed=9, config=SHORT, overwrite=True)
    assert list(out.rglob("*.mp4")) == [out / row.file]


@pytest.mark.parametrize(("count", "seed", "match"), [(0, 1, "count"), (1, -1, "seed")])
def test_wrong_numbers_are_refused_before_anything_is_written(tmp_path: Path, count: int, seed: int, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        generate(tmp_path / "out", count=count, seed=seed)
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="not a folder"):
        generate(tmp_path / "out", count=1, seed=1)


@pytest.mark.parametrize(
    "options",
    [
        {"width": 321},
        {"forgeries": ("deepfake",)},
        {"renderer": "photo"},
        {"compressions": ("c40",)},
        {"forgeries": ()},
        {"duration_s": 0},
        {"width": 96, "height": 240},
    ],
)
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SynthConfig.model_validate(options)
