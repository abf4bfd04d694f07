"""What the TensorRT runtime needs of CUDA: memory, copies, streams and graphs, by NVIDIA's cuda-python, which imports without a driver.

Addresses, streams and graphs are what CUDA hands out. One GPU a process, the first that CUDA_VISIBLE_DEVICES leaves.
"""

import contextlib
import ctypes
import importlib
from collections.abc import Callable
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from dissonance.engine.runtime.buckets import GpuMemoryError, gpu_failed
from dissonance.errors import EnvironmentMissingError


class Cuda(Protocol):
    """One GPU."""

    def allocate(self, size_bytes: int) -> int:
        """Memory on the GPU, filled with zeros. Raises GpuMemoryError."""
        ...

    def free(self, address: int) -> None: ...

    def pinned(self, size_bytes: int) -> NDArray[np.uint8]:
        """Memory of the host that the GPU copies from and to while both go on; kept until the process ends."""
        ...

    def stream(self) -> int:
        """A queue of work, which waits for no other."""
        ...

    def upload(self, address: int, values: NDArray[np.uint8], stream: int) -> None:
        """Queue a copy to the GPU, from pinned memory."""
        ...

    def download(self, values: NDArray[np.uint8], address: int, stream: int) -> None:
        """Queue a copy from the GPU, to pinned memory."""
        ...

    def wait(self, stream: int) -> None:
        """Until all that was queued is done."""
        ...

    def capture(self, work: Callable[[], None], stream: int) -> Any:
        """What `work` queues on a stream, not run but kept as a graph."""
        ...

    def launch(self, graph: Any, stream: int) -> None:
        """Queue a graph."""
        ...


# After these a GPU does nothing more for this process. Any other error is a wrong call of ours.
LOST = {
    "cudaErrorAssert", "cudaErrorContained", "cudaErrorContextIsDestroyed", "cudaErrorDevicesUnavailable", "cudaErrorECCUncorrectable",
    "cudaErrorExternalDevice", "cudaErrorHardwareStackError", "cudaErrorIllegalAddress", "cudaErrorIllegalInstruction",
    "cudaErrorInvalidAddressSpace", "cudaErrorInvalidPc", "cudaErrorLaunchFailure", "cudaErrorLaunchTimeout", "cudaErrorMisalignedAddress",
    "cudaErrorNvlinkUncorrectable", "cudaErrorSystemNotReady", "cudaErrorUnknown",
}  # fmt: skip


class CudaPython:
    """`Cuda` by cuda-python. A GPU that is lost is an EnvironmentMissingError, in every call that comes to know of it."""

    def __init__(self) -> None:
        """Raises EnvironmentMissingError without cuda-python, a driver that it fits, or a GPU; GpuMemoryError where it is full."""
        try:
            self._runtime: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise EnvironmentMissingError("--runtime tensorrt needs cuda-python. Install it with: pip install cuda-python") from error
        self._call("cudaSetDevice", 0)

    def _call(self, name: str, *arguments: object) -> Any:
        error, *values = getattr(self._runtime, name)(*arguments)
        codes = self._runtime.cudaError_t
        if error == codes.cudaSuccess:
            return values[0] if values else None
        _, words = self._runtime.cudaGetErrorString(error)
        told = f"{name}: {cast(bytes, words).decode(errors='replace')}"
        if error == codes.cudaErrorMemoryAllocation:
            raise GpuMemoryError(told)
        if error == codes.cudaErrorInsufficientDriver:
            _, version = self._runtime.cudaRuntimeGetVersion()
            raise EnvironmentMissingError(f"CUDA {version // 1000}.{version % 1000 // 10} needs a newer NVIDIA driver than this machine's ({told}).")
        if error == codes.cudaErrorNoDevice:
            raise EnvironmentMissingError(f"CUDA finds no GPU ({told}). Is one named in CUDA_VISIBLE_DEVICES?")
        raise gpu_failed(told) if error.name in LOST else RuntimeError(told)

    def allocate(self, size_bytes: int) -> int:
        address = int(self._call("cudaMalloc", max(1, size_bytes)))
        self._call("cudaMemset", address, 0, size_bytes)
        self._call("cudaStreamSynchronize", 0)  # no stream of ours waits for the default one
        return address

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def pinned(self, size_bytes: int) -> NDArray[np.uint8]:
        address = int(self._call("cudaHostAlloc", max(1, size_bytes), 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))

    def stream(self) -> int:
        return int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def upload(self, address: int, values: NDArray[np.uint8], stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, values.ctypes.data, values.nbytes, kind, stream)

    def download(self, values: NDArray[np.uint8], address: int, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", values.ctypes.data, address, values.nbytes, kind, stream)

    def wait(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def capture(self, work: Callable[[], None], stream: int) -> Any:
        self._call("cudaStreamBeginCapture", stream, self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        except BaseException:
            with contextlib.suppress(EnvironmentMissingError, RuntimeError):
                self._call("cudaStreamEndCapture", stream)
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        ready = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        return ready

    def launch(self, graph: Any, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)
