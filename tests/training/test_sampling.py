"""Balanced, seeded and resumable: counted over draws, not trusted."""

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from dissonance.errors import CheckpointError, UsageError
from dissonance.training.labels import Clip
from dissonance.training.sampling import BalancedSampler

# manipulation: (picture fake, sound fake, clips); as uneven as data sets are
KINDS = {"none": (False, False, 7), "wav2lip": (True, False, 31), "faceswap": (True, False, 3), "rtvc": (False, True, 5), "both": (True, True, 2)}


@pytest.fixture
def clips() -> list[Clip]:
    return [
        Clip(f"{kind}{number}", Path(f"{kind}{number}"), picture, sound, kind, "", f"{kind}{number}", "", "train")
        for kind, (picture, sound, count) in KINDS.items()
        for number in range(count)
    ]


def uris(sampler: BalancedSampler, count: int) -> list[str]:
    return [draw.clip.uri for draw in islice(sampler, count)]


def test_classes_then_labels_then_manipulations_are_even(clips: list[Clip]) -> None:
    draws = list(islice(BalancedSampler(clips, seed=3), 240))
    assert Counter(draw.clip.manipulation for draw in draws) == {"none": 120, "wav2lip": 20, "faceswap": 20, "rtvc": 40, "both": 40}
    for pair in range(0, 240, 2):
        assert {draw.clip.fake for draw in draws[pair : pair + 2]} == {False, True}


def test_every_clip_comes_once_before_one_comes_again(clips: list[Clip]) -> None:
    reals = [uri for uri in uris(BalancedSampler(clips, seed=3), 14 * 6) if uri.startswith("none")]
    assert len(reals) == 42
    rounds = [reals[begin : begin + 7] for begin in range(0, 42, 7)]
    assert all(len(set(dealt)) == 7 for dealt in rounds)
    assert len({tuple(dealt) for dealt in rounds}) > 1  # in another order


def test_the_seed_decides_and_the_order_of_the_clips_does_not(clips: list[Clip]) -> None:
    first = uris(BalancedSampler(clips, seed=3), 200)
    assert first == uris(BalancedSampler(clips, seed=3), 200)
    assert first == uris(BalancedSampler(clips[::-1], seed=3), 200)
    assert first != uris(BalancedSampler(clips, seed=4), 200)


def test_a_resumed_stream_is_the_stream_that_was_stopped(clips: list[Clip]) -> None:
    whole = list(islice(BalancedSampler(clips, seed=3), 101))
    stopped = BalancedSampler(clips, seed=3)
    list(islice(stopped, 37))
    state = stopped.state()
    assert all(type(value) is int for value in state.values())
    resumed = BalancedSampler(clips, seed=3)
    resumed.restore(state)
    rest = list(islice(resumed, 64))
    assert rest == whole[37:]
    assert [draw.generator().random() for draw in rest] == [draw.generator().random() for draw in whole[37:]]
    assert len({draw.generator().random() for draw in whole}) == len(whole)


def test_a_draw_can_be_had_by_its_number(clips: list[Clip]) -> None:
    sampler = BalancedSampler(clips, seed=3)
    in_turn = list(islice(BalancedSampler(clips, seed=3), 60))
    assert [sampler.draw(number) for number in reversed(range(60))] == in_turn[::-1]


def test_a_state_of_other_clips_or_another_seed_is_refused(clips: list[Clip]) -> None:
    state = BalancedSampler(clips, seed=3).state()
    BalancedSampler(clips[::-1], seed=3).restore(state)
    with pytest.raises(CheckpointError, match="with seed 3, not 4"):
        BalancedSampler(clips, seed=4).restore(state)
    with pytest.raises(CheckpointError, match="from other clips"):
        BalancedSampler(clips[1:], seed=3).restore(state)


@pytest.mark.parametrize(("kinds", "told"), [({"none"}, "real clips only"), ({"both", "rtvc"}, "fake clips only"), (set(), "no clips")])
def test_one_class_only_is_told(clips: list[Clip], kinds: set[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        BalancedSampler([clip for clip in clips if clip.manipulation in kinds], seed=1)
