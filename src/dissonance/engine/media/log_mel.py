"""Whisper's log-mel, as a stream (Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022; its `log_mel_spectrogram`).

The short-time transform runs on the continuous sound, so a window's mel does not depend on where it was cut. Only `normalise` is per window.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dissonance.mel import FLOOR, HOP_LENGTH, N_FFT, mel_filters

_HALF = N_FFT // 2
_BLOCK_FRAMES = 512  # transformed at a time


def normalise(log_mel: NDArray[Any]) -> NDArray[np.float32]:
    """Whisper's range: nothing more than 8 (80 dB) under the peak of the whole array; then (x + 4) / 4. Any shape that is not empty."""
    return np.asarray((np.maximum(log_mel, log_mel.max() - 8.0) + 4.0) / 4.0, np.float32)


class LogMelStream:
    """Raw log10 mel frames, not normalised, as they become computable. N samples give N // 160 frames, as Whisper's extractor does.

    Frame i is centred on sample 160 i. Sound is mirrored at its two ends.
    """

    def __init__(self, bins: int) -> None:
        self._filters = mel_filters(bins).T.astype(np.float64)
        self._window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)  # periodic Hann
        self._held: NDArray[np.float32] = np.zeros(0, np.float32)  # samples from 200 before the next frame's centre on
        self._taken = 0  # samples
        self._given = 0  # frames
        self._mirrored = False  # whether the beginning's mirror image is in place

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """(samples,) to (frames, bins); perhaps no frames."""
        self._taken += len(samples)
        self._held = np.concatenate([self._held, samples.astype(np.float32, copy=False)])
        if not self._mirrored:
            if len(self._held) <= _HALF:
                return self._frames(0)
            self._held = np.concatenate([self._held[_HALF:0:-1], self._held])
            self._mirrored = True
        return self._frames(max(0, (len(self._held) - N_FFT) // HOP_LENGTH + 1))

    def finish(self) -> NDArray[np.float32]:
        """The last frames, (frames, bins): those that reach over the sound's end."""
        left = self._taken // HOP_LENGTH - self._given
        if left <= 0:
            return self._frames(0)
        front = 0 if self._mirrored else _HALF
        self._held = np.pad(self._held, (front, _HALF), mode="reflect")
        return self._frames(left)

    def _frames(self, count: int) -> NDArray[np.float32]:
        parts = [np.zeros((0, self._filters.shape[1]), np.float32)]
        for first in range(0, count, _BLOCK_FRAMES):
            number = min(_BLOCK_FRAMES, count - first)
            stretch = self._held[first * HOP_LENGTH : (first + number - 1) * HOP_LENGTH + N_FFT].astype(np.float64)
            frames = np.lib.stride_tricks.sliding_window_view(stretch, N_FFT)[::HOP_LENGTH]
            spectrum = np.fft.rfft(frames * self._window, axis=-1)
            power = spectrum.real**2 + spectrum.imag**2
            parts.append(np.log10(np.maximum(power @ self._filters, FLOOR)).astype(np.float32))
        self._held = self._held[count * HOP_LENGTH :]
        self._given += count
        return np.concatenate(parts)
