"""Where a new shot begins, among the few frames between two detections.

A cut is the largest change between neighbouring frames' thumbnails, brightness removed, if it is large in itself and stands out from the
changes around it (a flicker or a shaking camera changes all the time). Whether to look at all is decided by the thumbnails of the two
ends: a still picture costs one thumbnail a detection. At most one cut is found between two detections.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dissonance.engine.media.detect import Picture

THUMBNAIL_SIDE_PX = 32
CUT_CHANGE = 12.0  # mean absolute change of a thumbnail pixel, in grey levels
STANDS_OUT = 3.0  # times the median change between the other neighbours
LOOK_CHANGE = CUT_CHANGE / 2  # between the two ends, below which there is no cut between them


def find_cut(frames: Sequence[Picture]) -> int | None:
    """Index in `frames` (consecutive ones) of the first frame of a new shot, from 1 up; None where there is none."""
    for index in range(1, len(frames)):
        if (frames[index].width, frames[index].height) != (frames[index - 1].width, frames[index - 1].height):
            return index
    if len(frames) < 2 or frames[0] is frames[-1] or change(_thumbnail(frames[0]), _thumbnail(frames[-1])) < LOOK_CHANGE:
        return None
    thumbnails = [_thumbnail(frame) for frame in frames]
    changes = [change(a, b) for a, b in pairwise(thumbnails)]
    largest = int(np.argmax(changes))
    others = changes[:largest] + changes[largest + 1 :]
    if changes[largest] < CUT_CHANGE or (others and changes[largest] < STANDS_OUT * float(np.median(others))):
        return None
    return largest + 1


def change(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Mean absolute difference of two thumbnails without their mean brightness, so that a flash or a fade is no cut."""
    difference = a - b
    return float(np.mean(np.abs(difference - difference.mean())))


def _thumbnail(frame: Picture) -> NDArray[np.float32]:
    return frame.grey(THUMBNAIL_SIDE_PX).astype(np.float32)
