"""The sound forgery: speech taken apart into magnitudes and made again without its phases, as vocoders do. What is said and when stays.

Three ways, one a clip. `buzz` and `hoarse` keep the energy in a few mel bands every 10 ms, and fill it with pulses at the voice's pitch, held in
steps, also where there is no voice; `hoarse` adds noise. `griffin_lim` keeps every magnitude, blurred in time, and looks for phases that
fit, from random ones, stopping early (Griffin & Lim 1984, "Signal estimation from modified short-time Fourier transform").
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

HOPS_PER_S = 100

_Excitation = Literal["buzz", "hoarse", "griffin_lim"]
_HOPS_A_WINDOW = 4
_SEGMENT_HOPS = 1600  # made again at a time: memory stays bounded for long clips
_SHARED_HOPS = 4  # of neighbouring segments, faded into each other
_STEP_HOPS = 3  # the buzz holds its pitch for so long
_HOARSE_VOICE = 1.6  # amplitude of the pulses beside noise of amplitude 1: still a voice, not a whisper
_ROUNDS = 8  # of Griffin and Lim's iteration: too few, which is what is heard


def vocode(sound: NDArray[np.float32], f0_hz: NDArray[np.float32], rng: np.random.Generator, *, sample_rate_hz: int) -> NDArray[np.float32]:
    """`sound`, float32 (samples,) in [-1, 1], made again: of the same length and level. `f0_hz` is its pitch at 0, 10, 20 ms and so on."""
    hop = sample_rate_hz // HOPS_PER_S
    kind = get_args(_Excitation)[rng.integers(len(get_args(_Excitation)))]
    bands, blend = _mel_bands(int(rng.integers(18, 27)), hop * _HOPS_A_WINDOW, sample_rate_hz)
    hops = -(-len(sound) // hop)
    held_hz = f0_hz[np.minimum(np.arange(hops) // _STEP_HOPS * _STEP_HOPS, len(f0_hz) - 1)]
    again = np.zeros((hops + _SHARED_HOPS) * hop)
    ramp = (np.arange(_SHARED_HOPS * hop) + 0.5) / (_SHARED_HOPS * hop)
    for first in range(0, hops, _SEGMENT_HOPS):
        count = min(_SEGMENT_HOPS + _SHARED_HOPS, hops - first)
        part = sound[first * hop : (first + count) * hop]
        part = np.pad(part, (0, count * hop - len(part)))
        spectra = _spectra(part, hop)
        envelope = np.abs(spectra) if kind == "griffin_lim" else _coarse(spectra, bands, blend)
        envelope = np.apply_along_axis(np.convolve, 0, np.pad(envelope, ((1, 1), (0, 0)), mode="edge"), [0.25, 0.5, 0.25], "valid")
        if kind == "griffin_lim":
            made = _griffin_lim(envelope, rng, hop)
        else:
            pulses = _pulses(np.repeat(held_hz[first : first + count], hop), sample_rate_hz)
            source = pulses if kind == "buzz" else _HOARSE_VOICE * pulses + rng.standard_normal(len(part))
            filled = _spectra(source, hop)
            made = _overlap_add(filled * (envelope / np.maximum(_coarse(filled, bands, blend), 1e-6)), hop)
        if first:
            made[: len(ramp)] *= ramp[: len(made)]
        if first + count < hops:
            made[-len(ramp) :] *= 1 - ramp
        again[first * hop : (first + count) * hop] += made
    again = again[: len(sound)]
    gain = np.sqrt(np.mean(np.square(sound, dtype=np.float64)) / (np.mean(again**2) + 1e-12))
    return np.asarray(np.clip(gain * again, -0.99, 0.99), dtype=np.float32)


def _mel_bands(count: int, size: int, sample_rate_hz: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(bins, count): triangles that average power in a band, columns of sum 1; and (count, bins): weights that join the bands up again."""
    mel = 2595 * np.log10(1 + np.fft.rfftfreq(size, 1 / sample_rate_hz) / 700)
    middles = np.linspace(0, mel[-1], count)
    triangles = np.clip(1 - np.abs(mel[:, None] - middles) / middles[1], 0, None)
    return triangles / triangles.sum(axis=0), triangles.T


def _coarse(spectra: NDArray[np.complex128], bands: NDArray[np.float64], blend: NDArray[np.float64]) -> NDArray[np.float64]:
    """The magnitude's envelope, (windows, bins)."""
    return np.asarray(np.sqrt((np.abs(spectra) ** 2 @ bands) @ blend))


def _spectra(sound: NDArray[np.floating], hop: int) -> NDArray[np.complex128]:
    """Short-time spectra, (windows, bins); window m is centred on sample (m - 1) * hop, so the first and the last sample are covered in full."""
    size = _HOPS_A_WINDOW * hop
    strided = np.lib.stride_tricks.sliding_window_view(np.pad(sound, size - hop), size)[::hop]
    return np.asarray(np.fft.rfft(strided * np.hanning(size + 1)[:-1], axis=1), dtype=np.complex128)


def _overlap_add(spectra: NDArray[np.complex128], hop: int) -> NDArray[np.float64]:
    """The inverse of `_spectra`, least squares where the spectra are not of any sound."""
    size = _HOPS_A_WINDOW * hop
    frames = np.fft.irfft(spectra, n=size, axis=1) * (np.hanning(size + 1)[:-1] / 1.5)  # squared Hann windows sum to 1.5 at a quarter's hop
    sound = np.zeros((len(frames) + _HOPS_A_WINDOW - 1, hop))
    for part in range(_HOPS_A_WINDOW):
        sound[part : part + len(frames)] += frames[:, part * hop : (part + 1) * hop]
    return sound.ravel()[size - hop : -(size - hop)]


def _griffin_lim(magnitude: NDArray[np.float64], rng: np.random.Generator, hop: int) -> NDArray[np.float64]:
    spectra = magnitude * np.exp(2j * np.pi * rng.random(magnitude.shape))
    for _ in range(_ROUNDS):
        again = _spectra(_overlap_add(spectra, hop), hop)
        spectra = magnitude * again / np.maximum(np.abs(again), 1e-9)
    return _overlap_add(spectra, hop)


def _pulses(f0_hz: NDArray[np.float32], sample_rate_hz: int) -> NDArray[np.float64]:
    """One sample of height sqrt(rate / f0), so of unit power, at the start of every period."""
    periods = np.cumsum(f0_hz / sample_rate_hz, dtype=np.float64)
    return np.diff(np.floor(periods), prepend=0.0) * np.sqrt(sample_rate_hz / f0_hz)
