"""What a person sees: names made safe to print, the progress of a scan, tables of results. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self, TextIO, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:  # an error must be printable, and `doctor` must run, where a library that these need is missing
    from dissonance.doctor import Finding
    from dissonance.engine.media.clip import ClipSummary
    from dissonance.engine.scan.pipeline import ScanSummary
    from dissonance.engine.scan.verdict import FileVerdict
    from dissonance.synth.dataset import ClipRow
    from dissonance.training.run import RunResult

_PLAIN_INTERVAL_S = 10.0


def printable(text: str) -> str:
    """Text that cannot move the cursor, change colours or reorder what is around it: everything unprintable is escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode() for char in text)


_PLAIN_WIDTH = 160  # of tables in a pipe or a file, where there is no screen to fit


def _console(file: TextIO) -> Console:
    return Console(file=file, highlight=False, width=None if file.isatty() else _PLAIN_WIDTH)


def stdout() -> Console:
    """Where results go."""
    return _console(sys.stdout)


def stderr() -> Console:
    """Where everything else goes."""
    return _console(sys.stderr)


class ScanProgress:
    """A bar with rate and ETA on a terminal, a plain line every few seconds elsewhere. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._total = self._done = self._done_before = 0
        self._counts = {"scored": 0, "abstained": 0, "failed": 0}
        self._started_s = self._last_line_s = time.monotonic()

    def __enter__(self) -> ScanProgress:
        if self._console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("listing inputs", total=None, rate="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def started(self, *, total: int, done: int) -> None:
        """All inputs are known; `done` of them are from an earlier run."""
        self._total, self._done, self._done_before = total, done, done
        self._started_s = self._last_line_s = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description="scanning", total=total, completed=done)
        elif total:
            self._console.print(f"scanning {total} inputs" + (f", {done} done by an earlier run" if done else ""), markup=False)

    def finished_file(self, row: dict[str, object]) -> None:
        """One more input has its row."""
        self._done += 1
        self._counts[str(row["status"])] += 1
        now_s = time.monotonic()
        rate = (self._done - self._done_before) / max(now_s - self._started_s, 1e-9)
        if self._bar is not None and self._task is not None:
            failed = f", {self._counts['failed']} failed" if self._counts["failed"] else ""
            self._bar.update(self._task, completed=self._done, rate=f"{rate:.1f} files/s{failed}")
        elif now_s - self._last_line_s >= _PLAIN_INTERVAL_S:
            self._last_line_s = now_s
            eta_s = (self._total - self._done) / rate
            self._console.print(
                f"{self._done}/{self._total} files, {rate:.2f} files/s, {self._counts['failed']} failed, ETA {eta_s:.0f} s", markup=False
            )

    def merging(self) -> None:
        """All inputs have rows; the tables are being written."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description="writing tables")


def _number(value: Any, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else str(value)


_NARROW = 120  # columns of a terminal below which the single heads' scores are left to the files


def files_table(rows: Iterable[dict[str, Any]], *, title: str | None, most: int, width: int) -> Table:
    """The first `most` rows of a scan as a table for a screen of `width` columns."""
    scores = {
        "p_fake": "p_fake",
        "p_visual": "p_visual",
        "p_audio": "p_audio",
        "match_similarity": "match",
        "best_lag_frames": "lag",
        "tracks": "tracks",
    }
    if width < _NARROW:
        scores = {"p_fake": "p_fake", "best_lag_frames": "lag"}
    table = Table(title=title and escape(title), title_style="bold yellow", title_justify="left")
    table.add_column("file", overflow="fold", min_width=16)
    for heading in ("status", "label", *scores.values()):
        table.add_column(heading, no_wrap=True)
    table.add_column("reason", overflow="fold", min_width=8)
    for row, _ in zip(rows, range(most), strict=False):
        table.add_row(
            escape(printable(row["uri"])),
            row["status"],
            row["label"] or "",
            *(_number(row[name]) for name in scores),
            escape(printable(f"{row['reason']}: {row['detail']}" if row["detail"] else row["reason"] or "")),
        )
    return table


def summary_lines(summary: ScanSummary, out: str) -> list[str]:
    """How a run ended, in a few lines."""
    s = summary
    lines = [f"{s.inputs} inputs = {s.scored} scored + {s.abstained} abstained + {s.failed} failed, in {s.elapsed_s:.1f} s"]
    notes = {
        "names in folders skipped: not a listed extension": s.skipped,
        "inputs named more than once": s.repeated,
        "inputs done by an earlier run": s.resumed,
        "files tried a second time": s.retried,
    }
    lines += [f"  {count} {what}" for what, count in notes.items() if count]
    if s.lost:
        lines.append("  decode workers lost and replaced: " + ", ".join(f"{count} {reason}" for reason, count in s.lost.items()))
    lines.append(f"Rows: {printable(out)}/files.parquet, tracks.parquet, windows.parquet (and .jsonl); manifest: run.json")
    return lines


_BLOCKS = "▁▂▃▄▅▆▇█"
_TIMELINE_WIDTH = 60  # windows a line


def _block(p_fake: float | None) -> str:
    return "·" if p_fake is None else _BLOCKS[min(int(p_fake * len(_BLOCKS)), len(_BLOCKS) - 1)]


def inspection(console: Console, summary: ClipSummary, verdict: FileVerdict, *, warning: str | None) -> None:
    """One file: streams, verdict, and for every track a line of window scores and a table of them."""
    row: dict[str, Any] = verdict.file
    info = summary.info
    console.print(printable(f"{row['uri']}: {info.container}, {summary.duration_s:.2f} s"), markup=False)
    if info.video:
        video = info.video
        rate = "?" if video.fps is None else f"{video.fps:g}"
        line = (
            f"  picture: stream #{video.index}, {video.codec} {video.width}x{video.height} {video.pixel_format}, {rate} fps"
            f"{' (variable)' if summary.variable_frame_rate else ''}, turned {video.rotation_deg} deg, starts at {video.start_s:.3f} s, "
            f"{summary.frames_decoded} frames decoded, {summary.frames_dropped} dropped"
        )
        console.print(printable(line), markup=False)
    if info.audio:
        audio = info.audio
        line = (
            f"  sound:   stream #{audio.index}, {audio.codec} {audio.sample_rate_hz} Hz, {audio.channels} channel(s), "
            f"starts at {audio.start_s:.3f} s, speech in {_number(summary.speech_fraction, 2) or 'none'} of it"
        )
        console.print(printable(line), markup=False)
    console.print(f"  chosen:  {printable(info.choice)}", markup=False)
    if row["status"] != "scored":
        console.print(f"  {row['status']}: {printable(str(row['reason']))}: {printable(str(row['detail']))}", markup=False)
        return
    if warning:
        console.print(f"  [bold yellow]{escape(warning)}[/]")
    console.print(
        f"  verdict: {row['label']}, p_fake {_number(row['p_fake'])} from {row['modalities']}; lag {_number(row['best_lag_frames']) or '-'} frames, "
        f"match {_number(row['match_similarity']) or '-'}" + ("; offscreen voice" if row["offscreen_voice"] else ""),
        markup=False,
    )
    for track in verdict.tracks:
        windows: list[dict[str, Any]] = [window for window in verdict.windows if window["track"] == track["track"]]
        _track_timeline(console, track, windows)


def _track_timeline(console: Console, track: dict[str, Any], windows: list[dict[str, Any]]) -> None:
    name = "sound alone" if track["track"] < 0 else f"track {track['track']}"
    console.print(
        f"\n  {name}, {track['start_s']:.2f}-{track['end_s']:.2f} s{', speaks' if track['speaker'] else ''}: p_fake {_number(track['p_fake'])}, "
        f"lag {_number(track['best_lag_frames']) or '-'}",
        markup=False,
    )
    for start in range(0, len(windows), _TIMELINE_WIDTH):
        part = windows[start : start + _TIMELINE_WIDTH]
        console.print(f"  {part[0]['start_s']:9.2f} s {''.join(_block(window['p_fake']) for window in part)}", markup=False)
    if len(windows) > _TIMELINE_WIDTH:
        return
    table = Table("window", "start_s", "end_s", "p_fake", "p_visual", "p_audio", "match", "lag", "speech")
    for window in windows:
        keys = ("p_fake", "p_visual", "p_audio", "match_similarity", "best_lag_frames")
        table.add_row(
            str(window["window"]),
            _number(window["start_s"], 2),
            _number(window["end_s"], 2),
            *(_number(window[key]) for key in keys),
            _number(window["speech_fraction"], 2),
        )
    console.print(table)


Item = TypeVar("Item")


def _bar(console: Console, what: str) -> Progress:
    columns = (SpinnerColumn(), TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def counted(console: Console, what: str, total: int, items: Iterable[Item]) -> Iterator[Item]:
    """Pass items on while showing how many of `total` have come: a bar on a terminal, a plain line at the start elsewhere."""
    if not console.is_terminal:
        console.print(f"{what}: {total}", markup=False)
        yield from items
        return
    with _bar(console, what) as bar:
        yield from bar.track(items, total=total)


def clips_table(rows: Iterable[ClipRow], *, most: int) -> Table:
    """The first `most` synthetic clips; all are made."""
    table = Table("clip", "type", "forgery", "split", "shift", "people")
    for number, row in enumerate(rows):
        if number < most:
            table.add_row(str(row.file), row.type, row.forgery, row.split, str(row.shift_frames), "1" if row.companion == "-" else "2")
    return table


def bench_table(rung: str, rows: Iterable[dict[str, Any]]) -> Table:
    """What a rung of the ladder measured."""
    table = Table("what", "value", "limit", "holds", "how", title=escape(rung), title_justify="left")
    for row in rows:
        holds = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[row["holds"]]
        table.add_row(escape(row["what"]), _number(row["value"], 2), escape(row["limit"] or ""), holds, escape(row["how"]))
    return table


def findings_table(findings: Iterable[Finding]) -> Table:
    """What `doctor` found."""
    table = Table("what", "verdict", "detail", "needed for")
    colours = {"ok": "green", "missing": "yellow", "broken": "red"}
    for finding in findings:
        verdict = f"[{colours[finding.verdict]}]{finding.verdict}[/]"
        table.add_row(escape(finding.name), verdict, escape(printable(finding.detail)), escape(finding.needed_for))
    return table


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
        shown = ", ".join(f"{name} {_number(value)}" for name, value in figures.items())
        self.tell(f"validation at step {step}: {shown}" + (" (best so far)" if best else ""))

    def _begin(self, what: str, total: int) -> None:
        self._end()
        if self._console.is_terminal:
            self._bar = _bar(self._console, what)
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
    figures = ", ".join(f"{name} {_number(value)}" for name, value in result.figures.items())
    lines = [f"trained on {result.trained_on}: best at step {result.best_step} of {result.steps}; {figures}"]
    for case, found in result.calibration.items():
        threshold = found.thresholds["likely_fake"]
        caught = threshold.true_positive_rate.value
        lines.append(
            f"case {case}: likely_fake from p_fake {_number(found.spec.likely_fake_from)}, "
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
    return _number(metric["value"]) + (f" ({_number(interval['low'])} to {_number(interval['high'])})" if interval else "")
