"""Sources: what is an input, what is skipped, and what a manifest may say."""

import contextlib
import csv
import json
import os
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dissonance.engine.scan.sources import Input, Sources, read_manifest
from dissonance.errors import UsageError

EXTENSIONS = (".mp4", ".mkv")


def uris(*sources: str | Path) -> list[str]:
    return [item.uri for item in Sources([str(source) for source in sources], extensions=EXTENSIONS)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a.MP4", "notes.txt", "sub/c.mkv", "sub/deep/d.mp4", "sub/readme"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_a_folder_is_walked_in_a_fixed_order_and_the_rest_is_counted(folder: Path) -> None:
    sources = Sources([str(folder)], extensions=EXTENSIONS)
    assert [item.uri for item in sources] == [str(folder / name) for name in ("a.MP4", "b.mp4", "sub/c.mkv", "sub/deep/d.mp4")]
    assert sources.skipped == 2
    assert len(list(sources)) == 4
    assert sources.skipped == 2, "counted afresh each time"


def test_folders_may_be_nested_as_deep_as_the_disk_allows(tmp_path: Path) -> None:
    depth = 1500  # more than Python's calls
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("a", dir_fd=here)
        below = os.open("a", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("deep.mp4", os.O_CREAT, dir_fd=here))
    os.close(here)
    try:
        found = list(Sources([str(tmp_path)], extensions=EXTENSIONS))
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "a"], check=True)  # Python itself cannot delete so deep a folder
    assert [item.path.removeprefix(str(tmp_path)) for item in found] == ["/a" * depth + "/deep.mp4"]


def test_links_to_folders_are_not_followed_and_dangling_links_are_inputs(folder: Path) -> None:
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "gone.mp4").symlink_to(folder / "nowhere")
    assert str(folder / "gone.mp4") in uris(folder)
    assert len(uris(folder)) == 5


def test_a_folder_named_like_a_video_gets_a_row_and_is_walked(folder: Path) -> None:
    (folder / "odd.mp4").mkdir()
    (folder / "odd.mp4" / "inside.mp4").touch()
    found = uris(folder)
    assert str(folder / "odd.mp4") in found
    assert str(folder / "odd.mp4" / "inside.mp4") in found


def test_a_named_file_is_an_input_whatever_its_name_and_whether_it_exists(folder: Path) -> None:
    assert uris(folder / "notes.txt", folder / "missing.bin") == [str(folder / "notes.txt"), str(folder / "missing.bin")]


def test_globs(folder: Path) -> None:
    assert uris(f"{folder}/**/*.mkv") == [str(folder / "sub/c.mkv")]
    with pytest.raises(UsageError, match="No file matches"):
        uris(f"{folder}/*.webm")


def test_a_name_with_glob_characters_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].mp4").touch()
    assert uris(tmp_path / "a[1].mp4") == [str(tmp_path / "a[1].mp4")]


@given(names=st.sets(st.binary(min_size=1, max_size=6) | st.text("\\\\xf0\xff", max_size=8).map(lambda text: text.encode("latin-1")), max_size=8))
def test_every_path_has_a_name_of_its_own(names: set[bytes]) -> None:
    uris = {Input.of(os.fsdecode(name)).uri for name in names}
    assert len(uris) == len(names)
    for uri in uris:
        uri.encode()  # valid Unicode


def test_ordinary_names_stand_as_they_are() -> None:
    for name in ("a.mp4", "a\\b.mp4", "ä\n'\".mp4", "\\xZZ.mp4"):
        assert Input.of(name).uri == name
    assert Input.of(os.fsdecode(b"a\xff.mp4")).uri == r"a\xff.mp4"
    assert Input.of(r"a\xff.mp4").uri == r"a\\xff.mp4"


def test_a_name_that_is_not_unicode_keeps_its_bytes() -> None:
    item = Input.of(os.fsdecode(b"/x/\xff.mp4"))
    assert os.fsencode(item.path) == b"/x/\xff.mp4"
    assert item.uri.encode() == b"/x/\\xff.mp4"


def write_manifest(path: Path, values: list[str]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            csv.writer(stream).writerows([["label", "uri"], *[["real", value] for value in values]])
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"uri": value}) for value in values) + "\n\n")
    else:
        pq.write_table(pa.table({"uri": values}), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_manifests_name_paths_relative_to_themselves(tmp_path: Path, suffix: str) -> None:
    values = ["x.mp4", "/abs/y.mp4", 'odd, "name"\n.mp4', "s3://bucket/z.mp4"]
    manifest = write_manifest(tmp_path / f"list{suffix}", values)
    assert uris(manifest) == [str(tmp_path / "x.mp4"), "/abs/y.mp4", str(tmp_path / values[2]), "s3://bucket/z.mp4"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"path\nx.mp4\n", "has no 'uri'. It has: 'path'"),
        ("b.csv", b"", "has no 'uri'"),
        ("c.csv", b"uri\n\xff\xfe\n", "not UTF-8"),
        ("d.jsonl", b'{"uri": "x"}\n{', "line 2: not JSON"),
        ("e.jsonl", b"[1]\n", "line 1: .* is not an object"),
        ("m.jsonl", b'{"url": "x"}\n', "line 1, has no 'uri'. It has: 'url'"),
        ("f.jsonl", b'{"uri": 7}\n', "line 1: 'uri' is 7"),
        ("g.jsonl", b'{"uri": ""}\n', "line 1: 'uri' is ''"),
        ("h.parquet", b"PAR1 is not enough", "not a Parquet file"),
        ("k.jsonl", b'{"uri": "\\ud800.mp4"}\n', "not UTF-8"),
        ("i.csv", b"a,uri\nx\n", "line 2: 1 cells under a header of 2"),
        ("j.jsonl", b"[" * 100_000, "line 1: not JSON"),
    ],
)
def test_a_bad_manifest_names_file_line_and_value(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=says) as caught:
        uris(tmp_path / name)
    assert name in str(caught.value)


@given(content=st.binary(max_size=200), suffix=st.sampled_from([".csv", ".jsonl", ".parquet"]))
def test_no_manifest_can_do_more_than_be_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(content)
    with contextlib.suppress(UsageError):
        assert all(item.path for item in read_manifest(path))
