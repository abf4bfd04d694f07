"""Where people are: background, shoulders, lamp and camera, and how a head is put into the picture."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dissonance.synth.cel import cel_background, posterise
from dissonance.synth.cel_features import CelFeaturePainter
from dissonance.synth.features import EyeState, FeaturePainter, MouthShape
from dissonance.synth.head import Head, Light
from dissonance.synth.identity import Face
from dissonance.synth.motion import Motion
from dissonance.synth.relief import BOTTOM, LEFT, RIGHT, TOP

Picture = NDArray[np.uint8]  # (height, width, 3) RGB


@dataclass(frozen=True)
class Place:
    """Where a head sits: its origin (between the eyes) in pixels and the pixels of a face unit."""

    x: float
    y: float
    unit_px: float


@dataclass(frozen=True)
class Scene:
    """What stays through a clip: the picture behind the heads, the lamp, and the sensor's noise."""

    backdrop: Picture
    light: Light
    places: tuple[Place, ...]
    sensor_noise: NDArray[np.int16]


def set_scene(rng: np.random.Generator, faces: tuple[Face, ...], *, width: int, height: int) -> Scene:
    """Choose lamp, places and background, and paint what does not move."""
    azimuth, elevation = rng.uniform(-0.75, 0.75), rng.uniform(0.15, 0.6)
    towards = (float(np.sin(azimuth) * np.cos(elevation)), float(-np.sin(elevation)), float(np.cos(azimuth) * np.cos(elevation)))
    warmth = float(rng.uniform(-0.06, 0.06))
    brightness = float(rng.uniform(0.9, 1.08))
    light = Light(towards, float(rng.uniform(0.36, 0.52)), (brightness * (1 + warmth), brightness, brightness * (1 - warmth)))
    places = tuple(_place(rng, number, len(faces), width, height) for number in range(len(faces)))
    cel = faces[0].style == "cel"
    backdrop = cel_background(rng, width, height) if cel else _background(rng, width, height)
    for face, place in zip(faces, places, strict=True):
        backdrop = _paint_body(rng, backdrop, face, place, light)
    backdrop = posterise(backdrop, 20.0) if cel else backdrop
    deviation = float(rng.uniform(0.3, 1.2) if cel else rng.uniform(1.0, 4.0))
    size = (height + 64, width + 64)
    noise = 0.8 * rng.standard_normal((*size, 1), dtype=np.float32) + 0.5 * rng.standard_normal((*size, 3), dtype=np.float32)
    return Scene(np.clip(backdrop, 0, 255).astype(np.uint8), light, places, np.rint(np.float32(deviation) * noise).astype(np.int16))


def add_sensor_noise(rng: np.random.Generator, picture: Picture, scene: Scene) -> Picture:
    """The picture with another part of the noise for every frame."""
    height, width = picture.shape[:2]
    top, left = (int(offset) for offset in rng.integers(0, 64, 2))
    return np.asarray(cv2.add(picture, scene.sensor_noise[top : top + height, left : left + width], dtype=cv2.CV_8U), dtype=np.uint8)


class HeadCompositor:
    """Puts one moving head into pictures: pose and jaw by a warp, eyes and mouth drawn before it."""

    def __init__(self, head: Head, place: Place, *, width: int, height: int) -> None:
        self._head, self._place = head, place
        self._painter = CelFeaturePainter(head) if head.face.style == "cel" else FeaturePainter(head)
        self._alpha = np.clip(head.alpha * 255 + 0.5, 0, 255).astype(np.uint8)
        reach = 1.12  # room for tilt, shift and zoom
        unit = place.unit_px
        x0, x1 = (int(np.clip(place.x + reach * side * unit, 0, width)) for side in (LEFT, RIGHT))
        y0, y1 = (int(np.clip(place.y + reach * side * unit, 0, height)) for side in (TOP, BOTTOM))
        self._rows, self._columns = slice(y0, y1), slice(x0, x1)
        columns = (np.arange(x0, x1, dtype=np.float32) - np.float32(place.x)) / np.float32(unit)
        rows = (np.arange(y0, y1, dtype=np.float32) - np.float32(place.y)) / np.float32(unit)
        self._x, self._y = np.meshgrid(columns, rows)
        to_canvas_x, to_canvas_y = (self._x - LEFT) * head.canvas.scale, (self._y - TOP) * head.canvas.scale
        self._depth = cv2.remap(head.depth, to_canvas_x, to_canvas_y, cv2.INTER_LINEAR, borderValue=0)
        self._jaw = cv2.remap(head.jaw, to_canvas_x, to_canvas_y, cv2.INTER_LINEAR, borderValue=0)

    def put(self, picture: Picture, motion: Motion, frame: int, mouth: MouthShape) -> None:
        """Draw the head as it is at `frame` into `picture`, in place."""
        eyes = EyeState(float(motion.lid[frame]), float(motion.gaze_x[frame]), float(motion.gaze_y[frame]))
        self._painter.draw(mouth, eyes)
        scale = self._head.canvas.scale
        gain = scale / float(motion.zoom[frame])
        cosine, sine = gain * float(np.cos(motion.roll[frame])), gain * float(np.sin(motion.roll[frame]))
        shift_x, shift_y = float(motion.shift_x[frame]), float(motion.shift_y[frame])
        offset_x = -LEFT * scale - cosine * shift_x - sine * shift_y
        offset_y = -TOP * scale + sine * shift_x - cosine * shift_y
        map_x = cosine * self._x + sine * self._y + offset_x - (scale * float(motion.yaw[frame])) * self._depth
        map_y = cosine * self._y - sine * self._x + offset_y - (scale * float(motion.pitch[frame])) * self._depth
        map_y -= (scale * mouth.openness) * self._jaw
        fixed, fraction = cv2.convertMaps(map_x.astype(np.float32, copy=False), map_y.astype(np.float32, copy=False), cv2.CV_16SC2)
        colour = cv2.remap(self._painter.picture, fixed, fraction, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        alpha = cv2.remap(self._alpha, fixed, fraction, cv2.INTER_LINEAR, borderValue=0)
        region = picture[self._rows, self._columns]
        alpha3 = cv2.merge((alpha, alpha, alpha))
        picture[self._rows, self._columns] = cv2.add(cv2.multiply(colour, alpha3, scale=1 / 255), cv2.multiply(region, 255 - alpha3, scale=1 / 255))

    def locate(self, motion: Motion, x: float, y: float) -> NDArray[np.float32]:
        """Where a point of the face is in every picture, (frames, 2) pixels: the warp's inverse, to first order."""
        canvas = self._head.canvas
        column, row = (int(value) for value in canvas.pixel(x, y))
        depth = float(self._head.depth[np.clip(row, 0, len(canvas.y) - 1), np.clip(column, 0, canvas.x.shape[1] - 1)])
        turned_x, turned_y = x + motion.yaw * depth, y + motion.pitch * depth
        cosine, sine = np.cos(motion.roll), np.sin(motion.roll)
        across = motion.zoom * (cosine * turned_x - sine * turned_y) + motion.shift_x
        along = motion.zoom * (sine * turned_x + cosine * turned_y) + motion.shift_y
        unit = self._place.unit_px
        return np.stack([self._place.x + unit * across, self._place.y + unit * along], axis=1).astype(np.float32)


def _place(rng: np.random.Generator, number: int, people: int, width: int, height: int) -> Place:
    share = width / people
    unit = min(height * rng.uniform(0.15, 0.215), share * rng.uniform(0.25, 0.29))
    middle = share * (number + 0.5)
    free_x, free_y = max(0.0, share / 2 - 1.55 * unit), max(0.0, height / 2 - 1.95 * unit)
    x = middle + free_x * rng.uniform(-0.75, 0.75)
    y = height / 2 + 0.1 * unit + free_y * rng.uniform(-0.6, 0.8)
    return Place(float(x), float(y), float(unit))


def _background(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """A wall, a room out of focus, shelves or a plain studio."""
    y, x = np.meshgrid(np.linspace(0, 1, height, dtype=np.float32), np.linspace(0, 1, width, dtype=np.float32), indexing="ij")
    base, other = rng.uniform(40, 205, 3), rng.uniform(40, 205, 3)
    base, other = 0.55 * base.mean() + 0.45 * base, 0.55 * other.mean() + 0.45 * other
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.clip(0.5 + (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle), 0, 1)[..., None]
    picture = np.asarray(base * (1 - ramp) + other * ramp, dtype=np.float32)
    kind = rng.integers(4)
    if kind in (1, 2):
        for _ in range(int(rng.integers(6, 18))):
            left, top = int(rng.uniform(-0.1, 1) * width), int(rng.uniform(-0.1, 1) * height)
            size = (int(rng.uniform(0.04, 0.35) * width), int(rng.uniform(0.08, 0.6) * height))
            colour = tuple(float(c) for c in rng.uniform(20, 230, 3) * 0.6 + 0.4 * base)
            if kind == 1:
                cv2.rectangle(picture, (left, top), (left + size[0], top + size[1]), colour, -1)
            else:
                cv2.circle(picture, (left, top), max(2, size[0] // 2), colour, -1)
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.006, 0.03)) * height), dtype=np.float32)
    elif kind == 3:
        shelves = 0.85 + 0.15 * np.sign(np.sin(2 * np.pi * (rng.uniform(2, 4) * y + rng.uniform(0, 1))))
        books = 0.8 + 0.3 * np.sin(2 * np.pi * rng.uniform(10, 30) * x + 5 * np.sin(9 * x + float(rng.uniform(0, 6))))
        picture *= cv2.GaussianBlur((shelves * books).astype(np.float32), (0, 0), 0.008 * height)[..., None]
    small = (max(2, height // 24), max(2, width // 24))
    mottle = cv2.resize(rng.standard_normal(small, dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    vignette = 1 - 0.35 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    return np.asarray((picture + 2.5 * mottle[..., None]) * vignette[..., None], dtype=np.float32)


def _paint_body(rng: np.random.Generator, picture: NDArray[np.float32], face: Face, place: Place, light: Light) -> NDArray[np.float32]:
    """Neck and shoulders, which stay where they are."""
    height, width = picture.shape[:2]
    x = ((np.arange(width, dtype=np.float32) - np.float32(place.x)) / np.float32(place.unit_px))[None, :]
    y = ((np.arange(height, dtype=np.float32) - np.float32(place.y)) / np.float32(place.unit_px))[:, None]
    soft = place.unit_px / 1.5
    side = 1 + 0.35 * light.towards[0] * np.clip(x / 2, -1, 1)
    neck_half = 0.5 + 0.06 * (face.jaw_exponent - 2.5) + 0.3 * np.clip(y - 1.9, 0, 1) ** 2
    neck = np.clip((neck_half - np.abs(x)) * soft + 0.5, 0, 1) * np.clip((y - 0.8) * soft, 0, 1)
    under_chin = 0.5 + 0.4 * np.clip((y - face.chin_y + 0.1) / 0.7, 0, 1)
    skin = np.asarray(face.skin, dtype=np.float32) * np.asarray(light.colour, dtype=np.float32)
    roundness = 1 - 0.35 * np.clip(np.abs(x) / 0.6, 0, 1) ** 3
    picture = picture + neck[..., None] * (skin * (under_chin * roundness * side)[..., None] - picture)
    slope = 2.25 + 0.28 * np.clip(np.abs(x) - 0.5, 0, None) + 0.16 * np.clip(np.abs(x) - 1.2, 0, None) ** 3
    collar = rng.uniform(0.15, 0.75)
    slope = np.where(np.abs(x) < 0.62, 2.28 + collar * (1 - np.abs(x) / 0.62), slope)
    cloth = rng.uniform(15, 225, 3)
    cloth = 0.5 * cloth.mean() + 0.5 * cloth
    folds = 1 + 0.06 * np.sin(7 * x + 3 * np.sin(2.5 * y + float(rng.uniform(0, 6))))
    body = np.clip((y - slope) * soft + 0.5, 0, 1) * np.clip((2.6 - np.abs(x)) * soft, 0, 1)
    edge = 1 - 0.4 * np.exp(-(((y - slope) / 0.06) ** 2))
    lit = (0.8 - 0.12 * np.clip(np.abs(x) / 2, 0, 1) ** 2) * side * folds * edge
    return np.asarray(picture + body[..., None] * (cloth.astype(np.float32) * lit[..., None] - picture), dtype=np.float32)
