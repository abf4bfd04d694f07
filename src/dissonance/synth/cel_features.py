"""Eyes and mouths of the cel style."""

import numpy as np
from numpy.typing import NDArray

from dissonance.synth.cel import INK
from dissonance.synth.features import FeaturePainter, MouthShape, fill, points, stroke
from dissonance.synth.relief import Canvas

_CAVITY = np.array([70.0, 14.0, 36.0], dtype=np.float32)
_TEETH = np.array([240.0, 240.0, 236.0], dtype=np.float32)
_TONGUE = np.array([196.0, 88.0, 104.0], dtype=np.float32)
_WHITE = np.array([244.0, 244.0, 248.0], dtype=np.float32)
_OPEN_FULLY = 0.34  # drop of the lower lip at openness 1, face units


class CelFeaturePainter(FeaturePainter):
    """Mouth and eyes as an animator draws them: an inked opening with a band of teeth; a large iris under a thick upper lid."""

    def _draw_mouth(self, shape: MouthShape) -> NDArray[np.float32]:
        face, canvas = self._face, self._mouth_canvas
        openness = min(max(shape.openness, 0.0), 1.0)
        half = face.mouth_half_width * (1 + 0.2 * shape.width - 0.5 * shape.rounding)
        drop, y = _OPEN_FULLY * openness, face.mouth_y
        u = np.linspace(-1, 1, 17)
        smile = -0.03 * (1 - openness) * np.abs(u) ** 3
        upper = points(half * u, y + smile - 0.02 * openness * (1 - u**2))
        lower = points(half * u * (1 - 0.15 * openness), y + smile + drop * np.sqrt(np.maximum(1 - u**4, 0)))
        opening = fill(canvas, np.concatenate([upper, lower[::-1]]))[..., None] * min(1.0, 8 * openness)
        inside = np.broadcast_to(_CAVITY, (*canvas.x.shape, 3))
        tongue = np.clip((canvas.y - (y + 0.68 * drop + 0.25 * canvas.x**2)) * canvas.scale + 0.5, 0, 1)[..., None]
        teeth = np.clip((y + 0.22 * drop - canvas.y) * canvas.scale + 0.5, 0, 1)[..., None]
        inside = inside + tongue * (_TONGUE - inside)
        inside = inside + teeth * (_TEETH - inside)
        picture = self._skin[self._mouth]
        shade = fill(canvas, points(0.5 * half * u, y + drop + 0.13 + 0.03 * np.sqrt(1 - u**2) * np.sign(u)))[..., None]
        picture = picture * (1 - 0.2 * shade)
        picture = picture + opening * (inside * self._light - picture)
        ink = np.maximum(stroke(canvas, upper, face.lip_thickness), stroke(canvas, lower, 0.8 * face.lip_thickness))[..., None]
        return np.asarray(picture + 0.9 * ink * (INK - picture), dtype=np.float32)

    def _draw_eye(self, skin: NDArray[np.float32], canvas: Canvas, side: int, lid: float, gaze_x: float, gaze_y: float) -> NDArray[np.float32]:
        face = self._face
        half, height = face.eye_half_width, face.eye_half_height
        u = np.linspace(-1, 1, 15)
        x = side * face.eye_x + half * u
        tilt = -face.eye_tilt * half * u * side
        arch = np.sqrt(1 - u**2)
        lower = tilt + 0.75 * height * arch
        upper = tilt - height * arch * (2 * lid - 1) if lid > 0.5 else tilt + 0.75 * height * arch * (1 - 2 * lid)
        white = fill(canvas, np.concatenate([points(x, upper), points(x, lower)[::-1]]))[..., None]
        away_x, away_y = (canvas.x - side * face.eye_x - 1.3 * gaze_x) / (0.52 * half), (canvas.y - gaze_y) / (0.95 * height)
        soft = 0.5 * half * canvas.scale
        radius = np.sqrt(away_x**2 + away_y**2)
        iris, pupil = (np.clip((size - radius) * soft + 0.5, 0, 1)[..., None] for size in (1.0, 0.55))
        spark = np.clip((0.3 - np.hypot(away_x + 0.35, away_y + 0.4)) * soft + 0.5, 0, 1)[..., None]
        ball = _WHITE + iris * (0.9 * np.asarray(face.iris, dtype=np.float32) - _WHITE)
        ball = ball + pupil * (INK - ball)
        ball = ball + spark * (_WHITE - ball)
        picture = skin + white * (ball * self._light * 0.95 - skin)
        lashes = stroke(canvas, points(x, upper), 0.06)[..., None]
        below = 0.5 * stroke(canvas, points(x, lower), 0.02)[..., None]
        return np.asarray(picture + np.maximum(lashes, below) * (INK - picture), dtype=np.float32)
