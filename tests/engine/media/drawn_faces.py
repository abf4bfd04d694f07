"""Faces drawn with a few shaded ellipses: enough for both detectors, and where they lie is known."""

import cv2
import numpy as np
from numpy.typing import NDArray

SKIN = np.array([200.0, 160.0, 135.0])


def backdrop(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth coloured wall. (height, width, 3)"""
    coarse = np.random.default_rng(seed).integers(60, 140, (8, 12, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def draw_face(picture: NDArray[np.uint8], centre: tuple[float, float], face_height: float, *, mouth_open: float = 0.0) -> NDArray[np.uint8]:
    """A copy of `picture` with a face whose oval has this centre and height (pixels); `mouth_open` in [0, 1]."""
    canvas = picture.astype(np.float32)
    (cx, cy), h = centre, face_height
    w = 0.72 * h

    def ellipse(x: float, y: float, half_width: float, half_height: float, colour: NDArray[np.float64] | tuple[int, int, int], blur: float) -> None:
        nonlocal canvas
        mask = np.zeros(canvas.shape[:2], np.float32)
        cv2.ellipse(mask, (round(cx + x * w), round(cy + y * h)), (max(1, round(half_width * w)), max(1, round(half_height * h))), 0, 0, 360, 1, -1)
        mask = cv2.GaussianBlur(mask, (0, 0), max(0.5, blur * h)).astype(np.float32)[..., None]
        canvas = canvas * (1 - mask) + np.asarray(colour, np.float32) * mask

    ellipse(0, -0.08, 0.60, 0.56, (50, 35, 30), 0.005)  # hair
    ellipse(0, 0.50, 0.30, 0.35, SKIN * 0.7, 0.005)  # neck
    ellipse(0, 0, 0.50, 0.50, SKIN, 0.005)
    ellipse(0, -0.25, 0.33, 0.12, SKIN * 1.2, 0.05)  # forehead
    for side in (-1, 1):
        ellipse(side * 0.22, -0.06, 0.16, 0.08, SKIN * 0.45, 0.03)  # eye socket
        ellipse(side * 0.22, -0.05, 0.10, 0.035, (235, 235, 235), 0.004)
        ellipse(side * 0.22, -0.05, 0.045, 0.033, (40, 30, 30), 0.004)
        ellipse(side * 0.22, -0.14, 0.15, 0.02, (50, 35, 30), 0.006)  # brow
        ellipse(side * 0.26, 0.12, 0.12, 0.08, SKIN * 1.15, 0.04)  # cheek
    ellipse(0, 0.02, 0.05, 0.14, SKIN * 1.2, 0.03)  # nose
    ellipse(0, 0.15, 0.12, 0.02, SKIN * 0.5, 0.015)
    ellipse(0, 0.28, 0.20, 0.05 + 0.05 * mouth_open, (150, 60, 60), 0.006)
    ellipse(0, 0.28, 0.15, 0.01 + 0.05 * mouth_open, (50, 20, 20), 0.004)
    return np.clip(canvas, 0, 255).astype(np.uint8)
