"""Metrics equal scikit-learn's, intervals cover what they claim, and what is not defined is said, not raised."""

import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from dissonance.bundle import CalibrationSpec
from dissonance.training.bootstrap import (
    Statistic,
    accuracy_statistic,
    auc_statistic,
    average_precision_statistic,
    balanced_accuracy_statistic,
    equal_error_rate_statistic,
    percentile_interval,
    resample,
)
from dissonance.training.metrics import (
    Metric,
    as_json,
    as_markdown,
    best_threshold,
    equal_error_rate,
    majority_class_scores,
    mouth_loudness_score,
    summarise,
    summarise_groups,
)

NAMES = ("accuracy", "balanced_accuracy", "auc", "average_precision", "equal_error_rate")


def sample(clips: int, *, seed: int, levels: int | None = None) -> tuple[Any, Any]:
    """Scores in [0, 1] and labels, informative; `levels` rounds the scores so that there are ties within and across classes."""
    rng = np.random.default_rng(seed)
    labels = rng.random(clips) < 0.4
    scores = 1 / (1 + np.exp(-rng.normal(np.where(labels, 0.7, -0.7), 1.0)))
    return (scores if levels is None else np.round(scores * levels) / levels), labels


@pytest.mark.parametrize(("clips", "levels"), [(2, 4), (7, None), (301, None), (301, 10), (301, 1)])
def test_metrics_are_those_of_scikit_learn(clips: int, levels: int | None) -> None:
    scores, labels = sample(clips, seed=clips, levels=levels)
    labels[:2] = [False, True]
    found = summarise(scores, labels, np.arange(clips), resamples=5)
    assert found.accuracy.value == pytest.approx(sk.accuracy_score(labels, scores >= 0.5), abs=1e-12)
    assert found.balanced_accuracy.value == pytest.approx(sk.balanced_accuracy_score(labels, scores >= 0.5), abs=1e-12)
    assert found.auc.value == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    assert found.average_precision.value == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-12)
    assert (found.clips, found.real, found.fake, found.identities) == (clips, clips - labels.sum(), labels.sum(), clips)


@pytest.mark.parametrize("levels", [None, 12, 1])
def test_the_metrics_of_resamples_are_those_of_scikit_learn_with_sample_weights(levels: int | None) -> None:
    scores, labels = sample(120, seed=5, levels=levels)
    weights = np.random.default_rng(6).multinomial(120, np.full(120, 1 / 120), size=20)
    called = scores >= 0.5
    statistics = {
        sk.accuracy_score: (accuracy_statistic(scores, labels, threshold=0.5), called),
        sk.balanced_accuracy_score: (balanced_accuracy_statistic(scores, labels, threshold=0.5), called),
        sk.roc_auc_score: (auc_statistic(scores, labels), scores),
        sk.average_precision_score: (average_precision_statistic(scores, labels), scores),
    }
    for oracle, (statistic, given) in statistics.items():
        np.testing.assert_allclose(statistic(weights), [oracle(labels, given, sample_weight=each) for each in weights], atol=1e-12)
    repeated = [equal_error_rate(np.repeat(scores, each), np.repeat(labels, each)) for each in weights]
    np.testing.assert_allclose(equal_error_rate_statistic(scores, labels)(weights), repeated, atol=1e-12)


@pytest.mark.parametrize(
    ("real", "fake", "expected"),
    [
        ([0.1, 0.2], [0.8, 0.9], 0.0),
        ([0.8, 0.9], [0.1, 0.2], 1.0),
        ([0.5, 0.5], [0.5, 0.5, 0.5], 0.5),  # all tied: chance
        ([0.1, 0.6], [0.4, 0.9], 0.5),  # a threshold between 0.4 and 0.6 flags 1 of 2 reals and misses 1 of 2 fakes
        ([0.1, 0.2, 0.6], [0.5, 0.8, 0.9], 1 / 3),
        ([0.1, 0.2, 0.3, 0.9], [0.8], 0.25),  # the curve rises at a false-positive rate of 1/4, straight through the line of equal errors
        ([0.1, 0.5], [0.5, 0.9], 0.25),  # the tie is one segment, (0, 1/2) to (1/2, 1), which the line halves
    ],
)
def test_equal_error_rate_by_hand(real: list[float], fake: list[float], expected: float) -> None:
    assert equal_error_rate(real + fake, [False] * len(real) + [True] * len(fake)) == pytest.approx(expected, abs=1e-12)


def test_equal_error_rate_of_two_gaussians_is_that_of_the_closed_form() -> None:
    """N(0, 1) against N(d, 1): the errors are equal at d / 2, both Phi(-d / 2); its estimate's deviation is sqrt(e (1 - e) / 2 n)."""
    clips, distance, rng = 100_000, 1.5, np.random.default_rng(7)
    scores = np.concatenate([rng.normal(0, 1, clips), rng.normal(distance, 1, clips)])
    expected = stats.norm.cdf(-distance / 2)
    deviation = math.sqrt(expected * (1 - expected) / (2 * clips))
    assert equal_error_rate(scores, np.arange(2 * clips) >= clips) == pytest.approx(expected, abs=4 * deviation)


# ---------------------------------------------------------------------------------------------------------- not defined


@pytest.mark.parametrize(("fake", "reason"), [(True, "no real clips"), (False, "no fake clips")])
def test_one_class_alone_has_an_accuracy_and_reasons(fake: bool, reason: str) -> None:
    found = summarise([0.2, 0.6, 0.7, 0.9], [fake] * 4, [0, 1, 2, 3])
    assert found.accuracy.value == (0.75 if fake else 0.25)
    assert found.accuracy.interval is not None
    assert [getattr(found, name) for name in NAMES[1:]] == [Metric(None, reason=reason)] * 4


def test_no_clips_and_one_identity_are_said() -> None:
    empty = summarise([], [], [])
    assert [getattr(empty, name) for name in NAMES] == [Metric(None, reason="no clips")] * 5
    alone = summarise([0.2, 0.8], [False, True], ["a", "a"])
    assert (alone.auc.value, alone.auc.interval) == (1.0, None)
    assert "one identity" in str(alone.auc.reason)


def test_scores_that_are_missing_or_too_few_are_the_callers_to_leave_out() -> None:
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        summarise([0.1, math.nan], [True, False], [0, 1])
    with pytest.raises(ValueError, match="of one length"):
        summarise([0.1, 0.2], [True], [0, 1])


# --------------------------------------------------------------------------------------------------------------- groups


def test_a_kind_of_fake_is_judged_against_every_real() -> None:
    scores = np.array([0.1, 0.4, 0.3, 0.9, 0.35, 0.2])
    labels = np.array([False, False, True, True, True, True])
    kinds = ["none", "none", "timing", "timing", "artefact", "artefact"]
    found = summarise_groups(scores, labels, np.arange(6), kinds, against_all_reals=True, resamples=5)
    assert list(found) == ["artefact", "none", "timing"]
    assert found["timing"].auc.value == sk.roc_auc_score(labels[:4], scores[:4])
    assert found["artefact"].auc.value == sk.roc_auc_score(labels[[0, 1, 4, 5]], scores[[0, 1, 4, 5]])
    assert (found["none"].real, found["none"].fake, found["none"].auc.reason) == (2, 0, "no fake clips")


def test_a_group_of_people_is_judged_by_its_own_clips() -> None:
    scores, labels = sample(40, seed=3)
    groups = ["north"] * 20 + ["south"] * 20
    found = summarise_groups(scores, labels, np.arange(40), groups, against_all_reals=False, resamples=5)
    assert found["south"].clips == 20
    assert found["south"].auc.value == pytest.approx(sk.roc_auc_score(labels[20:], scores[20:]), abs=1e-12)
    with pytest.raises(ValueError, match="39 groups for 40 clips"):
        summarise_groups(scores, labels, np.arange(40), groups[1:], against_all_reals=False)


# ------------------------------------------------------------------------------------------------------------ intervals


def test_the_bootstrap_of_a_mean_over_equal_clusters_has_the_variance_of_the_closed_form() -> None:
    """A mean of G equal clusters, drawn with replacement: variance sum_g (mean_g - mean)^2 / G^2, mean the sample's own."""
    clusters, size, draws = 30, 12, 20_000
    rng = np.random.default_rng(8)
    right = rng.random((clusters, size)) < rng.random((clusters, 1))  # some people are easy
    scores, labels, people = right.ravel() * 1.0, np.ones(clusters * size, dtype=bool), np.repeat(np.arange(clusters), size)
    values = resample(accuracy_statistic(scores, labels, threshold=0.5), people, resamples=draws, seed=1)
    deviation = math.sqrt(((right.mean(axis=1) - right.mean()) ** 2).sum()) / clusters
    assert values.mean() == pytest.approx(right.mean(), abs=4 * deviation / math.sqrt(draws))
    assert values.std() == pytest.approx(deviation, rel=4 / math.sqrt(2 * draws))  # of a normal's deviation
    alone = resample(accuracy_statistic(scores, labels, threshold=0.5), np.arange(len(scores)), resamples=2000, seed=1)
    assert alone.std() < 0.7 * deviation  # clips taken for independent would claim too much


def test_the_interval_of_the_auc_covers_the_true_one_where_clips_of_a_person_are_alike() -> None:
    """Each person is real or fake, N(+-d / 2, t^2), their clips N(., 1): true AUC is Phi(d / sqrt(2 (1 + t^2)))."""
    people, size, distance, person, repetitions = 120, 6, 2.0, 1.0, 300
    truth = stats.norm.cdf(distance / math.sqrt(2 * (1 + person**2)))
    rng = np.random.default_rng(9)
    covered = unclustered = 0
    labels, identities = np.repeat(np.arange(people) % 2 == 0, size), np.repeat(np.arange(people), size)
    for repetition in range(repetitions):
        centres = np.where(labels, distance / 2, -distance / 2) + np.repeat(rng.normal(0, person, people), size)
        statistic = auc_statistic(rng.normal(centres, 1.0), labels)
        for names, clustered in ((identities, True), (np.arange(len(labels)), False)):
            interval = percentile_interval(resample(statistic, names, resamples=200, seed=repetition), level=0.9)
            assert interval is not None
            inside = interval.low <= truth <= interval.high
            covered, unclustered = covered + (inside and clustered), unclustered + (inside and not clustered)
    # A true coverage of 87 % (a percentile interval of 60 people a class falls a little short of 90 %) to 91 % passes 998 times of 1000.
    assert stats.binom.ppf(0.001, repetitions, 0.87) <= covered <= stats.binom.ppf(0.999, repetitions, 0.91)
    assert unclustered < stats.binom.ppf(0.001, repetitions, 0.75)


def test_resamples_without_one_class_are_skipped_and_counted() -> None:
    """Three people, one of them fake: a draw misses the fake one at (2/3)^3 and both real ones at (1/3)^3, so it has both classes at 2/3."""
    labels = np.array([True, False, False])
    statistics: list[Statistic] = [
        balanced_accuracy_statistic(np.array([0.9, 0.2, 0.4]), labels, threshold=0.5),
        auc_statistic(np.array([0.9, 0.2, 0.4]), labels),
        average_precision_statistic(np.array([0.9, 0.2, 0.4]), labels),
        equal_error_rate_statistic(np.array([0.9, 0.2, 0.4]), labels),
    ]
    with warnings.catch_warnings(action="error"):
        found = [percentile_interval(resample(each, ["x", "y", "z"], resamples=3000, seed=2)) for each in statistics]
    assert len({interval.skipped for interval in found if interval}) == 1
    assert found[0] is not None
    assert found[0].resamples + found[0].skipped == 3000
    assert abs(found[0].resamples - 2000) <= 4 * math.sqrt(3000 * 2 / 9)
    assert percentile_interval(np.array([math.nan, math.nan])) is None


def test_the_seed_decides_the_interval_and_metrics_share_their_draws() -> None:
    scores, labels = sample(80, seed=4)
    people = np.arange(80) // 4
    first, again, other = (summarise(scores, labels, people, resamples=50, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.auc.interval != other.auc.interval
    draws: list[Any] = []
    for _ in range(2):
        resample(lambda weights: draws.append(weights) or weights[:, 0] * 1.0, people, resamples=50, seed=1)  # type: ignore[func-returns-value]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0].reshape(50, 20, 4) == draws[0].reshape(50, 20, 4)[:, :, :1]).all()  # a person's clips come together


def test_a_thousand_resamples_of_two_thousand_files_take_less_than_two_seconds_a_metric() -> None:
    scores, labels = sample(2000, seed=2)
    for statistic in (auc_statistic, average_precision_statistic, equal_error_rate_statistic):
        start = time.process_time()
        assert len(resample(statistic(scores, labels), np.arange(2000) // 5)) == 1000
        assert time.process_time() - start < 2


# ------------------------------------------------------------------------------------------------------------ baselines


def test_the_majority_class_is_as_accurate_as_it_is_frequent_and_knows_nothing() -> None:
    scores = majority_class_scores([True, True, False], 4)
    found = summarise(scores, [True, False, True, True], [0, 1, 2, 3], resamples=5)
    assert (found.accuracy.value, found.balanced_accuracy.value, found.auc.value) == (0.75, 0.5, 0.5)
    assert (majority_class_scores([False, True, False], 2) < 0.5).all()
    with pytest.raises(ValueError, match="no labels"):
        majority_class_scores([], 2)


def test_the_mouth_loudness_baseline_is_scipys_correlation() -> None:
    rng = np.random.default_rng(10)
    motion = rng.random(90)
    loudness = motion + rng.normal(0, 0.5, 90)
    score = mouth_loudness_score(motion, loudness)
    assert score == pytest.approx((1 - stats.pearsonr(motion, loudness).statistic) / 2, abs=1e-12)
    assert mouth_loudness_score(motion, 3 * motion - 60) == pytest.approx(0, abs=1e-12)
    assert mouth_loudness_score(motion, -motion) == pytest.approx(1, abs=1e-12)
    spoiled = np.append(loudness, 1e6)
    assert mouth_loudness_score(np.append(motion, 0.0), spoiled, valid=np.append(np.ones(90), 0)) == pytest.approx(score, abs=1e-12)


def test_a_clip_in_which_nothing_changes_has_no_correlation() -> None:
    with warnings.catch_warnings(action="error"):
        assert mouth_loudness_score([1, 1, 1, 1], [0, 1, 2, 3]) is None
        assert mouth_loudness_score([0, 1, 2, 3], [-60, -60, -60, -60]) is None
        assert mouth_loudness_score([0, 1], [0, 1]) is None
        assert mouth_loudness_score([], []) is None
    with pytest.raises(ValueError, match="of one length"):
        mouth_loudness_score([0, 1, 2], [0, 1])


def test_the_best_threshold_beats_every_other_score() -> None:
    scores, labels = sample(200, seed=11, levels=30)
    best = best_threshold(scores, labels)
    accuracies = {threshold: sk.balanced_accuracy_score(labels, scores >= threshold) for threshold in np.unique(scores)}
    assert accuracies[best] == max(accuracies.values())


# --------------------------------------------------------------------------------------------------------------- report


def test_a_report_becomes_strict_json() -> None:
    report = {
        "overall": summarise([0.2, 0.8], [False, True], [0, 1], resamples=4),
        "spec": CalibrationSpec(scale=2.0),
        3: [np.float32(0.5), np.int64(2), np.bool_(True), math.nan, math.inf, None, Path("a/b")],
        "array": np.eye(2),
    }
    read = json.loads(json.dumps(as_json(report), allow_nan=False))
    assert read["overall"]["auc"]["value"] == 1.0
    assert read["spec"]["scale"] == 2.0
    assert read["3"] == [0.5, 2, True, None, None, None, "a/b"]
    assert read["array"] == [[1.0, 0.0], [0.0, 1.0]]


def test_a_report_becomes_tables() -> None:
    found = summarise([0.2, 0.8, 0.9], [False, True, True], [0, 1, 1], resamples=50)
    one_class = summarise([0.9], [True], [0])
    text = as_markdown(
        {"Report": {"clips": 3, "split": "test", "By kind": {"timing": found, "a|b\n<i>": one_class}, "Inner": {"x": {"y": {"z": 1.5}}}}}
    )
    lines = text.splitlines()
    assert lines[0] == "# Report"
    assert "| clips | 3 |" in lines
    assert "| split | test |" in lines
    table = [line for line in lines[lines.index("## By kind") :] if line.startswith("|")][:4]
    assert table[0] == "|  | clips | real | fake | identities | " + " | ".join(NAMES) + " |"
    assert table[1].split() == ["|", *(["---", "|"] * 10)]
    assert table[2].startswith("| timing | 3 | 1 | 2 | 2 | 1.000 (1.000 to 1.000) |")
    assert table[3].startswith(r"| a\|b &lt;i> | 1 | 0 | 1 | 1 | 1.000 (no interval: all clips are of one identity) | none (no real clips) |")
    assert lines[lines.index("## Inner") :][:7] == ["## Inner", "", "### x", "", "|  | z |", "| --- | --- |", "| y | 1.5 |"]
    assert "| load | 15,667 |" in as_markdown({"load": Metric(15_666.7)})
    assert as_markdown(as_json({"A": {"k": found}})) == as_markdown({"A": {"k": found}})
