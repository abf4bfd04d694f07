"""Does a mouth move? From consecutive crops of one face.

The regions are shares of a crop that encloses the face square enlarged 1.3 times: the mouth (with room for the jaw), and the
upper face, whose change is head motion, light and coding noise, and is subtracted.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

MOUTH = (0.66, 0.90, 0.30, 0.70)  # top, bottom, left, right
UPPER_FACE = (0.22, 0.56, 0.25, 0.75)


def mouth_motion(previous: NDArray[np.uint8] | None, current: NDArray[np.uint8]) -> float:
    """Mean absolute difference of two crops (S, S, 3) in the mouth region minus that in the upper face, in grey levels.

    Near 0, and sometimes below, where the mouth moves with the head; 0 where there is no previous crop.
    """
    if previous is None or previous is current:
        return 0.0
    return _difference(previous, current, MOUTH) - _difference(previous, current, UPPER_FACE)


def _difference(a: NDArray[np.uint8], b: NDArray[np.uint8], region: tuple[float, float, float, float]) -> float:
    size = a.shape[0]
    top, bottom, left, right = (round(share * size) for share in region)
    part = np.s_[top : max(bottom, top + 1), left : max(right, left + 1)]
    return cv2.norm(a[part], b[part], cv2.NORM_L1) / a[part].size
