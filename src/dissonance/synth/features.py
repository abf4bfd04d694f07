"""What moves on a face: mouth and eyes, drawn into small windows of the head's canvas for every frame."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from dissonance.synth.head import Head
from dissonance.synth.relief import Canvas, Map

_SUBPIXEL_BITS = 4
_CAVITY = np.array([38.0, 12.0, 14.0], dtype=np.float32)
_TEETH = np.array([206.0, 198.0, 184.0], dtype=np.float32)
_TONGUE = np.array([122.0, 52.0, 52.0], dtype=np.float32)
_LASHES = np.array([30.0, 22.0, 20.0], dtype=np.float32)
_SCLERA = np.array([214.0, 208.0, 202.0], dtype=np.float32)
_LIP = np.array([0.86, 0.56, 0.56], dtype=np.float32)  # of the skin's colour, at full redness
_U = np.linspace(-1, 1, 17)  # along the lips
_ARCH = np.power(1 - _U**2, 0.75)
_BOW = 1 - 0.22 * np.exp(-((_U / 0.16) ** 2))  # the dip of the upper lip
_OPEN_FULLY = 0.3  # drop of the lower lip at openness 1, face units


class MouthShape(NamedTuple):
    """Articulation at one instant; see `articulation`."""

    openness: float
    width: float
    rounding: float


class EyeState(NamedTuple):
    """Both eyes at one instant: lid 1 open to 0 shut; gaze in face units."""

    lid: float
    gaze_x: float
    gaze_y: float


class FeaturePainter:
    """Draws mouth and eyes of one head into its picture.

    `picture` is what is seen: uint8 RGB (height, width, 3) of the head's canvas; `alpha` uint8 goes with it.
    """

    def __init__(self, head: Head) -> None:
        self._face, self._light = head.face, np.asarray(head.light.colour, dtype=np.float32)
        face, canvas = head.face, head.canvas
        overlay_alpha = head.overlay_alpha[..., None]
        self._overlay, self._overlay_alpha = head.overlay * overlay_alpha, 1 - overlay_alpha
        self.picture: NDArray[np.uint8] = np.asarray(head.skin * self._overlay_alpha + self._overlay, dtype=np.uint8)
        self._skin = head.skin
        self._mouth = canvas.rows_columns(-0.56, face.mouth_y - 0.24, 0.56, face.mouth_y + 0.52)
        self._mouth_canvas = canvas.window(*self._mouth)
        lips = np.asarray(face.skin, dtype=np.float32) * (1 - face.lip_redness * 0.75 * (1 - _LIP)) * np.array([0.9, 0.78, 0.78], np.float32)
        self._lips = lips * self._light * head.lit[self._mouth][..., None]
        self._eyes = [canvas.rows_columns(side * face.eye_x - 0.32, -0.22, side * face.eye_x + 0.32, 0.2) for side in (-1, 1)]
        self._eye_canvases = [canvas.window(*where) for where in self._eyes]
        self._drawn_eyes: EyeState | None = None

    def draw(self, mouth: MouthShape, eyes: EyeState) -> None:
        """Bring `picture` to one instant."""
        rows_columns = self._mouth
        self.picture[rows_columns] = np.clip(self._draw_mouth(mouth), 0, 255)
        if eyes == self._drawn_eyes:
            return
        self._drawn_eyes = eyes
        for side, where, canvas in zip((-1, 1), self._eyes, self._eye_canvases, strict=True):
            eye = self._draw_eye(self._skin[where], canvas, side, *eyes)
            self.picture[where] = np.clip(eye * self._overlay_alpha[where] + self._overlay[where], 0, 255)

    def _draw_mouth(self, shape: MouthShape) -> NDArray[np.float32]:
        face, canvas = self._face, self._mouth_canvas
        openness = min(max(shape.openness, 0.0), 1.0)
        half = face.mouth_half_width * (1 + 0.13 * shape.width - 0.36 * shape.rounding)
        inner_half = half * (0.86 - 0.12 * (1 - openness))
        lip = face.lip_thickness * (1 + 0.3 * shape.rounding - 0.15 * openness)
        drop, lift = _OPEN_FULLY * openness, 0.035 * openness
        u, arch = _U, _ARCH
        y = face.mouth_y
        corner = y - (0.02 + 0.02 * shape.width) * (1 - openness) + 0.25 * drop
        bend = corner + (y - corner) * arch  # the line of the closed lips, corners drawn along when the jaw drops
        bow = _BOW
        upper_outer = points(half * u, bend - arch * (lip * bow + lift))
        lower_outer = points(half * u, bend + arch * (drop + 1.2 * lip))
        upper_inner = points(inner_half * u, bend - arch * lift)
        lower_inner = points(inner_half * u, bend + arch * (drop + 0.006))
        lips = fill(canvas, np.concatenate([upper_outer, lower_outer[::-1]]))[..., None]
        inner = fill(canvas, np.concatenate([upper_inner, lower_inner[::-1]]))[..., None]
        middle = y + drop + 0.55 * lip
        gain = 0.82 + 0.3 * np.exp(-(((canvas.y - middle) / (0.5 * lip)) ** 2) - (canvas.x / (0.7 * half)) ** 2)
        gain += 0.06 * np.exp(-(((canvas.y - y + lip * 0.8 + lift) / (0.3 * lip)) ** 2))
        skin = self._skin[self._mouth]
        picture = skin + lips * (self._lips * gain[..., None] - skin)
        cavity = np.broadcast_to(_CAVITY, picture.shape)
        if openness > 0.08:
            edge = y - lift + 0.075 + 0.03 * (canvas.x / inner_half) ** 2
            teeth = np.clip((edge - canvas.y) * canvas.scale + 0.5, 0, 1) * np.clip(1.1 - np.abs(canvas.x) / (0.8 * inner_half), 0, 0.5) * 1.6
            teeth *= min(1.0, (openness - 0.08) * 5) * (1 - 0.6 * shape.rounding)
            tongue = np.exp(-((canvas.x / (0.55 * inner_half)) ** 2) - ((canvas.y - y - drop) / (0.3 * drop + 0.02)) ** 2) * 0.7
            cavity = cavity + tongue[..., None] * (_TONGUE - cavity)
            cavity = cavity + np.clip(teeth, 0, 0.85)[..., None] * (_TEETH - cavity)
        return np.asarray(picture + inner * (0.55 + 0.45 * min(1.0, 6 * openness)) * (cavity * self._light - picture), dtype=np.float32)

    def _draw_eye(self, skin: NDArray[np.float32], canvas: Canvas, side: int, lid: float, gaze_x: float, gaze_y: float) -> NDArray[np.float32]:
        face = self._face
        half, height = face.eye_half_width, face.eye_half_height
        u = np.linspace(-1, 1, 13)
        outer = u * side  # 1 at the outer corner
        x = side * face.eye_x + half * u
        tilt = -face.eye_tilt * half * outer
        arch = np.power(1 - u**2, 0.65) * (1 + 0.12 * outer)
        shut = 0.45 * height  # where the lids meet
        upper = tilt + shut - (height + shut) * lid * arch
        lower = tilt + shut + (0.72 * height - shut) * arch
        opening = fill(canvas, np.concatenate([points(x, upper), points(x, lower)[::-1]]))[..., None]
        open_upper = tilt - height * arch
        eyelid = fill(canvas, np.concatenate([points(x, open_upper), points(x, lower)[::-1]]))[..., None]
        picture = skin + eyelid * (skin * 0.9 - skin)
        centre_x, centre_y = side * face.eye_x + gaze_x, gaze_y - 0.005
        radius = np.sqrt((canvas.x - centre_x) ** 2 + (canvas.y - centre_y) ** 2)
        iris_radius = 0.088
        soft = canvas.scale / 1.5
        iris = np.clip((iris_radius - radius) * soft + 0.5, 0, 1)[..., None]
        pupil = np.clip((0.4 * iris_radius - radius) * soft + 0.5, 0, 1)[..., None]
        shadow = 0.62 + 0.38 * np.clip((canvas.y + height) / (1.1 * height), 0, 1)
        ball = _SCLERA * np.clip(1 - 0.5 * np.abs(canvas.x - side * face.eye_x) / half, 0.4, 1)[..., None]
        ball = ball + iris * (np.asarray(face.iris, dtype=np.float32) * (0.7 + 0.4 * np.clip(radius / iris_radius, 0, 1))[..., None] - ball)
        ball = (ball + pupil * (10.0 - ball)) * shadow[..., None]
        spark = np.exp(-(((canvas.x - centre_x + 0.03) / 0.02) ** 2) - ((canvas.y - centre_y + 0.035) / 0.02) ** 2)[..., None]
        ball = ball + 0.8 * spark * (245.0 - ball)
        picture = picture + opening * (ball * self._light * 0.92 - picture)
        lashes = stroke(canvas, points(x, upper), 0.03)[..., None] * 0.85
        crease = stroke(canvas, points(x, open_upper - 0.045), 0.018)[..., None] * 0.3
        under = stroke(canvas, points(x, lower), 0.014)[..., None] * 0.35
        picture = picture * (1 - np.maximum(crease, under) * 0.7)
        return np.asarray(picture + lashes * (_LASHES - picture), dtype=np.float32)


def points(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Face points (n, 2), as `np.stack` makes them, without what it costs."""
    together = np.empty((len(x), 2))
    together[:, 0], together[:, 1] = x, y
    return together


def _to_pixels(canvas: Canvas, line: NDArray[np.float64]) -> NDArray[np.int32]:
    origin = np.array([canvas.x[0, 0], canvas.y[0, 0]])
    return np.asarray(np.rint((line - origin) * canvas.scale * (1 << _SUBPIXEL_BITS)), dtype=np.int32)


def fill(canvas: Canvas, outline: NDArray[np.float64]) -> Map:
    """Antialiased mask of a polygon in face units."""
    mask = np.zeros(canvas.x.shape, dtype=np.uint8)
    cv2.fillPoly(mask, [_to_pixels(canvas, outline)], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return mask.astype(np.float32) * np.float32(1 / 255)


def stroke(canvas: Canvas, line: NDArray[np.float64], thickness: float) -> Map:
    """Antialiased mask of a line in face units; thinner than a pixel it fades instead."""
    pixels = thickness * canvas.scale
    mask = np.zeros(canvas.x.shape, dtype=np.uint8)
    cv2.polylines(mask, [_to_pixels(canvas, line)], False, 255, max(1, round(pixels)), cv2.LINE_AA, _SUBPIXEL_BITS)
    return mask.astype(np.float32) * np.float32(min(1.0, pixels) / 255)
