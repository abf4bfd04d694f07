"""Which clip comes next: balanced over classes, labels and manipulations, the same for the same seed and number."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dissonance.errors import UsageError
from dissonance.training.labels import Clip


@dataclass(frozen=True)
class Draw:
    """One sample. `generator` is its own source of chance (which window, which shift), the same whenever and wherever it is drawn again."""

    number: int
    clip: Clip
    seed: int

    def generator(self) -> np.random.Generator:
        """A new generator, in the same state at every call."""
        return np.random.default_rng([self.seed, 1, self.number])


@dataclass
class _Deck:
    """Cards that are dealt in another order every round, each once a round: clips, or decks of them."""

    seed: list[int]
    cards: list[Any]
    _order: tuple[int, list[int]] = field(default=(-1, []))  # the round that was dealt last: draws come nearly in turn

    def deal(self, number: int) -> Any:
        """Card `number` of all rounds, from 0. A deck in it is dealt from in its turn, once a round."""
        turn, place = divmod(number, len(self.cards))
        if self._order[0] != turn:
            self._order = turn, np.random.default_rng([*self.seed, turn]).permutation(len(self.cards)).tolist()
        card = self.cards[self._order[1][place]]
        return card.deal(turn) if isinstance(card, _Deck) else card


class BalancedSampler:
    """An endless stream of draws: half are real; the fakes go evenly over which modalities are fake, then over manipulations, then in turn.

    In any run of 2 n draws that starts at an even number there are n real clips, and no clip comes again before all others of its manipulation came.
    Draw number n depends on clips, seed and n alone, so a run that knows its step knows its draws.
    """

    def __init__(self, clips: Sequence[Clip], *, seed: int) -> None:
        """Raises UsageError for clips of one class only, or a negative seed."""
        classes = {clip.fake for clip in clips}
        if classes != {False, True}:
            found = "no clips" if not classes else "fake clips only" if True in classes else "real clips only"
            raise UsageError(f"Cannot balance over the classes: there are {found} ({len(clips)}). Give both.")
        if seed < 0:
            raise UsageError(f"Invalid seed ({seed}). Supported values are whole numbers from 0 up.")
        self.seed = seed
        self._deck = _deck([seed, 0], clips)

    def draw(self, number: int) -> Draw:
        """Draw `number`, from 0 up."""
        return Draw(number, self._deck.deal(number), self.seed)


def _levels(clip: Clip) -> tuple[bool, tuple[bool, bool], str]:
    """What is balanced over, from the top."""
    return clip.fake, (clip.picture_fake, clip.sound_fake), clip.manipulation


def _deck(seed: list[int], clips: Sequence[Clip], level: int = 0) -> _Deck:
    if level == len(_levels(clips[0])):
        return _Deck(seed, sorted(clips, key=lambda clip: clip.uri))
    parts: dict[Any, list[Clip]] = {}
    for clip in clips:
        parts.setdefault(_levels(clip)[level], []).append(clip)
    return _Deck(seed, [_deck([*seed, level, number], parts[value], level + 1) for number, value in enumerate(sorted(parts))])
