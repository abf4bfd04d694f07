"""One file, scored at once: what `dissonance inspect` shows. The numbers are a scan's."""

import time
from collections.abc import Iterator
from pathlib import Path

from dissonance.bundle import Bundle, BundleSpec
from dissonance.config import ScanConfig
from dissonance.engine.media.clip import ClipSummary, Window
from dissonance.engine.media.detect import make_detector
from dissonance.engine.runtime.base import Runtime
from dissonance.engine.scan.channel import ProtocolError
from dissonance.engine.scan.messages import Crashed, Failed, Opened, Task
from dissonance.engine.scan.scoring import Scorer, WindowScore
from dissonance.engine.scan.sources import Input
from dissonance.engine.scan.verdict import FileVerdict, VerdictBuilder
from dissonance.engine.scan.workers import Event, WorkerPool
from dissonance.errors import MediaError


def score_file(path: Path, *, bundle: Bundle, runtime: Runtime, config: ScanConfig) -> tuple[ClipSummary, FileVerdict]:
    """Read (in a decode worker), score and judge one file. Raises MediaError where it cannot be read, DissonanceError for wrong settings."""
    builder = VerdictBuilder(uri=Input.of(str(path)).uri, bundle=bundle, scan=config, runtime=runtime.name)
    score = FileScore(builder, bundle=bundle, runtime=runtime, config=config)
    for event in read_file(path, spec=bundle.spec, config=config):
        score.take(event)
    return score.verdict()


def read_file(path: Path, *, spec: BundleSpec, config: ScanConfig) -> Iterator[Event]:
    """What a decode worker says of one file. Raises MediaError where it cannot be read, DissonanceError for wrong settings."""
    make_detector(config.detector)  # a wrong model or box file is told before the work starts
    source = Input.of(str(path))
    tasks = iter([Task(0, source.path, source.uri)])
    with WorkerPool(count=1, spec=spec, scan=config) as pool:
        for event in pool.run(lambda: next(tasks, None), poll=lambda: 1.0):
            if isinstance(event.message, Failed | Crashed):
                raise MediaError(event.message.reason, event.message.detail)
            yield event


class FileScore:
    """One file's way from what its worker says to its verdict, by one runtime."""

    def __init__(self, builder: VerdictBuilder, *, bundle: Bundle, runtime: Runtime, config: ScanConfig, started_s: float | None = None) -> None:
        """`builder`: of this try. `started_s`: when the first try began, on the monotonic clock; None: now."""
        self._started_s = time.monotonic() if started_s is None else started_s
        self._builder = builder
        self._scorer = Scorer(runtime, model=bundle.spec.model, execution=config.execution)
        self._summary: ClipSummary | None = None

    def take(self, event: Event) -> list[WindowScore]:
        """The next event; returns scores that are there now. Raises MediaError where the worker contradicts itself."""
        message = event.message
        if isinstance(message, Opened):
            self._builder.opened(message)
        if isinstance(message, ClipSummary):
            self._summary = message
        if event.peak_memory_mib is not None:
            self._builder.peak_memory(event.peak_memory_mib)
        if not isinstance(message, Window):
            return []
        try:
            self._scorer.add(0, message)
        except ProtocolError as error:
            raise _contradiction(error) from error
        return self._added(self._scorer.run())

    def flush(self) -> list[WindowScore]:
        """After the last event: the scores that were not there yet."""
        return self._added(self._scorer.flush())

    def _added(self, scores: Iterator[tuple[int, WindowScore]]) -> list[WindowScore]:
        found = [score for _, score in scores]
        for score in found:
            self._builder.add(score)
        return found

    def verdict(self) -> tuple[ClipSummary, FileVerdict]:
        """After the last event. Raises MediaError where the worker contradicted itself."""
        self.flush()
        assert self._summary is not None
        try:
            return self._summary, self._builder.scored(self._summary, elapsed_s=time.monotonic() - self._started_s)
        except ProtocolError as error:
            raise _contradiction(error) from error


def _contradiction(error: ProtocolError) -> MediaError:
    return MediaError("decoder_crash", f"the decode worker contradicts itself: {error}")
