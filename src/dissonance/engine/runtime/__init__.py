"""Runtimes: one interface (`base.Runtime`), one file an implementation."""

from typing import Literal

from dissonance.bundle import Bundle, Precision
from dissonance.engine.runtime.base import Runtime
from dissonance.engine.runtime.onnx_runtime import OnnxRuntime

RuntimeName = Literal["onnxruntime"]


def open_runtime(
    bundle: Bundle,
    *,
    name: RuntimeName = "onnxruntime",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Precision = "float32",
    threads: int = 0,
) -> Runtime:
    """Load a bundle into a runtime, its encoders in this precision. `auto` is the CPU, the only device this release scans on by itself.

    Raises EnvironmentMissingError, BundleError.
    """
    if name == "onnxruntime":
        return OnnxRuntime(bundle, device="cpu" if device == "auto" else device, precision=precision, threads=threads)
    raise AssertionError(name)
