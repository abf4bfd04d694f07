"""What training and its measurements show: progress, results, tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from dissonance.console.screen import Item, bar, counted, number, printable

if TYPE_CHECKING:  # these import torch
    from dissonance.training.run import RunResult


class TrainProgress:
    """How a training run goes: a bar on a terminal, a line every LINE_EVERY steps elsewhere."""

    LINE_EVERY = 100
    CLIPS_A_LINE = 200

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._cached = dict.fromkeys(("cached", "known", "skipped"), 0)
        self._steps = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def tell(self, line: str) -> None:
        """One line, or several."""
        self._console.print(line, markup=False, highlight=False)

    def counted(self, what: str, total: int, items: Iterable[Item], /) -> Iterator[Item]:
        """Pass items on."""
        self._end()
        return counted(self._console, what, total, items)

    def caching(self, done: int, total: int, uri: str, outcome: str) -> None:
        """One clip more is in the cache, or was left out."""
        self._cached[outcome] += 1
        if done == 1:
            self._begin("caching clips", total)
        self._advance(done)
        if done == total or (self._bar is None and done % self.CLIPS_A_LINE == 0):
            self.tell(f"caching clips: {done} of {total} ({', '.join(f'{count} {name}' for name, count in self._cached.items() if count)})")
        if outcome == "skipped" and self._cached["skipped"] <= 5:
            self.tell(f"left out: {printable(uri)}")
        if done == total:
            self._end()

    def training(self, *, first_step: int, steps: int) -> None:
        """Steps begin."""
        self._steps = steps
        self._begin("training", steps)
        self._advance(first_step)
        self.tell(f"training: {steps} steps" + (f", from step {first_step + 1}" if first_step else ""))

    def step(self, step: int, *, loss: float) -> None:
        """So many steps are done."""
        self._advance(step)
        if self._bar is None and (step % self.LINE_EVERY == 0 or step == self._steps):
            self.tell(f"step {step} of {self._steps}: loss {loss:.3f}")
        if step == self._steps:
            self._end()

    def validated(self, step: int, figures: Mapping[str, float | None], *, best: bool) -> None:
        """What the validation clips say."""
        shown = ", ".join(f"{name} {number(value)}" for name, value in figures.items())
        self.tell(f"validation at step {step}: {shown}" + (" (best so far)" if best else ""))

    def _begin(self, what: str, total: int) -> None:
        self._end()
        if self._console.is_terminal:
            self._bar = bar(self._console, what)
            self._bar.start()
            self._task = self._bar.add_task(what, total=total)

    def _advance(self, done: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def training_lines(result: RunResult) -> list[str]:
    """What a training run came to."""
    figures = ", ".join(f"{name} {number(value)}" for name, value in result.figures.items())
    lines = [f"trained on {result.trained_on}: best at step {result.best_step} of {result.steps}; {figures}"]
    for case, found in result.calibration.items():
        threshold = found.thresholds["likely_fake"]
        caught = threshold.true_positive_rate.value
        lines.append(
            f"case {case}: likely_fake from p_fake {number(found.spec.likely_fake_from)}, "
            f"which {threshold.reals_above} of {threshold.reals} real clips reach and {0.0 if caught is None else caught:.0%} of the fakes"
        )
        lines += [f"  note: {note}" for note in found.notes]
    lines.append(f"checkpoint {printable(str(result.checkpoint))}; next: dissonance export {printable(str(result.checkpoint))} -o BUNDLE")
    return lines


def evaluation_table(report: Mapping[str, Any]) -> Table:
    """The heads of an evaluation, on clips as they are and trimmed; an interval in brackets."""
    columns = {"auc": "AUC", "average_precision": "AP", "equal_error_rate": "EER", "balanced_accuracy": "balanced accuracy"}
    warning = report["warning"]
    table = Table("", "clips", *columns.values(), title=warning and escape(printable(warning)), title_style="bold yellow", title_justify="left")
    for section, note in (("as_found", ""), ("leading_silence_trimmed", ", trimmed")):
        for name, head in report.get(section, {}).items():
            found = head["overall"]
            table.add_row(f"{name}{note}", str(found["clips"]), *(_metric(found[column]) for column in columns))
    return table


def _metric(metric: Mapping[str, Any]) -> str:
    if metric["value"] is None:
        return str(metric["reason"])
    interval = metric["interval"]
    return number(metric["value"]) + (f" ({number(interval['low'])} to {number(interval['high'])})" if interval else "")


def ablation_table(document: Mapping[str, Any]) -> Table:
    """The figures of every row, means over seeds, in brackets the difference to the default; those of single manipulations are left to the files."""
    measured, against = document["tables"]["figures"], document["tables"]["figures_against_default"]
    names = [name for name in dict.fromkeys(name for row in measured.values() for name in row) if ":" not in name]
    table = Table("row", "seeds", *names)
    for row in document["rows"]:
        runs = [run for run in document["runs"] if run["row"] == row]
        done = sum(run["failed"] is None for run in runs)
        cells = []
        for name in names:
            found, difference = measured.get(row, {}).get(name), against.get(row, {}).get(name)
            cells.append((number(found["mean"]) if found else "") + (f" ({difference['mean']:+.3f})" if difference else ""))
        table.add_row(row, str(done) if done == len(runs) else f"{done}, {len(runs) - done} diverged", *cells)
    return table
