"""Where faces are in one picture: the `Detector` interface, its Haar implementation, and the common face square.

Every detector answers with the *face square*: the square, as displayed, that OpenCV's frontal-face Haar cascades frame a face with:
from the middle of the forehead to just below the chin, centred near the tip of the nose. A detector whose boxes are cut otherwise
converts them (see yunet.py), so that one crop definition (bundle.CropSpec) serves all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import cv2.data
import numpy as np
from numpy.typing import NDArray

from dissonance.config import DetectorConfig
from dissonance.engine.media.boxes import Box, BoxFile
from dissonance.errors import EnvironmentMissingError

HAAR_CASCADE = "haarcascade_frontalface_alt2.xml"
HAAR_WINDOW_PX = 20  # the cascade's own window: a smaller face cannot be found
DUPLICATE_OVERLAP = 0.5  # of the smaller box; beyond it two boxes are one face
# A dark face in poor light has little contrast and as much noise as any other. On the hardest drawn identity brightening (gamma 0.4) and a
# slight blur take this cascade from 0.47 to 0.84 of the pictures; on the others they change nothing.
BRIGHTENED = np.round(255 * (np.arange(256) / 255) ** 0.4).astype(np.uint8)
BLUR_PX = (3, 3)


class _Steps(NamedTuple):
    """How a cascade searches: ratio of consecutive sizes, and how many raw hits make a face."""

    scale_factor: float
    min_neighbours: int


COARSE = _Steps(1.1, 7)  # false alarms in real pictures without faces reach 6 or 7 hits, plain faces start at 16
FINE = _Steps(1.04, 3)
NEAR_REACH = 1.0  # times a face's side around its old centre
NEAR_SIZE = 1.35  # it may have grown or shrunk so much


@dataclass(frozen=True)
class Detection:
    """One face square, in pixels of the full frame as displayed (x1, y1 exclusive). `score` orders detections of one detector only."""

    x0: float
    y0: float
    x1: float
    y1: float
    score: float

    @property
    def box(self) -> Box:
        """(x0, y0, x1, y1)."""
        return self.x0, self.y0, self.x1, self.y1

    @property
    def area(self) -> float:
        """In square pixels."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)


class Picture(Protocol):
    """What a detector, the crop and the shot boundaries need of a frame; `video.Frame` is one."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def aspect(self) -> float: ...
    def rgb_region(self, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]: ...
    def grey(self, max_side_px: int) -> NDArray[np.uint8]: ...


class Detector(Protocol):
    """Finds the faces of one picture. Deterministic: the same picture and `near` give the same list, best score first.

    `near` are boxes where faces were a moment ago: a detector may look there more closely.
    """

    def detect(self, frame: Picture, *, near: Sequence[Box] = ()) -> list[Detection]: ...


class HaarDetector:
    """OpenCV's frontal-face cascade on the shrunk luma. `score` is the number of raw hits that were merged into the box.

    The whole picture is searched in coarse steps of size; a face of `near` that this does not find is then looked for
    around its old place in fine steps, which costs little and finds most of those that the coarse steps miss.
    """

    def __init__(self, config: DetectorConfig) -> None:
        path = Path(cv2.data.haarcascades) / HAAR_CASCADE
        self._cascade = cv2.CascadeClassifier(str(path))
        if self._cascade.empty():
            raise EnvironmentMissingError(
                f"The Haar face detector needs '{path}', which this OpenCV does not carry (OpenCV 5 dropped it). "
                "Install opencv-python-headless below 5, or choose --detector yunet."
            )
        self._max_side_px = config.max_side_px
        self._min_face_fraction = config.min_face_fraction

    def detect(self, frame: Picture, *, near: Sequence[Box] = ()) -> list[Detection]:
        """Faces of `frame`, best score first."""
        grey = np.asarray(cv2.GaussianBlur(cv2.LUT(frame.grey(self._max_side_px), BRIGHTENED), BLUR_PX, 0), np.uint8)
        height, width = grey.shape
        smallest = max(HAAR_WINDOW_PX, round(self._min_face_fraction * min(height, width)))
        found = self._search(grey, (0, 0, width, height), COARSE, smallest, min(height, width))
        scale_x, scale_y = width / frame.width, height / frame.height
        for box in near:
            x0, x1, y0, y1 = box[0] * scale_x, box[2] * scale_x, box[1] * scale_y, box[3] * scale_y
            centre_x, centre_y, side = (x0 + x1) / 2, (y0 + y1) / 2, max(x1 - x0, y1 - y0)
            if any(d.x0 < centre_x < d.x1 and d.y0 < centre_y < d.y1 for d in found):
                continue
            around = (
                max(0, math.floor(centre_x - NEAR_REACH * side)),
                max(0, math.floor(centre_y - NEAR_REACH * side)),
                min(width, math.ceil(centre_x + NEAR_REACH * side)),
                min(height, math.ceil(centre_y + NEAR_REACH * side)),
            )
            found += self._search(grey, around, FINE, max(smallest, round(side / NEAR_SIZE)), round(side * NEAR_SIZE))
        scaled = [Detection(d.x0 / scale_x, d.y0 / scale_y, d.x1 / scale_x, d.y1 / scale_y, d.score) for d in found]
        return drop_duplicates(scaled)

    def _search(self, grey: NDArray[np.uint8], within: tuple[int, int, int, int], steps: _Steps, smallest: int, largest: int) -> list[Detection]:
        """Faces of a part (x0, y0, x1, y1) of the picture, of sides `smallest` to `largest`, in pixels of `grey`."""
        left, top, right, bottom = within
        if min(right - left, bottom - top, largest) < smallest:
            return []
        boxes, hits = self._cascade.detectMultiScale2(
            grey[top:bottom, left:right],
            scaleFactor=steps.scale_factor,
            minNeighbors=steps.min_neighbours,
            minSize=(smallest, smallest),
            maxSize=(largest, largest),
        )
        return [
            Detection(left + x, top + y, left + x + w, top + y + h, float(count))
            for (x, y, w, h), count in zip(np.asarray(boxes).tolist(), np.asarray(hits).ravel().tolist(), strict=True)
        ]


def drop_duplicates(detections: Sequence[Detection]) -> list[Detection]:
    """Best score first; a box that shares more than `DUPLICATE_OVERLAP` of the smaller of the two with a better one is dropped."""
    kept: list[Detection] = []
    for candidate in sorted(detections, key=lambda d: (-d.score, -d.area, d.box)):
        if all(_shared(candidate, other) <= DUPLICATE_OVERLAP * min(candidate.area, other.area) for other in kept):
            kept.append(candidate)
    return kept


def _shared(a: Detection, b: Detection) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(0.0, width) * max(0.0, height)


def make_detector(config: DetectorConfig) -> Detector | BoxFile:
    """The detector that `config` names; for `boxes` the opened file of given boxes, which `read_clip` takes in its place.

    Raises ConfigError (model or box file), EnvironmentMissingError (a library that is not installed).
    """
    if config.kind == "yunet":
        from dissonance.engine.media.yunet import YunetDetector

        assert config.yunet_model is not None  # DetectorConfig checks it
        return YunetDetector(config.yunet_model, config)
    if config.kind == "boxes":
        assert config.boxes_file is not None
        return BoxFile(config.boxes_file)
    return HaarDetector(config)
