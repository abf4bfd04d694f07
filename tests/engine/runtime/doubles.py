"""Doubles of CUDA and of TensorRT, strict about the order of calls: device memory is the host's, and a plan is an ONNX file."""

import ctypes
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from dissonance.engine.runtime.buckets import GpuMemoryError, gpu_failed

TYPES = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(uint8)": "UINT8", "tensor(bool)": "BOOL", "tensor(int64)": "INT64"}


class FakeCuda:
    """`Cuda` on the host. What is queued on a stream is done when that stream is waited for, and no sooner."""

    def __init__(self, *, memory_bytes: int = 1 << 40) -> None:
        self.memory_bytes = memory_bytes
        self.blocks: dict[int, NDArray[np.uint8]] = {}
        self.queues: dict[int, list[Callable[[], None]]] = {}
        self.launches = 0
        self.recording: dict[int, list[Callable[[], None]]] = {}
        self.lock = threading.Lock()
        self.lost = False

    @property
    def used_bytes(self) -> int:
        return sum(block.nbytes for block in self.blocks.values())

    def allocate(self, size_bytes: int) -> int:
        assert not self.recording, "memory is not taken while a graph is captured"
        with self.lock:
            if self.used_bytes + size_bytes > self.memory_bytes:
                raise GpuMemoryError("cudaMalloc: out of memory")
            block = np.zeros(max(1, size_bytes), np.uint8)
            self.blocks[block.ctypes.data] = block
            return block.ctypes.data

    def free(self, address: int) -> None:
        del self.blocks[address]

    def pinned(self, size_bytes: int) -> NDArray[np.uint8]:
        return np.zeros(size_bytes, np.uint8)

    def stream(self) -> int:
        stream = 101 + len(self.queues)
        self.queues[stream] = []
        return stream

    def upload(self, address: int, values: NDArray[np.uint8], stream: int) -> None:
        self._copy(address, values.ctypes.data, values.nbytes, inside=address, stream=stream)

    def download(self, values: NDArray[np.uint8], address: int, stream: int) -> None:
        self._copy(values.ctypes.data, address, values.nbytes, inside=address, stream=stream)

    def _copy(self, to: int, source: int, size: int, *, inside: int, stream: int) -> None:
        assert stream not in self.recording, "copies are not in the graphs"
        assert size <= self.blocks[inside].nbytes
        self.queues[stream].append(lambda: ctypes.memmove(to, source, size) and None)

    def wait(self, stream: int) -> None:
        assert stream not in self.recording, "a stream that is captured cannot be waited for"
        if self.lost:
            raise gpu_failed("cudaStreamSynchronize: an illegal memory access")
        while self.queues[stream]:
            self.queues[stream].pop(0)()

    def queue(self, work: Callable[[], None], stream: int) -> None:
        """For contexts: to be done in its turn, or kept for the graph that is being captured."""
        self.recording.get(stream, self.queues[stream]).append(work)

    def capture(self, work: Callable[[], None], stream: int) -> Any:
        assert not self.queues[stream], "there is work on the stream that is captured"
        self.recording[stream] = []
        try:
            work()
        finally:
            graph = self.recording.pop(stream)
        return graph

    def launch(self, graph: Any, stream: int) -> None:
        assert graph, "an empty graph"
        self.launches += 1
        self.queues[stream].extend(graph)


class FakeTensorRT:
    """A `trt` whose plans are ONNX files. `rtx`: with what only TensorRT-RTX has, and has to be told."""

    __version__ = "10.13.3.9"

    def __init__(self, cuda: FakeCuda, *, rtx: bool = False, capturable: bool = True, scratch_bytes: int = 1000) -> None:
        names = [*TYPES.values(), "BF16", "INT32"]
        self.DataType = SimpleNamespace(**{name: name for name in names})
        self.TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
        self.ExecutionContextAllocationStrategy = SimpleNamespace(STATIC="static", USER_MANAGED="user")
        double, self.contexts, self.host_code = self, list[Any](), list[bool]()
        self.says = dict[str, str]()  # what the library says when it refuses to do something, by the name of the call

        class ILogger:
            Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)

        class Context:
            def __init__(self, session: onnxruntime.InferenceSession) -> None:
                self.session, self.shapes, self.addresses, self.memory, self.runs = session, {}, {}, None, 0
                double.contexts.append(self)

            def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
                self.shapes[name] = shape
                return not double.refuses("set_input_shape")

            def set_tensor_address(self, name: str, memory: int) -> bool:
                self.addresses[name] = memory
                return memory in cuda.blocks and not double.refuses("set_tensor_address")

            def update_device_memory_size_for_shapes(self) -> int:
                assert set(self.shapes) == {each.name for each in self.session.get_inputs()}, "asked before all shapes are known"
                self.rows = next(iter(self.shapes.values()))[0]
                return scratch_bytes * self.rows

            def set_device_memory(self, memory: int, size: int) -> None:
                assert cuda.blocks[memory].nbytes >= size >= scratch_bytes * self.rows
                self.memory = memory

            def execute_async_v3(self, stream_handle: int) -> bool:
                assert self.memory in cuda.blocks, "no memory of its own"
                assert self.runs or not cuda.recording, "its first run must not be captured"
                if double.refuses("execute_async_v3"):
                    return False
                self.runs += 1
                cuda.queue(self._compute, stream_handle)
                return True

            def _compute(self) -> None:
                feeds = {each.name: self._view(each.name, each.type, self.shapes[each.name]) for each in self.session.get_inputs()}
                outputs = self.session.get_outputs()
                for each, values in zip(outputs, self.session.run([each.name for each in outputs], feeds), strict=True):
                    self._view(each.name, each.type, values.shape)[...] = values

            def _view(self, name: str, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
                dtype = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(bool)": np.bool_, "tensor(int64)": np.int64}[kind]
                size = int(np.prod(shape)) * np.dtype(dtype).itemsize
                return cuda.blocks[self.addresses[name]][:size].view(dtype).reshape(shape)

        class RtxContext(Context):
            def is_stream_capturable(self, stream: int) -> bool:
                assert self.runs
                assert stream > 100
                return capturable

        class Config:
            strategy = dynamic_shapes_kernel_specialization_strategy = None

            def set_execution_context_allocation_strategy(self, strategy: str) -> None:
                self.strategy = strategy

        class Engine:
            def __init__(self, session: onnxruntime.InferenceSession) -> None:
                self.session, self.tensors = session, [*session.get_inputs(), *session.get_outputs()]
                self.num_io_tensors = len(self.tensors)

            def get_tensor_name(self, number: int) -> str:
                return str(self.tensors[number].name)

            def _named(self, name: str) -> Any:
                return next(each for each in self.tensors if each.name == name)

            def get_tensor_dtype(self, name: str) -> str:
                return TYPES[self._named(name).type]

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return tuple(-1 if isinstance(size, str) else size for size in self._named(name).shape)

            def get_tensor_mode(self, name: str) -> str:
                return "input" if any(each.name == name for each in self.session.get_inputs()) else "output"

            def create_execution_context(self, how: Any) -> Any:
                if double.refuses("create_execution_context"):
                    return None
                if not rtx:
                    assert how == "user"
                    return Context(self.session)
                assert (how.strategy, how.dynamic_shapes_kernel_specialization_strategy) == ("user", "eager")
                return RtxContext(self.session)

            def create_runtime_config(self) -> Config:
                assert rtx, "only TensorRT-RTX has it"
                return Config()

        class Runtime:
            engine_host_code_allowed = False

            def __init__(self, log: Any) -> None:
                assert isinstance(log, ILogger)
                double.log = log

            def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
                if double.refuses("deserialize_cuda_engine"):
                    return None
                double.host_code.append(self.engine_host_code_allowed)
                try:
                    return Engine(onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"]))
                except Exception as error:
                    double.log.log(ILogger.Severity.ERROR, f"deserializeCudaEngine: {str(error)[:40]}")
                    return None

        self.ILogger, self.Runtime = ILogger, Runtime
        if rtx:
            self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY="lazy", EAGER="eager", NONE="none")

    def refuses(self, call: str) -> bool:
        """Whether a call is to fail; if so, the library says why."""
        if call not in self.says:
            return False
        self.log.log(self.ILogger.Severity.ERROR, "[executionContext.cpp::op::1234] " + "x" * 500)
        self.log.log(self.ILogger.Severity.ERROR, self.says[call])
        return True
