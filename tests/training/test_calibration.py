"""Calibration finds the scale and bias it was given, and its thresholds do what they state."""

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import brier_score_loss

from dissonance.bundle import CalibrationSpec
from dissonance.engine.scan.verdict import label_of, probability
from dissonance.errors import DissonanceError
from dissonance.training.bootstrap import Interval, resample
from dissonance.training.calibration import (
    CalibrationError,
    calibrate,
    choose_threshold,
    expected_calibration_error,
    fit_scale_and_bias,
    reliability,
    review_load,
)
from dissonance.training.metrics import Metric, as_json, as_markdown


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(x)))


def interval_of(metric: Metric) -> Interval:
    assert metric.interval is not None
    return metric.interval


# ------------------------------------------------------------------------------------------------------ scale and bias


@pytest.mark.parametrize(("scale", "bias"), [(0.3, 0.0), (1.0, -1.5), (4.0, 2.0)])
def test_the_scale_and_bias_of_a_logistic_world_are_found(scale: float, bias: float) -> None:
    """Labels drawn from sigmoid(scale * logit + bias): the estimate's covariance is the inverse of the Fisher information there."""
    rng = np.random.default_rng(12)
    logits = rng.normal(0.2, 2 / scale, 20_000)
    p = sigmoid(scale * logits + bias)
    found_scale, found_bias, notes = fit_scale_and_bias(logits, rng.random(len(p)) < p)
    design = np.stack([logits, np.ones_like(logits)])
    deviations = np.sqrt(np.diag(np.linalg.inv((design * (p * (1 - p))) @ design.T)))
    assert abs(found_scale - scale) < 4 * deviations[0]
    assert abs(found_bias - bias) < 4 * deviations[1]
    assert notes == []


class _Logit(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A detector whose decision function is its input."""

    def fit(self, *_: object) -> "_Logit":
        self.classes_ = np.array([False, True])
        return self

    def decision_function(self, x: Any) -> Any:
        return x[:, 0]

    def predict(self, x: Any) -> Any:
        return x[:, 0] > 0


@pytest.mark.parametrize("distance", [1.0, 100.0], ids=["overlapping", "separable"])
def test_the_fit_is_platts_as_scikit_learn_has_it(distance: float) -> None:
    rng = np.random.default_rng(13)
    labels = np.arange(60) < 25
    logits = rng.normal(np.where(labels, distance, -distance), 1.0)
    scale, bias, _ = fit_scale_and_bias(logits, labels)
    platt = CalibratedClassifierCV(FrozenEstimator(_Logit().fit()), method="sigmoid", ensemble=False).fit(logits[:, None], labels)
    np.testing.assert_allclose(sigmoid(scale * logits + bias), platt.predict_proba(logits[:, None])[:, 1], atol=2e-4)


def test_separable_clips_are_claimed_no_more_certain_than_their_number_bears_out() -> None:
    """One logit each for 8 reals and 18 fakes: the likelihood is largest where p_fake is Platt's target, 1 / 10 and 19 / 20."""
    labels = np.arange(26) >= 8
    logits = np.where(labels, 30.0, -50.0)
    scale, bias, _ = fit_scale_and_bias(logits, labels)
    assert sigmoid(scale * -50 + bias) == pytest.approx(1 / 10, abs=1e-9)
    assert sigmoid(scale * 30 + bias) == pytest.approx(19 / 20, abs=1e-9)
    wide, shifted, _ = fit_scale_and_bias(1000 * logits, labels)  # another unit, the same probabilities
    assert (1000 * wide, shifted) == pytest.approx((scale, bias), rel=1e-9)


@pytest.mark.parametrize("logits", [[3.0] * 20, list(range(20, 0, -1))], ids=["constant", "upside down"])
def test_logits_that_say_nothing_keep_a_scale_that_a_bundle_takes_and_a_note(logits: list[float]) -> None:
    labels = np.arange(20) >= 10
    found = calibrate("v", logits, labels, np.arange(20), resamples=10)
    assert 0 < found.spec.scale <= 1e-3
    assert any("do not rise" in note for note in found.notes)
    assert [probability(logit, found.spec) for logit in logits] == pytest.approx([0.5] * 20, abs=0.01)


# --------------------------------------------------------------------------------------------------------- thresholds


def world(clips: int, *, seed: int, per_person: int = 1) -> tuple[Any, Any, Any]:
    """Logits, labels and people: half real, N(-1, 1), half fake, N(1, 1)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(clips) >= clips // 2
    return rng.normal(np.where(labels, 1.0, -1.0), 1.0), labels, np.arange(clips) // per_person


@pytest.mark.parametrize(("reals", "at_one", "at_ten"), [(100, 1, 10), (199, 1, 19), (300, 3, 30), (1000, 10, 100)])
def test_thresholds_flag_as_many_reals_as_the_stated_rates_allow(reals: int, at_one: int, at_ten: int) -> None:
    logits, labels, people = world(2 * reals, seed=reals)
    found = calibrate("av", logits, labels, people, resamples=20)
    names = [label_of(probability(logit, found.spec), found.spec) for logit in logits[~labels]]
    assert names.count("likely_fake") == found.thresholds["likely_fake"].reals_above == at_one
    assert len(names) - names.count("likely_real") == found.thresholds["not_likely_real"].reals_above == at_ten
    assert found.spec.false_positive_rate == at_one / reals
    assert found.spec.likely_real_below <= found.spec.likely_fake_from
    hit = [label_of(probability(logit, found.spec), found.spec) for logit in logits[labels]].count("likely_fake")
    assert found.thresholds["likely_fake"].true_positive_rate.value == hit / reals
    assert found.thresholds["likely_fake"].reals == reals
    assert found.notes == ()


def test_the_false_positive_rate_on_new_clips_is_that_of_order_statistics() -> None:
    """With n reals the k-th largest is exceeded by new ones at rate k / (n + 1) on average: Beta(k, n + 1 - k). Exact for N(-1, 1)."""
    reals, worlds = 200, 400
    rng = np.random.default_rng(14)
    labels = np.arange(reals + 1) >= reals
    rates = []
    for _ in range(worlds):
        threshold = choose_threshold(rng.normal(-1, 1, reals + 1), labels, np.zeros(reals + 1), target_rate=0.01)  # one identity: no resamples
        rates.append(stats.norm.sf(threshold.p_fake.value, loc=-1))
    beta = stats.beta(2, reals - 1)
    assert np.mean(rates) == pytest.approx(beta.mean(), abs=4 * beta.std() / math.sqrt(worlds))
    assert stats.kstest(rates, beta.cdf).pvalue > 1e-3


def test_the_interval_of_the_false_positive_rate_is_that_of_order_statistics() -> None:
    """Of independent reals the bootstrap has to give about the quantiles of Beta(k, n + 1 - k), k = 100 of n = 1000."""
    logits, labels, people = world(2000, seed=15)
    found = choose_threshold(sigmoid(logits), labels, people, target_rate=0.1, resamples=2000)
    low, high = stats.beta(100, 901).ppf([0.025, 0.975])
    interval = interval_of(found.false_positive_rate)
    # A bootstrap's rate is a multiple of 1 / n, and its quantile of 2000 draws is uncertain by 5 % of the interval's width.
    assert interval.low == pytest.approx(low, abs=0.1 * (high - low))
    assert interval.high == pytest.approx(high, abs=0.1 * (high - low))
    of_threshold = interval_of(found.p_fake)
    assert of_threshold.low < sigmoid(stats.norm.isf(0.1, loc=-1)) < of_threshold.high
    of_hits = interval_of(found.true_positive_rate)
    assert of_hits.low < stats.norm.sf(stats.norm.isf(0.1, loc=-1), loc=1) < of_hits.high


def test_each_draw_chooses_as_if_its_clips_were_all_there_are() -> None:
    """Against a slow reference, draw by draw, on few people and tied scores."""
    logits, labels, people = world(60, seed=23, per_person=5)
    p_fake = np.round(sigmoid(logits), 2)
    draws = resample(lambda weights: weights * 1.0, people, resamples=300, seed=4).astype(int)
    expected = []
    for draw in draws:
        real, fake = np.repeat(p_fake, draw)[~np.repeat(labels, draw)], np.repeat(p_fake, draw)[np.repeat(labels, draw)]
        if len(real) and len(fake):
            above_all = np.nextafter(p_fake[~labels].max(), 2)
            threshold = min((score for score in real if (real >= score).sum() <= len(real) // 10), default=above_all)
            expected.append((threshold, (p_fake[~labels] >= threshold).mean(), (fake >= threshold).mean()))
    found = choose_threshold(p_fake, labels, people, target_rate=0.1, resamples=300, seed=4)
    for metric, values in zip((found.p_fake, found.false_positive_rate, found.true_positive_rate), np.transpose(expected), strict=True):
        interval = interval_of(metric)
        assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=1e-12)
        assert (interval.resamples, interval.skipped) == (len(expected), 300 - len(expected))


def test_clips_of_the_same_people_widen_the_intervals() -> None:
    logits, labels, _ = world(200, seed=16)
    alone = choose_threshold(sigmoid(logits), labels, np.arange(200), target_rate=0.1)
    again = choose_threshold(sigmoid(np.repeat(logits, 5)), np.repeat(labels, 5), np.repeat(np.arange(200), 5), target_rate=0.1)
    taken_for_independent = choose_threshold(sigmoid(np.repeat(logits, 5)), np.repeat(labels, 5), np.arange(1000), target_rate=0.1)
    widths = [interval.high - interval.low for interval in (interval_of(each.p_fake) for each in (alone, again, taken_for_independent))]
    assert widths[1] == pytest.approx(widths[0], rel=0.01)  # five copies of every clip tell nothing new
    assert widths[2] < 0.7 * widths[0]


def test_too_few_reals_for_a_rate_are_flagged_and_nothing_real_is_called_fake() -> None:
    logits, labels, people = world(198, seed=17)
    found = calibrate("av", logits, labels, people, resamples=50)
    assert not found.thresholds["likely_fake"].supported
    assert found.thresholds["not_likely_real"].supported
    assert found.spec.false_positive_rate is None
    assert found.thresholds["likely_fake"].reals_above == 0
    assert max(probability(logit, found.spec) for logit in logits[~labels]) < found.spec.likely_fake_from
    (note,) = found.notes
    assert "99 real clips do not support a false-positive rate of 1%" in note
    assert "at least 100 real clips" in note


def test_ties_are_never_split() -> None:
    """20 reals, 3 of them tied at the top: at 10 % only 2 may be flagged, so none is; tied lower down, the tie stays below the threshold."""
    labels = np.array([False] * 20 + [True] * 2)
    fakes = [0.95, 0.2]
    top = choose_threshold(np.array([0.1] * 17 + [0.9] * 3 + fakes), labels, np.arange(22), target_rate=0.1)
    assert (top.reals_above, top.supported, top.true_positive_rate.value) == (0, False, 0.5)
    below = choose_threshold(np.array([0.1] * 17 + [0.8] * 2 + [0.9] + fakes), labels, np.arange(22), target_rate=0.1)
    assert (below.reals_above, below.supported, below.p_fake.value) == (1, True, 0.9)
    saturated = choose_threshold(np.array([0.1] * 17 + [1.0] * 3 + fakes), labels, np.arange(22), target_rate=0.1)
    assert (saturated.reals_above, saturated.supported, saturated.p_fake.value) == (3, False, 1.0)
    assert saturated.false_positive_rate.value == 3 / 20


# --------------------------------------------------------------------------------------------------------- review load


def test_the_review_load_by_hand() -> None:
    """A million files, 10,000 of them fake: 1 % of 990,000 reals and 80 % of the fakes are 9,900 + 8,000."""
    flagged, precision = review_load(np.array([0.01, 0.0, 0.0]), np.array([0.8, 1.0, 0.0]))
    np.testing.assert_allclose(flagged, [17_900, 10_000, 0])
    np.testing.assert_allclose(precision, [8000 / 17_900, 1, math.nan])


def test_the_review_load_is_reported_with_its_interval() -> None:
    logits, labels, people = world(2000, seed=18)
    found = calibrate("av", logits, labels, people, resamples=200).thresholds["likely_fake"]
    rate, hit = found.false_positive_rate.value, found.true_positive_rate.value
    assert rate is not None
    assert hit is not None
    assert found.flagged_per_million.value == pytest.approx(990_000 * rate + 10_000 * hit)
    interval = interval_of(found.flagged_per_million)
    assert interval.low < 990_000 * 0.01 + 10_000 * stats.norm.sf(stats.norm.isf(0.01) - 2) < interval.high
    assert (interval.resamples, interval.skipped) == (200, 0)


# --------------------------------------------------------------------------------------------------------- reliability


def test_the_calibration_error_by_hand() -> None:
    """Two bins of 3 clips: |1/3 - 0.2| and |2/3 - 0.8|, each at weight 1/2."""
    p_fake, labels = [0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [False, False, True, True, True, False]
    bins = reliability(p_fake, labels, bins=2)
    assert [(each.clips, each.mean_p_fake, each.share_fake) for each in bins] == [(3, pytest.approx(0.2), 1 / 3), (3, pytest.approx(0.8), 2 / 3)]
    assert expected_calibration_error(p_fake, labels, bins=2) == pytest.approx((1 / 3 - 0.2 + 0.8 - 2 / 3) / 2)


@pytest.mark.parametrize("decimals", [1, 8])
def test_reliability_bins_are_those_of_scikit_learn(decimals: int) -> None:
    """998 clips: no fifteenth of 997 is whole, so no edge falls on a clip, where rounding would decide."""
    rng = np.random.default_rng(19)
    p_fake = np.round(rng.random(998) ** 2, decimals)
    labels = rng.random(998) < p_fake
    shares, means = calibration_curve(labels, p_fake, n_bins=15, strategy="quantile")
    bins = reliability(p_fake, labels)
    np.testing.assert_allclose([each.share_fake for each in bins], shares, atol=1e-12)
    np.testing.assert_allclose([each.mean_p_fake for each in bins], means, atol=1e-12)
    assert sum(each.clips for each in bins) == 998


def test_a_perfect_forecast_has_no_calibration_error_but_noise() -> None:
    """Noise of a bin of m clips: mean |share - p| is at most sqrt(2 p (1 - p) / (pi m)), p (1 - p) at most 1 / 4."""
    clips, bins = 200_000, 15
    rng = np.random.default_rng(20)
    p_fake = rng.random(clips)
    noise = math.sqrt(2 * 0.25 * bins / (math.pi * clips))
    assert expected_calibration_error(p_fake, rng.random(clips) < p_fake, bins=bins) < 2 * noise
    assert expected_calibration_error(p_fake, rng.random(clips) < p_fake**2, bins=bins) == pytest.approx(1 / 6, abs=4 * noise)  # mean of p - p^2
    assert math.isnan(expected_calibration_error([], []))


# --------------------------------------------------------------------------------------------------------------- whole


def test_calibration_mends_an_overconfident_detector() -> None:
    rng = np.random.default_rng(21)
    truth = rng.normal(0, 2, 2000)
    labels = rng.random(2000) < sigmoid(truth)
    found = calibrate("a", 5 * truth + 3, labels, np.arange(2000), resamples=10)
    assert found.expected_calibration_error < 0.03 < 0.1 < found.expected_calibration_error_before
    assert found.brier == pytest.approx(brier_score_loss(labels, [probability(5 * x + 3, found.spec) for x in truth]), abs=1e-12)
    assert found.brier_before == pytest.approx(brier_score_loss(labels, sigmoid(5 * truth + 3)), abs=1e-12)
    assert (found.case, found.real + found.fake, found.identities) == ("a", 2000, 2000)


def test_a_calibration_is_a_bundles_and_a_reports() -> None:
    logits, labels, people = world(400, seed=22, per_person=4)
    found = calibrate("av", logits, labels, people, resamples=20)
    assert CalibrationSpec.model_validate(json.loads(json.dumps(found.spec.model_dump(mode="json")))) == found.spec
    read = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert read["thresholds"]["likely_fake"]["reals_above"] == 2
    assert "| likely_fake | 0.01 |" in as_markdown({"Calibration": {"av": found}})


@pytest.mark.parametrize("fake", [True, False])
def test_one_class_alone_cannot_be_calibrated_on(fake: bool) -> None:
    with pytest.raises(CalibrationError, match=r"of 3 clips [03] are fake\. It needs clips of both classes") as caught:
        calibrate("v", [1.0, 2.0, 3.0], [fake] * 3, [0, 1, 2])
    assert isinstance(caught.value, DissonanceError)


def test_a_single_clip_of_each_class_warns_of_nothing_and_claims_little() -> None:
    with warnings.catch_warnings(action="error"):
        found = calibrate("av", [-9.0, 9.0], [False, True], ["x", "y"], resamples=20)
    assert [probability(logit, found.spec) for logit in (-9, 9)] == pytest.approx([1 / 3, 2 / 3], abs=1e-9)
    assert not any(threshold.supported for threshold in found.thresholds.values())
    alone = calibrate("av", [-9.0, 9.0], [False, True], ["x", "x"], resamples=20)
    assert alone.thresholds["likely_fake"].p_fake.interval is None
