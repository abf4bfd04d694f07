"""What a scan shows: its progress, its rows, how it ended; and one file whole."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dissonance.console.screen import number, printable

if TYPE_CHECKING:  # an error must be printable where a library that these need is missing
    from dissonance.engine.media.clip import ClipSummary
    from dissonance.engine.scan.pipeline import ScanSummary
    from dissonance.engine.scan.verdict import FileVerdict

_PLAIN_INTERVAL_S = 10.0
_NARROW = 120  # columns of a terminal below which the single heads' scores are left to the files
_BLOCKS = "▁▂▃▄▅▆▇█"
_TIMELINE_WIDTH = 60  # windows a line


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
            *(number(row[name]) for name in scores),
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
            f"starts at {audio.start_s:.3f} s, speech in {number(summary.speech_fraction, 2) or 'none'} of it"
        )
        console.print(printable(line), markup=False)
    console.print(f"  chosen:  {printable(info.choice)}", markup=False)
    if row["status"] != "scored":
        console.print(f"  {row['status']}: {printable(str(row['reason']))}: {printable(str(row['detail']))}", markup=False)
        return
    if warning:
        console.print(f"  [bold yellow]{escape(warning)}[/]")
    console.print(
        f"  verdict: {row['label']}, p_fake {number(row['p_fake'])} from {row['modalities']}; lag {number(row['best_lag_frames']) or '-'} frames, "
        f"match {number(row['match_similarity']) or '-'}" + ("; offscreen voice" if row["offscreen_voice"] else ""),
        markup=False,
    )
    for track in verdict.tracks:
        windows: list[dict[str, Any]] = [window for window in verdict.windows if window["track"] == track["track"]]
        _track_timeline(console, track, windows)


def _track_timeline(console: Console, track: dict[str, Any], windows: list[dict[str, Any]]) -> None:
    name = "sound alone" if track["track"] < 0 else f"track {track['track']}"
    console.print(
        f"\n  {name}, {track['start_s']:.2f}-{track['end_s']:.2f} s{', speaks' if track['speaker'] else ''}: p_fake {number(track['p_fake'])}, "
        f"lag {number(track['best_lag_frames']) or '-'}",
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
            number(window["start_s"], 2),
            number(window["end_s"], 2),
            *(number(window[key]) for key in keys),
            number(window["speech_fraction"], 2),
        )
    console.print(table)
