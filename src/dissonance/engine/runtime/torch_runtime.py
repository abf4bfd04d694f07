"""The torch network itself as a runtime: what a network scores while it is being trained, before anything is exported."""

import contextlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dissonance.bundle import Precision
from dissonance.engine.runtime.base import FloatArray, HeadOutput, Runtime
from dissonance.model.network import AudioVisualNetwork


class TorchRuntime(Runtime):
    """`Runtime` over a network that stays where it is and as it is: weights, training mode and random state are not touched.

    precision: `bfloat16` runs matrix products under autocast, with weights and results in float32.
    """

    def __init__(self, network: AudioVisualNetwork, *, device: str = "cpu", precision: Literal["float32", "bfloat16"] = "float32") -> None:
        """`device` is where the network's weights are."""
        self.name = "torch"
        self.precision: Precision = "bf16" if precision == "bfloat16" else "float32"
        self._network = network
        self._device = torch.device(device)
        self._autocast = precision == "bfloat16"

    def encode_frames(self, crops: NDArray[np.uint8], frame_index: NDArray[np.int64]) -> FloatArray:
        with self._inference():
            pixels = self._tensor(crops).permute(0, 3, 1, 2).float() / 255.0
            index = self._tensor(frame_index) if self._network.visual.takes_frame_index else None
            return _floats(self._network.visual(pixels, index))

    def encode_sound(self, mel: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
        with self._inference():
            return _floats(self._network.audio(self._tensor(mel), self._tensor(mask)))

    def run_head(self, visual: FloatArray, audio: FloatArray, mask: NDArray[np.bool_]) -> HeadOutput:
        with self._inference():
            output = self._network.head(self._tensor(visual), self._tensor(audio), self._tensor(mask))
            return HeadOutput(
                logit_visual=_floats(output.logit_visual),
                logit_audio=_floats(output.logit_audio),
                logit_fused=_floats(output.logit_fused),
                matched=_floats(output.match.matched),
                lag_profile=_floats(output.match.lag_profile),
                lag_valid=output.match.lag_valid.cpu().numpy(),
                best_lag=output.match.best_lag.cpu().numpy(),
            )

    def _tensor(self, array: NDArray[np.generic]) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(array)).to(self._device)

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """No gradients and no dropout inside; every module's own mode again after it, for a frozen part may be kept in eval while others train."""
        training = [module for module in self._network.modules() if module.training]
        self._network.eval()
        try:
            with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
                yield
        finally:
            for module in training:
                module.training = True


def _floats(values: torch.Tensor) -> FloatArray:
    found: FloatArray = values.float().cpu().numpy()
    return found
