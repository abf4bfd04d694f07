"""Runtimes: one interface (`base.Runtime`), one file an implementation."""

from typing import Literal

from dissonance.bundle import Bundle, Precision
from dissonance.engine.runtime.base import Runtime
from dissonance.engine.runtime.onnx_runtime import OnnxRuntime
from dissonance.errors import require_extra

RuntimeName = Literal["auto", "onnxruntime", "torch"]


def open_runtime(
    bundle: Bundle,
    *,
    name: RuntimeName = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Precision = "float32",
    threads: int = 0,
) -> Runtime:
    """Load a bundle into a runtime, its encoders in this precision. `auto` is ONNX Runtime, and for it the CPU; for torch, a GPU where it finds one.

    Raises EnvironmentMissingError, BundleError.
    """
    if name == "torch":
        require_extra("gpu", "--runtime torch", "torch", "safetensors")
        from dissonance.engine.runtime.torch_runtime import open_torch_runtime

        return open_torch_runtime(bundle, device=device, precision=precision, threads=threads)
    return OnnxRuntime(bundle, device="cpu" if device == "auto" else device, precision=precision, threads=threads)
