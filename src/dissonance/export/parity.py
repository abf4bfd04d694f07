"""Does each ONNX graph give the numbers of torch before folding? Asked before a bundle is finished, on the very bytes that go into it.

The error of an output is max |ONNX Runtime - torch| / max(1, RMS of torch's output): absolute for what is around 1 or below (similarities,
probabilities, most logits), relative to the scale of features that are larger. LIMIT is 1e-4; float32 gives 1e-6 to 2e-5.
Booleans must be equal. `best_lag` is an argmax, which rounding may turn where two lags tie: its error is by how much torch's profile is lower at the
lag that ONNX Runtime chose. Batches of several sizes hold whole windows, padded ones, and one without a valid frame.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from dissonance.errors import BundleError
from dissonance.export.onnx import Graph

LIMIT = 1e-4
BATCHES = (1, 2, 5)

Array = NDArray[Any]


def measure_parity(graph: Graph, data: bytes, *, seed: int = 0, batches: Sequence[int] = BATCHES) -> dict[str, float]:
    """The largest error of each output over `batches`, as `{"head.onnx:logit_fused": 3e-7, ...}`.

    Raises BundleError where one is over LIMIT or not a number, or the graph does not run.
    """
    generator = torch.Generator().manual_seed(seed)
    examples = [graph.example(batch, generator) for batch in batches]
    largest = dict.fromkeys(graph.outputs, 0.0)
    for example, found in zip(examples, _run(graph, data, examples), strict=True):
        with torch.inference_mode():
            out = graph.original(*example)
        expected = [value.numpy() for value in (out if isinstance(out, tuple) else (out,))]
        for name, error in _errors(graph.outputs, found, expected).items():
            largest[name] = max(largest[name], error) if np.isfinite(error) else float("inf")
    for name, error in largest.items():
        if error > LIMIT:
            raise BundleError(
                f"{graph.name} does not give torch's numbers: output '{name}' differs by {error:.2g}, the limit is {LIMIT:g}. No bundle was written. "
                "Export again; should it stay so, these versions of torch, onnxscript and onnxruntime do not go together."
            )
    return {f"{graph.name}:{name}": error for name, error in largest.items()}


def _run(graph: Graph, data: bytes, examples: Sequence[tuple[torch.Tensor, ...]]) -> list[list[Array]]:
    """ONNX Runtime's outputs for each example."""
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        return [
            session.run(list(graph.outputs), {name: value.numpy() for name, value in zip(graph.inputs, example, strict=True)}) for example in examples
        ]
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise BundleError(f"{graph.name} does not run in ONNX Runtime {onnxruntime.__version__}: {error}. No bundle was written.") from error


def _errors(names: Sequence[str], found: Sequence[Array], expected: Sequence[Array]) -> dict[str, float]:
    """The error of each output of one batch; infinity where shapes or types differ."""
    torch_outputs = dict(zip(names, expected, strict=True))
    errors = {}
    for name, ours, theirs in zip(names, found, expected, strict=True):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            errors[name] = float("inf")
        elif name == "best_lag":
            errors[name] = _lost_by_lag(ours, theirs, torch_outputs["lag_profile"])
        elif theirs.dtype == np.bool_:
            errors[name] = float(np.count_nonzero(ours != theirs))
        else:
            wide = theirs.astype(np.float64)
            scale = max(1.0, float(np.sqrt(np.mean(wide**2))))
            errors[name] = float(np.max(np.abs(ours - wide))) / scale
    return errors


def _lost_by_lag(ours: Array, theirs: Array, profile: Array) -> float:
    max_lag = profile.shape[1] // 2
    rows = np.arange(len(profile))
    chosen, best = np.clip(ours + max_lag, 0, 2 * max_lag), theirs + max_lag
    if bool(np.any(chosen != ours + max_lag)):
        return float("inf")
    return float(np.max(np.abs(profile[rows, best] - profile[rows, chosen])))
