"""From a file's logit to a probability and a label, per modality case: what goes into the bundle, and how far it can be trusted.

Inputs are aggregated file logits (the bundle's `AggregationSpec`, `engine.scan.verdict`), of clips that neither training nor model selection saw.
p_fake = sigmoid(scale * logit + bias) is a probability at the share of fakes that the calibration clips have; thresholds and the review load rest
on the two error rates alone and hold at any share.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from dissonance.bundle import CalibrationSpec, ModalityCase
from dissonance.engine.scan.verdict import probability
from dissonance.errors import UsageError
from dissonance.training.bootstrap import LEVEL, RESAMPLES, Floats, Interval, Weights, percentile_interval, resample
from dissonance.training.metrics import Metric, checked

LIKELY_FAKE_RATE = 0.01  # of real clips that may be called likely_fake
NOT_REAL_RATE = 0.10  # of real clips that may miss likely_real
PREVALENCE = 0.01  # share of fakes among the files that a review load is stated for
FILES = 1_000_000
BINS = 15
MIN_SLOPE = 1e-3  # of the log odds, per standard deviation of the logits: a bundle's scale is above 0


@dataclass(frozen=True)
class Threshold:
    """A threshold on p_fake chosen on real clips, and what it does. Intervals: bootstrap clustered on identity."""

    target_rate: float
    p_fake: Metric
    false_positive_rate: Metric  # value: of the clips it was chosen on; interval: of new clips
    true_positive_rate: Metric
    flagged_per_million: Metric  # files at or above it, at 1 % prevalence: the review load
    precision: Metric  # share of fakes among those
    reals: int
    reals_above: int  # at or above the threshold: what it rests on
    supported: bool  # False: too few reals, or ties, keep it from meeting the rate with any real above it


@dataclass(frozen=True)
class ReliabilityBin:
    """Clips of neighbouring probability."""

    clips: int
    mean_p_fake: float
    share_fake: float


@dataclass(frozen=True)
class Calibration:
    """One modality case, calibrated."""

    case: ModalityCase
    spec: CalibrationSpec
    real: int
    fake: int
    identities: int
    thresholds: dict[str, Threshold]  # "likely_fake", "not_likely_real"
    expected_calibration_error: float  # on these very clips: other clips will show more
    expected_calibration_error_before: float  # of sigmoid(logit)
    brier: float
    brier_before: float
    notes: tuple[str, ...]  # what a reader must know before trusting it


class CalibrationError(UsageError):
    """Clips that nothing can be calibrated on."""


def calibrate(
    case: ModalityCase,
    logits: ArrayLike,
    labels: ArrayLike,
    identities: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Calibration:
    """Calibrate one modality case on `logits` (clips,), `labels` (clips,) bool and `identities` (clips,).

    `labels` are the case's own: sound or picture fake for av, picture fake for v, sound fake for a. Raises CalibrationError where a class is missing.
    """
    values, fake = checked(logits, labels, identities)
    if not fake.any() or fake.all():
        raise CalibrationError(
            f"Cannot calibrate case '{case}': of {len(fake)} clips {int(fake.sum())} are fake. It needs clips of both classes: add some, "
            "or choose a validation split that has both."
        )
    people = np.asarray(identities)
    scale, bias, notes = fit_scale_and_bias(values, fake)
    fitted, identity = CalibrationSpec(scale=scale, bias=bias), CalibrationSpec()
    p_fake, before = (np.array([probability(float(logit), spec) for logit in values]) for spec in (fitted, identity))
    thresholds = {
        name: choose_threshold(p_fake, fake, people, target_rate=rate, resamples=resamples, level=level, seed=seed)
        for name, rate in (("likely_fake", LIKELY_FAKE_RATE), ("not_likely_real", NOT_REAL_RATE))
    }
    for name, threshold in thresholds.items():
        if not threshold.supported:
            notes.append(
                f"threshold '{name}': {threshold.reals} real clips do not support a false-positive rate of {threshold.target_rate:.0%}; "
                f"it lies at the top of what real clips scored. Use at least {math.ceil(1 / threshold.target_rate)} real clips of different scores."
            )
    chosen = thresholds["likely_fake"]
    spec = CalibrationSpec(
        scale=scale,
        bias=bias,
        likely_fake_from=_value(chosen.p_fake),
        likely_real_below=_value(thresholds["not_likely_real"].p_fake),
        false_positive_rate=_value(chosen.false_positive_rate) if chosen.supported else None,
    )
    return Calibration(
        case=case,
        spec=spec,
        real=int((~fake).sum()),
        fake=int(fake.sum()),
        identities=len(np.unique(people)),
        thresholds=thresholds,
        expected_calibration_error=expected_calibration_error(p_fake, fake),
        expected_calibration_error_before=expected_calibration_error(before, fake),
        brier=float(brier_score_loss(fake, p_fake)),
        brier_before=float(brier_score_loss(fake, before)),
        notes=tuple(notes),
    )


# ----------------------------------------------------------------------------------------------------- scale and bias


def fit_scale_and_bias(logits: Floats, labels: NDArray[np.bool_]) -> tuple[float, float, list[str]]:
    """Temperature (1 / scale) and bias by maximum likelihood, and notes. `logits`, `labels`: (clips,), both classes there.

    The targets are Platt's, (fakes + 1) / (fakes + 2) and 1 / (reals + 2), instead of 1 and 0 (Platt 1999, "Probabilistic outputs for support vector
    machines"). So the optimum is finite where the classes are separable, no clip is claimed more certain than the count of clips bears out, and the
    fit does not depend on the logits' unit. Where logits do not rise from reals to fakes the slope is MIN_SLOPE, so p_fake is all but constant.
    """
    reals, fakes = int((~labels).sum()), int(labels.sum())
    target = np.where(labels, (fakes + 1) / (fakes + 2), 1 / (reals + 2))
    centre, spread = float(logits.mean()), float(logits.std())
    spread = spread if spread > 0 else 1.0
    unit = ((logits - centre) / spread)[:, None]
    slope, offset, notes = 0.0, 0.0, []
    if np.ptp(logits) > 0:
        model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=200)  # C: no penalty
        # A soft target is the clip once as a fake and once as a real, weighted.
        model.fit(np.concatenate([unit, unit]), np.repeat([1, 0], len(logits)), sample_weight=np.concatenate([target, 1 - target]))
        slope, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope < MIN_SLOPE:
        share = float(target.mean())
        notes = [f"logits do not rise from real to fake clips (slope {slope:.3g} a standard deviation): p_fake says nothing"]
        slope, offset = MIN_SLOPE, math.log(share / (1 - share))
    return slope / spread, offset - slope / spread * centre, notes


# --------------------------------------------------------------------------------------------------------- thresholds


def choose_threshold(
    p_fake: Floats,
    labels: NDArray[np.bool_],
    identities: NDArray[np.generic],
    *,
    target_rate: float,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Threshold:
    """The lowest threshold, among the probabilities of real clips, at or above which lie at most `target_rate` of them. All arrays are (clips,).

    With n reals of distinct scores it is the k-th largest, k = floor(target_rate * n), so new clips exceed it at rate k / (n + 1) on average. With
    k = 0, or ties that hold more than k, it is just above every real clip, and not `supported`.

    Intervals: identities are drawn anew, and the threshold is chosen on each draw. Its false-positive rate is then measured on the clips as they are
    (on the draw it would be the target by construction), its true-positive rate on the draw. The fit of scale and bias is held.
    """
    real, fake = -np.sort(-p_fake[~labels]), -np.sort(-p_fake[labels])
    last_of_level = np.append(np.flatnonzero(np.diff(real)), len(real) - 1)
    order_real, order_fake = (np.flatnonzero(mask)[np.argsort(-p_fake[mask], kind="stable")] for mask in (~labels, labels))
    # Candidate 0 is above every real clip (at 1 where one is at 1), candidate i at the i-th largest score of a real clip.
    candidates = np.append(min(np.nextafter(real[0], 2.0), 1.0), real[last_of_level])
    reals_above, fakes_above = (np.searchsorted(-ordered, -candidates, side="right") for ordered in (real, fake))

    def quantities(weights: Weights) -> Floats:
        """(draws, 5): threshold, false- and true-positive rate, files flagged, precision; NaN for a draw without one of the classes."""
        reals, fakes = (np.pad(np.cumsum(weights[:, order], axis=1), ((0, 0), (1, 0))) for order in (order_real, order_fake))
        drawn_above = reals[:, last_of_level + 1]
        allowed = np.floor(target_rate * reals[:, -1:] + 1e-9)
        fits = (drawn_above <= allowed) & (np.diff(drawn_above, axis=1, prepend=0) > 0)  # a draw knows only the scores it holds
        chosen = np.where(fits, np.arange(1, len(candidates)), 0).max(axis=1)
        both = (reals[:, -1] > 0) & (fakes[:, -1] > 0)
        false_rate = np.where(both, reals_above[chosen] / len(real), np.nan)
        hit = np.take_along_axis(fakes, fakes_above[chosen][:, None], axis=1)[:, 0]
        true_rate = np.where(both, hit / np.maximum(fakes[:, -1], 1), np.nan)
        return np.stack([np.where(both, candidates[chosen], np.nan), false_rate, true_rate, *review_load(false_rate, true_rate)], axis=1)

    values = quantities(np.ones((1, len(labels)), dtype=np.int64))[0]
    intervals: list[Interval | None] = [None] * len(values)
    if len(np.unique(identities)) > 1:
        draws = resample(quantities, identities, resamples=resamples, seed=seed)
        intervals = [percentile_interval(column, level=level) for column in draws.T]
    threshold, false_rate, true_rate, flagged, precision = (_metric(value, interval) for value, interval in zip(values, intervals, strict=True))
    above = round(values[1] * len(real))
    return Threshold(
        target_rate=target_rate,
        p_fake=threshold,
        false_positive_rate=false_rate,
        true_positive_rate=true_rate,
        flagged_per_million=flagged,
        precision=precision,
        reals=len(real),
        reals_above=above,
        supported=0 < above <= target_rate * len(real) + 1e-9,
    )


def _metric(value: float, interval: Interval | None) -> Metric:
    if math.isnan(value):
        return Metric(None, reason="no file is flagged")
    return Metric(float(value), interval, None if interval else "no interval: too few identities")


def review_load(false_positive_rate: Floats, true_positive_rate: Floats, *, prevalence: float = PREVALENCE) -> tuple[Floats, Floats]:
    """(files flagged of a million, share of fakes among them; NaN where none is flagged) at a share `prevalence` of fakes. Arrays of any shape."""
    false, true = (1 - prevalence) * np.asarray(false_positive_rate), prevalence * np.asarray(true_positive_rate)
    flagged = false + true
    return FILES * flagged, np.divide(true, flagged, out=np.full(np.shape(flagged), np.nan), where=flagged > 0)


# -------------------------------------------------------------------------------------------------------- reliability


def reliability(p_fake: ArrayLike, labels: ArrayLike, *, bins: int = BINS) -> list[ReliabilityBin]:
    """Clips in at most `bins` bins of equal mass: the edges are quantiles of `p_fake` (clips,), equal probabilities share a bin, empty bins go."""
    p, fake = checked(p_fake, labels, labels)
    if not len(p):
        return []
    edges = np.quantile(p, np.linspace(0, 1, bins + 1))[1:-1]
    bin_of = np.searchsorted(edges, p)
    return [
        ReliabilityBin(int(inside.sum()), float(p[inside].mean()), float(fake[inside].mean()))
        for inside in (bin_of == number for number in np.unique(bin_of))
    ]


def expected_calibration_error(p_fake: ArrayLike, labels: ArrayLike, *, bins: int = BINS) -> float:
    """Mean over clips of |share of fakes - mean p_fake| of the clip's bin in `reliability`; NaN without clips.

    Noise alone makes it about sqrt(2 p (1 - p) bins / (pi clips)) for a perfect forecast.
    """
    found = reliability(p_fake, labels, bins=bins)
    total = sum(each.clips for each in found)
    return math.fsum(each.clips * abs(each.share_fake - each.mean_p_fake) for each in found) / total if total else math.nan


def _value(metric: Metric) -> float:
    assert metric.value is not None  # a threshold always has a place
    return metric.value
