"""The picture forgery: the lower face made again by a coarse generator and blended in, as lip-sync forgeries are.

The mouth keeps its movement, so the clip stays in sync. What gives it away: the patch lacks detail and the camera's noise, its colours are a
little off, its edge is a seam, and its place and brightness tremble from frame to frame.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

_HALF_WIDTH, _HALF_HEIGHT, _BELOW_MOUTH = 0.62, 0.5, 0.14  # of the patch, face units; its middle lies below the lips
_DARK, _LIGHT = 135.0, 185.0  # skin of 0 to 255
_MARGIN = 1.25  # of the rectangle that is worked on, over the patch


class LowerFaceRerender:
    """One clip's forger: its habits are drawn once, its tremble for every frame."""

    def __init__(self, rng: np.random.Generator, mouths: NDArray[np.float32], unit_px: float, brightness: float) -> None:
        """`mouths` (frames, 2) is where the middle of the lips is, pixels; `unit_px` the pixels of half the face's width; `brightness` the skin's."""
        frames = len(mouths)
        size = rng.uniform(0.9, 1.1)
        self._half = (_HALF_WIDTH * size * unit_px, _HALF_HEIGHT * size * unit_px)
        self._centres = mouths + np.array([0, _BELOW_MOUTH * unit_px]) + rng.normal(0, 0.012 * unit_px, (frames, 2))
        self._coarseness = float(rng.uniform(0.05, 0.08)) * unit_px  # pixels of the picture in one of the generator's
        lighter = rng.random() < 0.5
        if not _DARK < brightness < _LIGHT:  # clipped to black or white, the mouth's movement would be lost, and with it the match
            lighter = brightness <= _DARK
        sign = 1 if lighter else -1
        self._colour = sign * rng.uniform(15, 25) + rng.uniform(-12, 12, 3)  # of 255, added to R, G, B
        self._gains = 1 + rng.normal(0, rng.uniform(0.025, 0.045), frames)
        self._tremble = rng.normal(0, rng.uniform(0.012, 0.022) * unit_px, (frames, 2))  # pixels
        self._seam = float(rng.uniform(0.03, 0.09))  # of the patch's half size, over which it fades

    def put(self, picture: NDArray[np.uint8], frame: int) -> None:
        """Blend the patch of `frame` into `picture`, uint8 RGB (height, width, 3), in place."""
        (x, y), (half_x, half_y) = self._centres[frame], self._half
        height, width = picture.shape[:2]
        left, right = (int(np.clip(x + side * _MARGIN * half_x, 0, width)) for side in (-1, 1))
        top, bottom = (int(np.clip(y + side * _MARGIN * half_y, 0, height)) for side in (-1, 1))
        if right - left < 2 or bottom - top < 2:  # the mouth is out of the picture
            return
        region = picture[top:bottom, left:right]
        size = (max(2, round((right - left) / self._coarseness)), max(2, round((bottom - top) / self._coarseness)))
        coarse = cv2.resize(region, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        coarse = coarse * float(self._gains[frame]) + self._colour.astype(np.float32)
        to_coarse = np.diag([size[0] / (right - left), size[1] / (bottom - top)])
        place = np.concatenate([to_coarse, to_coarse @ self._tremble[frame][:, None] + (to_coarse @ np.ones((2, 1)) - 1) / 2], axis=1)
        again = cv2.warpAffine(
            coarse, place, (right - left, bottom - top), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
        )
        across = ((np.arange(left, right, dtype=np.float32) - np.float32(x)) / np.float32(half_x))[None, :]
        along = ((np.arange(top, bottom, dtype=np.float32) - np.float32(y)) / np.float32(half_y))[:, None]
        radius = np.sqrt(np.sqrt(across**4 + along**4))
        mask = np.clip((1 - radius) / self._seam + 0.5, 0, 1)[..., None]
        picture[top:bottom, left:right] = np.clip(region + mask * (again - region) + 0.5, 0, 255).astype(np.uint8)
