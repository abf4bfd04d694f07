"""Runtimes: one interface (`base.Runtime`), one file an implementation."""

from typing import Literal

from dissonance.bundle import Bundle, Precision
from dissonance.engine.runtime.base import Runtime
from dissonance.engine.runtime.onnx_runtime import OnnxRuntime
from dissonance.errors import UsageError, require_extra

RuntimeName = Literal["auto", "onnxruntime", "torch", "tensorrt"]


def open_runtime(
    bundle: Bundle,
    *,
    name: RuntimeName = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Precision | None = None,
    threads: int = 0,
) -> Runtime:
    """Load a bundle into a runtime, its encoders in this precision. `auto` is ONNX Runtime, and for it the CPU; for torch, a GPU where it finds one.

    No precision: float32, and for tensorrt the first that the bundle has plans in (fp16, bf16, ...).
    Raises UsageError, EnvironmentMissingError, BundleError.
    """
    if name == "tensorrt":
        if device == "cpu":
            raise UsageError("--runtime tensorrt is for GPUs: leave out --device cpu, or choose --runtime onnxruntime.")
        from dissonance.engine.runtime.tensorrt_runtime import open_tensorrt_runtime

        return open_tensorrt_runtime(bundle, precision=precision)
    precision = precision or "float32"
    if name == "torch":
        require_extra("gpu", "--runtime torch", "torch", "safetensors")
        from dissonance.engine.runtime.torch_runtime import open_torch_runtime

        return open_torch_runtime(bundle, device=device, precision=precision, threads=threads)
    return OnnxRuntime(bundle, device="cpu" if device == "auto" else device, precision=precision, threads=threads)
