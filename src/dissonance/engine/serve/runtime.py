"""A runtime whose networks are somewhere else: a scan's, behind a server, or the video endpoint's, in the same server."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dissonance.bundle import Bundle, BundleSpec, Precision, parse_precision
from dissonance.engine.runtime.base import HEAD_OUTPUTS, FloatArray, HeadOutput, Runtime
from dissonance.engine.serve.client import Server
from dissonance.engine.serve.interface import AUDIO, HEAD, VISUAL, Arrays, interfaces
from dissonance.errors import BundleError

Infer = Callable[[str, Arrays, Sequence[str]], Arrays]  # model, inputs, names of outputs
_LANES = 4  # calls under way at once: enough for the server to make one batch of several


class ServedRuntime(Runtime):
    """`Runtime` over anything that answers for dissonance_visual, dissonance_audio and dissonance_head."""

    def __init__(self, infer: Infer, *, spec: BundleSpec, name: str, precision: Precision, max_batch: int, lanes: int = 1) -> None:
        """`max_batch`: rows that one call may have; larger batches become several calls."""
        self.name, self.precision, self.lanes = name, precision, lanes
        self._infer, self._max_batch = infer, max_batch
        self._shapes = {each.name: each.shape for each in interfaces(spec)[HEAD].outputs}
        self._per_frame = spec.model.visual.prompts.per_frame

    def encode_frames(self, crops: NDArray[np.uint8], frame_index: NDArray[np.int64]) -> FloatArray:
        feeds: Arrays = {"crops": crops, **({"frame_index": frame_index[:, None]} if self._per_frame else {})}
        features: FloatArray = self._run(VISUAL, feeds, ("features",))["features"]
        return features

    def encode_sound(self, mel: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
        features: FloatArray = self._run(AUDIO, {"mel": mel, "mask": mask}, ("features",))["features"]
        return features

    def run_head(self, visual: FloatArray, audio: FloatArray, mask: NDArray[np.bool_]) -> HeadOutput:
        found = self._run(HEAD, {"visual": visual, "audio": audio, "mask": mask}, HEAD_OUTPUTS)
        return HeadOutput(**{name: array.reshape(len(visual), *self._shapes[name]) for name, array in found.items()})  # a server's scalars are (1,)

    def _run(self, model: str, feeds: Arrays, outputs: Sequence[str]) -> Arrays:
        rows = len(next(iter(feeds.values())))
        starts = range(0, rows, self._max_batch)
        parts = [self._infer(model, {name: array[start : start + self._max_batch] for name, array in feeds.items()}, outputs) for start in starts]
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}


def open_served_runtime(server: Server, bundle: Bundle) -> ServedRuntime:
    """The runtime of a server that serves this bundle. Raises BundleError where it serves another one, ServerError where it does not answer."""
    told: dict[str, Any] = server.parameters(VISUAL)
    if told.get("bundle_id") != bundle.id:
        raise BundleError(
            f"The server at {server.where} serves bundle {str(told.get('bundle_id'))[:12]}, and --bundle '{bundle.path}' is {bundle.id[:12]}. "
            "Give --bundle the folder that its repository was made from."
        )
    return ServedRuntime(
        lambda model, inputs, outputs: server.infer(model, inputs, outputs),
        spec=bundle.spec,
        name=f"server-{told['runtime']}",
        precision=parse_precision(told["precision"]),
        max_batch=int(told["max_batch"]),
        lanes=_LANES,
    )
