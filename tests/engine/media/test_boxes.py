"""Given boxes: strict reading, linear interpolation."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dissonance.engine.media.boxes import COLUMNS, BoxFile, GivenTrack
from dissonance.errors import ConfigError

HEADER = ",".join(COLUMNS)


def _write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_csv_and_jsonl_say_the_same(tmp_path: Path) -> None:
    rows = [("a.mp4", 4, 0.0, 1, 2, 11, 22), ("b, c.mp4", 0, 1.5, 5.5, 6, 7, 8), ("a.mp4", 4, 1.0, 3, 4, 13, 24), ("a.mp4", 2, 0.0, 0, 0, 9, 9)]
    csv = _write(tmp_path / "boxes.csv", HEADER + ",note", *(",".join(f'"{v}"' for v in row) + ",hello" for row in rows))
    jsonl = _write(tmp_path / "boxes.jsonl", *(json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in rows), "")
    for path in (csv, jsonl):
        file = BoxFile(path)
        assert [track.track for track in file.tracks("a.mp4")] == [2, 4]
        assert file.tracks("a.mp4")[1] == GivenTrack(4, (0.0, 1.0), ((1, 2, 11, 22), (3, 4, 13, 24)))
        assert file.tracks("b, c.mp4") == [GivenTrack(0, (1.5,), ((5.5, 6, 7, 8),))]
        assert file.tracks("A.mp4") == []


def test_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    path = _write(tmp_path / "boxes.csv", HEADER, "a,0,2,0,0,2,2", "a,0,0,4,4,6,6", "a,0,1,8,8,9,9")
    assert BoxFile(path).tracks("a")[0].times_s == (0, 1, 2)


@given(
    times=st.lists(st.integers(0, 400), min_size=1, max_size=8, unique=True).map(sorted),
    corners=st.lists(st.tuples(*[st.floats(0, 1000)] * 4), min_size=8, max_size=8),
    at=st.floats(-1, 17),
)
def test_between_times_a_box_moves_linearly(times: list[int], corners: list[tuple[float, float, float, float]], at: float) -> None:
    seconds = [time / 25 for time in times]
    track = GivenTrack(0, tuple(seconds), tuple(corners[: len(times)]))
    box = track.box_at(at)
    if seconds[0] - 0.019 <= at <= seconds[-1] + 0.019:
        assert box is not None
        expected = [np.interp(at, seconds, [corner[axis] for corner in corners[: len(times)]]) for axis in range(4)]
        np.testing.assert_allclose(box, expected, atol=1e-6)
    elif not seconds[0] - 0.021 <= at <= seconds[-1] + 0.021:
        assert box is None


BAD_ROWS = [
    ("a,0,0,0,0,2", "y1", "give a value"),
    ("a,0,,0,0,2,2", "time_s", "give a value"),
    (",0,0,0,0,2,2", "uri", "give a value"),
    ("a,x,0,0,0,2,2", "track ('x')", "give a number"),
    ("a,0.5,0,0,0,2,2", "track ('0.5')", "whole number"),
    ("a,-1,0,0,0,2,2", "track ('-1')", "whole number"),
    ("a,0,nan,0,0,2,2", "time_s ('nan')", "finite"),
    ("a,0,0,5,0,5,2", "x1 ('5')", "greater than x0"),
    ("a,0,0,0,3,2,2", "y1 ('2')", "greater than y0"),
    ("a,0,0,0,0,1e9,2", "x1 ('1e9')", "pixels"),
    ("a,1,1.0,0,0,2,2", "time_s (1.0)", "line 2"),
]


@pytest.mark.parametrize(("row", "field", "remedy"), BAD_ROWS)
def test_a_bad_row_names_file_line_field_value_and_remedy(tmp_path: Path, row: str, field: str, remedy: str) -> None:
    path = _write(tmp_path / "boxes.csv", HEADER, "a,1,1,0,0,2,2", row)
    with pytest.raises(ConfigError) as caught:
        BoxFile(path)
    message = str(caught.value)
    assert str(path) in message
    assert "line 3" in message
    assert field in message
    assert remedy in message


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("boxes.csv", "uri,track,time_s,x0,y0,x1\n", "y1"),
        ("boxes.csv", "", "uri, track"),
        ("boxes.csv", HEADER + '\n"a,0,0\n', "not CSV"),
        ("boxes.jsonl", "{not json}\n", "line 1: not JSON"),
        ("boxes.jsonl", "\n[1, 2]\n", "line 2"),
        ("boxes.jsonl", '{"uri": "a", "track": true, "time_s": 0, "x0": 0, "y0": 0, "x1": 1, "y1": 1}\n', "track (True)"),
        ("boxes.jsonl", '{"uri": "a", "track": 0, "time_s": 0, "x0": 0, "y0": 0, "x1": [1], "y1": 1}\n', "x1 ([1])"),
        ("boxes.jsonl", '{"uri": 5, "track": 0, "time_s": 0, "x0": 0, "y0": 0, "x1": 1, "y1": 1}\n', "uri (5)"),
        ("boxes.jsonl", '{"uri": "a"}\n', "track (None)"),
        ("boxes.txt", HEADER, "Supported suffixes"),
    ],
)
def test_a_bad_file_is_a_config_error(tmp_path: Path, name: str, text: str, expected: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="Invalid box file") as caught:
        BoxFile(tmp_path / name)
    assert expected in str(caught.value)


def test_unreadable_files_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Cannot read the box file"):
        BoxFile(tmp_path / "missing.csv")
    (tmp_path / "binary.csv").write_bytes(HEADER.encode() + b"\n\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        BoxFile(tmp_path / "binary.csv")
