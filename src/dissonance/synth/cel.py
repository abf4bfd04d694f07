"""The cel style: flat steps of light, drawn outlines, hard-edged backgrounds. Its eyes and mouths are in `cel_features`."""

import cv2
import numpy as np
from numpy.typing import NDArray

from dissonance.synth.relief import Canvas, Map

INK = np.array([34.0, 26.0, 44.0], dtype=np.float32)


def posterise(picture: NDArray[np.float32], step: float) -> NDArray[np.float32]:
    """`picture`, RGB (height, width, 3) of 0 to 255, with its brightness in soft steps of `step`; colour tones stay."""
    smooth = cv2.bilateralFilter(np.clip(picture, 0, 255).astype(np.float32), 5, 30.0, 2.0)
    brightness = smooth.mean(axis=2, keepdims=True) / step
    below = np.floor(brightness)
    flat = (below + np.clip(4 * (brightness - below) - 1.5, 0, 1)) * step
    return np.asarray(smooth * (flat + 4) / (brightness * step + 4), dtype=np.float32)


def ink_outline(picture: NDArray[np.float32], mask: Map, canvas: Canvas, thickness: float) -> NDArray[np.float32]:
    """`picture` with the edge of `mask` drawn, `thickness` face units wide."""
    size = max(2, round(thickness * canvas.scale))
    solid = np.asarray(mask, dtype=np.float32)
    edge = (solid - cv2.erode(solid, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * size - 1, 2 * size - 1))))[..., None]
    return np.asarray(picture + 0.85 * edge * (INK - picture), dtype=np.float32)


def cel_background(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """Stripes, dots, checks or rays in two colours."""
    y, x = np.meshgrid(np.arange(height, dtype=np.float32) / height, np.arange(width, dtype=np.float32) / height, indexing="ij")
    angle, pitch, offset = rng.uniform(0, np.pi), rng.uniform(5, 11), rng.uniform(0, 1, 2)
    across, along = np.cos(angle) * x + np.sin(angle) * y + offset[0], np.cos(angle) * y - np.sin(angle) * x + offset[1]
    kind = rng.integers(4)
    if kind == 0:
        wave = np.sin(2 * np.pi * pitch * across)
    elif kind == 1:
        wave = np.cos(2 * np.pi * pitch * across) + np.cos(2 * np.pi * pitch * along) - 0.7
    elif kind == 2:
        wave = np.sin(np.pi * pitch * across) * np.sin(np.pi * pitch * along)
    else:
        wave = np.sin(np.arctan2(y - offset[0], x - offset[1]) * np.rint(2 * pitch))
    one = rng.uniform(70, 225, 3)
    other = np.clip(one + rng.normal(0, 28, 3), 30, 250)
    share = np.clip(wave * height / (4 * pitch) + 0.5, 0, 1)[..., None]
    return np.asarray(one + share * (other - one), dtype=np.float32)
