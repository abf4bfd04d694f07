"""Faces are cut from frames on the GPU, resized and normalised in one pass: what `engine.media.crop` does on a CPU with PIL.

The filter is PIL's antialiased triangle (BILINEAR of `PIL.Image.resize(box=...)`): output pixel x looks at the pixels i of the picture with weight
1 - |i + 1/2 - c| / w, where that is positive, divided by the sum of the weights; c = low + (x + 1/2) scale, w = max(scale, 1), and scale is the box's
side over the crop's. First along rows, rounded to a byte, then along columns, rounded to a byte: as PIL does, so that a network sees here what it
was trained on.

Layout. A program owns a tile of BLOCK_Y x BLOCK_X output pixels of one crop, in three colours. It visits the pixels of the frame under the tile's
filter, BLOCK_I rows by BLOCK_J columns at a time; both passes are products of matrices, the weights being computed where they are needed and
never stored: T = X Wx^T over all columns, then Y += Wy T. Bytes are exact in float16; weights
go in two float16 parts (high + low), so that a sum is wrong by less than 1e-3 of a byte and rounds otherwise than PIL's only where that is as near to
a half. (With the high part alone some pixels of noise were two levels off.) Frames are read in place, by index: crops of one frame, overlapping ones
too, read it from where DALI has put it.

No GPU has run this kernel yet: what is known of it comes from Triton's interpreter and from compiling it ahead of time.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Normalisation(NamedTuple):
    """value -> (value / 255 - mean) / deviation, by colour (red, green, blue)."""

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def factors(self) -> tuple[list[float], list[float]]:
        """By colour, scale and shift of a byte's value."""
        scale = [1.0 / (255.0 * each) for each in self.deviation]
        return scale, [-mean / each for mean, each in zip(self.mean, self.deviation, strict=True)]


UNIT = Normalisation()  # to [0, 1]


@dataclass(frozen=True)
class CropTiling:
    """Sizes of tiles, powers of two from 16: not chosen by timing, but such that three programs fit a processor and no register is spilled."""

    block_y: int = 32
    block_x: int = 32
    block_i: int = 16  # rows of the frame at a time
    block_j: int = 32  # columns of the frame at a time
    warps: int = 4
    stages: int = 2


DEFAULT_TILING = CropTiling()


@triton.jit
def _weights(first, count, low, scale, source, limit):
    """Triangle weights, not yet divided by their sum, of the pixels `source` (int) for the outputs first ... first + count: (len(source), count).

    Positions are taken from the first source pixel in float64: a coordinate near 4000 has only 12 bits of fraction left in float32.
    """
    output = first + tl.arange(0, count)
    origin = tl.min(source, 0)
    centre = (low + (output.to(tl.float64) + 0.5) * scale - origin.to(tl.float64)).to(tl.float32)
    width = tl.maximum(scale.to(tl.float32), 1.0)
    distance = (source - origin).to(tl.float32)[:, None] + 0.5 - centre[None, :]
    weight = tl.maximum(1.0 - tl.abs(distance) / width, 0.0)
    return tl.where((source < limit)[:, None], weight, 0.0)


@triton.jit
def _split(weight):
    """A float32 weight as the sum of two float16."""
    high = weight.to(tl.float16)
    return high, (weight - high.to(tl.float32)).to(tl.float16)


@triton.jit
def _to_byte(value):
    return tl.minimum(tl.maximum(tl.floor(value + 0.5), 0.0), 255.0)


@triton.jit
def _add_across(sums, at, inside, high, low):
    """Adds the pixels of one colour times the weights of their columns."""
    pixel = tl.load(at, mask=inside, other=0).to(tl.float16)
    return tl.dot(pixel, low, tl.dot(pixel, high, sums))


@triton.jit
def _add_down(sums, rows, total, high, low):
    """Adds the weights of rows times their pixels, which are bytes again."""
    byte = _to_byte(tl.div_rn(rows, total[None, :])).to(tl.float16)
    return tl.dot(low, byte, tl.dot(high, byte, sums))


@triton.jit
def _store(at, sums, total, scale, shift, inside):
    tl.store(at, (_to_byte(tl.div_rn(sums, total[:, None])) * scale + shift).to(at.dtype.element_ty), mask=inside)


@triton.jit
def _span(low, scale, first, count, side, limit):
    """The source pixels [begin, end) under the filter of outputs first ... min(first + count, side)."""
    last = tl.minimum(first + count, side) - 1
    width = tl.maximum(scale, 1.0)
    begin = tl.floor(low + (first.to(tl.float64) + 0.5) * scale - width).to(tl.int32)
    end = tl.floor(low + (last.to(tl.float64) + 0.5) * scale + width).to(tl.int32) + 1
    return tl.minimum(tl.maximum(begin, 0), limit - 1), tl.maximum(tl.minimum(end, limit), 1)


@triton.jit(do_not_specialize=["height", "width"])
def _crop_kernel(
    frames_ptr, boxes_ptr, frame_index_ptr, out_ptr, scale_r, scale_g, scale_b, shift_r, shift_g, shift_b, height, width,
    SIDE: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    crop = tl.program_id(0)
    TILES: tl.constexpr = (SIDE + BLOCK_X - 1) // BLOCK_X
    first_y, first_x = tl.program_id(1) // TILES * BLOCK_Y, tl.program_id(1) % TILES * BLOCK_X
    low_x, low_y = tl.load(boxes_ptr + 4 * crop), tl.load(boxes_ptr + 4 * crop + 1)
    scale_x = (tl.load(boxes_ptr + 4 * crop + 2) - low_x) / SIDE
    scale_y = (tl.load(boxes_ptr + 4 * crop + 3) - low_y) / SIDE
    frame = frames_ptr + tl.load(frame_index_ptr + crop).to(tl.int64) * height * width * 3
    begin_i, end_i = _span(low_y, scale_y, first_y, BLOCK_Y, SIDE, height)
    begin_j, end_j = _span(low_x, scale_x, first_x, BLOCK_X, SIDE, width)

    red = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
    green = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
    blue = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
    total_y = tl.zeros([BLOCK_Y], tl.float32)
    for start_i in range(begin_i, end_i, BLOCK_I):
        i = start_i + tl.arange(0, BLOCK_I)
        row_red = tl.zeros([BLOCK_I, BLOCK_X], tl.float32)
        row_green = tl.zeros([BLOCK_I, BLOCK_X], tl.float32)
        row_blue = tl.zeros([BLOCK_I, BLOCK_X], tl.float32)
        total_x = tl.zeros([BLOCK_X], tl.float32)
        for start_j in range(begin_j, end_j, BLOCK_J):
            j = start_j + tl.arange(0, BLOCK_J)
            weight = _weights(first_x, BLOCK_X, low_x, scale_x, j, end_j)
            total_x += tl.sum(weight, 0)
            high, low = _split(weight)
            at = frame + (i[:, None] * width + j[None, :]) * 3
            inside = (i < end_i)[:, None] & (j < end_j)[None, :]
            row_red = _add_across(row_red, at, inside, high, low)
            row_green = _add_across(row_green, at + 1, inside, high, low)
            row_blue = _add_across(row_blue, at + 2, inside, high, low)
        total_x = tl.where(total_x > 0.0, total_x, 1.0)  # 0 of columns beyond the crop
        weight = _weights(first_y, BLOCK_Y, low_y, scale_y, i, end_i)
        total_y += tl.sum(weight, 0)
        high, low = _split(tl.trans(weight))
        red = _add_down(red, row_red, total_x, high, low)
        green = _add_down(green, row_green, total_x, high, low)
        blue = _add_down(blue, row_blue, total_x, high, low)

    total_y = tl.where(total_y > 0.0, total_y, 1.0)
    y, x = first_y + tl.arange(0, BLOCK_Y), first_x + tl.arange(0, BLOCK_X)
    inside = (y < SIDE)[:, None] & (x < SIDE)[None, :]
    at = out_ptr + crop.to(tl.int64) * (3 * SIDE * SIDE) + y[:, None] * SIDE + x[None, :]
    _store(at, red, total_y, scale_r, shift_r, inside)
    _store(at + SIDE * SIDE, green, total_y, scale_g, shift_g, inside)
    _store(at + 2 * SIDE * SIDE, blue, total_y, scale_b, shift_b, inside)


def crop_resize_normalize(
    frames: Tensor,
    boxes: Tensor,
    frame: Tensor,
    *,
    size_px: int,
    dtype: torch.dtype = torch.float16,
    normalisation: Normalisation = UNIT,
    tiling: CropTiling = DEFAULT_TILING,
) -> Tensor:
    """Crops (crops, 3, size_px, size_px) of `dtype` (float32, float16 or bfloat16), values in [0, 1] unless `normalisation` says otherwise.

    `frames` (frames, height, width, 3) uint8 RGB, contiguous. `boxes` (crops, 4) float64 or float32: left, top, right, bottom in pixels of the frame,
    inside it (`engine.media.crop.crop_square` gives such); pixels beyond the box but under the filter count, pixels beyond the frame do not.
    `frame` (crops,) integers: which of the frames each box lies in. All on one device. Raises ValueError where types or shapes do not fit. Values are
    not looked at, since a GPU's would have to be waited for: a box outside its frame gives a crop of the border, a number that no frame has the first
    or the last frame, NaN no crop of anything.
    """
    if frames.dim() != 4 or frames.shape[3] != 3 or frames.dtype != torch.uint8 or not frames.is_contiguous():
        raise ValueError(f"Invalid frames: {frames.dtype} of shape {tuple(frames.shape)}. Give (frames, height, width, 3) uint8, contiguous.")
    count, (number, height, width, _) = len(boxes), frames.shape
    if boxes.shape != (count, 4) or not boxes.is_floating_point() or frame.shape != (count,) or frame.is_floating_point():
        raise ValueError(
            f"Invalid boxes {tuple(boxes.shape)} ({boxes.dtype}) or frame numbers {tuple(frame.shape)} ({frame.dtype}). "
            "Give (crops, 4) floats and (crops,) integers."
        )
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"Invalid dtype {dtype}. Crops are float32, float16 or bfloat16.")
    if height * width * 3 >= 2**31:
        raise ValueError(f"Frames of {width}x{height} are more than the kernel's 32-bit offsets reach.")
    out = torch.empty(count, 3, size_px, size_px, dtype=dtype, device=frames.device)
    if count:
        if number == 0:
            raise ValueError(f"There are {count} boxes, but no frames.")
        corners = boxes.to(torch.float64).view(count, 2, 2)
        boxes = torch.stack([corners[:, :, 0].clamp(0.0, width), corners[:, :, 1].clamp(0.0, height)], 2)  # contiguous: left, top, right, bottom
        scale, shift = normalisation.factors()
        tiles = triton.cdiv(size_px, tiling.block_y) * triton.cdiv(size_px, tiling.block_x)
        _crop_kernel[(count, tiles)](
            frames, boxes, frame.clamp(0, number - 1).to(torch.int32), out, *scale, *shift, height, width,
            **crop_constants(tiling, size_px=size_px), num_warps=tiling.warps, num_stages=tiling.stages,
        )  # fmt: skip
    return out


def crop_constants(tiling: CropTiling, *, size_px: int) -> dict[str, int]:
    """The kernel's compile-time arguments."""
    return {"SIDE": size_px, "BLOCK_Y": tiling.block_y, "BLOCK_X": tiling.block_x, "BLOCK_I": tiling.block_i, "BLOCK_J": tiling.block_j}


def crop_argument_types(dtype: str) -> dict[str, str]:
    """The kernel's run-time arguments for crops of `dtype` ("fp16", "bf16", "fp32"), to compile it ahead of time."""
    factors = {f"{name}_{colour}": "fp32" for name in ("scale", "shift") for colour in "rgb"}
    return {"frames_ptr": "*u8", "boxes_ptr": "*fp64", "frame_index_ptr": "*i32", "out_ptr": f"*{dtype}", **factors, "height": "i32", "width": "i32"}


def crop_resize_normalize_reference(frames: Tensor, boxes: Tensor, frame: Tensor, *, size_px: int, normalisation: Normalisation = UNIT) -> Tensor:
    """The same in plain torch, in float64: crop by crop, both passes as dense products."""
    scale, shift = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in normalisation.factors())
    crops = []
    for box, number in zip(boxes.double().tolist(), frame.tolist(), strict=True):
        picture = frames[number].double().permute(2, 0, 1)  # (3, height, width)
        across, down = (_dense(box[axis], box[axis + 2], size_px, picture.shape[2 - axis]) for axis in (0, 1))
        rows = (picture @ across.T + 0.5).floor().clamp(0, 255)
        crops.append((down @ rows + 0.5).floor().clamp(0, 255) * scale + shift)
    return torch.stack(crops)


def _dense(low: float, high: float, size_px: int, limit: int) -> Tensor:
    """(size_px, limit) weights of one axis."""
    scale = (high - low) / size_px
    centre = low + (torch.arange(size_px, dtype=torch.float64) + 0.5) * scale
    pixel = torch.arange(limit, dtype=torch.float64) + 0.5
    weight = (1.0 - (pixel[None, :] - centre[:, None]).abs() / max(scale, 1.0)).clamp(min=0.0)
    return weight / weight.sum(1, keepdim=True)
