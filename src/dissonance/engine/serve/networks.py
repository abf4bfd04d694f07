"""The networks as models of Triton's Python backend. A repository's `model.py` imports one of these classes under the name that it looks for.

Only importable inside the server, whose backend brings `triton_python_backend_utils`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import triton_python_backend_utils as pb_utils

from dissonance.bundle import Bundle, graph_file, open_bundle, parse_precision
from dissonance.engine.runtime.base import HEAD_OUTPUTS, Runtime
from dissonance.engine.runtime.onnx_runtime import OnnxRuntime
from dissonance.engine.serve.interface import AUDIO, HEAD, VISUAL, WINDOWS, Arrays, interfaces, not_finite, probabilities
from dissonance.engine.serve.runtime import ServedRuntime


def parameters_of(args: dict[str, str]) -> dict[str, str]:
    """The `parameters` of a model's config.pbtxt."""
    return {name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()}


def version_folder(args: dict[str, str]) -> Path:
    """Where a model's files are."""
    return Path(args["model_repository"]) / args["model_version"]


class CallError(Exception):
    """Another model of this server did not answer: its queue is full, its time was up, it is not there."""

    def __init__(self, error: Any) -> None:
        super().__init__(error.message())
        self.response = pb_utils.InferenceResponse(error=pb_utils.TritonError(error.message(), error.code()))


def call(model: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
    """Another model of the same server, where the rows share batches with everybody's. Raises CallError."""
    tensors = [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in inputs.items()]
    response = pb_utils.InferenceRequest(model_name=model, requested_output_names=list(outputs), inputs=tensors).exec()
    if response.has_error():
        raise CallError(response.error())
    return {name: pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in outputs}


class Network:
    """One network of a bundle: requests' rows become one batch."""

    name: ClassVar[str]
    graph: ClassVar[str | None] = None  # its file in the bundle

    def initialize(self, args: dict[str, str]) -> None:
        """Load the network from the model's folder, its files checked. Raises BundleError, which keeps the model from becoming ready."""
        parameters, folder = parameters_of(args), version_folder(args)
        precision = parse_precision(parameters["precision"])
        on_torch = parameters["runtime"] == "torch"
        files = () if self.graph is None else ("weights.safetensors",) if on_torch else (graph_file(self.graph, precision),)
        self.bundle: Bundle = open_bundle(folder, sha256=parameters["bundle_id"], only=files)
        self._inputs = interfaces(self.bundle.spec)[self.name].inputs
        if self.graph is None:
            return
        if on_torch:
            from dissonance.engine.runtime.torch_runtime import open_torch_runtime

            self.runtime: Runtime = open_torch_runtime(self.bundle, device="cuda", precision="float32", threads=0)
        else:
            self.runtime = OnnxRuntime(self.bundle, precision=precision, threads=int(parameters["threads"]), graphs=(self.graph,))

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request; a request with an impossible value is refused alone."""
        responses: list[Any] = [None] * len(requests)
        asked: dict[int, Arrays] = {}
        for place, request in enumerate(requests):
            arrays = {each.name: pb_utils.get_input_tensor_by_name(request, each.name).as_numpy() for each in self._inputs}
            wrong = not_finite(arrays)
            if wrong is None:
                asked[place] = arrays
            else:
                responses[place] = pb_utils.InferenceResponse(error=pb_utils.TritonError(wrong, pb_utils.TritonError.INVALID_ARG))
        if asked:
            batch = {each.name: np.concatenate([arrays[each.name] for arrays in asked.values()]) for each in self._inputs}
            try:
                outputs, start = self.run(batch), 0
            except CallError as error:
                return [error.response if place in asked else response for place, response in enumerate(responses)]
            for place, arrays in asked.items():
                stop = start + len(next(iter(arrays.values())))
                responses[place] = pb_utils.InferenceResponse([pb_utils.Tensor(name, value[start:stop]) for name, value in outputs.items()])
                start = stop
        return responses

    def run(self, batch: Arrays) -> Arrays:
        """The outputs of a batch, each with a row for each of its rows."""
        raise NotImplementedError


class Visual(Network):
    """dissonance_visual."""

    name, graph = VISUAL, "visual.onnx"

    def run(self, batch: Arrays) -> Arrays:
        crops = batch["crops"]
        places = batch.get("frame_index", np.zeros(len(crops), np.int64)).reshape(len(crops))
        return {"features": self.runtime.encode_frames(crops, places)}


class Audio(Network):
    """dissonance_audio."""

    name, graph = AUDIO, "audio.onnx"

    def run(self, batch: Arrays) -> Arrays:
        return {"features": self.runtime.encode_sound(batch["mel"], batch["mask"])}


class Head(Network):
    """dissonance_head."""

    name, graph = HEAD, "head.onnx"

    def run(self, batch: Arrays) -> Arrays:
        output = self.runtime.run_head(batch["visual"], batch["audio"], batch["mask"])
        return {name: getattr(output, name) for name in HEAD_OUTPUTS}


class Windows(Network):
    """dissonance_windows: the three networks, by calls in the same server.

    Not an ensemble of Triton's: where one of two steps that run beside each other fails or is rejected, release 2.51 never counts the request as
    over and waits for it at shutdown, and goes on reading shared memory that the client, which has its answer, may have taken back.
    """

    name = WINDOWS

    def initialize(self, args: dict[str, str]) -> None:
        super().initialize(args)
        parameters = parameters_of(args)
        self.runtime = ServedRuntime(
            call, spec=self.bundle.spec, name="", precision=parse_precision(parameters["precision"]), max_batch=int(parameters["max_batch"])
        )

    def run(self, batch: Arrays) -> Arrays:
        crops, mask = batch["crops"], batch["mask"]
        windows, frames = crops.shape[:2]
        visual = self.runtime.encode_frames(crops.reshape(windows * frames, *crops.shape[2:]), np.tile(np.arange(frames), windows))
        audio = self.runtime.encode_sound(batch["mel"], mask)
        output = self.runtime.run_head(visual.reshape(windows, frames, -1), audio, mask)
        found: Arrays = {name: getattr(output, name) for name in HEAD_OUTPUTS}
        return {**found, **probabilities(found, self.bundle.spec.calibration)}
