"""What the kernels must move and compute, in closed form, and how long that takes a GPU at least.

`match_fuse`, per window of T frames, D columns, H outputs, L = max_lag, e bytes a number, K tracks to a sound:

    device memory = e (T D (2 + 1/K) + T H) + T (12 + 8 (2L + 1) + 9) + 8 (2L + 1) + 8:
                    v, a and g once, u written; m, pi, the row's sum; the band written and read; window, sound row and mask of a row; c, n, best lag
    operations    = 2 (2 T^2 D) + 2 T ((parts D) + 2) H: S and u, then W f
    L2 cache      = what a program of BLOCK_M rows asks for again, divided by the BLOCK_M / T windows that share it (`l2_bytes`)

W is read from device memory once a launch, so it vanishes per window. The bound is max(bytes / bandwidth, operations / peak) (Williams et al.,
Roofline, 2009).

`crop_resize_normalize`, per crop: the box's pixels once, 3 bytes each, and 3 S^2 numbers out; and the products of both passes, as executed.
`log_mel`, per frame: 160 samples in and the log-mel of all bins out, if what cuFFT reads and writes in between stayed in the cache.
"""

import math
from dataclasses import dataclass

from dissonance.kernels.crop_resize_normalize import CropTiling
from dissonance.kernels.tiling import Tiling
from dissonance.mel import HOP_LENGTH


@dataclass(frozen=True)
class Problem:
    """Windows of one size."""

    frames: int  # T
    dim: int  # D
    outputs: int  # H
    max_lag: int  # L
    element_bytes: int = 2  # e
    tracks: int = 1  # K that share a sound
    parts: int = 4  # of W with D columns: 3 without u


@dataclass(frozen=True)
class Gpu:
    """What a GPU can do at best."""

    name: str
    bytes_per_s: float  # of device memory
    flops_per_s: float  # of 16-bit products


H100 = Gpu("H100", bytes_per_s=3.0e12, flops_per_s=798e12)  # as measured on one, not the data sheet


def device_bytes(problem: Problem) -> float:
    """Bytes that a window must move through device memory."""
    frames, lags = problem.frames, 2 * problem.max_lag + 1
    rows = problem.element_bytes * frames * (problem.dim * (2 + 1 / problem.tracks) + problem.outputs)
    return rows + frames * (12 + 8 * lags + 9) + 8 * lags + 8


def operations(problem: Problem) -> int:
    """Floating-point operations of a window's products; a multiplication and an addition each."""
    frames, dim = problem.frames, problem.dim
    return 2 * (2 * frames * frames * dim) + 2 * frames * (problem.parts * dim + 2) * problem.outputs


def executed_operations(problem: Problem, tiling: Tiling) -> float:
    """The same as the kernel executes them: every pair of a tile is computed, whichever windows it is of, and S once for each block_u of D.

    For windows of a length that divides block_m.
    """
    sweeps = -(-problem.dim // tiling.block_u)
    columns = max(tiling.block_m, problem.frames)
    return 2 * problem.frames * columns * problem.dim * (sweeps + 1) + 2 * problem.frames * (problem.parts * problem.dim + 2) * problem.outputs


def l2_bytes(problem: Problem, tiling: Tiling) -> float:
    """Bytes that a window's share of a program asks of the L2 cache, if nothing stays in the first-level cache; T divides block_m.

    In rows of D numbers: v and a once for their lengths; for every block of columns and every sweep v again and block_n rows of a; a again for u; for
    every block of outputs v, a, u and W's parts.
    """
    rows, columns = tiling.block_m, max(tiling.block_m, problem.frames)
    visits = -(-problem.dim // tiling.block_u) * (columns // tiling.block_n)
    outputs = -(-problem.outputs // tiling.block_h)
    sums = visits * (rows + tiling.block_n) + columns
    fuse = outputs * (problem.parts - 1) * rows + problem.parts * problem.outputs
    return problem.element_bytes * problem.dim * (2 * rows + sums + fuse) * problem.frames / rows


def bound_s(problem: Problem, gpu: Gpu) -> float:
    """Seconds that a window takes at least."""
    return max(device_bytes(problem) / gpu.bytes_per_s, operations(problem) / gpu.flops_per_s)


def crop_bytes(box_px: tuple[float, float], size_px: int, *, element_bytes: int = 2) -> float:
    """Bytes that a crop must move through device memory; `box_px` is the box's width and height."""
    return 3 * box_px[0] * box_px[1] + 3 * size_px**2 * element_bytes


def crop_operations(box_px: tuple[float, float], size_px: int, tiling: CropTiling) -> float:
    """Operations of a crop's products as the kernel executes them: both passes twice, for the two parts of a weight, on whole blocks of pixels.

    The pixels under a tile's filter are taken to be its outputs and the filter's width on either side, and blocks to begin where they do.
    """
    tiles = -(-size_px // tiling.block_y) * -(-size_px // tiling.block_x)
    blocks = []
    for side, outputs, block in ((box_px[1], tiling.block_y, tiling.block_i), (box_px[0], tiling.block_x, tiling.block_j)):
        scale = side / size_px
        blocks.append(math.ceil((outputs * scale + 2 * max(scale, 1.0)) / block))
    rows, columns = blocks[0] * tiling.block_i, blocks[1] * tiling.block_j
    return 2 * 3 * 2 * tiles * (rows * columns * tiling.block_x + tiling.block_y * rows * tiling.block_x)


def mel_bytes(bins: int) -> float:
    """Bytes of a frame of log-mel: its samples and its bins in float32."""
    return 4.0 * (HOP_LENGTH + bins)
