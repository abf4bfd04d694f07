"""What the making of bundles shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from dissonance.console.screen import number

_COLUMNS = {
    "visual_features": "visual features",
    "audio_features": "audio features",
    "logits": "logits",
    "probabilities": "probabilities",
}


def validation_table(found: Mapping[str, Any]) -> Table:
    """One row a precision: differences from torch (largest, in brackets RMS), AUC, flips, what batch mates change; beyond its tolerance in red."""
    title = f"{found['files']} files, {found['windows']} windows, against {found['reference']}"
    columns = (*_COLUMNS.values(), "AUC", "flips", "batch mates", "holds")
    table = Table("precision", *columns, title=escape(title), title_justify="left")
    for precision, of in found["artefacts"].items():
        auc = "" if of["auc"] is None else f"{number(of['auc'], 4)} (torch {number(of['auc_of_torch'], 4)})"
        holds = "[green]yes[/]" if of["holds"] else f"[red]no: {escape(', '.join(of['beyond']))}[/]"
        differences = (f"{of[name]['largest']:.1e} ({of[name]['rms']:.1e})" for name in _COLUMNS)
        table.add_row(precision, *differences, auc, f"{of['flips']} of {found['files']}", f"{of['batch_mates']:.1e}", holds)
    for precision, reason in found["not_run"].items():
        table.add_row(precision, *[""] * len(_COLUMNS), "", "", "", escape(f"not run: {reason}"))
    return table
