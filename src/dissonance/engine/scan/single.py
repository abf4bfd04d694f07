"""One file, scored at once: what `dissonance inspect` shows. The numbers are a scan's."""

import time
from pathlib import Path

from dissonance.bundle import Bundle
from dissonance.config import ScanConfig
from dissonance.engine.media.clip import ClipSummary, Window
from dissonance.engine.media.detect import make_detector
from dissonance.engine.runtime.base import Runtime
from dissonance.engine.scan.channel import ProtocolError
from dissonance.engine.scan.messages import Crashed, Failed, Opened, Task
from dissonance.engine.scan.scoring import Scorer, WindowScore
from dissonance.engine.scan.sources import Input
from dissonance.engine.scan.verdict import FileVerdict, VerdictBuilder
from dissonance.engine.scan.workers import WorkerPool
from dissonance.errors import MediaError


def score_file(path: Path, *, bundle: Bundle, runtime: Runtime, config: ScanConfig) -> tuple[ClipSummary, FileVerdict]:
    """Read (in a decode worker), score and judge one file. Raises MediaError where it cannot be read, DissonanceError for wrong settings."""
    started_s = time.monotonic()
    spec = bundle.spec
    make_detector(config.detector)  # a wrong model or box file is told before the work starts
    source = Input.of(str(path))
    builder = VerdictBuilder(uri=source.uri, bundle=bundle, scan=config, runtime=runtime.name)
    scorer = Scorer(runtime, model=spec.model, execution=config.execution)
    summary: ClipSummary | None = None
    tasks = iter([Task(0, source.path, source.uri)])

    def take(score: tuple[int, WindowScore]) -> None:
        builder.add(score[1])

    with WorkerPool(count=1, spec=spec, scan=config) as pool:
        for event in pool.run(lambda: next(tasks, None), poll=lambda: 1.0):
            message = event.message
            if isinstance(message, Failed | Crashed):
                raise MediaError(message.reason, message.detail)
            try:
                if isinstance(message, Window):
                    scorer.add(0, message)
                    for score in scorer.run():
                        take(score)
            except ProtocolError as error:
                raise MediaError("decoder_crash", f"the decode worker contradicts itself: {error}") from error
            if isinstance(message, Opened):
                builder.opened(message)
            if isinstance(message, ClipSummary):
                summary = message
            if event.peak_memory_mib is not None:
                builder.peak_memory(event.peak_memory_mib)
    for score in scorer.flush():
        take(score)
    assert summary is not None
    try:
        return summary, builder.scored(summary, elapsed_s=time.monotonic() - started_s)
    except ProtocolError as error:
        raise MediaError("decoder_crash", f"the decode worker contradicts itself: {error}") from error
