"""A bundle's TensorRT plans as a runtime: one code path for TensorRT 10.13 to 11.x and TensorRT-RTX. No GPU has run it yet.

Each plan has, for each batch size (`Buckets`), an execution context of its own with its memory, bound once, and a CUDA graph: a batch is a copy in,
one launch and a copy out, with nothing in between; a context that cannot be captured is queued itself instead of a graph. All that is there once a
lane, which is a stream of its own: of two calls at the same time, from two threads, one copies while the other computes. Plans take crops as bytes
and everything else as the host has it, so nothing is converted here.
"""

import functools
import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dissonance.bundle import Bundle, PlanSpec, Precision
from dissonance.config import ModelConfig
from dissonance.engine.runtime.base import HEAD_OUTPUTS, FloatArray, HeadOutput, Runtime
from dissonance.engine.runtime.buckets import Buckets, GpuMemoryError, gpu_full, is_out_of_memory
from dissonance.engine.runtime.cuda import Cuda, CudaPython
from dissonance.engine.runtime.plans import choose_plans, find_libraries, read_plan
from dissonance.engine.runtime.tensorrt_library import TITLES, load_library
from dissonance.errors import BundleError, EnvironmentMissingError
from dissonance.machine import Gpu, look_for_gpus

LANES = 2

Arrays = Mapping[str, NDArray[Any]]


class TensorRTRuntime(Runtime):
    """`Runtime` over a folder of plans. May be called from several threads."""

    def __init__(self, trt: Any, cuda: Cuda, bundle: Bundle, folder: str) -> None:
        """Load the plans in `folder` of a bundle with the module `trt`. Raises BundleError, GpuMemoryError, EnvironmentMissingError."""
        spec = bundle.spec.plans[folder]
        self.name = f"{spec.flavour}-{spec.precision}"
        self.precision: Precision = spec.precision
        self._library = _Library(trt, spec)
        self._per_frame = bundle.spec.model.visual.prompts.per_frame
        self._visual, self._audio, self._head = (
            _Plan(self._library, cuda, bundle, folder, name, tensors) for name, tensors in plan_tensors(bundle.spec.model).items()
        )
        self.lanes = LANES
        self._free_lanes: queue.LifoQueue[_Lane] = queue.LifoQueue()
        for number in range(LANES):
            self._free_lanes.put(_Lane(number, cuda.stream()))

    def encode_frames(self, crops: NDArray[np.uint8], frame_index: NDArray[np.int64]) -> FloatArray:
        inputs: Arrays = {"crops": crops, "frame_index": frame_index} if self._per_frame else {"crops": crops}
        return self._run(self._visual, inputs, ("features",))["features"]

    def encode_sound(self, mel: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
        return self._run(self._audio, {"mel": mel, "mask": mask}, ("features",))["features"]

    def run_head(self, visual: FloatArray, audio: FloatArray, mask: NDArray[np.bool_]) -> HeadOutput:
        return HeadOutput(**self._run(self._head, {"visual": visual, "audio": audio, "mask": mask}, HEAD_OUTPUTS))

    def _run(self, plan: "_Plan", inputs: Arrays, outputs: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        lane = self._free_lanes.get()
        try:
            return plan.run(inputs, outputs, lane)
        finally:
            self._free_lanes.put(lane)


@dataclass(frozen=True)
class _Lane:
    number: int
    stream: int


@dataclass(frozen=True)
class Tensor:
    """What a plan takes or gives, a row of it."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    given: bool  # an input

    def __str__(self) -> str:
        return f"{'input' if self.given else 'output'} of {self.dtype} {list(self.shape)} a row"

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def plan_tensors(model: ModelConfig) -> dict[str, dict[str, Tensor]]:
    """What each plan of a model takes and gives, by the names that its ONNX graph has for them."""
    visual, audio, frames, lags = model.visual, model.audio, model.frames, 2 * model.head.max_lag + 1
    features, sounds, mask = (frames, visual.feature_size), (2 * frames, audio.hidden_size), (frames,)
    size = visual.image_size
    index: dict[str, tuple[type, tuple[int, ...]]] = {"frame_index": (np.int64, ())} if visual.prompts.per_frame else {}
    said = {
        "logit_visual": (np.float32, ()), "logit_audio": (np.float32, ()), "logit_fused": (np.float32, ()), "matched": (np.float32, mask),
        "lag_profile": (np.float32, (lags,)), "lag_valid": (np.bool_, (lags,)), "best_lag": (np.int64, ()),
    }  # fmt: skip
    plans: dict[str, tuple[Mapping[str, tuple[type, tuple[int, ...]]], Mapping[str, tuple[type, tuple[int, ...]]]]] = {
        "visual.plan": ({"crops": (np.uint8, (size, size, 3)), **index}, {"features": (np.float32, (visual.feature_size,))}),
        "audio.plan": ({"mel": (np.float32, (audio.mel_bins, 4 * frames)), "mask": (np.bool_, mask)}, {"features": (np.float32, sounds)}),
        "head.plan": ({"visual": (np.float32, features), "audio": (np.float32, sounds), "mask": (np.bool_, mask)}, said),
    }
    return {
        name: {each: Tensor(np.dtype(kind), shape, given) for side, given in ((takes, True), (gives, False)) for each, (kind, shape) in side.items()}
        for name, (takes, gives) in plans.items()
    }


class _Library:
    """The module `trt` with what it said, and what the two flavours call by different names."""

    def __init__(self, trt: Any, spec: PlanSpec) -> None:
        self.trt, self.title = trt, f"{TITLES[spec.flavour]} {trt.__version__}"
        self.alone = threading.Lock()  # held by who lays out: what the library says then is about that
        self._rtx = spec.flavour == "tensorrt_rtx"
        self._log = _log_of(trt)
        self._runtime = trt.Runtime(self._log)
        if spec.options.get("version_compatible"):
            self._runtime.engine_host_code_allowed = True  # such a plan brings code of the library that built it
        types = trt.DataType
        self.types = {types.FLOAT: np.float32, types.UINT8: np.uint8, types.BOOL: np.bool_, types.INT64: np.int64, types.INT32: np.int32}

    def load(self, plan: bytes) -> Any:
        """An engine, or None."""
        self._log.errors.clear()
        return self._runtime.deserialize_cuda_engine(plan)

    def context(self, engine: Any) -> Any:
        """An execution context of an engine that is given its memory; None where there is none to be had.

        TensorRT-RTX compiles kernels when a context first meets a shape: at once, not in the background, or a graph would keep the slow ones.
        """
        self._log.errors.clear()
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self._rtx:
            return engine.create_execution_context(strategy)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.dynamic_shapes_kernel_specialization_strategy = self.trt.DynamicShapesKernelSpecializationStrategy.EAGER
        return engine.create_execution_context(config)

    def told(self) -> str:
        """What the library said was wrong since it was last asked for an engine or a context."""
        return " ".join(self._log.errors) or "it gave no reason"


class _RefusedError(Exception):
    """The library would not do something with a plan; its reason."""


class _Plan:
    """One plan: loaded, found to be what this release runs, its batches run."""

    def __init__(self, library: _Library, cuda: Cuda, bundle: Bundle, folder: str, name: str, expected: dict[str, Tensor]) -> None:
        self._library, self._cuda, self._where = library, cuda, f"Bundle '{bundle.path}': '{folder}/{name}'"
        profile = bundle.spec.plans[folder].graphs[name].profile
        self._buckets = [Buckets(name.removesuffix(".plan"), smallest=profile.min, largest=profile.max) for _ in range(LANES)]
        self._engine = library.load(read_plan(bundle, folder, name))
        if self._engine is None:
            if is_out_of_memory(library.told()):
                raise GpuMemoryError(library.told())
            raise BundleError(f"{self._where} does not load in {library.title}: {library.told()[:400]}. Build it again with: dissonance build")
        self._tensors = dict(self._read_tensors())
        for each, tensor in expected.items():
            if self._tensors.get(each) != tensor:
                raise BundleError(f"{self._where} has no '{each}' as this release's ({tensor}). Build it again with: dissonance build")
        for each, tensor in self._tensors.items():
            if tensor.given and each not in expected:
                raise BundleError(f"{self._where} takes a '{each}', which this release does not give. Build it again with: dissonance build")
        self._places: dict[tuple[int, int], _Place] = {}

    def _read_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All of the plan's, for each needs an address, also those that nobody asks for."""
        trt, engine = self._library.trt, self._engine
        for number in range(engine.num_io_tensors):
            name = engine.get_tensor_name(number)
            kind, shape = self._library.types.get(engine.get_tensor_dtype(name)), tuple(engine.get_tensor_shape(name))
            if kind is None or shape[:1] != (-1,) or -1 in shape[1:]:
                raise BundleError(f"{self._where} has a tensor '{name}' of a type or shape that this release does not build. Build it again.")
            yield name, Tensor(np.dtype(kind), shape[1:], given=engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)

    def run(self, inputs: Arrays, outputs: tuple[str, ...], lane: _Lane) -> dict[str, NDArray[Any]]:
        """What the plan says of `inputs`, which have as many rows each."""
        rows = len(next(iter(inputs.values())))
        results = {name: np.empty((rows, *self._tensors[name].shape), self._tensors[name].dtype) for name in outputs}

        def part(chosen: slice, size: int) -> None:
            place = self._place(size, lane)
            count = chosen.stop - chosen.start
            for name, values in inputs.items():
                place.hosts[name][:count] = values[chosen]
                self._cuda.upload(place.addresses[name], _bytes(place.hosts[name][:count]), lane.stream)
            place.enqueue()
            for name in outputs:
                self._cuda.download(_bytes(place.hosts[name][:count]), place.addresses[name], lane.stream)
            self._cuda.wait(lane.stream)
            for name in outputs:
                results[name][chosen] = place.hosts[name][:count]

        try:
            self._buckets[lane.number].run(rows, part)
        except _RefusedError as refused:
            self._cuda.wait(lane.stream)  # raises where that was because the GPU is lost
            raise EnvironmentMissingError(
                f"{self._where}: {self._library.title} cannot run it: {str(refused)[:400]}. Build it again with: dissonance build"
            ) from refused
        return results

    def _place(self, size: int, lane: _Lane) -> "_Place":
        if (size, lane.number) not in self._places:
            with self._library.alone:
                self._places[size, lane.number] = self._lay_out(size, lane)
        return self._places[size, lane.number]

    def _lay_out(self, size: int, lane: _Lane) -> "_Place":
        """Memory, context and graph for batches of `size`. Raises GpuMemoryError, with all of the GPU's memory free again, and _RefusedError."""
        cuda, addresses, taken = self._cuda, {}, list[int]()
        try:
            for name, tensor in self._tensors.items():
                addresses[name] = cuda.allocate(tensor.row_bytes * size)
                taken.append(addresses[name])
            context = self._library.context(self._engine)
            self._must(context is not None)
            for name, tensor in self._tensors.items():
                if tensor.given:
                    self._must(context.set_input_shape(name, (size, *tensor.shape)))
                self._must(context.set_tensor_address(name, addresses[name]))
            scratch = context.update_device_memory_size_for_shapes()
            taken.append(cuda.allocate(scratch))
            context.set_device_memory(taken[-1], scratch)
            enqueue = self._graph(context, lane.stream)
            hosts = {  # last: memory of the host is not given back
                name: cuda.pinned(tensor.row_bytes * size).view(tensor.dtype).reshape(size, *tensor.shape) for name, tensor in self._tensors.items()
            }
            return _Place(hosts, addresses, context, enqueue)
        except GpuMemoryError:
            for address in taken:
                cuda.free(address)
            raise

    def _graph(self, context: Any, stream: int) -> Callable[[], None]:
        """What queues one run of a context: its graph's launch, or the context's own where it cannot be captured."""

        def execute() -> None:
            self._must(context.execute_async_v3(stream))

        execute()  # what the library sets up when it first runs must not be captured
        self._cuda.wait(stream)
        if not getattr(context, "is_stream_capturable", lambda _: True)(stream):
            return execute
        graph = self._cuda.capture(execute, stream)
        return lambda: self._cuda.launch(graph, stream)

    def _must(self, done: bool) -> None:
        if not done:
            told = self._library.told()
            raise GpuMemoryError(told) if is_out_of_memory(told) else _RefusedError(told)


@dataclass(frozen=True)
class _Place:
    """Where batches of one size are: pinned arrays of the host, addresses on the GPU, and what queues a run from the ones to the others."""

    hosts: dict[str, NDArray[Any]]
    addresses: dict[str, int]
    context: Any  # whose memory the graph uses
    enqueue: Callable[[], None]


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return values.reshape(-1).view(np.uint8)


@functools.cache
def _log_of(trt: Any) -> Any:
    """The library's log, of which a process has one."""
    severity = trt.ILogger.Severity
    grave = (severity.ERROR, severity.INTERNAL_ERROR)

    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps what the library says is wrong."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=10)

        def log(self, severity: Any, message: str) -> None:
            """Called by the library."""
            if severity in grave:
                self.errors.append(message)

    return Log()


def open_tensorrt_runtime(bundle: Bundle, *, precision: Precision | None) -> TensorRTRuntime:
    """The plans of a bundle that fit this machine's first GPU. `precision` None: the first there is of fp16, bf16, fp8, int8-qdq, float32.

    Raises UsageError (a precision that TensorRT has not), EnvironmentMissingError (no GPU, driver or library; no memory) or BundleError (no plan that
    fits and may be run).
    """
    gpu = _first_gpu()  # asked of the driver first: TensorRT ends the process where there is none
    folder, spec = choose_plans(bundle, gpu=gpu, libraries=find_libraries(), precision=precision)
    try:
        return TensorRTRuntime(load_library(spec.flavour), CudaPython(), bundle, folder)
    except GpuMemoryError as error:
        raise gpu_full("the plans", str(error)) from error


def _first_gpu() -> Gpu:
    gpus, reason = look_for_gpus()
    if not gpus:
        raise EnvironmentMissingError(f"--runtime tensorrt needs an NVIDIA GPU: {reason}. Use --runtime onnxruntime, or see `dissonance doctor`.")
    return gpus[0]
