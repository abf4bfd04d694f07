"""Faces that somebody else found: boxes from a CSV or JSONL file, looked up by uri.

Columns: `uri` (exactly as the source names the file), `track` (integer, kept as the track's id), `time_s` (presentation time of the
picture, the clock of `windows.start_s`), `x0`, `y0`, `x1`, `y1` (pixels of the picture as displayed; x1, y1 exclusive). Between two times of
a track the box moves linearly; a track begins at its first time and ends at its last. Nothing is smoothed or dropped: they are taken as given.
"""

import csv
import json
import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from dissonance.errors import ConfigError

COLUMNS = ("uri", "track", "time_s", "x0", "y0", "x1", "y1")
SIZE_LIMIT_PX = 1 << 20
TIME_TOLERANCE_S = 0.02  # half a grid frame: a box given at a frame's time covers that frame however the time was rounded

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class GivenTrack:
    """One face of one file. `times_s` ascend; `boxes[i]` is (x0, y0, x1, y1) at `times_s[i]`."""

    track: int
    times_s: tuple[float, ...]
    boxes: tuple[Box, ...]

    def box_at(self, time_s: float) -> Box | None:
        """The box at a time, linear between given ones; None outside the track."""
        first, last = self.times_s[0], self.times_s[-1]
        if not first - TIME_TOLERANCE_S <= time_s <= last + TIME_TOLERANCE_S:
            return None
        time_s = min(max(time_s, first), last)
        right = min(bisect_right(self.times_s, time_s), len(self.times_s) - 1)
        left = max(right - 1, 0)
        span = self.times_s[right] - self.times_s[left]
        weight = (time_s - self.times_s[left]) / span if span > 0 else 0.0
        a, b = self.boxes[left], self.boxes[right]
        return (
            a[0] + weight * (b[0] - a[0]),
            a[1] + weight * (b[1] - a[1]),
            a[2] + weight * (b[2] - a[2]),
            a[3] + weight * (b[3] - a[3]),
        )


class BoxFile:
    """A file of given boxes, read and checked whole. Raises ConfigError that names the file, the line, the field, its value and the remedy."""

    def __init__(self, path: Path) -> None:
        self._path = path
        rows: dict[str, dict[int, list[tuple[float, Box, int]]]] = {}
        try:
            for line, record in _records(path):
                uri, track, time_s, box = _parse(path, line, record)
                rows.setdefault(uri, {}).setdefault(track, []).append((time_s, box, line))
        except OSError as error:
            raise ConfigError(f"Cannot read the box file '{path}': {error.strerror or error}. Give the path of a readable file.") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"Invalid box file {path}: it is not UTF-8 text: {error}. Write it as UTF-8 CSV or JSONL.") from error
        self._tracks = {uri: [self._track(track, given) for track, given in sorted(tracks.items())] for uri, tracks in rows.items()}

    def _track(self, track: int, given: list[tuple[float, Box, int]]) -> GivenTrack:
        given.sort(key=lambda item: item[0])
        for (time_s, _, line), (next_s, _, next_line) in pairwise(given):
            if time_s == next_s:
                _refuse(self._path, next_line, "time_s", next_s, f"track {track} has a box at this time already, in line {line}; keep one of them")
        return GivenTrack(track, tuple(time_s for time_s, _, _ in given), tuple(box for _, box, _ in given))

    def tracks(self, uri: str) -> list[GivenTrack]:
        """The tracks given for a file, by ascending track id; none where the box file does not name it."""
        return self._tracks.get(uri, [])


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, column -> value) of a CSV with a header, or of JSONL."""
    if path.suffix.lower() == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            try:
                missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
                if missing:
                    _refuse(path, 1, "header", ",".join(reader.fieldnames or ()), f"add the missing columns: {', '.join(missing)}")
                for row in reader:
                    yield reader.line_num, {key: value for key, value in row.items() if key is not None}
            except csv.Error as error:
                raise ConfigError(f"Invalid box file {path}, line {reader.line_num}: not CSV: {error}. Write it as CSV with a header.") from error
    elif path.suffix.lower() in (".jsonl", ".ndjson"):
        with path.open(encoding="utf-8") as stream:
            for line, text in enumerate(stream, start=1):
                if not text.strip():
                    continue
                try:
                    record = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise ConfigError(f"Invalid box file {path}, line {line}: not JSON: {error}. Write one JSON object a line.") from error
                if not isinstance(record, dict):
                    raise ConfigError(f"Invalid box file {path}, line {line}: {text.strip():.60} is not an object. Write one JSON object a line.")
                yield line, record
    else:
        raise ConfigError(f"Invalid box file {path}: suffix '{path.suffix}'. Supported suffixes are .csv, .jsonl, .ndjson.")


def _parse(path: Path, line: int, record: dict[str, Any]) -> tuple[str, int, float, Box]:
    for column in COLUMNS:
        if record.get(column) in (None, ""):
            _refuse(path, line, column, record.get(column), "give a value in every row")
    uri = record["uri"]
    if not isinstance(uri, str):
        _refuse(path, line, "uri", uri, "give the file's uri as text")
    track = _number(path, line, "track", record["track"])
    if track != int(track) or not 0 <= track < 2**31:
        _refuse(path, line, "track", record["track"], "give a whole number from 0 up")
    time_s = _number(path, line, "time_s", record["time_s"])
    x0, y0, x1, y1 = (_number(path, line, column, record[column]) for column in ("x0", "y0", "x1", "y1"))
    for column, low, high in (("x1", x0, x1), ("y1", y0, y1)):
        if high <= low:
            _refuse(path, line, column, record[column], f"it must be greater than {column[0]}0, which is {low:g}")
        if max(abs(low), abs(high)) > SIZE_LIMIT_PX:
            _refuse(path, line, column, record[column], f"coordinates are pixels, within {SIZE_LIMIT_PX}")
    return uri, int(track), time_s, (x0, y0, x1, y1)


def _number(path: Path, line: int, field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        _refuse(path, line, field, value, "give a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        _refuse(path, line, field, value, "give a number")
    if not math.isfinite(number):
        _refuse(path, line, field, value, "give a finite number")
    return number


def _refuse(path: Path, line: int, field: str, value: object, remedy: str) -> NoReturn:
    raise ConfigError(f"Invalid box file {path}, line {line}: {field} ({value!r:.120}): {remedy}.")
