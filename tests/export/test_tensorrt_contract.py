"""What the builder asks of a TensorRT module: every name is in the real bindings of TensorRT-RTX, and calls come in the order that TensorRT wants.

The whole TensorRT needs a GPU, so a double stands for it here. It has only what `plan_child.py` may use of TensorRT 10.13 to 11, so a name that only
RTX has would be an AttributeError.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dissonance.config import ProfileConfig
from dissonance.engine.runtime.tensorrt_library import MODULES
from dissonance.errors import BundleError, OutputError
from dissonance.export import plan_child
from dissonance.export.layer_report import Layer, LayerReport, from_inspector, from_log
from dissonance.export.plan_child import PlanJob, build_plan

# What the variables of plan_child.py hold, by their names there.
CLASSES = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig", "profile": "IOptimizationProfile",
    "tensor": "ITensor", "engine": "ICudaEngine",
}  # fmt: skip
RTX_ONLY = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}
# Gone in TensorRT 11, or deprecated since 10: weak typing, implicit batch, calibration, what has a successor.
GONE = {
    "FP16", "BF16", "INT8", "FP8", "EXPLICIT_BATCH", "IInt8Calibrator", "IAlgorithmSelector", "device_memory_size", "platform_has_fast_fp16",
    "platform_has_fast_int8", "build_engine", "build_engine_with_config", "max_workspace_size", "num_bindings", "get_binding_name",
}  # fmt: skip
TREE = ast.parse(inspect.getsource(plan_child))


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return node.id if isinstance(node, ast.Name) else ""


USED = {name for node in ast.walk(TREE) if isinstance(node, ast.Attribute) and (name := dotted(node))}


@pytest.fixture(scope="module")
def rtx() -> Any:
    name = next((name for name in MODULES["tensorrt_rtx"] if importlib.util.find_spec(name)), None)
    if name is None:
        pytest.skip("needs TensorRT-RTX: pip install 'dissonance[rtx]'")
    return importlib.import_module(name)


def test_every_name_of_the_module_that_is_used_exists(rtx: Any) -> None:
    names = {name for name in USED if name.startswith("trt.")}
    assert {"trt.Builder", "trt.OnnxParser", "trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED", "trt.BuilderFlag.REFIT"} <= names
    for name in names:
        value = rtx
        for part in name.split(".")[1:]:
            assert hasattr(value, part), name
            value = getattr(value, part)


def test_every_attribute_of_its_objects_that_is_used_exists(rtx: Any) -> None:
    used = {(CLASSES[name.split(".")[0]], name.split(".")[1]) for name in USED if name.split(".")[0] in CLASSES}
    assert {("Builder", "build_serialized_network"), ("IOptimizationProfile", "set_shape"), ("IBuilderConfig", "set_timing_cache")} <= used
    more = {
        ("INetworkDefinition", "get_layer"), ("ILayer", "type"), ("LayerType", "SOFTMAX"), ("ParserError", "desc"), ("ITimingCache", "serialize"),
        ("Runtime", "deserialize_cuda_engine"), ("EngineInspector", "get_engine_information"), ("LayerInformationFormat", "JSON"),
        ("MemoryPoolType", "WORKSPACE"), ("HardwareCompatibilityLevel", "AMPERE_PLUS"), ("HardwareCompatibilityLevel", "SAME_COMPUTE_CAPABILITY"),
    }  # fmt: skip
    for kind, attribute in used | more:
        assert hasattr(getattr(rtx, kind), attribute), f"{kind}.{attribute}"
    from dissonance.engine.runtime.tensorrt_library import RTX_TARGETS

    assert all(hasattr(rtx.ComputeCapability, "SM" + target.replace(".", "")) for target in RTX_TARGETS)


@pytest.mark.parametrize(
    ("kind", "method", "arguments"),
    [
        ("Builder", "create_network", r"flags: .*(int|SupportsInt)"),
        ("Builder", "build_serialized_network", r"network: .*INetworkDefinition, config: .*IBuilderConfig\) -> .*IHostMemory"),
        ("Builder", "create_builder_config", r"\) -> .*IBuilderConfig"),
        ("OnnxParser", "parse", r"model: .*, path: str = None\) -> bool"),
        ("IOptimizationProfile", "set_shape", r"input: str, min: .*Dims, opt: .*Dims, max: .*Dims"),
        ("IBuilderConfig", "add_optimization_profile", r"profile: .*IOptimizationProfile"),
        ("IBuilderConfig", "set_timing_cache", r"cache: .*ITimingCache, ignore_mismatch: bool\) -> bool"),
        ("IBuilderConfig", "create_timing_cache", r"serialized_timing_cache: .*\) -> .*ITimingCache"),
        ("IBuilderConfig", "set_memory_pool_limit", r"pool: .*MemoryPoolType, pool_size: .*(int|SupportsInt)"),
        ("IBuilderConfig", "set_compute_capability", r"ComputeCapability, index: .*(int|SupportsInt)\) -> bool"),
        ("IBuilderConfig", "set_flag", r"flag: .*BuilderFlag"),
        ("IBuilderConfig", "clear_flag", r"flag: .*BuilderFlag"),
        ("ILogger", "log", r"severity: .*Severity, msg: str"),
        ("EngineInspector", "get_engine_information", r"format: .*LayerInformationFormat\) -> str"),
    ],
)
def test_signatures_are_those_that_are_called(rtx: Any, kind: str, method: str, arguments: str) -> None:
    assert re.search(arguments, getattr(getattr(rtx, kind), method).__doc__.replace("\n", " ")), getattr(getattr(rtx, kind), method).__doc__


def test_nothing_is_used_that_tensorrt_11_has_dropped_and_what_only_rtx_has_is_asked_of_rtx_only() -> None:
    parts = {part for name in USED for part in name.split(".")}
    assert not parts & GONE
    guarded = [node for node in ast.walk(TREE) if isinstance(node, ast.If) and ast.unparse(node.test) == "job.flavour == 'tensorrt_rtx'"]
    inside = {node.attr for branch in guarded for item in branch.body for node in ast.walk(item) if isinstance(node, ast.Attribute)}
    everywhere = [node.attr for node in ast.walk(TREE) if isinstance(node, ast.Attribute) and node.attr in RTX_ONLY]
    assert set(everywhere) == RTX_ONLY == inside & RTX_ONLY
    assert len(everywhere) == sum(
        node.attr in RTX_ONLY for branch in guarded for item in branch.body for node in ast.walk(item) if isinstance(node, ast.Attribute)
    )


# ------------------------------------------------------------------------------------------------------- TensorRT's double

GRAPH = b"a graph"
INSPECTED = {
    "Layers": [
        {"Name": "_gemm_mha_v2_myl0_1", "LayerType": "kgen", "Outputs": [{"Name": "a", "Format/Datatype": "Row major linear FP16 format"}]},
        {"Name": "norm", "LayerType": "kgen", "Outputs": [{"Name": "b", "Datatype": "Float"}, {"Name": "c", "Datatype": "Half"}]},
        "only named",
    ]
}
LISTED = (
    "Layers:\nName: shape, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: \n"
    "Name: _gemm_mha_v2, LayerType: kgen, Inputs: [ { Name: x, Dimensions: [-1,4], Datatype: Float }], Constants: [], "
    "Outputs: [ { Name: y, Dimensions: [-1,4], Strides: [4,1], Datatype: BFloat16, Format: (Linear) Row major linear format }], TacticName: t\n"
)


class Double:
    """A `trt` of which every use is written down in `calls`."""

    __version__ = "10.13.3.9"

    def __init__(self, **behaviour: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        does = {"parses": True, "builds": True, "loads": True, "cache_fits": True, "says": ""} | behaviour
        calls = self.calls

        class Recorded:
            """Assignments are calls too."""

            def __setattr__(self, name: str, value: Any) -> None:
                calls.append((name, value))
                object.__setattr__(self, name, value)

        class ILogger:
            Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)

        class Network:
            num_inputs, num_layers = 2, 3

            def get_input(self, number: int) -> Any:
                return (SimpleNamespace(name="crops", shape=(-1, 8, 8, 3)), SimpleNamespace(name="frame_index", shape=(-1,)))[number]

            def get_layer(self, number: int) -> Any:
                return SimpleNamespace(type=("matmul", "softmax", "matmul")[number])

        class Config(Recorded):
            def clear_flag(self, flag: str) -> None:
                calls.append(("clear_flag", flag))

            def set_flag(self, flag: str) -> None:
                calls.append(("set_flag", flag))

            def set_memory_pool_limit(self, pool: str, size: int) -> None:
                calls.append(("set_memory_pool_limit", pool, size))

            def create_timing_cache(self, data: bytes) -> Any:
                calls.append(("create_timing_cache", data))
                return SimpleNamespace(data=data)

            def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
                calls.append(("set_timing_cache", cache.data, ignore_mismatch))
                return does["cache_fits"] or cache.data == b""

            def get_timing_cache(self) -> Any:
                return SimpleNamespace(serialize=lambda: memoryview(b"new times"))

            def add_optimization_profile(self, profile: Any) -> None:
                calls.append(("add_optimization_profile", profile))

        class Builder:
            def __init__(self, log: Any) -> None:
                self.log = log

            def create_network(self, flags: int) -> Network:
                calls.append(("create_network", flags))
                return Network()

            def create_builder_config(self) -> Config:
                calls.append(("create_builder_config",))
                return Config()

            def create_optimization_profile(self) -> Any:
                return SimpleNamespace(set_shape=lambda *shapes: calls.append(("set_shape", *shapes)))

            def build_serialized_network(self, network: Network, config: Config) -> Any:
                assert isinstance(network, Network)
                assert isinstance(config, Config)
                calls.append(("build_serialized_network",))
                self.log.log(ILogger.Severity.VERBOSE, LISTED)
                if does["says"]:
                    self.log.log(ILogger.Severity.ERROR, "[catchCudaError] noise")
                    self.log.log(ILogger.Severity.ERROR, does["says"])
                return memoryview(b"the plan") if does["builds"] else None

        class OnnxParser:
            num_errors = 1

            def __init__(self, network: Network, log: Any) -> None:
                assert isinstance(network, Network)
                assert isinstance(log, ILogger)

            def parse(self, data: bytes) -> bool:
                calls.append(("parse", data))
                return bool(does["parses"])

            def get_error(self, number: int) -> Any:
                return SimpleNamespace(desc=lambda: ("[6] Unsupported operator Foo",)[number])

        class Runtime:
            def __init__(self, log: Any) -> None:
                pass

            def deserialize_cuda_engine(self, plan: Any) -> Any:
                calls.append(("deserialize_cuda_engine", bytes(plan)))
                inspector = SimpleNamespace(get_engine_information=lambda kind: {"json": json.dumps(INSPECTED)}[kind])
                return SimpleNamespace(create_engine_inspector=lambda: inspector) if does["loads"] else None

        self.ILogger, self.Builder, self.OnnxParser, self.Runtime = ILogger, Builder, OnnxParser, Runtime
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        self.BuilderFlag = SimpleNamespace(TF32="tf32", REFIT="refit", VERSION_COMPATIBLE="version_compatible")
        self.HardwareCompatibilityLevel = SimpleNamespace(NONE="none", AMPERE_PLUS="ampere_plus", SAME_COMPUTE_CAPABILITY="same")
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        self.LayerInformationFormat = SimpleNamespace(JSON="json")
        self.LayerType = SimpleNamespace(SOFTMAX="softmax")


@pytest.fixture
def job(tmp_path: Path) -> PlanJob:
    (tmp_path / "visual.onnx").write_bytes(GRAPH)
    return PlanJob(
        flavour="tensorrt", graph=tmp_path / "visual.onnx", graph_sha256=hashlib.sha256(GRAPH).hexdigest(), plan=tmp_path / "visual.plan",
        compute_capability="9.0", profile=ProfileConfig(min=1, opt=8, max=32), inspect=True, optimization_level=4, workspace_mib=None,
        timing_cache=tmp_path / "cache" / "times", version_compatible=False, hardware_compatibility="none", refit=False,
    )  # fmt: skip


def test_tensorrt_is_called_in_its_order(job: PlanJob) -> None:
    trt = Double()
    result = build_plan(trt, job)
    assert trt.calls[:3] == [("create_network", 1 << 1), ("parse", GRAPH), ("create_builder_config",)]
    assert trt.calls[3:-5] == [
        ("profiling_verbosity", "detailed"), ("builder_optimization_level", 4), ("clear_flag", "tf32"),
        ("create_timing_cache", b""), ("set_timing_cache", b"", False),
    ]  # fmt: skip
    assert trt.calls[-5:-3] == [
        ("set_shape", "crops", [1, 8, 8, 3], [8, 8, 8, 3], [32, 8, 8, 3]),
        ("set_shape", "frame_index", [1], [8], [32]),
    ]
    assert [call[0] for call in trt.calls[-3:]] == ["add_optimization_profile", "build_serialized_network", "deserialize_cuda_engine"]
    assert (result.version, result.size_bytes, result.attentions) == ("10.13.3.9", 8, 1)
    assert (result.attentions_fused, result.layers, result.types) == (1, 3, {"fp16": 1, "float32": 1})
    assert job.plan.read_bytes() == b"the plan"
    assert len(json.loads(job.plan.with_suffix(".layers.json").read_text())) == 3


def test_options_become_flags_levels_and_limits(job: PlanJob) -> None:
    trt = Double()
    changes = {"refit": True, "version_compatible": True, "hardware_compatibility": "ampere_plus", "workspace_mib": 64}
    build_plan(trt, job.model_copy(update=changes))
    wanted = [
        ("set_flag", "refit"), ("set_flag", "version_compatible"), ("hardware_compatibility_level", "ampere_plus"),
        ("set_memory_pool_limit", "workspace", 64 * 2**20),
    ]  # fmt: skip
    assert all(call in trt.calls for call in wanted)
    names = [call[0] for call in trt.calls]
    assert max(names.index(call[0]) for call in wanted) < names.index("build_serialized_network")


def test_times_of_kernels_are_read_and_kept_and_those_of_another_version_are_not_used(job: PlanJob) -> None:
    assert job.timing_cache is not None
    build_plan(Double(), job)
    assert job.timing_cache.read_bytes() == b"new times"
    trt = Double()
    build_plan(trt, job)
    assert ("set_timing_cache", b"new times", False) in trt.calls
    trt = Double(cache_fits=False)
    build_plan(trt, job)
    assert [call[1] for call in trt.calls if call[0] == "set_timing_cache"] == [b"new times", b""]
    trt = Double()
    build_plan(trt, job.model_copy(update={"timing_cache": None}))
    assert not [call for call in trt.calls if "timing" in call[0]]
    (job.timing_cache.parent / "file").write_text("")
    build_plan(Double(), job.model_copy(update={"timing_cache": job.timing_cache.parent / "file" / "times"}))  # no place for it: no error


def test_without_a_gpu_for_the_plan_layers_come_from_the_log(job: PlanJob) -> None:
    trt = Double()
    result = build_plan(trt, job.model_copy(update={"inspect": False}))
    assert "deserialize_cuda_engine" not in [call[0] for call in trt.calls]
    assert (result.attentions_fused, result.layers, result.types) == (1, 2, {"bf16": 1})


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ({"parses": False}, r"TensorRT refuses visual\.onnx: \[6\] Unsupported operator Foo\. Export the bundle again"),
        ({"builds": False}, r"TensorRT refuses visual\.onnx: it gave no reason\. Export the bundle again"),
        ({"builds": False, "says": "Error Code 10: no implementation"}, "Error Code 10: no implementation. Export the bundle again"),
        ({"builds": False, "says": "profiles satisfy MIN<=OPT<=MAX"}, r"the profile .*min=1 opt=8 max=32.* does not fit .*Mend frames or windows"),
        ({"builds": False, "says": "Error Code 2: OutOfMemory"}, "too little GPU memory .*Lower workspace_mib or max of the profile"),
        ({"loads": False, "says": "version mismatch"}, r"built a plan that it does not load: version mismatch\. Update the library or the driver"),
    ],
)
def test_what_goes_wrong_is_a_bundle_error_without_the_noise(job: PlanJob, behaviour: dict[str, Any], says: str) -> None:
    with pytest.raises(BundleError, match=says) as caught:
        build_plan(Double(**behaviour), job)
    assert "catchCudaError" not in str(caught.value)
    assert not job.plan.exists()


def test_a_plan_that_cannot_be_written_is_an_output_error(job: PlanJob) -> None:
    with pytest.raises(OutputError, match=r"Cannot write '.*': .*Free some space"):
        build_plan(Double(), job.model_copy(update={"plan": job.graph / "visual.plan"}))


def test_layers_are_read_from_both_sources() -> None:
    assert from_log(["nothing", LISTED]).layers == (Layer("shape", "shape_call", ()), Layer("_gemm_mha_v2", "kgen", ("bf16",)))
    assert from_inspector(json.dumps(INSPECTED)).layers == (
        Layer("_gemm_mha_v2_myl0_1", "kgen", ("fp16",)), Layer("norm", "kgen", ("float32", "fp16")), Layer("only named", "", ()),
    )  # fmt: skip
    assert from_inspector("{}") == LayerReport(())
