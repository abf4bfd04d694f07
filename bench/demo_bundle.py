"""Rung `demo-bundle`: what the shipped bundle knows, on synthetic clips of seeds that no training used, scored by `dissonance scan`.

Four sets of 728 clips: the renderer that it was trained on at three levels of compression, and the renderer that it never saw. Of seven clips two
are real, two are forged in timing alone, three hold artefacts and are in sync. AUCs are scikit-learn's, with 95 % intervals by a bootstrap over
people. As a control, the clips of the first set once more with every picture beside another clip's sound (`evaluate --shuffle-sound`): what still
tells the classes apart there is not the match. And real clips whose sound is shifted by -4 to 4 frames: whether the best lag says so.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sklearn.metrics import roc_auc_score

from bench._rows import Row, at_least, between, measured, tell
from bench._scans import dissonance, draw_and_scan, labelled, table
from dissonance.training.labels import REAL, Clip
from dissonance.training.metrics import summarise

COUNT = 728
KINDS = ("none", "none", "visual_timing", "audio_timing", "visual_artefact", "audio_artefact", "both")
SETS: dict[str, tuple[int, tuple[str, ...]]] = {  # seed, options of `synth`
    "crf 23": (7100, ("--compression", "c23")),
    "crf 28": (7200, ("--compression", "c28")),
    "crf 35": (7300, ("--compression", "c35")),
    "unseen renderer": (7400, ("--renderer", "cel")),
}
WITHOUT_PROMISE = "unseen renderer"
WITH_BASELINE = ("crf 23", "unseen renderer")
WITH_CONTROL = "crf 23"
SHUFFLE_SEED = 7
SHIFTS = range(-4, 5)
CLIPS_PER_SHIFT = 24

TIMING = (REAL, "visual_timing", "audio_timing")
PICTURE = (REAL, "visual_artefact", "both")
SOUND = (REAL, "audio_artefact", "both")
# score, kinds, what must hold
FIGURES: dict[str, tuple[str, tuple[str, ...], Callable[[str, float, str], Row]]] = {
    "fused, all kinds": ("p_fake", KINDS, lambda what, auc, how: at_least(what, auc, 0.97, how)),
    "fused, timing kinds": ("p_fake", TIMING, lambda what, auc, how: at_least(what, auc, 0.95, how)),
    "visual head, timing kinds": ("p_visual", TIMING, lambda what, auc, how: between(what, auc, 0.4, 0.6, how)),
    "audio head, timing kinds": ("p_audio", TIMING, lambda what, auc, how: between(what, auc, 0.4, 0.6, how)),
    "visual head, picture artefacts in sync": ("p_visual", PICTURE, lambda what, auc, how: at_least(what, auc, 0.85, how)),
    "audio head, sound artefacts in sync": ("p_audio", SOUND, lambda what, auc, how: at_least(what, auc, 0.95, how)),
}
BASELINE = "mouth_loudness"


def run() -> list[Row]:
    """Measure everything; about fifty minutes on two cores."""
    rows: list[Row] = []
    for name in SETS:
        with tempfile.TemporaryDirectory(prefix="dissonance-bench-") as folder:
            rows += of_set(name, Path(folder))
    return [*rows, *shifted()]


def of_set(name: str, folder: Path) -> list[Row]:
    """The figures of one set, with those of the baseline that correlates the mouth's movement with the loudness, and of the control."""
    seed, options = SETS[name]
    kinds = [part for kind in KINDS for part in ("--forgery", kind)]
    clips, out = draw_and_scan(folder, *options, *kinds, count=COUNT, seed=seed)
    of_uri = labelled(clips)
    scanned = {str(row["uri"]): row for row in table(out, "files")}
    rows = []
    for figure, (column, wanted, promise) in FIGURES.items():
        what, (auc, how) = f"{name}: {figure}, AUC", auc_of(scanned, of_uri, column, wanted)
        rows.append(measured(what, auc, how) if name == WITHOUT_PROMISE else promise(what, auc, how))
    evaluate = ("evaluate", clips, "--split", "all", "--resamples", 100, "--cache", folder / "cache", "-o")
    if name in WITH_BASELINE:
        dissonance(*evaluate, folder / "report")
        found = clip_lines(folder / "report")
        for label, wanted in (("all kinds", KINDS), ("timing kinds", TIMING)):
            rows.append(measured(f"{name}: baseline of mouth and loudness, {label}, AUC", *auc_of(found, of_uri, BASELINE, wanted)))
    if name == WITH_CONTROL:
        dissonance(*evaluate, folder / "shuffled", "--shuffle-sound", SHUFFLE_SEED)
        auc, how = auc_of(clip_lines(folder / "shuffled"), of_uri, "p_fake", TIMING)
        rows.append(between(f"{name}: fused, timing kinds, sounds paired at random, AUC", auc, 0.4, 0.6, how))
    for row in rows:
        tell(f"{row['what']}: {row['value']:.3f} ({row['how']})")
    return rows


def clip_lines(report: Path) -> dict[str, dict[str, Any]]:
    """What `evaluate` says of each clip, by uri."""
    lines = [json.loads(line) for line in (report / "clips.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["uri"]: line for line in lines if "uri" in line}


def auc_of(scores: Mapping[str, Mapping[str, Any]], of_uri: Mapping[str, Clip], column: str, kinds: tuple[str, ...]) -> tuple[float, str]:
    """AUC of fakes of these kinds against all real clips, and how it came about."""
    asked = [clip for clip in of_uri.values() if clip.manipulation in kinds]
    both = [clip for clip in asked if scores.get(clip.uri, {}).get("modalities") == "av"]  # without a face, p_fake would be the audio head's
    kept = [(float(scores[clip.uri][column]), clip) for clip in both if scores[clip.uri][column] is not None]
    values, labels = [score for score, _ in kept], [clip.fake for _, clip in kept]
    interval = summarise(values, labels, [clip.identity for _, clip in kept]).auc.interval
    assert interval is not None
    counts = f"{len(labels) - sum(labels)} real, {sum(labels)} fake, {len(asked) - len(kept)} without a score"
    return float(roc_auc_score(labels, values)), f"95 % {interval.low:.3f} to {interval.high:.3f}; {counts}"


def shifted() -> list[Row]:
    """Windows of which at least half the frames hold speech: the share whose best lag is within one frame of the truth."""
    near, windows = 0, 0
    for shift in SHIFTS:
        with tempfile.TemporaryDirectory(prefix="dissonance-bench-") as folder:
            _, out = draw_and_scan(Path(folder), "--forgery", "none", "--people", 1, "--shift", shift, count=CLIPS_PER_SHIFT, seed=7500 + shift)
            lags = [row["best_lag_frames"] for row in table(out, "windows") if (row["speech_fraction"] or 0) >= 0.5]
        hits = sum(lag is not None and abs(lag - shift) <= 1 for lag in lags)
        tell(f"sound {shift} frames late: {hits} of {len(lags)}")
        near, windows = near + hits, windows + len(lags)
    how = f"{near} of {windows} windows; {CLIPS_PER_SHIFT} real clips for each shift from {SHIFTS[0]} to {SHIFTS[-1]} frames"
    return [at_least("best lag within one frame of the truth, windows with speech", near / windows, 0.92, how)]


if __name__ == "__main__":
    for row in run():
        print(json.dumps(row))
