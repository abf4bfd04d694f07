"""A scan from end to end: sources -> decode workers -> batched inference -> verdicts -> sink, every input accounted for.

Decoding is in worker processes, inference and everything that must not be lost in this one: inference in threads of its own, so that this one goes on
reading, deciding and writing meanwhile. Where inference falls behind, this thread waits for it, and the workers wait for this thread.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from dissonance.bundle import Bundle
from dissonance.config import ScanConfig
from dissonance.engine.media.clip import ClipSummary, Window
from dissonance.engine.media.dali import require_decoder
from dissonance.engine.media.detect import make_detector
from dissonance.engine.runtime.base import Runtime
from dissonance.engine.scan.channel import ProtocolError
from dissonance.engine.scan.inference import Inference
from dissonance.engine.scan.ledger import Ledger, Stamp
from dissonance.engine.scan.messages import Crashed, Declined, Failed, Opened, Task
from dissonance.engine.scan.scoring import Scorer, WindowScore
from dissonance.engine.scan.sink import Sink
from dissonance.engine.scan.sources import Input, Sources
from dissonance.engine.scan.stages import stage
from dissonance.engine.scan.verdict import FileVerdict, VerdictBuilder
from dissonance.engine.scan.workers import Event, WorkerPool
from dissonance.errors import OutputError, UsageError
from dissonance.files import replacing
from dissonance.locks import held
from dissonance.machine import available_cores

_LEDGER, _LOCK = "run.db", "run.lock"
MAX_TRIES = 2  # a file that cost its worker gets one more, in a process of its own
LONGEST_PATH = 1 << 16  # bytes; no system opens a longer one
_IDLE_WAIT_S = 1.0
_BATCHING_WAIT_S = 0.05  # how long a file that has been read to its end waits for others to fill its last batch


class Progress(Protocol):
    """Is told how a scan goes."""

    def started(self, *, total: int, done: int) -> None:
        """All inputs are known; `done` of them are from an earlier run."""
        ...

    def finished_file(self, row: dict[str, object]) -> None:
        """One more input has its row."""
        ...

    def merging(self) -> None:
        """All inputs have rows; the tables are being written."""
        ...


@dataclass(frozen=True)
class ScanSummary:
    """How a run ended. `inputs = scored + abstained + failed` holds, or the run raised."""

    inputs: int
    scored: int
    abstained: int
    failed: int
    skipped: int  # names in folders without a listed extension
    repeated: int  # inputs named more than once
    resumed: int  # done by an earlier run, not decoded again
    decoded: int  # files read by this run
    retried: int  # files that cost their worker once
    lost: dict[str, int]  # workers that had to be replaced, by reason
    elapsed_s: float


@dataclass
class _Clip:
    """A file on its way."""

    number: int
    task: Task
    stamp: Stamp
    builder: VerdictBuilder
    tries: int
    counted: bool = False  # as decoded by this run
    started_s: float = field(default_factory=time.monotonic)
    windows_left: int = 0
    summary: ClipSummary | None = None


class Scan:
    """One run. `run` does it; an interrupted one keeps every finished file and can be resumed."""

    def __init__(
        self,
        sources: Sequence[str],
        *,
        out: Path,
        bundle: Bundle,
        runtime: Runtime,
        config: ScanConfig,
        progress: Progress,
        resume: bool = False,
        retry_failed: bool = False,
    ) -> None:
        self._sources = Sources(sources, extensions=config.extensions)
        self._out = out
        self._bundle = bundle
        self._runtime = runtime
        self._config = config
        self._resume = resume
        self._retry_failed = retry_failed
        self._progress = progress
        self._clips: dict[int, _Clip] = {}
        self._retries: deque[_Clip] = deque()
        self._heard_s = self._flushed_s = time.monotonic()  # from a worker; and when partial batches were last run
        self._next_id = 0
        self._decoded = self._retried = 0
        self._lost: Counter[str] = Counter()
        self._confined: list[str] | None = None

    def run(self) -> ScanSummary:
        """Scan everything. Raises DissonanceError for what ends a run; a file never does."""
        make_detector(self._config.detector)  # a wrong model or box file is told once, before the work starts
        require_decoder(self._config.decoder)
        try:
            with self._locked_out(), Inference(threads=self._runtime.lanes) as self._inference:
                self._scorer = Scorer(self._runtime, model=self._bundle.spec.model, execution=self._config.execution, inference=self._inference)
                return self._run()
        except (OSError, sqlite3.Error) as error:
            raise OutputError(f"Cannot work in --out '{self._out}': {error}. Mend that (free some space?), then continue with --resume.") from error

    def _run(self) -> ScanSummary:
        started_s, started_at = time.monotonic(), datetime.now(UTC)
        with self._open_ledger() as ledger:
            resumed, repeated = self._enter_inputs(ledger)
            counts = ledger.counts()
            self._progress.started(total=counts["inputs"], done=counts["inputs"] - counts["pending"])
            sink = Sink(self._out, ledger, execution=self._config.execution)
            try:
                self._decode_and_score(ledger, sink)
            finally:
                sink.flush()
            self._progress.merging()
            sink.merge()
            counts = ledger.counts()
            if counts["pending"] or counts["inputs"] != counts["scored"] + counts["abstained"] + counts["failed"]:
                raise AssertionError(f"accounting does not close: {counts}")
            summary = ScanSummary(
                inputs=counts["inputs"],
                scored=counts["scored"],
                abstained=counts["abstained"],
                failed=counts["failed"],
                skipped=self._sources.skipped,
                repeated=repeated,
                resumed=resumed,
                decoded=self._decoded,
                retried=self._retried,
                lost=dict(sorted(self._lost.items())),
                elapsed_s=time.monotonic() - started_s,
            )
            self._write_manifest(summary, started_at)
            return summary

    # ----------------------------------------------------------------------------------------------- what there is to do

    def _open_ledger(self) -> Ledger:
        run = {"bundle": self._bundle.id, "precision": self._runtime.precision, "scan_config": self._config.fingerprint()}
        path = self._out / _LEDGER
        if path.exists():
            if not self._resume:
                raise UsageError(f"'{self._out}' holds an earlier run. Continue it with --resume, or give another --out.")
            return Ledger.resume(path, run=run)
        if any(not name.startswith((_LOCK, _LEDGER)) for name in os.listdir(self._out)):
            raise UsageError(f"'{self._out}' is not empty and holds no run. Give --out a new or empty folder.")
        return Ledger.create(path, run=run)

    @contextlib.contextmanager
    def _locked_out(self) -> Iterator[None]:
        """OUT, made and held for this run alone: two runs in one folder would delete each other's shards."""
        try:
            self._out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"Cannot make --out '{self._out}': {error.strerror or error}. Give a folder that can be written.") from error
        with held(self._out / _LOCK, taken=f"Another scan is at work in '{self._out}'. Wait for it to end, or give another --out."):
            yield

    def _enter_inputs(self, ledger: Ledger) -> tuple[int, int]:
        """List the sources into the ledger; returns (inputs that are done and stay so, inputs named more than once)."""
        known = ledger.counts()["inputs"]
        if known == 0:
            try:
                return 0, ledger.add_inputs(self._sources)
            except BaseException:  # a list cut short, by a wrong manifest or Ctrl-C, is no run to resume
                ledger.discard()
                raise
        for source in self._sources.missing():
            if not ledger.knows(Input.of(source).uri):
                raise UsageError(f"Source '{source}' is not there now, so nothing was changed. Is its storage mounted?")
        if self._retry_failed:
            ledger.reopen_failed()
        resumed = self._reopen_changed(ledger)
        return resumed, max(0, ledger.add_inputs(self._sources) - known)

    def _reopen_changed(self, ledger: Ledger) -> int:
        """Compare what is done with what is there now; returns how many inputs stay done."""
        kept = 0
        for done in ledger.done():
            stamp = Stamp.of(done.path)
            if stamp in (done.stamp, Stamp(None, None)):  # the same, or out of reach now: what was found then still holds
                kept += 1
            elif done.content_hash is not None and stamp.size_bytes == done.stamp.size_bytes and _sha256(done.path) == done.content_hash:
                ledger.touch(done.id, stamp)
                kept += 1
            else:
                ledger.reopen(done.id)
        return kept

    def _tasks(self, ledger: Ledger) -> Iterator[_Clip]:
        for number, item in ledger.pending():
            self._next_id += 1
            decoder = self._config.decoder
            builder = VerdictBuilder(uri=item.uri, bundle=self._bundle, scan=self._config, runtime=self._runtime.name, decoder=decoder)
            yield _Clip(number, Task(self._next_id, item.path, item.uri, decoder), Stamp.of(item.path), builder, tries=1)

    # ------------------------------------------------------------------------------------------------------- the main loop

    def _decode_and_score(self, ledger: Ledger, sink: Sink) -> None:
        tasks = self._tasks(ledger)

        def next_task() -> Task | None:
            clip = self._retries.popleft() if self._retries else next(tasks, None)
            while clip is not None and len(os.fsencode(clip.task.path)) > LONGEST_PATH:
                self._clips[clip.task.id] = clip
                self._finish(clip, clip.builder.without_score(reason="unreadable", detail=os.strerror(errno.ENAMETOOLONG), elapsed_s=0.0), sink)
                clip = next(tasks, None)
            if clip is None:
                return None
            self._clips[clip.task.id] = clip
            return clip.task

        def poll() -> float:
            self._deliver(self._scorer.run(partial=self._partial_batches_are_due(time.monotonic())), sink)
            sink.flush_if_old()
            return _BATCHING_WAIT_S if self._file_waits() else _IDLE_WAIT_S

        with WorkerPool(count=self._config.execution.workers or available_cores(), spec=self._bundle.spec, scan=self._config) as pool:
            while True:
                for event in pool.run(next_task, poll=poll, wake=self._inference.wake):
                    self._heard_s = time.monotonic()
                    if event.task.id in self._clips:
                        try:
                            with stage("receive"):
                                self._on_event(self._clips[event.task.id], event, sink)
                        except ProtocolError as error:
                            pool.drop(event.task)
                            self._on_crash(self._clips[event.task.id], Crashed(f"the decode worker contradicts itself: {error}"), sink)
                self._deliver(self._scorer.flush(), sink)
                if not self._retries:  # which the last windows of all may ask for
                    break
            self._confined = None if pool.confined is None else sorted(pool.confined)

    def _partial_batches_are_due(self, now_s: float) -> bool:
        """While a file waits for scores: once no worker has said anything for a while, or long after they last ran. Then they run now."""
        due = self._file_waits() and (now_s - self._heard_s >= _BATCHING_WAIT_S or now_s - self._flushed_s > _IDLE_WAIT_S)
        if due:
            self._flushed_s = now_s
        return due

    def _file_waits(self) -> bool:
        """Whether a file that was read to its end lacks scores."""
        return any(clip.summary is not None for clip in self._clips.values())

    def _on_event(self, clip: _Clip, event: Event, sink: Sink) -> None:
        message = event.message
        if event.peak_memory_mib is not None:
            clip.builder.peak_memory(event.peak_memory_mib)
        if isinstance(message, Opened):
            self._decoded += not clip.counted
            clip.counted = True
            clip.builder.opened(message)
        elif isinstance(message, Window):
            self._scorer.add(clip.task.id, message)
            clip.windows_left += 1
        elif isinstance(message, ClipSummary):
            clip.summary = message
            self._finish_if_complete(clip, sink)
        elif isinstance(message, Failed):
            self._finish(clip, clip.builder.without_score(reason=message.reason, detail=message.detail, elapsed_s=_since(clip)), sink)
        elif isinstance(message, Declined):
            self._read_again(clip, cause=f"{clip.task.decoder}: {message.detail}", fresh=False)
        elif isinstance(message, Crashed):
            self._on_crash(clip, message, sink)

    def _on_crash(self, clip: _Clip, crash: Crashed, sink: Sink) -> None:
        """A worker was lost over this file: once more, in a process that has decoded nothing else; a second time it is the file's fault."""
        self._lost[crash.reason] += 1
        if clip.tries >= MAX_TRIES:
            self._finish(clip, clip.builder.without_score(reason=crash.reason, detail=crash.detail, elapsed_s=_since(clip)), sink)
            return
        self._retried += 1
        self._read_again(clip, cause=f"{crash.reason}: {crash.detail}", fresh=True)

    def _read_again(self, clip: _Clip, *, cause: str, fresh: bool) -> None:
        """From its beginning, with PyAV, whatever decoded it before; what was found so far is dropped."""
        self._scorer.forget(clip.task.id)
        del self._clips[clip.task.id]
        self._next_id += 1
        task = Task(self._next_id, clip.task.path, clip.task.uri, fresh=fresh)
        builder = clip.builder.anew(fallback_cause=cause)
        again = _Clip(clip.number, task, Stamp.of(task.path), builder, tries=clip.tries + fresh, counted=clip.counted, started_s=clip.started_s)
        self._retries.append(again)

    def _deliver(self, scores: Iterator[tuple[int, WindowScore]], sink: Sink) -> None:
        for task_id, score in scores:
            clip = self._clips[task_id]
            clip.builder.add(score)
            clip.windows_left -= 1
            self._finish_if_complete(clip, sink)

    def _finish_if_complete(self, clip: _Clip, sink: Sink) -> None:
        if clip.summary is None or clip.windows_left:
            return
        try:
            with stage("decide"):
                verdict = clip.builder.scored(clip.summary, elapsed_s=_since(clip))
        except ProtocolError as error:  # its worker has other work by now
            self._on_crash(clip, Crashed(f"the decode worker contradicts itself: {error}"), sink)
        else:
            self._finish(clip, verdict, sink)

    def _finish(self, clip: _Clip, verdict: FileVerdict, sink: Sink) -> None:
        self._scorer.forget(clip.task.id)
        del self._clips[clip.task.id]
        with stage("write"):
            sink.add(clip.number, verdict, clip.stamp)
        self._progress.finished_file(verdict.file)

    # ------------------------------------------------------------------------------------------------------- the manifest

    def _write_manifest(self, summary: ScanSummary, started_at: datetime) -> None:
        spec = self._bundle.spec
        document: dict[str, Any] = {
            "dissonance": metadata.version("dissonance"),
            "python": platform.python_version(),
            "bundle": {"id": self._bundle.id, "preset": spec.model.preset, "trained": spec.trained, "trained_on": spec.trained_on},
            "warning": self._bundle.warning,
            "scan_config": self._config.model_dump(mode="json"),
            "scan_config_hash": self._config.fingerprint(),
            "runtime": self._runtime.name,
            "worker_confinement": self._confined,
            "started_at": started_at.isoformat(),
            "finished_at": datetime.now(UTC).isoformat(),
            "summary": summary.__dict__,
        }
        with replacing(self._out / "run.json") as partial:
            partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _since(clip: _Clip) -> float:
    return time.monotonic() - clip.started_s


def _sha256(path: str) -> str | None:
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None
