"""Figures of scored clips: each head on its own label, whole and by kind, the baselines beside them, and what the bundle's thresholds do."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from dissonance.bundle import BundleSpec
from dissonance.training.bootstrap import LEVEL, Interval, percentile_interval, resample
from dissonance.training.labels import LABEL_OF_CASE, Clip
from dissonance.training.metrics import Labels, Metric, Summary, majority_class_scores, summarise, summarise_groups
from dissonance.training.scored import VERDICTS, ScoredClip

INTERVALS = (
    "95 %, percentile bootstrap clustered on identity; of rates at a threshold that are 0 or 1, which no resample changes, Wilson's, "
    "with the number of identities as its n"
)


@dataclass(frozen=True)
class Head:
    """A score and the question that it answers."""

    name: str
    label: Callable[[Clip], bool]
    score: Callable[[ScoredClip], float | None]


FUSED = Head("fused", LABEL_OF_CASE["av"], lambda row: row.p_fake)
VISUAL = Head("visual_head", LABEL_OF_CASE["v"], lambda row: row.p_visual)
AUDIO = Head("audio_head", LABEL_OF_CASE["a"], lambda row: row.p_audio)
MOUTH_LOUDNESS = Head("mouth_loudness", lambda clip: clip.fake, lambda row: row.mouth_loudness)
HEADS = (FUSED, VISUAL, AUDIO)

# How clips are told apart, and whether a group's fakes are to be held against all reals: it has none of its own.
GROUPINGS: dict[str, tuple[Callable[[ScoredClip], str], bool]] = {
    "by_category": (lambda row: row.clip.category, True),
    "by_manipulation": (lambda row: row.clip.manipulation, True),
    "by_group": (lambda row: row.clip.group, False),
    "by_compression": (lambda row: row.clip.compression or "", False),
    "by_modalities": (lambda row: row.modalities, False),
}


def figures(rows: Sequence[ScoredClip], *, training: Sequence[Clip], baseline: bool, resamples: int) -> dict[str, Any]:
    """Summaries of every head: overall, beside the baselines, and by category, manipulation, group and compression (where the data set tells them).

    `training`: the clips whose majority class is that baseline's guess. `baseline`: whether the mouth-loudness scores are there.
    """
    found: dict[str, Any] = {}
    mouth = summaries(MOUTH_LOUDNESS, rows, resamples=resamples) if baseline else {}
    for head in HEADS:
        parts = summaries(head, rows, resamples=resamples)
        beside = {"majority_class": _majority_class(head, rows, training, resamples=resamples)}
        if head is FUSED and baseline:
            beside["mouth_loudness"] = mouth["overall"]
        found[head.name] = {"overall": parts.pop("overall"), **beside, **parts}
    return {**found, **({MOUTH_LOUDNESS.name: mouth} if baseline else {})}


def scores_and_labels(head: Head, rows: Sequence[ScoredClip]) -> tuple[list[float], list[bool]]:
    """Of the clips of which the head says something: a modality may be missing."""
    kept = [(score, head.label(row.clip)) for row in rows if (score := head.score(row)) is not None]
    return [score for score, _ in kept], [label for _, label in kept]


def summaries(head: Head, rows: Sequence[ScoredClip], *, resamples: int) -> dict[str, Any]:
    """`overall`, and a mapping of summaries for each grouping by which the clips differ."""
    rows = [row for row in rows if head.score(row) is not None]
    scores, labels = scores_and_labels(head, rows)
    identities = [row.clip.identity for row in rows]
    found: dict[str, Any] = {"overall": summarise(scores, labels, identities, resamples=resamples)}
    for name, (group_of, against_all_reals) in GROUPINGS.items():
        groups = [group_of(row) or "unknown" for row in rows]
        if set(groups) - {"unknown"}:
            found[name] = summarise_groups(scores, labels, identities, groups, against_all_reals=against_all_reals, resamples=resamples)
    return found


def _majority_class(head: Head, rows: Sequence[ScoredClip], training: Sequence[Clip], *, resamples: int) -> Summary:
    rows = [row for row in rows if head.score(row) is not None]
    labels = [head.label(row.clip) for row in rows]
    known = [head.label(clip) for clip in training]
    scores = majority_class_scores(known, len(labels)) if known else np.zeros(len(labels))
    return summarise(scores, labels, [row.clip.identity for row in rows], resamples=resamples)


# ------------------------------------------------------------------------------------------------------ at the thresholds


def thresholds(rows: Sequence[ScoredClip], *, spec: BundleSpec | None, resamples: int) -> dict[str, dict[str, Any]]:
    """What the labels do, for each modality case that clips were judged by, on the case's own label.

    The rates at `likely_fake` are those of being called so; at `not_likely_real`, of not being called likely_real. `spec`: the bundle's, where it
    is known, for the thresholds' places and the false-positive rate that they were chosen at.
    """
    found: dict[str, dict[str, Any]] = {}
    for case, label in LABEL_OF_CASE.items():
        of_case = [row for row in rows if row.modalities == case]
        if not of_case:
            continue
        fake = np.array([label(row.clip) for row in of_case])
        identities = np.array([row.clip.identity for row in of_case])
        verdicts = np.array([row.label for row in of_case])
        placed = {} if spec is None else spec.calibration[case].model_dump(include={"likely_fake_from", "likely_real_below", "false_positive_rate"})
        found[case] = {
            "real": int((~fake).sum()),
            "fake": int(fake.sum()),
            "likely_fake_from": placed.get("likely_fake_from"),
            "rate_it_was_chosen_at": placed.get("false_positive_rate"),
            "likely_real_below": placed.get("likely_real_below"),
        }
        for name, called in (("likely_fake", verdicts == "likely_fake"), ("not_likely_real", verdicts != "likely_real")):
            found[case][f"{name}: false_positive_rate"] = rate(called[~fake], identities[~fake], of="real", resamples=resamples)
            found[case][f"{name}: true_positive_rate"] = rate(called[fake], identities[fake], of="fake", resamples=resamples)
    return found


def rate(hit: Labels, identities: np.ndarray[Any, Any], *, of: str, resamples: int) -> Metric:
    """Share of clips (clips,) that are hit, with the interval that `INTERVALS` describes."""
    if not len(hit):
        return Metric(None, reason=f"no {of} clips")
    value, people = float(hit.mean()), len(np.unique(identities))
    if value in (0.0, 1.0):
        return Metric(value, wilson(value, people))
    if people < 2:
        return Metric(value, reason="no interval: all clips are of one identity")
    return Metric(value, percentile_interval(resample(lambda weights: weights @ hit / weights.sum(axis=1), identities, resamples=resamples)))


def wilson(share: float, trials: int, *, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a binomial share (Wilson 1927); `resamples` of it is 0."""
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    centre, half = share + z2 / (2 * trials), math.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials**2)))
    return Interval(max(0.0, (centre - half) / (1 + z2 / trials)), min(1.0, (centre + half) / (1 + z2 / trials)), level, 0, 0)


def verdict_counts(rows: Sequence[ScoredClip]) -> dict[str, dict[str, int]]:
    """Clips of each class by the label they got."""
    counts = Counter((row.clip.fake, row.label) for row in rows)
    return {name: {verdict: counts[fake, verdict] for verdict in VERDICTS} for name, fake in (("real", False), ("fake", True))}


def silence_trimmed(rows: Sequence[ScoredClip]) -> dict[str, dict[str, float]]:
    """How much of each class's clips was cut off: where the classes differ, silence alone tells them."""
    found = {}
    for name, fake in (("real", False), ("fake", True)):
        cut = [row.trimmed_s for row in rows if row.clip.fake == fake]
        found[name] = {"clips": len(cut), "with_leading_silence": sum(each > 0 for each in cut), "mean_s": float(np.mean(cut)) if cut else 0.0}
    return found
