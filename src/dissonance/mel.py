"""Whisper's log-mel: sizes and filter bank (Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022).

`engine.media.log_mel` computes it on a CPU, `kernels.log_mel` on a GPU.
"""

import functools

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
N_FFT = 400
HOP_LENGTH = 160
FLOOR = 1e-10  # of the mel power, before the logarithm
SILENCE = -10.0  # log10(FLOOR): what silence gives


def _mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's mel scale (Auditory Toolbox): linear to 1 kHz, 15 mel there, then logarithmic."""
    return np.where(hz < 1000, 3 * hz / 200, 15 + np.log(np.maximum(hz, 1000) / 1000) * 27 / np.log(6.4))


def _hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


@functools.cache
def mel_filters(bins: int) -> NDArray[np.float32]:
    """(bins, 201) triangles between 0 and 8 kHz, evenly spaced in Slaney's mel, each of area one (Slaney's normalisation). Do not write to it."""
    edges = _hz(np.linspace(0.0, float(_mel(np.array(SAMPLE_RATE_HZ / 2))), bins + 2))
    frequencies = np.linspace(0, SAMPLE_RATE_HZ / 2, N_FFT // 2 + 1)
    rising = (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequencies) / np.diff(edges)[1:, None]
    return (np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)
