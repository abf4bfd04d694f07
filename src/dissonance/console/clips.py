"""What `synth` shows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from dissonance.synth.dataset import ClipRow


def clips_table(rows: Iterable[ClipRow], *, most: int) -> Table:
    """The first `most` synthetic clips; all are made."""
    table = Table("clip", "type", "forgery", "split", "shift", "people")
    for number, row in enumerate(rows):
        if number < most:
            table.add_row(str(row.file), row.type, row.forgery, row.split, str(row.shift_frames), "1" if row.companion == "-" else "2")
    return table
