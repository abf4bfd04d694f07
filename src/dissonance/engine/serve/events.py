"""What the video endpoint says of a video, one JSON object a response.

| event | when | holds |
| --- | --- | --- |
| window | as soon as a window is scored | track, window, start_s, end_s, the heads' probabilities, best_lag_frames |
| rows | when the video was read to its end | tracks, windows: rows as a scan writes them, some hundreds at a time |
| verdict | last | file: the row as a scan writes it |
"""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dissonance.bundle import BundleSpec, ModalityCase
from dissonance.engine.scan.scoring import WindowScore
from dissonance.engine.scan.verdict import FileVerdict, probability
from dissonance.engine.serve.transports import Unavailable

_ROWS = 500  # an event


def window_event(score: WindowScore, spec: BundleSpec) -> str:
    """What is known of a window before the whole video is."""
    logits: dict[str, tuple[float | None, ModalityCase]] = {
        "p_fake": (score.logit_fused, "av"),
        "p_visual": (score.logit_visual, "v"),
        "p_audio": (score.logit_audio, "a"),
    }
    window = score.window
    scores = {name: None if logit is None else probability(logit, spec.calibration[case]) for name, (logit, case) in logits.items()}
    place = {"track": window.track, "window": window.index, "start_s": window.start_s, "end_s": window.end_s}
    return json.dumps({"event": "window", **place, **scores, "best_lag_frames": score.best_lag}, allow_nan=False)


def verdict_events(verdict: FileVerdict) -> Iterator[str]:
    """All rows of a video, the file's last."""
    for name, rows in (("tracks", verdict.tracks), ("windows", verdict.windows)):
        for start in range(0, len(rows), _ROWS):
            yield json.dumps({"event": "rows", name: rows[start : start + _ROWS]}, allow_nan=False)
    yield json.dumps({"event": "verdict", "file": verdict.file}, allow_nan=False)


def read_events(events: Iterable[str], on_event: Callable[[dict[str, Any]], None] | None) -> FileVerdict:
    """The verdict that they come to. Raises Unavailable where they end before it."""
    tracks: list[dict[str, Any]] = []
    windows: list[dict[str, Any]] = []
    file: dict[str, Any] | None = None
    for line in events:
        event = json.loads(line)
        if on_event is not None:
            on_event(event)
        tracks += event.get("tracks", [])
        windows += event.get("windows", [])
        file = event.get("file", file)
    if file is None:
        raise Unavailable("the answer was broken off before the verdict")
    return FileVerdict(file, tracks, windows)
