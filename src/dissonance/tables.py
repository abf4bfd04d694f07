"""Tables of inputs and of labels: CSV, JSONL or Parquet, row by row, each with the place to name in an error."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dissonance.errors import UsageError

Row = Mapping[str, object]
SUFFIXES = (".csv", ".jsonl", ".parquet")
_YES = frozenset({"1", "true", "yes", "fake"})
_NO = frozenset({"0", "false", "no", "real"})


def read_table(path: Path, *, need: str | None = None) -> Iterator[tuple[str, Row]]:
    """Rows with where they stand ("line 3"), each with a field `need` if given (of Parquet just that is read).

    Raises UsageError where the file cannot be read, or not as what its suffix says.
    """
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    if path.suffix.lower() not in readers:
        raise UsageError(f"Invalid table '{path}'. Supported suffixes are {', '.join(SUFFIXES)}.")
    try:
        yield from readers[path.suffix.lower()](path, need)
    except UnicodeError as error:
        raise UsageError(f"Table '{path}' is not UTF-8 text: {error}. Save it as UTF-8.") from error
    except pa.ArrowException as error:
        raise UsageError(f"Table '{path}' is not a Parquet file that can be read: {error}. Write it again.") from error
    except OSError as error:
        raise UsageError(f"Cannot read table '{path}': {error.strerror or error}. Give the path of a readable file.") from error


def _lacks(path: Path, need: str, names: Iterable[str], where: str = "") -> UsageError:
    return UsageError(f"Table '{path}'{where} has no {need!r}. It has: {', '.join(map(str, names))!r:.200}. Add a column or key of that name.")


def _csv_rows(path: Path, need: str | None) -> Iterator[tuple[str, Row]]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        lines = csv.reader(stream)
        try:
            header = next(lines, [])
            if len(set(header)) < len(header):
                twice = sorted({name for name in header if header.count(name) > 1})
                raise UsageError(f"Table '{path}' has more than one column {twice[0]!r:.80}. Rename or remove one.")
            if need is not None and need not in header:
                raise _lacks(path, need, header)
            for cells in lines:
                if not cells:
                    continue
                where = f"line {lines.line_num}"
                if len(cells) != len(header):
                    raise UsageError(
                        f"Table '{path}', {where}: {len(cells)} cells under a header of {len(header)}. Mend the line, or quote its commas."
                    )
                yield where, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise UsageError(f"Table '{path}', line {lines.line_num}: not CSV: {error}. Mend the line.") from error


def _jsonl_rows(path: Path, need: str | None) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"Table '{path}', line {number}: not JSON: {error}. Mend the line.") from error
            if not isinstance(row, dict):
                raise UsageError(f"Table '{path}', line {number}: {line.strip()!r:.80} is not an object of fields. Write one object a line.")
            if need is not None and need not in row:
                raise _lacks(path, need, row, f", line {number},")
            yield f"line {number}", row


def _parquet_rows(path: Path, need: str | None) -> Iterator[tuple[str, Row]]:
    with pq.ParquetFile(path) as table:
        if need is not None and need not in table.schema_arrow.names:
            raise _lacks(path, need, table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches(columns=None if need is None else [need], batch_size=4096):
            for row in batch.to_pylist():
                yield f"row {number}", row
                number += 1


def is_file(path: Path) -> bool:
    """Whether there is such a file; a path that no file can have is none."""
    try:
        return path.is_file()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False


class Cells:
    """One row's fields by name, checked as they are read. Raises UsageError that names table, place, field and value."""

    def __init__(self, table: Path, where: str, row: Row) -> None:
        self._table, self._where, self._row = table, where, row

    def __contains__(self, field: str) -> bool:
        return self._row.get(field) not in (None, "")

    def wrong(self, field: str, supported: str) -> UsageError:
        """The error for a field whose value cannot be."""
        return UsageError(
            f"Table '{self._table}', {self._where}: invalid {field!r} ({self._row.get(field)!r:.80}). Supported values are {supported}."
        )

    def text(self, field: str, default: str | None = None) -> str:
        """Text without blanks around it; whole numbers become text. `default` where the cell is empty or not there; None: that is an error."""
        value = self._row.get(field)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value) if abs(value) < 10**18 else None
        found = value.strip() if isinstance(value, str) else "" if value is None else None
        if found is None or "\0" in found or (not found and default is None):
            raise self.wrong(field, "texts" if found != "" else "texts that are not empty")
        return found or (default or "")

    def choice(self, field: str, choices: tuple[str, ...], default: str | None = None) -> str:
        """One of `choices`."""
        found = self.text(field, default)
        if found not in choices:
            raise self.wrong(field, ", ".join(choices))
        return found

    def flag(self, field: str) -> bool:
        """Whether it is fake: 1 or 0, true or false, yes or no, fake or real."""
        value = self._row.get(field)
        if isinstance(value, bool | int | float) and value in (0, 1):
            return bool(value)
        word = value.strip().lower() if isinstance(value, str) else ""
        if word not in _YES | _NO:
            raise self.wrong(field, "1 or 0, true or false, fake or real")
        return word in _YES
