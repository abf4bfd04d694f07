"""The encoder interface: what every runtime offers the scan, whatever computes it.

A runtime is told batches and returns float32 arrays on the host. No number it returns depends on what else is in the batch.
"""

from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dissonance.bundle import Precision

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class HeadOutput:
    """What the head says of a batch of windows. T frames a window, L = max_lag."""

    logit_visual: FloatArray  # (windows,)
    logit_audio: FloatArray  # (windows,)
    logit_fused: FloatArray  # (windows,)
    matched: FloatArray  # (windows, T): similarity of picture and sound at the same moment
    lag_profile: FloatArray  # (windows, 2 L + 1): mean similarity at lag -L..L frames; d > 0: the sound comes later
    lag_valid: NDArray[np.bool_]  # (windows, 2 L + 1): whether that lag has any valid pair
    best_lag: NDArray[np.int64]  # (windows,): meaningful where any of lag_valid is true


HEAD_OUTPUTS = tuple(field.name for field in fields(HeadOutput))  # as the graphs call them


class Runtime(Protocol):
    """Runs a bundle's three networks, on batches of at least one row."""

    name: str  # as it is written into every row's provenance
    precision: Precision  # of the encoders; a run is resumed in the same one
    lanes: int = 1  # calls that may be made at the same time, from as many threads

    def encode_frames(self, crops: NDArray[np.uint8], frame_index: NDArray[np.int64]) -> FloatArray:
        """Face crops (frames, S, S, 3) uint8 RGB, and each one's place in its window (used by `per_frame` prompts only) -> (frames, Fv)."""
        ...

    def encode_sound(self, mel: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
        """Log-mel (windows, bins, 4 T) and the valid frames (windows, T) -> (windows, 2 T, Fa)."""
        ...

    def run_head(self, visual: FloatArray, audio: FloatArray, mask: NDArray[np.bool_]) -> HeadOutput:
        """Frame features (windows, T, Fv), sound features (windows, 2 T, Fa), valid frames (windows, T) -> HeadOutput."""
        ...
