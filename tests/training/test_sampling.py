"""Balanced and seeded: counted over draws, not trusted."""

from collections import Counter
from pathlib import Path

import pytest

from dissonance.errors import UsageError
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
    return [sampler.draw(number).clip.uri for number in range(count)]


def test_classes_then_labels_then_manipulations_are_even(clips: list[Clip]) -> None:
    draws = [BalancedSampler(clips, seed=3).draw(number) for number in range(240)]
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


def test_a_draw_can_be_had_by_its_number_in_any_order_with_chance_of_its_own(clips: list[Clip]) -> None:
    in_turn = [BalancedSampler(clips, seed=3).draw(number) for number in range(60)]
    sampler = BalancedSampler(clips, seed=3)
    assert [sampler.draw(number) for number in reversed(range(60))] == in_turn[::-1]
    chances = [draw.generator().random() for draw in in_turn]
    assert chances == [draw.generator().random() for draw in in_turn]
    assert len(set(chances)) == len(chances)


@pytest.mark.parametrize(("kinds", "told"), [({"none"}, "real clips only"), ({"both", "rtvc"}, "fake clips only"), (set(), "no clips")])
def test_one_class_only_is_told(clips: list[Clip], kinds: set[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        BalancedSampler([clip for clip in clips if clip.manipulation in kinds], seed=1)
