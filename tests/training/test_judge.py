"""What whole validation clips say of a network, against scikit-learn on the scores of a scan."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dissonance.bundle import BundleSpec, CropSpec, MelSpec
from dissonance.config import ModelConfig, ScanConfig
from dissonance.engine.runtime.torch_runtime import TorchRuntime
from dissonance.errors import CheckpointError, UsageError
from dissonance.model.network import AudioVisualNetwork, build_network
from dissonance.training.cached_clip import CachedClip
from dissonance.training.calibration import calibrate
from dissonance.training.judge import ClipJudge, calibrate_cases, halve
from dissonance.training.labels import Clip
from dissonance.training.scoring import ClipScore, ClipScorer
from tests.training.tiny import BINS, SIDE, named, shaken, tiny_model, tiny_run, toy_clip, toy_set


@pytest.fixture(scope="module")
def network() -> AudioVisualNetwork:
    return shaken(build_network(tiny_model(), seed=6))  # of those in which each wrong label would change a figure


def judged(count: int = 14) -> tuple[list[Clip], dict[str, CachedClip]]:
    """Real clips, fakes of each kind, and two clips without a voice, which are judged by their pictures."""
    labels, clips = toy_set(count)
    for fake in (False, True):
        labels.append(named(f"quiet{fake}", picture_fake=fake))
        clips = {**clips, labels[-1].uri: toy_clip(77 + fake, speech=False, striped=fake)}
    return labels, dict(clips)


def judge_of(open_clip: Callable[[str], CachedClip]) -> ClipJudge:
    return ClipJudge(tiny_run(data={"synthetic": {}, "trim_leading_silence": True}), open_clip)


def scanned(network: AudioVisualNetwork, clips: Sequence[CachedClip]) -> list[ClipScore | None]:
    model: ModelConfig = network.config
    spec = BundleSpec(model=model, crop=CropSpec(size_px=SIDE), mel=MelSpec(bins=BINS), trained=False, trained_on="nothing (random weights)")
    scorer = ClipScorer(TorchRuntime(network), spec=spec, scan=ScanConfig())
    return [scorer.score(clip) for clip in clips]


def test_figures_are_scikit_learn_s_on_the_scores_of_a_scan(network: AudioVisualNetwork) -> None:
    labels, clips = judged()
    figures = judge_of(clips.__getitem__).figures(network, labels)
    scores = [score for score in scanned(network, [clips[label.uri] for label in labels]) if score is not None]
    assert len(scores) == len(labels)
    spoken = [(label, score) for label, score in zip(labels, scores, strict=True) if score.case == "av"]
    assert len(spoken) == len(labels) - 2
    expected = {
        "auc_fused": roc_auc_score([label.picture_fake or label.sound_fake for label, _ in spoken], [score.logits["av"] for _, score in spoken]),
        "auc_visual": roc_auc_score([label.picture_fake for label in labels], [score.logits["v"] for score in scores]),
        "auc_audio": roc_auc_score([label.sound_fake for label, _ in spoken], [score.logits["a"] for _, score in spoken]),
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert len(set(expected.values())) == 3
    lags = [score.best_lag for label, score in spoken if label.manipulation == "none"]
    assert figures["lag_within_1"] == pytest.approx(sum(lag in (-1, 0, 1) for lag in lags) / len(lags))
    assert 0 < figures["lag_within_1"] < 1


def test_what_is_not_defined_is_none(network: AudioVisualNetwork) -> None:
    labels, clips = judged()
    judge = judge_of(clips.__getitem__)
    of_pictures = [label for label in labels if not label.sound_fake]
    figures = judge.figures(network, of_pictures)
    assert figures["auc_audio"] is None
    assert figures["auc_visual"] is not None
    only_fakes = judge.figures(network, [label for label in labels if label.fake])
    assert only_fakes["auc_fused"] is only_fakes["lag_within_1"] is None
    assert set(judge.figures(network, []).values()) == {None}


def test_clips_are_judged_whole_even_where_training_trims_them(network: AudioVisualNetwork) -> None:
    late = replace(toy_clip(1), speech=np.arange(30) >= 11)
    gone = replace(toy_clip(2, tracks=[(0, 10)]), speech=np.arange(30) >= 15)
    labels, clips = [named("late"), named("gone")], {"late": late, "gone": gone}
    assert dict(judge_of(clips.__getitem__).scores(network, labels)) == dict(zip(labels, scanned(network, [late, gone]), strict=True))


def test_a_network_that_went_astray_is_told() -> None:
    astray = build_network(tiny_model(), seed=1)
    astray.head.tail.fused.fc2.bias.data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"diverged.*'somebody'"):
        judge_of(lambda _: toy_clip(0)).figures(astray, [named("somebody")])


def test_each_case_is_calibrated_on_its_own_label(network: AudioVisualNetwork) -> None:
    labels, clips = judged()
    done, without = calibrate_cases(judge_of(clips.__getitem__).scores(network, labels))
    assert without == {}
    scores = list(zip(labels, scanned(network, [clips[label.uri] for label in labels]), strict=True))
    for case, fake in (("av", lambda label: label.fake), ("v", lambda label: label.picture_fake), ("a", lambda label: label.sound_fake)):
        rows = [(score.logits[case], fake(label), label.identity) for label, score in scores if score is not None and case in score.logits]
        assert done[case] == calibrate(case, *zip(*rows, strict=True))
    assert (done["av"].real, done["v"].real, done["a"].real) == (7, 10, 10)


def test_a_case_of_one_class_is_told_and_the_others_are_calibrated(network: AudioVisualNetwork) -> None:
    labels, clips = judged()
    judge = judge_of(clips.__getitem__)
    done, without = calibrate_cases(judge.scores(network, [label for label in labels if not label.sound_fake]))
    assert set(done) == {"av", "v"}
    assert set(without) == {"a"}
    assert "case 'a'" in without["a"]
    done, without = calibrate_cases([])
    assert done == {}
    assert set(without) == {"av", "v", "a"}


# -------------------------------------------------------------------------------------------------------------- halves


def crowd(people: int) -> list[Clip]:
    """Three clips each."""
    return [named(f"{person}/{number}", picture_fake=number > 0, identity=f"p{person}") for person in range(people) for number in range(3)]


@pytest.mark.parametrize("people", [2, 7, 20])
def test_halves_are_whole_disjoint_by_person_and_about_equal(people: int) -> None:
    clips = crowd(people)
    first, second = halve(clips, seed=3)
    assert {clip.identity for clip in first} & {clip.identity for clip in second} == set()
    assert sorted(clip.uri for clip in first + second) == sorted(clip.uri for clip in clips)
    assert len({clip.identity for clip in first}) == (people + 1) // 2


def test_halves_are_the_same_for_the_same_seed_whatever_the_order_and_the_folder() -> None:
    clips = crowd(20)
    assert halve(clips, seed=3) == halve(clips[::-1], seed=3)
    assert halve(clips, seed=3) != halve(clips, seed=4)
    moved = [replace(clip, uri=f"elsewhere/{clip.uri}", path="elsewhere" / clip.path) for clip in clips]
    assert [[clip.path.name for clip in half] for half in halve(moved, seed=3)] == [
        [clip.path.name for clip in half] for half in halve(clips, seed=3)
    ]


def test_the_first_clips_of_a_half_are_of_many_people_and_both_classes_in_turn() -> None:
    """`validation_clips` takes the first ones only."""
    for half in halve(crowd(40), seed=0):
        assert len({clip.identity for clip in half[:15]}) > 8
        assert [clip.fake for clip in half[:40]] == [False, True] * 20
        assert all(clip.fake for clip in half[40:])


def test_a_half_of_one_class_is_refused() -> None:
    reals = [named(f"real{number}") for number in range(6)]
    with pytest.raises(UsageError, match="select the weights: 3 real and 0 fake clips"):
        halve(reals, seed=0)
    with pytest.raises(UsageError, match=r"(1 real and 0|0 real and 1) fake clips"):
        halve([reals[0], named("fake", picture_fake=True)], seed=0)
    with pytest.raises(UsageError, match="calibrate them: 0 real and 0 fake"):
        halve(crowd(1), seed=0)
