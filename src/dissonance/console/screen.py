"""What everything shown is made with: names made safe to print, where it goes, cells, bars. Results go to stdout, everything else to stderr."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_PLAIN_WIDTH = 160  # of tables in a pipe or a file, where there is no screen to fit

Item = TypeVar("Item")


def printable(text: str) -> str:
    """Text that cannot move the cursor, change colours or reorder what is around it: everything unprintable is escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode() for char in text)


def _console(file: TextIO) -> Console:
    return Console(file=file, highlight=False, width=None if file.isatty() else _PLAIN_WIDTH)


def stdout() -> Console:
    """Where results go."""
    return _console(sys.stdout)


def stderr() -> Console:
    """Where everything else goes."""
    return _console(sys.stderr)


def number(value: Any, digits: int = 3) -> str:
    """A cell of a table."""
    return "" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def bar(console: Console, what: str) -> Progress:
    """A bar with a count, the time so far and the time to come; it disappears when it ends."""
    columns = (SpinnerColumn(), TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def counted(console: Console, what: str, total: int, items: Iterable[Item]) -> Iterator[Item]:
    """Pass items on while showing how many of `total` have come: a bar on a terminal, a plain line at the start elsewhere."""
    if not console.is_terminal:
        console.print(f"{what}: {total}", markup=False)
        yield from items
        return
    with bar(console, what) as shown:
        yield from shown.track(items, total=total)
