"""A face becomes the encoder's input: bundle.CropSpec as code.

The square around the face is enlarged, moved inside the picture (shrunk where it is larger), cut from the full-resolution frame and resized
by PIL's antialiased triangle filter with a fractional box. Only the pixels under the filter are converted to RGB.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dissonance.bundle import CropSpec
from dissonance.engine.media.boxes import Box
from dissonance.engine.media.detect import Picture

FILTER_SUPPORT = 1.0  # of the triangle filter, in output pixels (source pixels when it enlarges)
SMALLEST_SIDE_PX = 2.0  # of a crop's square in the frame: below it a box is no face, but must not fail


def crop_square(box: Box, *, width: int, height: int, aspect: float, enlargement: float) -> Box:
    """The square (x0, y0, x1, y1) that is cut for a face box, in pixels of the frame.

    It is square as displayed: `aspect` is a pixel's display width over its height. Lies inside the picture.
    """
    x0, y0, x1, y1 = box
    side = max(enlargement * max((x1 - x0) * aspect, y1 - y0), SMALLEST_SIDE_PX)
    side = min(side, width * aspect, float(height))
    half_x, half_y = side / aspect / 2, side / 2
    centre_x = min(max((x0 + x1) / 2, half_x), width - half_x)
    centre_y = min(max((y0 + y1) / 2, half_y), height - half_y)
    left, top = max(centre_x - half_x, 0.0), max(centre_y - half_y, 0.0)
    return left, top, min(centre_x + half_x, float(width)), min(centre_y + half_y, float(height))


def crop_face(frame: Picture, box: Box, spec: CropSpec) -> NDArray[np.uint8]:
    """The crop of one face: (size_px, size_px, 3) uint8 RGB. `box` is the face square before enlargement, in pixels of the frame."""
    square = crop_square(box, width=frame.width, height=frame.height, aspect=frame.aspect, enlargement=spec.enlargement)
    left, right = _under_filter(square[0], square[2], spec.size_px, frame.width)
    top, bottom = _under_filter(square[1], square[3], spec.size_px, frame.height)
    region = Image.fromarray(frame.rgb_region(left, top, right, bottom))
    within = (square[0] - left, square[1] - top, square[2] - left, square[3] - top)
    return np.asarray(region.resize((spec.size_px, spec.size_px), Image.Resampling.BILINEAR, box=within))


def _under_filter(low: float, high: float, size_px: int, limit: int) -> tuple[int, int]:
    """The span of source pixels that the filter reads for [low, high) resized to `size_px`."""
    margin = math.ceil(FILTER_SUPPORT * max(1.0, (high - low) / size_px)) + 1
    return max(0, math.floor(low) - margin), min(limit, math.ceil(high) + margin)
