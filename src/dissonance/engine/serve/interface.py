"""The served models' names, inputs and outputs: what the repository declares, the server computes and clients send.

| model | one row | inputs | outputs |
| --- | --- | --- | --- |
| dissonance_visual | a face crop | crops, frame_index under `per_frame` | features |
| dissonance_audio | a window | mel, mask | features |
| dissonance_head | a window | visual, audio, mask | what `HeadOutput` has |
| dissonance_windows | a window | crops, mel, mask | what `HeadOutput` has, and calibrated probabilities |
| dissonance | | video or uri | events |

Rows are batched across requests. `dissonance_windows` calls the three networks before it, `dissonance` calls them as a scan does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dissonance.bundle import BundleSpec, CalibrationSpec, ModalityCase
from dissonance.engine.media.clip import MEL_FRAMES

VISUAL, AUDIO, HEAD, WINDOWS, VIDEO = "dissonance_visual", "dissonance_audio", "dissonance_head", "dissonance_windows", "dissonance"
VIDEO_INPUTS, EVENT = ("video", "uri"), "event"

TRITON_TYPES = {"uint8": "UINT8", "float32": "FP32", "bool": "BOOL", "int64": "INT64"}  # by numpy's name
PROBABILITIES: dict[str, tuple[str, ModalityCase]] = {  # output: the logit that it is the calibrated probability of, and whose calibration
    "p_fake": ("logit_fused", "av"),
    "p_visual": ("logit_visual", "v"),
    "p_audio": ("logit_audio", "a"),
}

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Tensor:
    """One input or output, of one row."""

    name: str
    dtype: str  # numpy's name
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Interface:
    """One model; requests have a first dimension more, the rows."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def interfaces(spec: BundleSpec) -> dict[str, Interface]:
    """Every model but `dissonance`, whose tensors are texts."""
    model = spec.model
    frames, size, lags = model.frames, spec.crop.size_px, 2 * model.head.max_lag + 1
    visual = Tensor("features", "float32", (model.visual.feature_size,))
    audio = Tensor("features", "float32", (2 * frames, model.audio.hidden_size))
    mel, mask = Tensor("mel", "float32", (spec.mel.bins, MEL_FRAMES * frames)), Tensor("mask", "bool", (frames,))
    said = (
        *(Tensor(name, "float32", ()) for name in ("logit_visual", "logit_audio", "logit_fused")),
        Tensor("matched", "float32", (frames,)),
        Tensor("lag_profile", "float32", (lags,)),
        Tensor("lag_valid", "bool", (lags,)),
        Tensor("best_lag", "int64", ()),
    )
    crops, place = Tensor("crops", "uint8", (size, size, 3)), Tensor("frame_index", "int64", ())
    return {
        VISUAL: Interface((crops, place) if model.visual.prompts.per_frame else (crops,), (visual,)),
        AUDIO: Interface((mel, mask), (audio,)),
        HEAD: Interface((Tensor("visual", "float32", (frames, *visual.shape)), Tensor("audio", "float32", audio.shape), mask), said),
        WINDOWS: Interface(
            (Tensor("crops", "uint8", (frames, *crops.shape)), mel, mask), (*said, *(Tensor(name, "float32", ()) for name in PROBABILITIES))
        ),
    }


def probabilities(logits: Mapping[str, NDArray[np.float32]], calibration: Mapping[ModalityCase, CalibrationSpec]) -> Arrays:
    """The PROBABILITIES of windows' logits (windows,): sigmoid(scale * logit + bias), as a scan's rows have them."""
    found: Arrays = {}
    for name, (logit, case) in PROBABILITIES.items():
        chosen = calibration[case]
        x = chosen.scale * logits[logit].astype(np.float64) + chosen.bias
        found[name] = (0.5 * (1.0 + np.tanh(0.5 * x))).astype(np.float32)  # the same function, and no overflow
    return found


def not_finite(arrays: Mapping[str, NDArray[Any]]) -> str | None:
    """What is wrong where an array holds what is no finite number, else None."""
    for name, array in arrays.items():
        if array.dtype == np.float32 and not (finite := np.isfinite(array)).all():
            first = np.unravel_index(int(np.argmin(finite)), array.shape)
            where = f"the first at {tuple(map(int, first))}: {array[first]}"
            return f"input '{name}' holds {int((~finite).sum())} values that are not finite numbers, {where}"
    return None
