"""What `doctor` and `bench` show."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from dissonance.console.screen import number, printable

if TYPE_CHECKING:  # `doctor` must run where a library that it looks for is missing
    from dissonance.doctor import Finding


def bench_table(rung: str, rows: Iterable[dict[str, Any]]) -> Table:
    """What a rung of the ladder measured."""
    table = Table("what", "value", "limit", "holds", "how", title=escape(rung), title_justify="left")
    for row in rows:
        holds = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[row["holds"]]
        table.add_row(escape(row["what"]), number(row["value"]), escape(row["limit"] or ""), holds, escape(row["how"]))
    return table


def findings_table(findings: Iterable[Finding]) -> Table:
    """What `doctor` found."""
    table = Table("what", "verdict", "detail", "needed for")
    colours = {"ok": "green", "missing": "yellow", "broken": "red"}
    for finding in findings:
        verdict = f"[{colours[finding.verdict]}]{finding.verdict}[/]"
        table.add_row(escape(finding.name), verdict, escape(printable(finding.detail)), escape(finding.needed_for))
    return table
