"""One decoded picture. It stays as the decoder left it; conversions are made when asked for."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

HD_ROWS = 720  # untagged pictures of as many rows are BT.709, smaller ones BT.601
FULL_RANGE = 2  # AVCOL_RANGE_JPEG
# (Kr, Kb) by AVColorSpace, ITU-T H.273 table 4: BT.709, FCC, BT.470BG, SMPTE 170M, SMPTE 240M, BT.2020.
LUMA_WEIGHTS = {
    1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593),
}  # fmt: skip
BT709, BT601 = 1, 6
_SWSCALE = {1: Colorspace.ITU709, 4: Colorspace.FCC, 7: Colorspace.SMPTE240M, 9: Colorspace.BT2020, 10: Colorspace.BT2020}
# Chroma is replicated, and no rounding is skipped: the same numbers as the matrix below.
_EXACT = Interpolation.POINT | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT


def upright_turn_deg(picture: av.VideoFrame) -> int:
    """Clockwise quarter turns, in degrees, that display a picture: its display matrix, to the nearest quarter.

    A mirroring matrix is undone by the turn that sets the picture upright; left and right stay as stored.
    """
    sides: Any = picture.side_data
    for data in sides:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = np.frombuffer(data, np.int32).tolist()
            if a * d - b * c < 0:  # a turn after a mirroring of left and right
                a, b = -a, -b
            return round(math.degrees(math.atan2(b, a)) / 90) % 4 * 90 if a or b else 0
    return 0


@functools.cache
def rgb_matrix(space: int, full: bool, bits: int) -> NDArray[np.float64]:
    """(3, 4): (Y, U, V, 1) as stored to RGB 0-255. ITU-T H.273, equations 38 to 43 solved for RGB."""
    kr, kb = LUMA_WEIGHTS[space]
    kg, peak, step = 1 - kr - kb, (1 << bits) - 1, 1 << (bits - 8)
    scale_y, scale_c, black = (255 / peak, 255 / peak, 0) if full else (255 / (219 * step), 255 / (224 * step), 16 * step)
    r_v, b_u = 2 * (1 - kr), 2 * (1 - kb)
    matrix = np.array([[1, 0, r_v], [1, -b_u * kb / kg, -r_v * kr / kg], [1, b_u, 0]]) * [scale_y, scale_c, scale_c]
    return np.column_stack([matrix, -matrix @ [black, 128 * step, 128 * step]])


def _plane(plane: Any, dtype: type[np.uint8] | type[np.uint16]) -> NDArray[Any]:
    """A plane's samples, (height, width), as a view."""
    itemsize = np.dtype(dtype).itemsize
    return np.frombuffer(plane, dtype).reshape(-1, plane.line_size // itemsize)[: plane.height, : plane.width]


class Frame:
    """One decoded picture as displayed: turned upright. Sizes and regions are in stored pixels, after the turn."""

    def __init__(self, picture: av.VideoFrame, *, sample_aspect: float, reformatter: VideoReformatter, turn_deg: int | None = None) -> None:
        self._picture = picture
        self._reformatter = reformatter
        # A picture that was asked for its side data is a reference cycle, whose pixels stay until the garbage collector comes by: ask once a file.
        self._turns = (upright_turn_deg(picture) if turn_deg is None else turn_deg) // 90  # clockwise
        self._rgb: NDArray[np.uint8] | None = None
        across = self._turns % 2 == 1
        self.width, self.height = (picture.height, picture.width) if across else (picture.width, picture.height)
        self.aspect = 1 / sample_aspect if across else sample_aspect

    @functools.cached_property
    def _planar(self) -> bool:
        return _is_planar_yuv(self._picture)

    def rgb(self) -> NDArray[np.uint8]:
        """(height, width, 3), kept for the next call: do not write to it. Colour as `bundle.CropSpec` has it, chroma replicated."""
        if self._rgb is None:
            self._rgb = self._turned(self._stored_rgb(0, 0, self._picture.width, self._picture.height))
        return self._rgb

    def rgb_region(self, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]:
        """(y1 - y0, x1 - x0, 3): equal to `rgb()[y0:y1, x0:x1]`, but only these pixels are converted. The region lies inside the picture."""
        if not (0 <= x0 < x1 <= self.width and 0 <= y0 < y1 <= self.height):
            raise ValueError(f"region ({x0}, {y0}, {x1}, {y1}) is not inside a picture of {self.width} x {self.height}")
        if self._rgb is not None or not self._planar:
            return self.rgb()[y0:y1, x0:x1]
        for turn in range(self._turns):  # undo one clockwise turn at a time: what is at (x, y) was at (y, side - x)
            side = self.height if turn % 2 else self.width
            x0, y0, x1, y1 = y0, side - x1, y1, side - x0
        return self._turned(self._stored_rgb(x0, y0, x1, y1))

    def grey(self, max_side_px: int) -> NDArray[np.uint8]:
        """Luma as stored, shrunk by area averaging to square pixels so that its longer side is at most `max_side_px`: (rows, columns).

        Averaged by halves as far as that goes, which is several times faster than in one step; that may cost an odd last row or column.
        """
        wide, high = self._picture.width * (1 / self.aspect if self._turns % 2 else self.aspect), float(self._picture.height)
        shrink = min(1.0, max_side_px / max(wide, high))
        size = (max(1, round(wide * shrink)), max(1, round(high * shrink)))
        luma = self._luma()
        while luma.shape[1] >= 2 * size[0] and luma.shape[0] >= 2 * size[1]:
            half = (luma.shape[1] // 2, luma.shape[0] // 2)
            luma = cv2.resize(luma[: 2 * half[1], : 2 * half[0]], half, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        if size != (luma.shape[1], luma.shape[0]):
            luma = cv2.resize(luma, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        return np.ascontiguousarray(np.rot90(luma, -self._turns))

    def _turned(self, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.rot90(stored, -self._turns) if self._turns else stored

    def _depth(self) -> int:
        return int(self._picture.format.components[0].bits)

    def _luma(self) -> NDArray[np.uint8]:
        picture = self._picture
        if not self._planar:
            picture = self._reformatter.reformat(picture, format="gray", threads=1)
            return _plane(picture.planes[0], np.uint8)
        bits = self._depth()
        if bits == 8:
            return _plane(picture.planes[0], np.uint8)
        return (_plane(picture.planes[0], np.uint16) >> (bits - 8)).astype(np.uint8)

    def _matrix(self) -> tuple[int, bool]:
        """The stream's colour matrix (AVColorSpace) and whether its range is full; CropSpec's defaults where it has none."""
        picture = self._picture
        space = picture.colorspace if picture.colorspace in LUMA_WEIGHTS else BT709 if picture.height >= HD_ROWS else BT601
        return space, picture.color_range == FULL_RANGE or picture.format.name.startswith("yuvj")

    def _stored_rgb(self, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]:
        picture = self._picture
        space, full = self._matrix()
        if not self._planar:
            plane: Any = self._reformatter.reformat(
                picture,
                format="rgb24",
                src_colorspace=_SWSCALE.get(space, Colorspace.ITU601),
                src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
                interpolation=_EXACT,
                threads=1,
            ).planes[0]
            rows: NDArray[np.uint8] = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
            return rows[y0:y1, 3 * x0 : 3 * x1].reshape(y1 - y0, x1 - x0, 3)
        bits = self._depth()
        dtype: type[np.uint8] | type[np.uint16] = np.uint8 if bits == 8 else np.uint16
        planes = [_plane(plane, dtype) for plane in picture.planes[:3]]
        step_x, step_y = -(-picture.width // planes[1].shape[1]), -(-picture.height // planes[1].shape[0])
        ax, ay = x0 // step_x, y0 // step_y  # the first chroma sample; the last one is at or after the region's end
        chroma = [_replicated(p[ay : -(-y1 // step_y), ax : -(-x1 // step_x)], step_x, step_y) for p in planes[1:]]
        dx, dy = x0 - ax * step_x, y0 - ay * step_y
        yuv = cv2.merge([planes[0][y0:y1, x0:x1], *(c[dy : dy + y1 - y0, dx : dx + x1 - x0] for c in chroma)])
        matrix = rgb_matrix(space, full, bits)
        if bits == 8:
            return cv2.transform(yuv, matrix.astype(np.float32))  # type: ignore[return-value]  # rounds, clips
        wide = cv2.transform(yuv, (256 * matrix).astype(np.float32))  # 16 bits, clipped at 255.996
        return cv2.convertScaleAbs(wide, alpha=1 / 256)  # type: ignore[return-value]


def _replicated(chroma: NDArray[Any], step_x: int, step_y: int) -> NDArray[Any]:
    if step_x == step_y == 1:
        return chroma
    return cv2.resize(chroma, (chroma.shape[1] * step_x, chroma.shape[0] * step_y), interpolation=cv2.INTER_NEAREST)


def _is_planar_yuv(picture: av.VideoFrame) -> bool:
    """Y, U and V (and perhaps alpha) each in a plane of its own, little-endian, 8 to 16 bits, in rows that go down."""
    form = picture.format
    parts: Sequence[Any] = form.components
    return (
        form.is_planar
        and not form.is_rgb
        and not form.is_big_endian
        and len(parts) >= 3
        and [part.plane for part in parts[:3]] == [0, 1, 2]
        and 8 <= parts[0].bits <= 16
        and all(plane.line_size > 0 for plane in picture.planes[:3])
    )
