"""How well scores tell fakes from reals: metrics with intervals, whole and by group, the baselines beside them, and their tables.

A score is larger for a fake; a label is True for a fake. Metrics are scikit-learn's, but for the equal error rate, which it does not have.
What a set of clips does not define, such as the AUC of one class alone, is a metric without a value and with a reason, never an exception.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sk

from dissonance.training.bootstrap import (
    LEVEL,
    RESAMPLES,
    Floats,
    Interval,
    Statistic,
    accuracy_statistic,
    auc_statistic,
    average_precision_statistic,
    balanced_accuracy_statistic,
    equal_error_rate_statistic,
    equal_errors,
    percentile_interval,
    resample,
)

Labels = NDArray[np.bool_]


@dataclass(frozen=True)
class Metric:
    """A value, or why there is none; an interval, or why there is none."""

    value: float | None
    interval: Interval | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Summary:
    """The metrics of one set of clips."""

    clips: int
    real: int
    fake: int
    identities: int
    accuracy: Metric
    balanced_accuracy: Metric
    auc: Metric
    average_precision: Metric
    equal_error_rate: Metric


def summarise(
    scores: ArrayLike,
    labels: ArrayLike,
    identities: ArrayLike,
    *,
    threshold: float = 0.5,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Summary:
    """All metrics of one set of clips. `scores` (clips,) finite, `labels` (clips,) bool, `identities` (clips,).

    A clip is called fake where its score is at or above `threshold`, as the engine does. Raises ValueError for scores that are not finite and for
    arrays of different lengths: clips without a score are left out, and counted, by the caller.
    """
    scores, labels = checked(scores, labels, identities)
    identities = np.asarray(identities)
    called = scores >= threshold

    def metric(value: Callable[[], float], statistic: Statistic, *, classes: int = 2) -> Metric:
        if (reason := _undefined(labels, classes)) is not None:
            return Metric(None, reason=reason)
        if len(np.unique(identities)) < 2:
            return Metric(float(value()), reason="no interval: all clips are of one identity")
        interval = percentile_interval(resample(statistic, identities, resamples=resamples, seed=seed), level=level)
        return Metric(float(value()), interval, None if interval else "no interval: no resample holds both classes")

    return Summary(
        clips=len(labels),
        real=int((~labels).sum()),
        fake=int(labels.sum()),
        identities=len(np.unique(identities)),
        accuracy=metric(lambda: sk.accuracy_score(labels, called), accuracy_statistic(scores, labels, threshold=threshold), classes=1),
        balanced_accuracy=metric(
            lambda: sk.balanced_accuracy_score(labels, called), balanced_accuracy_statistic(scores, labels, threshold=threshold)
        ),
        auc=metric(lambda: sk.roc_auc_score(labels, scores), auc_statistic(scores, labels)),
        average_precision=metric(lambda: sk.average_precision_score(labels, scores), average_precision_statistic(scores, labels)),
        equal_error_rate=metric(lambda: equal_error_rate(scores, labels), equal_error_rate_statistic(scores, labels)),
    )


def summarise_groups(
    scores: ArrayLike, labels: ArrayLike, identities: ArrayLike, groups: Sequence[str], *, against_all_reals: bool, **options: Any
) -> dict[str, Summary]:
    """`summarise` for every group, by name.

    `against_all_reals` suits groups that are kinds of fakes (manipulations, categories), which hold no reals of their own: the group's fakes against
    every real clip, and a group without fakes as it is. Without it a group is judged by its own clips (ethnicities, compression levels).
    """
    scores, labels = checked(scores, labels, identities)
    identities, of_clip = np.asarray(identities), np.asarray(groups, dtype=str)
    if len(of_clip) != len(labels):
        raise ValueError(f"{len(of_clip)} groups for {len(labels)} clips")
    found = {}
    for group in np.unique(of_clip):
        chosen = of_clip == group
        if against_all_reals and (chosen & labels).any():
            chosen = (chosen & labels) | ~labels
        found[str(group)] = summarise(scores[chosen], labels[chosen], identities[chosen], **options)
    return found


def equal_error_rate(scores: ArrayLike, labels: ArrayLike) -> float:
    """The error rate at which as large a share of reals is flagged as of fakes is missed; `bootstrap.equal_errors` says how it is interpolated.

    Both classes must be there.
    """
    false_positive_rate, true_positive_rate, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    return float(equal_errors(false_positive_rate, true_positive_rate))


def checked(scores: ArrayLike, labels: ArrayLike, identities: ArrayLike) -> tuple[Floats, Labels]:
    """Scores as float64 and labels as bool, both (clips,). Raises ValueError for lengths that differ and for scores that are not finite."""
    values, classes = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    lengths = {values.shape, classes.shape, np.shape(identities)}
    if len(lengths) != 1 or values.ndim != 1:
        raise ValueError(f"scores {values.shape}, labels {classes.shape} and identities {np.shape(identities)} must be of one length")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} scores are not finite")
    return values, classes


def _undefined(labels: Labels, classes: int) -> str | None:
    if not len(labels):
        return "no clips"
    if classes == 2 and labels.all():
        return "no real clips"
    return "no fake clips" if classes == 2 and not labels.any() else None


# ----------------------------------------------------------------------------------------------------------- baselines


def majority_class_scores(training_labels: ArrayLike, clips: int) -> Floats:
    """The score of a detector that looks at nothing: the share of fakes among `training_labels` (clips of training,), for every one of `clips`.

    At threshold 0.5 that calls everything the more frequent class; its AUC is 0.5. Raises ValueError where there are no training labels.
    """
    labels = np.asarray(training_labels, dtype=bool)
    if not len(labels):
        raise ValueError("the majority class of no labels")
    return np.full(clips, labels.mean())


def mouth_loudness_score(mouth_motion: ArrayLike, loudness: ArrayLike, *, valid: ArrayLike | None = None) -> float | None:
    """The score of a detector that knows only that mouths move when they sound: (1 - r) / 2, r the correlation (Pearson's) over frames.

    `mouth_motion` and `loudness` are (frames,), in any units; `valid` (frames,) bool leaves frames out. 0 where the two rise together, 1 where one
    falls as the other rises. None where fewer than 3 frames are valid or either does not change: such a clip has no score, and is to be counted.
    """
    motion, sound = np.asarray(mouth_motion, dtype=np.float64), np.asarray(loudness, dtype=np.float64)
    kept = np.ones(motion.shape, dtype=bool) if valid is None else np.asarray(valid, dtype=bool)
    if not motion.shape == sound.shape == kept.shape or motion.ndim != 1:
        raise ValueError(f"mouth_motion {motion.shape}, loudness {sound.shape} and valid {kept.shape} must be of one length")
    motion, sound = motion[kept], sound[kept]
    if len(motion) < 3 or np.ptp(motion) == 0 or np.ptp(sound) == 0:
        return None
    return float((1 - np.clip(np.corrcoef(motion, sound)[0, 1], -1, 1)) / 2)


def best_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """The score from which to call a clip fake for the best balanced accuracy; of several the largest. For baselines, on training clips only.

    Both classes must be there.
    """
    false_positive_rate, true_positive_rate, thresholds = sk.roc_curve(labels, scores, drop_intermediate=False)
    return float(thresholds[np.argmax(true_positive_rate - false_positive_rate)])


# -------------------------------------------------------------------------------------------------------------- report


def as_json(report: Any) -> Any:
    """A report of nested mappings, sequences, dataclasses, numpy values and paths as what `json.dumps(..., allow_nan=False)` takes; NaN is null."""
    if dataclasses.is_dataclass(report) and not isinstance(report, type):
        return {field.name: as_json(getattr(report, field.name)) for field in dataclasses.fields(report)}
    if hasattr(report, "model_dump"):
        return as_json(report.model_dump(mode="json"))
    if isinstance(report, np.ndarray | np.generic):
        return as_json(report.tolist())
    if isinstance(report, Mapping):
        return {str(key): as_json(value) for key, value in report.items()}
    if isinstance(report, list | tuple):
        return [as_json(value) for value in report]
    if isinstance(report, float):
        return report if math.isfinite(report) else None
    return report if report is None or isinstance(report, bool | int | str) else str(report)


def as_markdown(report: Mapping[str, Any], *, depth: int = 1) -> str:
    """A report as Markdown: mappings of plain values and metrics are the rows of tables, every other mapping is a heading.

    Metrics read `value (low to high)`. Takes what `as_json` takes.
    """
    report = as_json(report)
    lines = []
    row = {name: value for name, value in report.items() if _is_cell(value)}
    rows = {name: value for name, value in report.items() if _is_row(value)}
    rest = {name: value for name, value in report.items() if name not in row and name not in rows}
    if row:
        lines += _table(["", "value"], [[name, _cell(value)] for name, value in row.items()])
    if rows:
        columns = list(dict.fromkeys(column for value in rows.values() for column in value))
        lines += _table(["", *columns], [[name, *(_cell(value.get(column)) for column in columns)] for name, value in rows.items()])
    for name, value in rest.items():
        inner = value if isinstance(value, dict) else {str(number): item for number, item in enumerate(value, 1)}
        lines += [f"{'#' * min(depth, 6)} {_escaped(name)}", "", as_markdown(inner, depth=depth + 1)]
    return "\n".join(lines)


def _is_metric(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {field.name for field in dataclasses.fields(Metric)}


def _is_cell(value: Any) -> bool:
    plain = not isinstance(value, dict | list)
    return plain or _is_metric(value) or (isinstance(value, list) and all(not isinstance(item, dict | list) for item in value))


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and not _is_metric(value) and all(_is_cell(item) for item in value.values())


def _cell(value: Any) -> str:
    if _is_metric(value):
        if value["value"] is None:
            return f"none ({value['reason']})"
        interval = value["interval"]
        around = f"{_number(interval['low'])} to {_number(interval['high'])}" if interval else value["reason"]
        return _number(value["value"]) + (f" ({around})" if around else "")
    if isinstance(value, list):
        return ", ".join(_cell(item) for item in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    cells = [[_escaped(cell) for cell in line] for line in (header, ["---"] * len(header), *rows)]
    return [*("| " + " | ".join(line) + " |" for line in cells), ""]


def _escaped(text: str) -> str:
    """Names come from data sets: a bar, a line break or a tag in one must stay text of its cell."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())
