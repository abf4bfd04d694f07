"""Confidence intervals by bootstrap clustered on identity, and the metrics for many resamples at once.

Clips of one person are not independent, so identities are drawn with replacement and each brings all its clips (Field and Welsh 2007, "Bootstrapping
clustered data"). A resample is therefore a row of integer weights over the clips, and a statistic takes weights (resamples, clips) to values
(resamples,): one sort of the scores serves all resamples. Intervals are percentile intervals. The same seed gives the same resamples whatever the
statistic, so metrics of one set of clips, and two detectors on it, are compared on the same draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Weights = NDArray[np.int64]  # (resamples, clips): how often each clip is drawn
Statistic = Callable[[Weights], Floats]  # -> (resamples,) or (resamples, values); NaN where a resample does not define it

RESAMPLES = 1000
LEVEL = 0.95
_BLOCK_ELEMENTS = 2_000_000  # of the weights held at once: 16 MB


@dataclass(frozen=True)
class Interval:
    """A percentile interval."""

    low: float
    high: float
    level: float
    resamples: int  # that it was made from
    skipped: int  # resamples in which the statistic is not defined, such as the AUC where one class was not drawn


def resample(statistic: Statistic, identities: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """The statistic of `resamples` draws of identities, (resamples,) or (resamples, values).

    `identities` is (clips,), of anything numpy can sort. Memory does not grow with the number of resamples but for the values themselves.
    """
    names, index = np.unique(np.asarray(identities), return_inverse=True)
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_ELEMENTS // max(1, len(index)))
    parts = []
    for start in range(0, resamples, block):
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=min(block, resamples - start))
        parts.append(statistic(drawn[:, index]))
    return np.concatenate(parts)


def percentile_interval(values: Floats, *, level: float = LEVEL) -> Interval | None:
    """The middle `level` of resampled values (resamples,); NaN are skipped and counted. None where nothing is left.

    With few identities it is a little short: simulated 90 % intervals of an AUC of 0.84 covered it at 87 % with 25 people a class, 88 % with 100.
    """
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, len(defined), len(values) - len(defined))


# --------------------------------------------------------------------------------------- metrics of many weightings at once


def accuracy_statistic(scores: Floats, labels: NDArray[np.bool_], *, threshold: float) -> Statistic:
    """Share of clips on their class's side of the threshold; a score at the threshold counts as fake. `scores`, `labels`: (clips,)."""
    right = (scores >= threshold) == labels
    return lambda weights: weights @ right / weights.sum(axis=1)


def balanced_accuracy_statistic(scores: Floats, labels: NDArray[np.bool_], *, threshold: float) -> Statistic:
    """Mean of the two classes' accuracies."""
    right = (scores >= threshold) == labels

    def statistic(weights: Weights) -> Floats:
        return (_share(weights @ (right & labels), weights @ labels) + _share(weights @ (right & ~labels), weights @ ~labels)) / 2

    return statistic


def auc_statistic(scores: Floats, labels: NDArray[np.bool_]) -> Statistic:
    """Area under the ROC curve by trapezoids: a real and a fake of equal score count one half (Mann-Whitney)."""
    curve = _curve(scores, labels)

    def statistic(weights: Weights) -> Floats:
        false, true = curve(weights)
        area = (np.diff(false, axis=1) * (true[:, 1:] + true[:, :-1])).sum(axis=1) / 2
        return _share(area, false[:, -1] * true[:, -1])

    return statistic


def average_precision_statistic(scores: Floats, labels: NDArray[np.bool_]) -> Statistic:
    """Sum over distinct scores of the gain in recall times the precision there, not interpolated."""
    curve = _curve(scores, labels)

    def statistic(weights: Weights) -> Floats:
        false, true = curve(weights)
        flagged = false + true
        precision = np.divide(true, flagged, out=np.zeros(true.shape), where=flagged > 0)
        average = _share((np.diff(true, axis=1) * precision[:, 1:]).sum(axis=1), true[:, -1])
        return np.where(false[:, -1] > 0, average, np.nan)

    return statistic


def equal_error_rate_statistic(scores: Floats, labels: NDArray[np.bool_]) -> Statistic:
    """`equal_errors` of each resample."""
    curve = _curve(scores, labels)

    def statistic(weights: Weights) -> Floats:
        false, true = curve(weights)
        defined = (false[:, -1] > 0) & (true[:, -1] > 0)
        values = np.full(len(weights), np.nan)
        values[defined] = equal_errors(false[defined] / false[defined, -1:], true[defined] / true[defined, -1:])
        return values

    return statistic


def equal_errors(false_positive_rate: Floats, true_positive_rate: Floats) -> Floats:
    """Where the ROC curve meets the line of equal errors, false positive rate = 1 - true positive rate.

    Both rates are (..., points), from (0, 0) to (1, 1). The curve is taken as straight between its points, as for the AUC: within one step a
    threshold that splits ties at random realises any point of the segment. Returns (...).
    """
    excess = 1 - true_positive_rate - false_positive_rate  # of misses over false alarms: falls from 1 to -1 along the curve
    after = np.argmax(excess <= 0, axis=-1)[..., None]
    high, low = (np.take_along_axis(excess, at, axis=-1) for at in (after - 1, after))
    start, end = (np.take_along_axis(false_positive_rate, at, axis=-1) for at in (after - 1, after))
    crossing: Floats = (start + (end - start) * high / (high - low))[..., 0]
    return crossing


def _curve(scores: Floats, labels: NDArray[np.bool_]) -> Callable[[Weights], tuple[Floats, Floats]]:
    """Weights to the numbers of reals and of fakes at or above each distinct score, from 0 upwards: two arrays (resamples, distinct scores + 1)."""
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    fake = labels[order]

    def counts(weights: Weights) -> tuple[Floats, Floats]:
        drawn = weights[:, order]
        reals, fakes = (np.cumsum(drawn * mask, axis=1, dtype=np.float64)[:, last_of_ties] for mask in (~fake, fake))
        return np.pad(reals, ((0, 0), (1, 0))), np.pad(fakes, ((0, 0), (1, 0)))

    return counts


def _share(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    """part / whole, NaN where there is no whole."""
    share: Floats = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
    return share
