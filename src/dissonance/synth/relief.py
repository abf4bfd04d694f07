"""The shape of a head: outline, relief, shading. Everything is a function on a canvas in face units.

A face unit is half the face's width; the origin is between the eyes, x grows to the right of the picture, y downwards, z to the viewer.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dissonance.synth.identity import Face

LEFT, RIGHT, TOP, BOTTOM = -1.75, 1.75, -2.15, 2.4  # of the canvas, face units
SKULL_TOP = -1.5
JAW_DROP = 0.14  # of the chin, at a fully open mouth

Map = NDArray[np.floating[Any]]  # one value a pixel of the canvas, (height, width)


@dataclass(frozen=True)
class Canvas:
    """A grid of `scale` pixels a face unit; `x` and `y` are the face coordinates of its pixels."""

    scale: float
    x: Map
    y: Map

    def pixel(self, x: float, y: float) -> tuple[float, float]:
        """Pixel coordinates of a face point."""
        return (x - LEFT) * self.scale, (y - TOP) * self.scale

    def rows_columns(self, x0: float, y0: float, x1: float, y1: float) -> tuple[slice, slice]:
        """The part of the canvas that covers a rectangle of face units."""
        left, top = self.pixel(x0, y0)
        right, bottom = self.pixel(x1, y1)
        return slice(max(0, int(top)), int(bottom) + 2), slice(max(0, int(left)), int(right) + 2)

    def window(self, rows: slice, columns: slice) -> "Canvas":
        """A part of the canvas; its `x` and `y` stay face coordinates."""
        return Canvas(self.scale, self.x[rows, columns], self.y[rows, columns])


def make_canvas(scale: float) -> Canvas:
    """The canvas of a whole head at `scale` pixels a face unit."""
    columns = np.arange(round((RIGHT - LEFT) * scale), dtype=np.float32) / scale + LEFT
    rows = np.arange(round((BOTTOM - TOP) * scale), dtype=np.float32) / scale + TOP
    x, y = np.meshgrid(columns, rows)
    return Canvas(scale, x, y)


def bump(canvas: Canvas, x: float, y: float, spread_x: float, spread_y: float) -> Map:
    """A Gaussian of height 1."""
    return np.asarray(np.exp(-(((canvas.x - x) / spread_x) ** 2) - ((canvas.y - y) / spread_y) ** 2))


def pair(canvas: Canvas, x: float, y: float, spread_x: float, spread_y: float) -> Map:
    """Two Gaussians of height 1, at x and -x."""
    return np.asarray(np.exp(-(((np.abs(canvas.x) - x) / spread_x) ** 2) - ((canvas.y - y) / spread_y) ** 2))


def smoothstep(value: Map, low: float, high: float) -> Map:
    """0 below `low`, 1 above `high`, smooth between; `low` may be the larger one."""
    t = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def half_width(face: Face, y: Map) -> Map:
    """Half the width of the head without hair at height y, 0 beyond its ends."""
    below = np.clip(y / face.chin_y, 0, 1)
    above = np.clip(y / SKULL_TOP, 0, 1)
    jaw = np.power(1 - np.power(below, face.jaw_exponent), 1 / 1.9)
    skull = np.power(1 - np.power(above, 2.5), 1 / 2.2)
    return np.asarray(np.where(y > 0, jaw, skull), dtype=np.float32)


def coverage(inside: Map, canvas: Canvas) -> Map:
    """Soft mask of an inside distance in face units: 1 inside, 0 outside, one pixel and a half of ramp."""
    return np.asarray(np.clip(inside * (canvas.scale / 1.5) + 0.5, 0, 1))


def face_mask(face: Face, canvas: Canvas) -> Map:
    """Soft mask of face and skull, without ears and hair."""
    width = half_width(face, canvas.y)
    inside = np.minimum.reduce([width - np.abs(canvas.x), face.chin_y - canvas.y, canvas.y - SKULL_TOP])
    return coverage(inside, canvas)


def relief(face: Face, canvas: Canvas) -> Map:
    """Height of the skin towards the viewer, face units."""
    width = np.maximum(half_width(face, canvas.y), 0.05)
    across = np.clip(np.abs(canvas.x) / width, 0, 1)
    along = np.clip((canvas.y - 0.1) / 1.75, -1, 1)
    z = 0.85 * np.power(np.maximum(1 - np.power(across, 2.6), 0), 0.5) * np.power(1 - along**2, 0.35)
    nose_y, mouth_y = face.nose_y, face.mouth_y
    bridge = smoothstep(canvas.y, -0.3, nose_y) * smoothstep(canvas.y, nose_y + 0.16, nose_y + 0.02)
    nose_spread = 0.09 + (face.nose_width - 0.1) * 0.55 * smoothstep(canvas.y, 0.1, nose_y)
    z += (0.1 * bump(canvas, 0, -0.05, 0.1, 0.25)) + 0.26 * bridge * np.exp(-((canvas.x / nose_spread) ** 2))
    z += 0.07 * bump(canvas, 0, nose_y - 0.02, 0.11, 0.1) + 0.075 * pair(canvas, face.nose_width * 0.78, nose_y + 0.03, 0.075, 0.075)
    z += 0.06 * pair(canvas, 0.4, face.brow_y + 0.03, 0.28, 0.09)  # brow ridge
    z -= 0.11 * pair(canvas, face.eye_x - 0.02, -0.02, 0.21, 0.13)  # eye sockets
    z += 0.045 * pair(canvas, face.eye_x, 0.0, 0.16, 0.09)  # eyeballs in them
    z += 0.06 * pair(canvas, 0.58, 0.42, 0.24, 0.2)  # cheekbones
    z -= 0.035 * pair(canvas, 0.9, -0.4, 0.14, 0.3)  # temples
    fold = np.abs(np.abs(canvas.x) - (face.nose_width + 0.1 + 0.5 * (canvas.y - nose_y)))
    z -= (
        0.02
        * np.exp(-((fold / 0.05) ** 2))
        * smoothstep(canvas.y, nose_y - 0.05, nose_y + 0.1)
        * smoothstep(canvas.y, mouth_y + 0.12, mouth_y - 0.08)
    )
    z += 0.05 * bump(canvas, 0, mouth_y, 0.36, 0.17) - 0.02 * bump(canvas, 0, (nose_y + mouth_y) / 2 + 0.04, 0.04, 0.08)
    z -= 0.05 * bump(canvas, 0, mouth_y + 0.24, 0.22, 0.06)
    z += 0.07 * bump(canvas, 0, face.chin_y - 0.2, 0.22, 0.14)
    return np.asarray(z, dtype=np.float32)


def shade(height: Map, canvas: Canvas, light: tuple[float, float, float], ambient: float) -> Map:
    """Lambert's law with ambient occlusion and a soft highlight; about 1 where the light falls straight on.

    `light` is a unit vector towards the lamp.
    """
    smooth = cv2.GaussianBlur(height, (0, 0), max(0.6, 0.018 * canvas.scale))
    slope_y, slope_x = np.gradient(smooth * canvas.scale)
    slope_x, slope_y = np.clip(slope_x, -2.5, 2.5) * 0.75, np.clip(slope_y, -2.5, 2.5) * 0.75
    facing = (-slope_x * light[0] - slope_y * light[1] + light[2]) / np.sqrt(slope_x**2 + slope_y**2 + 1)
    occlusion = 1 - np.clip(2.2 * (cv2.GaussianBlur(height, (0, 0), 0.16 * canvas.scale) - height), -0.12, 0.4)
    highlight = 0.15 * np.power(np.clip(facing, 0, 1), 14)
    return np.asarray((ambient + (1 - ambient) * np.clip(facing, 0, 1)) * occlusion + highlight, dtype=np.float32)


def parallax_depth(face: Face, canvas: Canvas) -> Map:
    """How far a turn of the head carries each point, face units a radian: a smooth stand-in for its height, 0 at the outline."""
    round_x = np.clip(1 - (canvas.x / 1.2) ** 2, 0, 1)
    round_y = np.clip(1 - ((canvas.y - 0.1) / 1.9) ** 2, 0, 1)
    return np.asarray(0.8 * round_x * np.sqrt(round_y) + 0.16 * bump(canvas, 0, face.nose_y - 0.1, 0.35, 0.35), dtype=np.float32)


def jaw_drop(face: Face, canvas: Canvas) -> Map:
    """How far a fully open mouth carries the skin down, face units: the chin moves, lips are drawn where they are."""
    down = smoothstep(canvas.y, face.mouth_y + 0.12, face.chin_y - 0.1) * smoothstep(canvas.y, face.chin_y + 0.55, face.chin_y + 0.1)
    return np.asarray(JAW_DROP * down * smoothstep(np.abs(canvas.x), 1.0, 0.45), dtype=np.float32)
