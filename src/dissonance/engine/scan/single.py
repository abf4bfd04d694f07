"""One file, in this process: what `dissonance inspect` shows. The numbers are a scan's."""

import time
from pathlib import Path

from dissonance.bundle import Bundle
from dissonance.config import ScanConfig
from dissonance.engine.media.clip import ClipSummary, read_clip
from dissonance.engine.media.detect import make_detector
from dissonance.engine.runtime.base import Runtime
from dissonance.engine.scan.scoring import Scorer
from dissonance.engine.scan.verdict import FileVerdict, VerdictBuilder


def score_file(path: Path, *, bundle: Bundle, runtime: Runtime, config: ScanConfig) -> tuple[ClipSummary, FileVerdict]:
    """Read, score and judge one file. Raises MediaError where it cannot be read, DissonanceError for wrong settings."""
    started_s = time.monotonic()
    spec = bundle.spec
    builder = VerdictBuilder(uri=str(path), bundle=bundle, scan=config, runtime=runtime.name)
    scorer = Scorer(runtime, model=spec.model, execution=config.execution)
    summary: ClipSummary | None = None
    detector = make_detector(config.detector)
    for part in read_clip(path, model=spec.model, crop=spec.crop, mel=spec.mel, scan=config, detector=detector):
        if isinstance(part, ClipSummary):
            summary = part
        else:
            scorer.add(0, part)
            for _, score in scorer.run():
                builder.add(score)
    for _, score in scorer.flush():
        builder.add(score)
    assert summary is not None
    return summary, builder.scored(summary, elapsed_s=time.monotonic() - started_s)
