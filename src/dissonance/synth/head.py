"""A head as it stays through a clip: skin, ears, brows, nose, beard, hair, glasses; eyes and mouth are drawn on it per frame."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dissonance.synth.cel import ink_outline, posterise
from dissonance.synth.hair import HairLayers, paint_hair
from dissonance.synth.identity import Face
from dissonance.synth.relief import (
    Canvas,
    Map,
    bump,
    coverage,
    face_mask,
    half_width,
    jaw_drop,
    make_canvas,
    pair,
    parallax_depth,
    relief,
    shade,
    smoothstep,
)

Image = NDArray[np.floating[Any]]  # (height, width, 3) RGB, 0 to 255

_CEL_STEP = 24.0  # of brightness between two flat tones


@dataclass(frozen=True)
class Light:
    """The lamp of a scene. `towards` is a unit vector to it: x right, y down, z to the viewer."""

    towards: tuple[float, float, float]
    ambient: float
    colour: tuple[float, float, float]  # gains of R, G, B


@dataclass(frozen=True)
class Head:
    """What is drawn once. `skin` is without lips and eyes, already lit; `alpha` is the head's mask."""

    face: Face
    canvas: Canvas
    skin: Image
    alpha: Map
    overlay: Image  # glasses, drawn over the eyes
    overlay_alpha: Map
    lit: Map  # shading of the skin, about 1
    light: Light
    depth: Map
    jaw: Map


def paint_head(face: Face, light: Light, scale: float) -> Head:
    """Draw the parts of a head that do not change through a clip, at `scale` pixels a face unit."""
    canvas = make_canvas(scale)
    rng = np.random.default_rng(face.texture_seed)
    height = relief(face, canvas)
    lit = shade(height, canvas, light.towards, light.ambient) * _modelling(face, canvas)
    skin = _complexion(face, canvas, rng) * np.asarray(light.colour, dtype=np.float32)
    mask = face_mask(face, canvas)
    ears, ear_shade = _ears(canvas, light)
    hair = paint_hair(face, canvas, light.towards, light.ambient, rng)
    picture = hair.back * np.asarray(light.colour, dtype=np.float32)
    alpha = hair.back_alpha
    picture, alpha = _over(picture, alpha, skin * ear_shade[..., None], ears)
    picture, alpha = _over(picture, alpha, _nostrils(skin * lit[..., None], face, canvas), mask)
    picture = _facial_hair(picture, face, canvas, hair, rng)
    picture, alpha = _over(picture, alpha, hair.front * np.asarray(light.colour, dtype=np.float32), hair.front_alpha)
    if face.style == "cel":
        picture = posterise(picture, _CEL_STEP)
        picture = ink_outline(picture, mask * (1 - hair.front_alpha), canvas, 0.035)
        picture = ink_outline(picture, alpha, canvas, 0.06)
    overlay, overlay_alpha = _glasses(face, canvas)
    return Head(
        face, canvas, np.clip(picture, 0, 255), alpha, overlay, overlay_alpha, lit, light, parallax_depth(face, canvas), jaw_drop(face, canvas)
    )


def _over(below: Image, below_alpha: Map, above: Image, above_alpha: Map) -> tuple[Image, Map]:
    """Porter and Duff's `over`, straight alpha."""
    alpha = above_alpha + below_alpha * (1 - above_alpha)
    mixed = above * above_alpha[..., None] + below * (below_alpha * (1 - above_alpha))[..., None]
    return mixed / np.maximum(alpha, 1e-3)[..., None], alpha


def _modelling(face: Face, canvas: Canvas) -> Map:
    """What a lamp overhead does to every face: dark eye sockets, bright forehead, nose bridge and cheeks. Haar cascades look for it."""
    gain = 1 - 0.26 * pair(canvas, face.eye_x - 0.03, -0.03, 0.25, 0.14)
    gain -= 0.1 * pair(canvas, face.eye_x, 0.14, 0.2, 0.06)
    gain += 0.1 * bump(canvas, 0, 0.1, 0.1, 0.4) + 0.07 * bump(canvas, 0, -0.7, 0.6, 0.3) + 0.1 * pair(canvas, 0.52, 0.38, 0.26, 0.2)
    gain -= 0.14 * bump(canvas, 0, face.nose_y + 0.13, face.nose_width * 1.1, 0.05)  # under the nose
    gain -= 0.1 * bump(canvas, 0, face.mouth_y + 0.22, 0.25, 0.06)
    gain *= 1 - 0.3 * smoothstep(np.abs(canvas.x) / np.maximum(half_width(face, canvas.y), 0.05), 0.82, 1.0)
    return np.asarray(gain, dtype=np.float32)


def _grain(shape: tuple[int, ...], spread: float, rng: np.random.Generator) -> Map:
    """Smooth noise of unit deviation; `spread` is its size in pixels."""
    small = (max(2, int(shape[0] / spread) + 2), max(2, int(shape[1] / spread) + 2))
    return np.asarray(cv2.resize(rng.standard_normal(small, dtype=np.float32), (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def _complexion(face: Face, canvas: Canvas, rng: np.random.Generator) -> Image:
    """Skin colour before light: flushed cheeks, nose and ears, blotches and pores; in cel one flat colour."""
    tone = np.broadcast_to(np.asarray(face.skin, dtype=np.float32), (*canvas.x.shape, 3)).copy()
    if face.style == "cel":
        return tone
    flush = (
        0.5 * pair(canvas, 0.58, 0.45, 0.26, 0.2)
        + 0.4 * bump(canvas, 0, face.nose_y, 0.2, 0.12)
        + 0.3 * bump(canvas, 0, face.chin_y - 0.15, 0.2, 0.12)
    )
    tone *= 1 - flush[..., None] * np.array([-0.02, 0.12, 0.12], dtype=np.float32)
    tone *= (1 + 0.018 * _grain(canvas.x.shape, 0.3 * canvas.scale, rng) + 0.022 * _grain(canvas.x.shape, max(1.0, 0.03 * canvas.scale), rng))[
        ..., None
    ]
    return tone


def _nostrils(skin: Image, face: Face, canvas: Canvas) -> Image:
    dark = 0.62 * pair(canvas, face.nose_width * 0.45, face.nose_y + 0.085, 0.05, 0.026)
    crease = 0.28 * pair(canvas, face.nose_width + 0.03, face.nose_y + 0.03, 0.03, 0.06)
    return np.asarray(skin * (1 - np.clip(dark + crease, 0, 0.8))[..., None], dtype=np.float32)


def _ears(canvas: Canvas, light: Light) -> tuple[Map, Map]:
    side = (np.abs(canvas.x) - 1.0) / 0.13
    along = (canvas.y - 0.2) / 0.34
    radius = np.sqrt(side**2 + (along + 0.15 * side) ** 2)
    mask = coverage((1 - radius) * 0.13, canvas)
    inner = 0.35 * np.exp(-(((radius - 0.35) / 0.3) ** 2))
    facing = 0.72 + 0.22 * light.towards[0] * np.sign(canvas.x)
    return mask, np.asarray(np.clip(facing - inner, 0.2, 1.2), dtype=np.float32)


def _facial_hair(picture: Image, face: Face, canvas: Canvas, hair: HairLayers, rng: np.random.Generator) -> Image:
    """Brows, beard, moustache and the shadow of stubble."""
    colour = np.asarray(face.hair, dtype=np.float32) * 0.75
    reach = np.clip((np.abs(canvas.x) - 0.16) / 0.62, 0, 1)
    arc = face.brow_y + 0.06 - 0.14 * np.sin(np.pi * np.clip(reach * 0.8 + 0.12, 0, 1))
    thickness = face.brow_thickness * (1.15 - 0.75 * reach)
    brow = np.exp(-(((canvas.y - arc) / thickness) ** 4)) * smoothstep(np.abs(canvas.x), 0.13, 0.2) * smoothstep(np.abs(canvas.x), 0.8, 0.68)
    brow *= 0.82 * (0.85 + 0.15 * hair.strands)
    picture = picture * (1 - brow[..., None]) + colour * brow[..., None]
    if face.beard > 0.05:
        inside = half_width(face, canvas.y)
        edge = smoothstep(np.abs(canvas.x) / np.maximum(inside, 0.05), 0.35, 0.75)
        cheeks = smoothstep(canvas.y, 0.35, 0.75) * edge
        below = smoothstep(canvas.y, face.mouth_y - 0.02, face.mouth_y + 0.3)
        moustache = smoothstep(canvas.y, face.nose_y + 0.12, face.nose_y + 0.2) * smoothstep(np.abs(canvas.x), 0.5, 0.36)
        where = np.clip(np.maximum(np.maximum(cheeks, below), moustache * smoothstep(canvas.y, face.mouth_y + 0.2, face.mouth_y)), 0, 1)
        fuzz = _grain(canvas.x.shape, max(1.0, 0.025 * canvas.scale), rng)
        beard = where * face.beard * (0.66 + 0.1 * fuzz)
        beard = np.clip(beard, 0, 0.92)[..., None]
        picture = picture * (1 - beard) + colour * (0.85 + 0.12 * fuzz)[..., None] * beard
    return np.asarray(picture, dtype=np.float32)


def _glasses(face: Face, canvas: Canvas) -> tuple[Image, Map]:
    colour = np.zeros((*canvas.x.shape, 3), dtype=np.float32)
    if face.glasses == "none":
        return colour, np.zeros_like(canvas.x)
    exponent = 2.0 if face.glasses == "round" else 3.6
    across, along = (np.abs(canvas.x) - face.eye_x - 0.01) / 0.34, (canvas.y - 0.04) / (0.3 if face.glasses == "round" else 0.235)
    radius = np.power(np.power(np.abs(across), exponent) + np.power(np.abs(along), exponent), 1 / exponent)
    rim = np.exp(-(((radius - 1) / 0.1) ** 4))
    bridge = np.exp(-(((canvas.y + 0.03) / 0.03) ** 4)) * smoothstep(np.abs(canvas.x), face.eye_x - 0.3, face.eye_x - 0.34)
    temple = (
        np.exp(-(((canvas.y + 0.05) / 0.03) ** 4))
        * smoothstep(np.abs(canvas.x), face.eye_x + 0.3, face.eye_x + 0.36)
        * coverage(1.02 - np.abs(canvas.x), canvas)
    )
    colour += np.array([34.0, 28.0, 26.0], dtype=np.float32)
    glare = 0.07 * smoothstep(radius, 1.0, 0.9)
    colour += (190 * smoothstep(radius, 1.0, 0.9) * (1 - rim))[..., None]
    return colour, np.asarray(np.clip(np.maximum.reduce([rim, bridge, temple]) * 0.9 + glare * (1 - rim), 0, 1), dtype=np.float32)
