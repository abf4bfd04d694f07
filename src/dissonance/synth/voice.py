"""How it sounds: a source-filter voice, filtered in the short-time Fourier domain.

The voiced source is a band-limited pulse train (a Dirichlet kernel of the pitch's phase); the vocal tract is a cascade of
resonators H(f) = F^2 / (F^2 - f^2 + i f B), or, in the other voices, the same resonators in parallel with alternating signs (Klatt 1980,
"Software for a cascade/parallel formant synthesizer").
"""

import numpy as np
from numpy.typing import NDArray

from dissonance.synth.articulation import CONTROL_RATE_HZ, Utterance

_BANDWIDTHS_HZ = np.array([110.0, 130.0, 180.0, 260.0])
_FOURTH_FORMANT_HZ = 3600.0
_PARALLEL_GAINS = (1.0, -0.7, 0.5, -0.35)
_PARALLEL_BANDWIDTHS_HZ = np.array([170.0, 240.0, 340.0, 450.0])
_PARALLEL_FOURTH_HZ = 3250.0
_BLOCK_HOPS = 1024  # short-time frames filtered at a time: memory stays bounded for long clips


def synthesise(
    utterance: Utterance, rng: np.random.Generator, *, start_s: float, samples: int, sample_rate_hz: int, level_dbfs: float, noise_dbfs: float
) -> NDArray[np.float32]:
    """Sound of `utterance` from `start_s` on its clock: float32 (samples,), in [-1, 1].

    `level_dbfs` is the RMS level of the whole, `noise_dbfs` that of the room's noise beneath it.
    """
    hop = sample_rate_hz // 125
    size = 4 * hop
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    frequencies = np.asarray(np.fft.rfftfreq(size, 1 / sample_rate_hz), dtype=np.float64)
    tilt = 10 ** (utterance.voice.tilt_db_per_octave / 20 * np.log2(np.maximum(frequencies, 100.0) / 100.0))
    tilt[0] = 0.0
    sound = np.zeros(samples + 2 * size, dtype=np.float32)  # short-time frame m is centred on sample m * hop, at index m * hop + size
    hiss = rng.standard_normal(samples + 3 * size, dtype=np.float32)
    control_phase = np.cumsum(utterance.f0_hz, dtype=np.float64) * (2 * np.pi / CONTROL_RATE_HZ)
    harmonics = int(0.46 * sample_rate_hz / float(utterance.f0_hz.max()))
    control_times = utterance.start_s + np.arange(len(utterance.openness)) / CONTROL_RATE_HZ
    hops = samples // hop + 2
    for first in range(0, hops, _BLOCK_HOPS):
        count = min(_BLOCK_HOPS, hops - first)
        begin = first * hop - size // 2
        length = (count - 1) * hop + size
        times = start_s + np.arange(begin, begin + length) / sample_rate_hz
        phase = np.interp(times, control_times, control_phase)
        pulses = _pulse_train(phase, harmonics) * np.interp(times, control_times, utterance.voiced)
        noise = hiss[begin + size : begin + size + length] * np.interp(times, control_times, utterance.noise)
        breath = hiss[begin + size : begin + size + length] * np.interp(times, control_times, utterance.voiced) * utterance.voice.breathiness
        tract, fricative = _filters(utterance, start_s + (first + np.arange(count)) * hop / sample_rate_hz, control_times, frequencies, tilt)
        spectrum = _frames(pulses, window, hop, count) * (tract * tilt)
        spectrum += _frames(breath, window, hop, count) * tract
        spectrum += _frames(noise, window, hop, count) * fricative
        filtered = np.fft.irfft(spectrum, n=size, axis=1).astype(np.float32) * window
        for row in range(count):
            at = (first + row) * hop + size // 2
            sound[at : at + size] += filtered[row]
    sound = sound[size : size + samples]
    level = float(np.sqrt(np.mean(np.square(sound, dtype=np.float64)))) + 1e-9
    sound *= 10 ** (level_dbfs / 20) / level
    sound += _room_noise(rng, samples) * np.float32(10 ** (noise_dbfs / 20))
    return np.clip(sound, -0.99, 0.99)


def _pulse_train(phase: NDArray[np.float64], harmonics: int) -> NDArray[np.float64]:
    """sum_{k=1..K} cos(k phase) = sin((K + 1/2) phase) / (2 sin(phase / 2)) - 1/2, divided by sqrt(K)."""
    half = np.sin(phase / 2)
    safe = np.where(np.abs(half) < 1e-6, 1.0, half)
    kernel = np.where(np.abs(half) < 1e-6, harmonics, np.sin((harmonics + 0.5) * phase) / (2 * safe) - 0.5)
    return np.asarray(kernel / np.sqrt(harmonics))


def _frames(signal: NDArray[np.float64], window: NDArray[np.float32], hop: int, count: int) -> NDArray[np.complex128]:
    """Short-time spectra, (count, size // 2 + 1)."""
    strided = np.lib.stride_tricks.sliding_window_view(signal, len(window))[::hop][:count]
    return np.asarray(np.fft.rfft(strided * window, axis=1), dtype=np.complex128)


def _filters(
    utterance: Utterance,
    times: NDArray[np.float64],
    control_times: NDArray[np.float64],
    frequencies: NDArray[np.float64],
    tilt: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Magnitudes of the vocal tract and of the fricative filter at `times`: two arrays (times, frequencies)."""

    def track(values: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(np.interp(times, control_times, values)[:, None])

    scale = utterance.voice.formant_scale
    f = frequencies[None, :]
    parallel = utterance.voice.model == "cel"
    formants = [track(utterance.formants_hz[:, index]) * scale for index in range(3)]
    formants.append(np.full((len(times), 1), (_PARALLEL_FOURTH_HZ if parallel else _FOURTH_FORMANT_HZ) * scale))
    if parallel:
        branches = zip(_PARALLEL_GAINS, formants, _PARALLEL_BANDWIDTHS_HZ, strict=True)
        tract = np.abs(sum(gain * formant**2 / (formant**2 - f**2 + 1j * f * bandwidth * scale) for gain, formant, bandwidth in branches))
    else:
        tract = np.ones((len(times), len(frequencies)))
        for formant, bandwidth in zip(formants, _BANDWIDTHS_HZ, strict=True):
            tract *= formant**2 / np.sqrt((f**2 - formant**2) ** 2 + (f * bandwidth * scale) ** 2)
    # A tract's gain depends on where its formants lie; loudness is the articulation's business, so even it out.
    tract /= np.sqrt(np.mean(np.square(tract * tilt), axis=1, keepdims=True))
    fricative = 1 / (1 + ((f - track(utterance.noise_hz)) / track(utterance.noise_width_hz)) ** 4)
    return tract, fricative


def _room_noise(rng: np.random.Generator, samples: int) -> NDArray[np.float32]:
    """Noise of unit RMS whose spectrum falls with frequency."""
    white = rng.standard_normal(samples + 7, dtype=np.float32)
    smoothed = np.convolve(white, np.hanning(10)[1:-1].astype(np.float32), mode="valid")
    return np.asarray(smoothed / np.sqrt(np.mean(np.square(smoothed, dtype=np.float64))), dtype=np.float32)
