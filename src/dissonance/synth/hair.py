"""Hair: what hangs behind the face, what lies over it, and the strands both are made of."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dissonance.synth.identity import Face, HairStyle
from dissonance.synth.relief import SKULL_TOP, Canvas, Map, coverage, smoothstep

_HAIRLINE: dict[HairStyle, float] = {  # y of the hairline in the middle of the forehead
    "bald": -9.0, "buzz": -1.02, "short": -1.0, "side_part": -0.92, "fringe": -0.5, "bob": -0.85, "long": -0.95, "tied": -1.0,
}  # fmt: skip
_SIDES_END: dict[HairStyle, float] = {  # y where the hair beside the face ends
    "bald": -9.0, "buzz": -0.1, "short": 0.0, "side_part": 0.1, "fringe": 0.15, "bob": 1.25, "long": 2.25, "tied": 0.0,
}  # fmt: skip
_HEIGHT: dict[HairStyle, float] = {  # above the skull
    "bald": 0.0, "buzz": 0.05, "short": 0.17, "side_part": 0.22, "fringe": 0.18, "bob": 0.2, "long": 0.18, "tied": 0.1,
}  # fmt: skip


@dataclass(frozen=True)
class HairLayers:
    """RGB 0 to 255 (height, width, 3) and masks; `strands` is the texture, about -1 to 1."""

    back: NDArray[np.float32]
    back_alpha: Map
    front: NDArray[np.float32]
    front_alpha: Map
    strands: Map


def paint_hair(face: Face, canvas: Canvas, light: tuple[float, float, float], ambient: float, rng: np.random.Generator) -> HairLayers:
    """Draw the hair of `face`, lit like its skin."""
    x, y, style = canvas.x, canvas.y, face.hair_style
    strands = _strands(canvas, rng)
    nothing = np.zeros_like(x)
    wave = 0.03 * np.sin(5 * y + float(rng.uniform(0, 6))) + 0.015 * np.sin(13 * y + float(rng.uniform(0, 6)))
    parting = float(rng.uniform(0.25, 0.6)) * (1 if rng.random() < 0.5 else -1)
    colour = np.asarray(face.hair, dtype=np.float32)
    glow = np.exp(-(((y + 1.15 + 0.25 * x**2) / 0.22) ** 2)) * (0.5 + 0.5 * light[2])
    side = 1 + 0.25 * light[0] * np.clip(x, -1, 1)
    lit = (ambient + 0.35 + 0.3 * glow + 0.22 * strands) * side
    picture = np.asarray(colour * lit[..., None] + (26 * glow * np.clip(strands + 0.4, 0, 1))[..., None], dtype=np.float32)
    if style == "bald":
        return HairLayers(picture, nothing, picture, nothing, strands)
    outer = _outer_half_width(y, _HEIGHT[style] * face.hair_volume) + 0.35 * wave
    shell = coverage(outer - np.abs(x), canvas) * coverage(y - (SKULL_TOP - _HEIGHT[style] * face.hair_volume), canvas)
    line = _hairline(style, x, parting) + 0.016 * strands
    above = coverage(line - y, canvas)
    temple = 0.8 + 0.14 * smoothstep(y, -0.9, -0.3) + 0.02 * strands
    beside = coverage(np.abs(x) - temple, canvas) * coverage(_SIDES_END[style] - y + 0.03 * strands, canvas)
    softness = 0.72 if style == "buzz" else 0.97
    front_alpha = np.maximum(above, beside * smoothstep(y, -1.3, -1.1)) * shell * softness
    back_alpha = nothing
    if style in ("bob", "long"):
        end = _SIDES_END[style]
        spread = outer + (0.1 + 0.12 * face.hair_volume) * smoothstep(y, -1.0, 0.6) + wave - 0.25 * smoothstep(y, end - 0.4, end)
        throat = smoothstep(np.abs(x), 0.44, 0.58) + smoothstep(y, 1.25, 1.0)
        back_alpha = (
            coverage(spread - np.abs(x), canvas) * coverage(end - y + 0.04 * strands, canvas) * np.clip(throat, 0, 1) * smoothstep(y, -1.3, -0.9)
        )
        curtain = coverage(np.abs(x) - (0.86 + 0.05 * np.sin(2.2 * y + 1)), canvas) * back_alpha * smoothstep(y, -0.7, -0.4)
        front_alpha = np.maximum(front_alpha, curtain)
    if style == "tied":
        bun = 1 - np.sqrt((x / 0.42) ** 2 + ((y + 1.72) / 0.32) ** 2)
        back_alpha = coverage(bun * 0.32, canvas)
    shadowed = picture * (0.62 if style in ("bob", "long") else 0.85)
    return HairLayers(shadowed, np.asarray(back_alpha, np.float32), picture, np.asarray(front_alpha, np.float32), strands)


def _strands(canvas: Canvas, rng: np.random.Generator) -> Map:
    """Noise drawn out along the strands (downwards), unit deviation, clipped to 2."""
    shape = canvas.x.shape
    noise = rng.standard_normal((shape[0] // 3 + 1, shape[1]), dtype=np.float32)
    drawn = cv2.GaussianBlur(noise, (0, 0), sigmaX=max(0.5, 0.012 * canvas.scale), sigmaY=max(1.0, 0.07 * canvas.scale))
    full = cv2.resize(drawn, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.clip(full / (float(full.std()) + 1e-6), -2, 2), dtype=np.float32)


def _outer_half_width(y: Map, height: float) -> Map:
    """Half the width of the hair's outline: the skull's, grown."""
    above = np.clip(y / (SKULL_TOP - height), 0, 1)
    return np.where(y > 0, 1.0 + 0.4 * height, (1.02 + 0.4 * height) * np.power(1 - np.power(above, 2.5), 1 / 2.2)).astype(np.float32)


def _hairline(style: HairStyle, x: Map, parting: float) -> Map:
    middle = _HAIRLINE[style]
    if style == "fringe":
        return np.asarray(middle + 0.12 * x**2, dtype=np.float32)
    if style in ("side_part", "bob"):
        away = np.abs(x - parting)
        return np.asarray(middle - 0.18 + 0.3 * np.power(away, 1.3), dtype=np.float32)
    return np.asarray(middle + 0.42 * np.power(np.abs(x), 2.4), dtype=np.float32)
