"""Whisper's log-mel on the GPU: what `engine.media.log_mel` does on a CPU.

The short-time transform is cuFFT's, by `torch.fft.rfft` on frames of the continuous sound. One kernel then makes raw log-mel of the spectrum: power,
the product with the filter bank on matrix units, floor and logarithm, so that power is never stored. Another cuts windows out of it, wherever they
begin, takes each one's peak, and normalises: nothing more than 8 under the peak, (x + 4) / 4 (Radford et al., 2022). A program of the first owns
BLOCK_F frames, of the second one window, read twice.

No GPU has run these kernels yet: what is known of them comes from Triton's interpreter and from compiling them ahead of time.
"""

import functools

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from dissonance.mel import FLOOR, HOP_LENGTH, N_FFT, SILENCE, mel_filters

FREQUENCIES = N_FFT // 2 + 1
BLOCK_F, BLOCK_K, BLOCK_T, WARPS, STAGES = 32, 16, 32, 4, 2  # not chosen by timing; no register is spilled
_FLOOR, _SILENCE = tl.constexpr(FLOOR), tl.constexpr(SILENCE)
_NAN = tl.constexpr(float("nan"))
_LOG10_2 = tl.constexpr(0.30102999566398120)


@triton.jit(do_not_specialize=["frames"])
def _mel_kernel(
    spectrum_ptr, filters_ptr, out_ptr, frames,
    FREQUENCIES: tl.constexpr, BINS: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = frame < frames
    b = tl.arange(0, BLOCK_B)
    mel = tl.zeros([BLOCK_F, BLOCK_B], tl.float32)
    for start in range(0, FREQUENCIES, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        at = spectrum_ptr + 2 * (frame.to(tl.int64)[:, None] * FREQUENCIES + k[None, :])
        known = inside[:, None] & (k < FREQUENCIES)[None, :]
        real, imaginary = tl.load(at, mask=known, other=0.0), tl.load(at + 1, mask=known, other=0.0)
        filters = tl.load(filters_ptr + b[None, :] * FREQUENCIES + k[:, None], mask=(b < BINS)[None, :] & (k < FREQUENCIES)[:, None], other=0.0)
        mel = tl.dot(real * real + imaginary * imaginary, filters, mel, input_precision="tf32x3")
    value = tl.log2(tl.maximum(mel, _FLOOR, propagate_nan=tl.PropagateNan.ALL)) * _LOG10_2
    tl.store(out_ptr + frame.to(tl.int64)[:, None] * BINS + b[None, :], value, mask=inside[:, None] & (b < BINS)[None, :])


@triton.jit(do_not_specialize=["frames"])
def _window_kernel(
    log_mel_ptr, first_ptr, length_ptr, out_ptr, frames, SIZE: tl.constexpr, BINS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_T: tl.constexpr
):  # fmt: skip
    window = tl.program_id(0)
    first, length = tl.load(first_ptr + window), tl.load(length_ptr + window)
    b = tl.arange(0, BLOCK_B)
    real = (b < BINS)[None, :]
    peak = tl.full([BLOCK_T, BLOCK_B], _SILENCE, tl.float32)
    for start in range(0, SIZE, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        frame = first + t
        there = ((t < length) & (t < SIZE) & (frame >= 0) & (frame < frames))[:, None] & real
        value = tl.load(log_mel_ptr + frame.to(tl.int64)[:, None] * BINS + b[None, :], mask=there, other=_SILENCE)
        peak = tl.maximum(peak, value, propagate_nan=tl.PropagateNan.ALL)
    no_number = tl.max(tl.max((peak != peak).to(tl.int32), 1), 0)  # tl.max drops NaN on a GPU
    lowest = tl.where(no_number > 0, _NAN, tl.max(tl.max(peak, 1), 0) - 8.0)
    for start in range(0, SIZE, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        frame = first + t
        there = ((t < length) & (frame >= 0) & (frame < frames))[:, None] & real
        value = tl.load(log_mel_ptr + frame.to(tl.int64)[:, None] * BINS + b[None, :], mask=there, other=_SILENCE)
        value = tl.where((t < length)[:, None], (tl.maximum(value, lowest, propagate_nan=tl.PropagateNan.ALL) + 4.0) / 4.0, 0.0)
        at = out_ptr + window.to(tl.int64) * (BINS * SIZE) + b[None, :] * SIZE + t[:, None]
        tl.store(at, value.to(out_ptr.dtype.element_ty), mask=real & (t < SIZE)[:, None])


def log_mel(sound: Tensor, *, bins: int, mirror_start: bool = True, mirror_end: bool = True) -> Tensor:
    """Raw log10 mel (frames, bins) float32 of `sound` (samples,) float32 at 16 kHz, not normalised; frame i is centred on sample 160 i.

    N samples give N // 160 frames, and the sound is mirrored at its ends. Each frame takes 5 KB on the way. To go through a long sound in stretches,
    have each but the first begin 200 samples before its first frame's centre (`mirror_start` off; frame 2 at the earliest), and each but the last end
    200 samples after its last one's (`mirror_end` off): the frames are those of the whole.
    Raises ValueError for another type or shape.
    """
    if sound.dim() != 1 or sound.dtype != torch.float32:
        raise ValueError(f"Invalid sound: {sound.dtype} of shape {tuple(sound.shape)}. Give (samples,) float32.")
    padded = _mirrored(sound, N_FFT // 2 if mirror_start else 0, N_FFT // 2 if mirror_end else 0)
    count = max(0, (len(padded) - N_FFT) // HOP_LENGTH + (0 if mirror_end else 1))  # Whisper leaves the last frame out
    out = torch.empty(count, bins, dtype=torch.float32, device=sound.device)
    if count:
        framed = padded.unfold(0, N_FFT, HOP_LENGTH)[:count] * _hann(sound.device)
        spectrum = torch.view_as_real(torch.fft.rfft(framed)).contiguous()
        _mel_kernel[(triton.cdiv(count, BLOCK_F),)](
            spectrum, _filters(bins, sound.device), out, count, **mel_constants(bins), num_warps=WARPS, num_stages=STAGES
        )
    return out


def mel_windows(raw: Tensor, first: Tensor, length: Tensor, *, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Windows (windows, bins, size) of `dtype` (float32, float16 or bfloat16), cut out of raw log-mel (frames, bins) float32 and normalised each over
    its own frames.

    Window w is frames first[w] ... first[w] + min(length[w], size). Those that the sound does not have count as silence, those from `length` to
    `size` are 0. A window with NaN in it is NaN. `first` and `length` (windows,) integers. Raises ValueError where types or shapes do not fit.
    """
    if raw.dim() != 2 or raw.dtype != torch.float32 or not raw.is_contiguous():
        raise ValueError(f"Invalid log-mel: {raw.dtype} of shape {tuple(raw.shape)}. Give (frames, bins) float32, contiguous.")
    if first.shape != length.shape or first.dim() != 1 or first.is_floating_point() or length.is_floating_point():
        raise ValueError(f"Invalid windows: first {first.dtype} {tuple(first.shape)}, length {length.dtype} {tuple(length.shape)}. Give integers.")
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"Invalid dtype {dtype}. Windows are float32, float16 or bfloat16.")
    (frames, bins), windows = raw.shape, len(first)
    out = torch.empty(windows, bins, size, dtype=dtype, device=raw.device)
    if windows:
        _window_kernel[(windows,)](
            raw,
            first.to(torch.int32).contiguous(),
            length.to(torch.int32).contiguous(),
            out,
            frames,
            **window_constants(bins, size=size),
            num_warps=WARPS,
            num_stages=STAGES,
        )
    return out


def _mirrored(sound: Tensor, before: int, after: int) -> Tensor:
    """The sound with mirror images at its ends: numpy's "reflect", which goes on where the sound is shorter than they are."""
    if len(sound) > max(before, after):
        return F.pad(sound[None], (before, after), mode="reflect")[0]
    if len(sound) == 0:
        return sound
    period = max(1, 2 * (len(sound) - 1))
    position = torch.arange(-before, len(sound) + after, device=sound.device) % period
    return sound[torch.minimum(position, period - position)]


@functools.lru_cache(maxsize=8)
def _filters(bins: int, device: torch.device) -> Tensor:
    return torch.from_numpy(mel_filters(bins)).to(device)


@functools.lru_cache(maxsize=8)
def _hann(device: torch.device) -> Tensor:
    return torch.hann_window(N_FFT, periodic=True, dtype=torch.float64).float().to(device)


def mel_constants(bins: int) -> dict[str, int]:
    """The first kernel's compile-time arguments."""
    return {"FREQUENCIES": FREQUENCIES, "BINS": bins, "BLOCK_F": BLOCK_F, "BLOCK_B": triton.next_power_of_2(max(16, bins)), "BLOCK_K": BLOCK_K}


def window_constants(bins: int, *, size: int) -> dict[str, int]:
    """The second kernel's compile-time arguments."""
    return {"SIZE": size, "BINS": bins, "BLOCK_B": triton.next_power_of_2(bins), "BLOCK_T": BLOCK_T}


MEL_ARGUMENT_TYPES = {"spectrum_ptr": "*fp32", "filters_ptr": "*fp32", "out_ptr": "*fp32", "frames": "i32"}


def window_argument_types(dtype: str) -> dict[str, str]:
    """The second kernel's run-time arguments for windows of `dtype` ("fp16", "bf16", "fp32"), to compile it ahead of time."""
    return {"log_mel_ptr": "*fp32", "first_ptr": "*i32", "length_ptr": "*i32", "out_ptr": f"*{dtype}", "frames": "i32"}
