"""The TensorRT runtime against doubles of TensorRT and CUDA: its numbers, its batches, its memory, and what it says when something is wrong.

No GPU is needed, so what only one can show is not shown here: see tests/gpu/.
"""

import ast
import importlib
import importlib.util
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dissonance import machine
from dissonance.bundle import Bundle
from dissonance.engine.runtime import cuda as cuda_module
from dissonance.engine.runtime import open_runtime, plans, tensorrt_runtime
from dissonance.engine.runtime.cuda import CudaPython
from dissonance.engine.runtime.plans import Libraries
from dissonance.engine.runtime.tensorrt_library import MODULES
from dissonance.engine.runtime.tensorrt_runtime import TensorRTRuntime
from dissonance.errors import BundleError, EnvironmentMissingError, UsageError
from dissonance.machine import Gpu
from tests.engine.runtime.doubles import FakeCuda, FakeTensorRT
from tests.engine.runtime.planned import GPU, VERSION, copy_of_demo, with_plans
from tests.engine.runtime.test_torch_runtime import everything

MOST = 8  # rows of a batch in the plans' profiles
FOLDER = "plans/h100"
CROPS = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return with_plans(copy_of_demo(tmp_path / "b"), FOLDER, most=MOST)


def opened(bundle: Bundle, cuda: FakeCuda | None = None, **options: Any) -> TensorRTRuntime:
    cuda = cuda or FakeCuda()
    return TensorRTRuntime(FakeTensorRT(cuda, **options), cuda, bundle, FOLDER)


@pytest.mark.parametrize(("rtx", "capturable"), [(False, True), (True, True), (True, False)])
def test_it_says_what_onnx_runtime_says(bundle: Bundle, rtx: bool, capturable: bool) -> None:
    """Twice: at first contexts are made, then graphs are launched."""
    if rtx:
        spec = bundle.spec.plans[FOLDER].model_copy(update={"flavour": "tensorrt_rtx"})
        bundle = Bundle(bundle.path, bundle.spec.model_copy(update={"plans": {FOLDER: spec}}), bundle.id)
    cuda = FakeCuda()
    runtime = opened(bundle, cuda, rtx=rtx, capturable=capturable)
    expected = everything(open_runtime(bundle, threads=1))
    for _ in range(2):
        for name, values in everything(runtime).items():
            assert values.dtype == expected[name].dtype, name
            np.testing.assert_allclose(values, expected[name], atol=1e-5, err_msg=name)
    assert cuda.launches == (6 if capturable else 0)
    assert runtime.name == ("tensorrt_rtx-fp16" if rtx else "tensorrt-fp16")
    assert runtime.precision == "fp16"


def test_batches_run_in_powers_of_two_and_leave_nothing_of_one_in_the_next(bundle: Bundle) -> None:
    runtime = opened(bundle)
    contexts = runtime._library.trt.contexts
    expected = open_runtime(bundle, threads=1).encode_frames(CROPS, np.arange(20))
    for rows, made in ((5, {8}), (7, {8}), (20, {8, 4}), (1, {8, 4, 1}), (2, {8, 4, 1, 2}), (3, {8, 4, 1, 2})):
        found = runtime.encode_frames(CROPS[:rows], np.arange(rows))
        np.testing.assert_allclose(found, expected[:rows], atol=1e-5)
        assert {context.rows for context in contexts} == made
    assert len(contexts) == 4
    assert runtime.encode_frames(CROPS[:0], np.arange(0)).shape == (0, expected.shape[1])


def test_a_batch_that_does_not_fit_the_memory_runs_in_smaller_ones(bundle: Bundle) -> None:
    """Scratch memory is 1 MB a row here: eight rows do not fit into 6 MB, four and the tensors do; what was taken for eight is free again."""
    cuda = FakeCuda(memory_bytes=6_000_000)
    runtime = opened(bundle, cuda, scratch_bytes=1_000_000)
    found = runtime.encode_frames(CROPS, np.arange(20))
    np.testing.assert_allclose(found, open_runtime(bundle, threads=1).encode_frames(CROPS, np.arange(20)), atol=1e-5)
    assert sorted(context.rows for context in runtime._library.trt.contexts if context.memory) == [4]
    assert cuda.used_bytes == 4 * (1_000_000 + CROPS[0].nbytes + found[0].nbytes)
    with pytest.raises(EnvironmentMissingError, match=r"too little free memory for visual with a batch of 1: .*End other work on this GPU.*--resume"):
        opened(bundle, FakeCuda(memory_bytes=900_000), scratch_bytes=1_000_000).encode_frames(CROPS[:1], np.arange(1))


def test_a_lane_that_finds_no_memory_leaves_the_other_its_batches(bundle: Bundle) -> None:
    """There is room for eight rows once, and for four: the lane that comes second runs fours, the first goes on with eights."""
    cuda = FakeCuda(memory_bytes=13_000_000)
    runtime = opened(bundle, cuda, scratch_bytes=1_000_000)
    contexts, expected = runtime._library.trt.contexts, open_runtime(bundle, threads=1).encode_frames(CROPS, np.arange(20))
    first, second = runtime._free_lanes.get(), runtime._free_lanes.get()
    for lane, runs in ((first, [8]), (second, [8, 4]), (first, [8, 4]), (second, [8, 4])):
        runtime._free_lanes.put(lane)
        np.testing.assert_allclose(runtime.encode_frames(CROPS[:8], np.arange(8)), expected[:8], atol=1e-5)
        runtime._free_lanes.get()
        assert [context.rows for context in contexts if context.memory] == runs


@pytest.mark.parametrize("call", ["create_execution_context", "set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_what_the_library_refuses_is_told_apart(bundle: Bundle, call: str) -> None:
    """No memory, a GPU that is lost, and a plan that does not run: each has a remedy of its own."""

    def encode(says: str, *, lost: bool = False) -> None:
        runtime = opened(bundle, cuda := FakeCuda())
        runtime._library.trt.says[call], cuda.lost = says, lost
        try:
            runtime.encode_frames(CROPS, np.arange(20))
        finally:
            assert "out of memory" not in says.lower() or cuda.used_bytes == 0

    with pytest.raises(EnvironmentMissingError, match=r"too little free memory for visual with a batch of 1: .*--resume"):
        encode("CUDA runtime error in allocate: Out of Memory")
    with pytest.raises(EnvironmentMissingError, match=r"The GPU failed .*--resume"):
        encode("CUDA runtime error: an illegal memory access", lost=True)
    with pytest.raises(EnvironmentMissingError, match=r"visual\.plan': TensorRT 10\.13\.3\.9 cannot run it: .*Build it again"):
        encode("IExecutionContext: no such profile")


def test_a_context_that_cannot_be_captured_says_when_it_no_longer_runs(bundle: Bundle) -> None:
    spec = bundle.spec.plans[FOLDER].model_copy(update={"flavour": "tensorrt_rtx"})
    runtime = opened(Bundle(bundle.path, bundle.spec.model_copy(update={"plans": {FOLDER: spec}}), bundle.id), rtx=True, capturable=False)
    runtime.encode_frames(CROPS, np.arange(20))
    runtime._library.trt.says["execute_async_v3"] = "a kernel is gone"
    with pytest.raises(EnvironmentMissingError, match=r"cannot run it: .*Build it again"):
        runtime.encode_frames(CROPS, np.arange(20))


def test_a_gpu_without_memory_for_the_plans_is_no_bad_bundle(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRT(cuda := FakeCuda())
    trt.says["deserialize_cuda_engine"] = "Requested amount of GPU memory could not be allocated: OutOfMemory"
    monkeypatch.setattr(machine, "find_gpus", lambda: [GPU])
    monkeypatch.setattr(tensorrt_runtime, "find_libraries", lambda: Libraries({"tensorrt": VERSION}))
    monkeypatch.setattr(tensorrt_runtime, "load_library", lambda _: trt)
    monkeypatch.setattr(tensorrt_runtime, "CudaPython", lambda: cuda)
    with pytest.raises(EnvironmentMissingError, match=r"too little free memory for the plans: .*CUDA_VISIBLE_DEVICES"):
        open_runtime(bundle, name="tensorrt")


def test_two_threads_have_a_stream_and_memory_each(bundle: Bundle) -> None:
    """Both are inside at once, or the barrier would break."""
    cuda = FakeCuda()
    runtime, barrier, real = opened(bundle, cuda), threading.Barrier(2, timeout=60), cuda.wait
    expected = open_runtime(bundle, threads=1).encode_frames(CROPS, np.arange(20))
    first, second = runtime._free_lanes.get(), runtime._free_lanes.get()
    for lane in (first, second):  # lays out both
        runtime._free_lanes.put(lane)
        runtime.encode_frames(CROPS[:8], np.arange(8))
        runtime._free_lanes.get()
    runtime._free_lanes.put(first)
    runtime._free_lanes.put(second)
    with ThreadPoolExecutor(2) as threads:
        seen: list[int] = []

        def wait(stream: int) -> None:
            seen.append(stream)
            barrier.wait()
            real(stream)

        cuda.wait = wait  # type: ignore[method-assign]
        found = list(threads.map(lambda start: runtime.encode_frames(CROPS[start : start + 8], np.arange(8)), (0, 8)))
    np.testing.assert_allclose(np.concatenate(found), expected[:16], atol=1e-5)
    assert len(set(seen)) == 2


def test_plans_of_another_interface_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    """As those that an earlier release built: another input, or one of another type."""
    wrong = with_plans(copy_of_demo(tmp_path / "other"), FOLDER, data={"visual.plan": bundle.read("audio.onnx")})
    with pytest.raises(BundleError, match=r"visual\.plan' has no 'crops' as this release's \(input of uint8 \[64, 64, 3\] a row\)\. Build it again"):
        opened(wrong)
    broken = with_plans(copy_of_demo(tmp_path / "broken"), FOLDER + "2", data={"audio.plan": b"of another version"})
    with pytest.raises(BundleError, match=r"audio\.plan' does not load in TensorRT 10\.13\.3\.9: deserializeCudaEngine: .*\. Build it again"):
        TensorRTRuntime(FakeTensorRT(cuda := FakeCuda()), cuda, broken, FOLDER + "2")


def test_a_tensor_of_an_unknown_type_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    trt = FakeTensorRT(cuda)
    monkeypatch.setattr(trt.DataType, "FLOAT", "a new float")
    with pytest.raises(BundleError, match=r"visual\.plan' has a tensor 'features' of a type or shape that this release does not build"):
        TensorRTRuntime(trt, cuda, bundle, FOLDER)


def test_only_plans_that_bring_code_may_bring_code(bundle: Bundle) -> None:
    runtime = opened(bundle)
    assert runtime._library.trt.host_code == [False] * 3
    spec = bundle.spec.plans[FOLDER].model_copy(update={"options": {"version_compatible": True}})
    compatible = Bundle(bundle.path, bundle.spec.model_copy(update={"plans": {FOLDER: spec}}), bundle.id)
    assert opened(compatible)._library.trt.host_code == [True] * 3


def test_a_gpu_that_fails_is_one_error_that_says_how_to_go_on(bundle: Bundle) -> None:
    cuda = FakeCuda()
    runtime = opened(bundle, cuda)
    runtime.encode_frames(CROPS, np.arange(20))
    cuda.lost = True
    with pytest.raises(EnvironmentMissingError, match=r"The GPU failed .*--resume"):
        runtime.encode_frames(CROPS, np.arange(20))


# --------------------------------------------------------------------------------------------------- by name, from a bundle


def test_it_opens_with_the_plans_that_fit(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    monkeypatch.setattr(machine, "find_gpus", lambda: [GPU])
    monkeypatch.setattr(plans, "probe_library", lambda flavour: {"tensorrt": VERSION, "tensorrt_rtx": "1.7.1.116"}[flavour])
    monkeypatch.setattr(tensorrt_runtime, "load_library", lambda flavour: FakeTensorRT(cuda, rtx=flavour == "tensorrt_rtx"))
    monkeypatch.setattr(tensorrt_runtime, "CudaPython", lambda: cuda)
    assert open_runtime(bundle, name="tensorrt").precision == "fp16"
    with pytest.raises(BundleError, match=r"plans/h100 \(in fp16, not bf16\)"):
        open_runtime(bundle, name="tensorrt", precision="bf16")
    monkeypatch.setattr(machine, "find_gpus", lambda: [Gpu("NVIDIA L4", "8.9")])
    with pytest.raises(BundleError, match=r"no TensorRT plans for NVIDIA L4"):
        open_runtime(bundle, name="tensorrt")
    with pytest.raises(UsageError, match=r"--runtime tensorrt has no int8\. Choose another --precision: fp16, "):
        open_runtime(bundle, name="tensorrt", precision="int8")


def test_what_is_missing_is_said_in_turn(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> list[Gpu]:
        raise FileNotFoundError("no NVIDIA driver: libcuda.so.1 is not on this machine")

    def absent(flavour: str) -> str:
        raise EnvironmentMissingError(f"{flavour} is not installed.")

    with pytest.raises(UsageError, match="--runtime tensorrt is for GPUs: leave out --device cpu"):
        open_runtime(bundle, name="tensorrt", device="cpu")
    monkeypatch.setattr(machine, "find_gpus", no_driver)
    monkeypatch.setattr(plans, "probe_library", absent)
    with pytest.raises(EnvironmentMissingError, match=r"needs an NVIDIA GPU: no NVIDIA driver.*Use --runtime onnxruntime"):
        open_runtime(bundle, name="tensorrt")
    monkeypatch.setattr(machine, "find_gpus", lambda: [])
    with pytest.raises(EnvironmentMissingError, match="the driver finds no NVIDIA GPU"):
        open_runtime(bundle, name="tensorrt")
    monkeypatch.setattr(machine, "find_gpus", lambda: [GPU])
    with pytest.raises(EnvironmentMissingError, match=r"--runtime tensorrt: tensorrt is not installed\. tensorrt_rtx is not installed\."):
        open_runtime(bundle, name="tensorrt")


# ------------------------------------------------------------------------------------------------- the libraries themselves


def attributes(module: Any, root: str) -> set[str]:
    """Names that a module's source takes from a variable called `root`, in one step or more."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id == root:
            found.add(".".join(parts))
    return found


def has(value: Any, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def test_the_real_tensorrt_rtx_has_every_name_that_is_used() -> None:
    name = next((name for name in MODULES["tensorrt_rtx"] if importlib.util.find_spec(name)), None)
    if name is None:
        pytest.skip("needs TensorRT-RTX: pip install 'dissonance[rtx]'")
    trt = importlib.import_module(name)
    used = attributes(tensorrt_runtime, "trt") | {f"DataType.{kind}" for kind in attributes(tensorrt_runtime, "types")}
    assert {"Runtime", "ILogger.Severity", "TensorIOMode.INPUT", "DataType.UINT8"} <= used
    assert [each for each in used if not has(trt, each)] == []
    for variable, kind in (("context", "IExecutionContext"), ("engine", "ICudaEngine"), ("config", "IRuntimeConfig")):
        names = attributes(tensorrt_runtime, variable)
        assert names
        assert [each for each in names if not has(getattr(trt, kind), each)] == [], kind
    for name in ("Runtime.deserialize_cuda_engine", "Runtime.engine_host_code_allowed", "IExecutionContext.is_stream_capturable"):
        assert has(trt, name)
    assert {"USER_MANAGED"} <= set(trt.ExecutionContextAllocationStrategy.__members__)
    assert {"EAGER"} <= set(trt.DynamicShapesKernelSpecializationStrategy.__members__)


@pytest.fixture
def runtime_api() -> Any:
    return pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python: pip install cuda-bindings")


def test_cuda_python_has_every_function_that_is_called(runtime_api: Any) -> None:
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(cuda_module))) if isinstance(node, ast.Call) and node.args]
    called = {ast.literal_eval(call.args[0]) for call in calls if ast.unparse(call.func) == "self._call"}
    assert {"cudaMalloc", "cudaGraphLaunch", "cudaStreamBeginCapture"} <= called
    assert [name for name in called if not hasattr(runtime_api, name)] == []
    for name in ("cudaErrorMemoryAllocation", "cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaSuccess"):
        assert hasattr(runtime_api.cudaError_t, name)


def test_without_a_driver_cuda_python_says_what_is_needed(runtime_api: Any) -> None:
    if runtime_api.cudaGetDeviceCount()[0] == runtime_api.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU")
    with pytest.raises(EnvironmentMissingError, match=r"CUDA 1\d\.\d needs a newer NVIDIA driver than this machine's \(cudaSetDevice: "):
        CudaPython()


def test_answers_of_cuda_become_our_errors(runtime_api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dissonance.engine.runtime.buckets import GpuMemoryError

    codes = runtime_api.cudaError_t
    for name in ("cudaSetDevice", "cudaGetLastError"):
        monkeypatch.setattr(runtime_api, name, lambda *_: (codes.cudaSuccess,))
    cuda = CudaPython()
    for code, kind, says in (
        (codes.cudaErrorMemoryAllocation, GpuMemoryError, "cudaMalloc: out of memory"),
        (codes.cudaErrorNoDevice, EnvironmentMissingError, "finds no GPU .*CUDA_VISIBLE_DEVICES"),
        (codes.cudaErrorIllegalAddress, EnvironmentMissingError, r"The GPU failed \(cudaMalloc: an illegal memory access.*--resume"),
    ):
        monkeypatch.setattr(runtime_api, "cudaMalloc", lambda _, code=code: (code, None))
        with pytest.raises(kind, match=says):
            cuda.allocate(16)
