"""Random streams that do not disturb each other: one per seed, purpose and number."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a random stream is for. Values are part of what a seed means: append, do not renumber."""

    IDENTITY = 1
    PLAN = 2
    UTTERANCE = 3
    DONOR_UTTERANCE = 4
    SCENE = 5
    MOTION = 6
    SOUND = 7
    LISTENER_MOTION = 8
    SENSOR = 9
    PICTURE_FORGERY = 10
    SOUND_FORGERY = 11


def stream(seed: int, purpose: Stream, number: int) -> np.random.Generator:
    """The random stream of (`seed`, `purpose`, `number`); the same triple always gives the same numbers."""
    return np.random.default_rng([seed, int(purpose), number])
