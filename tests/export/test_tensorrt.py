"""`dissonance build` with the real TensorRT-RTX, which needs no GPU, and every way in which a build can be refused or can end."""

import hashlib
import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from dissonance import machine
from dissonance.bundle import Bundle, open_bundle, parse_precision
from dissonance.config import BuildConfig, load_config
from dissonance.engine.runtime.tensorrt_library import MODULES, check_version, probe_library
from dissonance.errors import BundleError, ConfigError, EnvironmentMissingError, UsageError
from dissonance.export import tensorrt
from dissonance.export.plan_child import PlanJob
from dissonance.export.tensorrt import build_plans, run_child
from dissonance.machine import Gpu

DEFAULT = Path(__file__).resolve().parents[2] / "configs" / "build" / "default.yaml"
GRAPHS = ("visual", "audio", "head", "head_tail")
needs_rtx = pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in MODULES["tensorrt_rtx"]), reason="needs TensorRT-RTX: pip install 'dissonance[rtx]'"
)


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a module in front of all others that a child process would find."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return lambda name, code: (folder / f"{name}.py").write_text(code) and None


# ---------------------------------------------------------------------------------------------------------- real builds


@pytest.fixture(scope="module")
def built(half_demo: Bundle, tmp_path_factory: pytest.TempPathFactory, cli: Any) -> tuple[Bundle, dict[str, Any], subprocess.CompletedProcess[str]]:
    """The demo's geometry, by the documented command line."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(half_demo.path, folder / "b")
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    done = cli("build", folder / "b", "--flavour", "tensorrt_rtx", "--targets", "8.9", "12.0", "--json", env=environment)
    assert done.returncode == 0, done.stderr
    return open_bundle(folder / "b"), json.loads(done.stdout), done


@needs_rtx
def test_one_command_builds_every_graph_for_each_target_and_precision(built: Any, half_demo: Bundle) -> None:
    bundle, answer, done = built
    version = ".".join(probe_library("tensorrt_rtx").split(".")[:3])
    folders = {f"plans/any-sm{cc}-tensorrt_rtx{version}-{precision}" for cc in ("89", "120") for precision in ("fp16", "bf16")}
    assert set(bundle.spec.plans) == set(answer["plans"]) == folders
    assert answer["id"] == bundle.id != half_demo.id
    for folder in folders:
        for name in GRAPHS:
            file = f"{folder}/{name}.plan"
            data = (bundle.path / file).read_bytes()
            assert bundle.spec.sha256[file] == hashlib.sha256(data).hexdigest()
            assert bundle.spec.plans[folder].graphs[f"{name}.plan"].size_bytes == len(data) > 100_000
    assert sorted(path.name for path in (bundle.path / "plans").iterdir()) == sorted([".lock", *(Path(folder).name for folder in folders)])
    assert "building visual.fp16.onnx for compute capability 12.0 (1 of 4)" in done.stderr


@needs_rtx
def test_every_attention_of_the_encoders_is_one_kernel_and_no_other_16_bit_type_appears(built: Any) -> None:
    bundle = built[0]
    layers = {"visual": bundle.spec.model.visual.layers, "audio": bundle.spec.model.audio.layers}
    for folder, spec in bundle.spec.plans.items():
        for name, expected in layers.items():
            graph = spec.graphs[f"{name}.plan"]
            assert (graph.attentions, graph.attentions_fused) == (expected, expected)
            other = {"fp16": "bf16", "bf16": "fp16"}[spec.precision]
            assert graph.types[spec.precision] > graph.types["float32"] > 0
            assert other not in graph.types
            listed = json.loads(bundle.read(f"{folder}/{name}.layers.json"))
            assert len(listed) == graph.layers
            assert sum("mha" in layer["name"] for layer in listed) == expected
        for name in ("head", "head_tail"):
            assert not {"fp16", "bf16"} & set(spec.graphs[f"{name}.plan"].types)


@needs_rtx
def test_a_plan_says_what_it_was_built_from_and_for(built: Any) -> None:
    bundle = built[0]
    for spec in bundle.spec.plans.values():
        for name, graph in spec.graphs.items():
            assert graph.graph_sha256 == bundle.spec.sha256[graph.graph]
            default = BuildConfig()
            assert graph.profile == (default.frames if name == "visual.plan" else default.windows)
        assert spec.graphs["visual.plan"].graph == f"visual.{spec.precision}.onnx"
        assert spec.graphs["head.plan"].graph == "head.onnx"
        assert (spec.gpu, spec.options["refit"]) == ("any", False)


def graph_of(left: int, weights: TensorProto) -> bytes:
    """y = x w, with x of type `left`."""
    x, y = (helper.make_tensor_value_info(name, left, ["frames", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weights])
    data: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()
    return data


def elsewhere() -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def job_for(folder: Path, data: bytes, **changes: Any) -> PlanJob:
    (folder / "visual.onnx").write_bytes(data)
    (folder / "staging").mkdir(exist_ok=True)
    fields: dict[str, Any] = {
        "flavour": "tensorrt_rtx", "graph": folder / "visual.onnx", "graph_sha256": hashlib.sha256(data).hexdigest(),
        "plan": folder / "staging" / "visual.plan", "compute_capability": "8.9", "profile": {"min": 1, "opt": 2, "max": 4}, "inspect": False,
        "optimization_level": 0, "workspace_mib": None, "timing_cache": None,
        "version_compatible": False, "hardware_compatibility": "none", "refit": False,
    }  # fmt: skip
    return PlanJob.model_validate(fields).model_copy(update=changes)


ONES = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")


@needs_rtx
def test_a_graph_that_is_fine_builds(tmp_path: Path) -> None:
    """So that what is refused below is refused for its own fault."""
    found = run_child(job_for(tmp_path, graph_of(TensorProto.FLOAT, ONES)), timeout_s=120)
    assert hashlib.sha256((tmp_path / "staging" / "visual.plan").read_bytes()).hexdigest() == found.sha256


@needs_rtx
@pytest.mark.parametrize(
    ("data", "changes", "says"),
    [
        (graph_of(TensorProto.FLOAT16, ONES), {}, "mixes types where the network is strongly typed .*Half.*Float.* Export the bundle again"),
        (graph_of(TensorProto.FLOAT, elsewhere()), {}, "its weights are in another file .*Export the bundle again"),
        (b"no graph", {}, r"TensorRT-RTX refuses visual\.onnx: .*Failed to parse the ONNX model"),
        (graph_of(TensorProto.BFLOAT16, numpy_helper.from_array(np.ones((4, 4), np.float32), "w")), {}, "mixes types"),
        (graph_of(TensorProto.FLOAT, ONES), {"graph_sha256": "0" * 64}, "was changed since the bundle was opened"),
    ],
    ids=["mixed", "external", "garbage", "mixed-bf16", "changed"],
)
def test_what_the_library_refuses_is_one_message_with_a_remedy(tmp_path: Path, data: bytes, changes: dict[str, Any], says: str) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(64))  # beside the graph: no byte is read that was not hashed
    with pytest.raises(BundleError, match=says) as caught:
        run_child(job_for(tmp_path, data, **changes), timeout_s=120)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "staging" / "visual.plan").exists()


@needs_rtx
def test_bf16_on_a_chip_without_it_is_refused_by_the_library_too(tmp_path: Path, half_demo: Bundle) -> None:
    with pytest.raises(BundleError, match=r"compute capability 7\.5 lacks one of its types .*Choose another --precision"):
        run_child(job_for(tmp_path, half_demo.read("audio.bf16.onnx"), compute_capability="7.5"), timeout_s=120)


@needs_rtx
@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_full_disk_is_named_and_leaves_the_bundle_as_it_was(bundle: Bundle, cli: Any) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    done = cli("build", bundle.path, "--flavour", "tensorrt_rtx", "--targets", "8.9", "--precision", "fp16", preexec_fn=limit)
    assert done.returncode == 4
    assert re.search(r"error: Cannot write '.*visual\.plan': File too large\. Free some space, then build again\.", done.stderr)
    assert "Traceback" not in done.stderr
    assert open_bundle(bundle.path) == bundle
    assert [path.name for path in (bundle.path / "plans").iterdir()] == [".lock"]


# ---------------------------------------------------------------------------------------------------------- told before


@pytest.mark.parametrize(
    ("flavour", "targets", "precisions", "says"),
    [
        ("tensorrt_rtx", ["9.0"], [], r"Invalid --targets '9\.0'\. TensorRT-RTX builds for compute capability 7\.5, 8\.0, 8\.6, 8\.9, 12\.0"),
        ("tensorrt_rtx", ["sm89"], [], "Invalid --targets 'sm89'"),
        ("tensorrt", ["8.9"], [], "--targets is for --flavour tensorrt_rtx"),
        ("tensorrt_rtx", ["8.9", "7.5"], [], r"7\.5 has no bf16"),
        ("tensorrt_rtx", ["8.9"], ["int8"], "Invalid --precision 'int8': .* are for CPUs"),
    ],
)
def test_wrong_arguments_are_told_before_any_work(bundle: Bundle, flavour: Any, targets: Any, precisions: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        build_plans(bundle.path, flavour=flavour, targets=targets, precisions=precisions)
    assert not (bundle.path / "plans").exists()


def test_what_a_bundle_cannot_give_is_told(exported: Any) -> None:
    with pytest.raises(UsageError, match=r"has its encoders in float32\. Export it again with --precision fp16, or build with --precision float32"):
        build_plans(exported.bundle.path, flavour="tensorrt_rtx", targets=["8.9"])
    with pytest.raises(UsageError, match=r"Invalid --precision 'bf16': .* has float32\. Export it again with --precision bf16"):
        build_plans(exported.bundle.path, flavour="tensorrt_rtx", targets=["8.9"], precisions=["bf16"])
    with pytest.raises(UsageError, match=r"'demo' ships with the package and is not written to\. Copy "):
        build_plans("demo", flavour="tensorrt_rtx", targets=["8.9"], precisions=["float32"])
    with pytest.raises(UsageError, match=r"Invalid --precision 'fp9'\. Supported values are float32, fp16, bf16, int8, fp8, int8-qdq"):
        parse_precision("fp9")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("frames: {min: 8, opt: 4, max: 16}", "frames: .*min 8 is above opt 4"),
        ("windows: {min: 1, opt: 9, max: 8}", "windows: .*opt 9 is above max 8"),
        ("windows: {min: 0, opt: 1, max: 8}", r"windows\.min: .*\(got 0\)"),
        ("frames: {opt: 4, max: 16}", r"frames\.min: Field required"),
        ("optimisation_level: 3", "optimisation_level: unknown key"),
        ("optimization_level: 6", r"optimization_level: .*\(got 6\)"),
        ("timeout_s: 0", "timeout_s"),
    ],
)
def test_a_config_that_cannot_be_names_its_field(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "build.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_config(BuildConfig, tmp_path / "build.yaml")


def test_the_shipped_config_has_every_key_at_its_default_with_a_comment() -> None:
    assert load_config(BuildConfig, DEFAULT) == BuildConfig()
    keys = re.findall(r"^(\w+):(.*)$", DEFAULT.read_text(), re.MULTILINE)
    assert {key for key, _ in keys} == set(BuildConfig.model_fields)
    assert all("#" in rest for _, rest in keys)


def test_the_command_line_takes_targets_in_every_order(bundle: Bundle, cli: Any) -> None:
    """Told by the first wrong one, which is the last that is given."""
    for arguments in (
        ["--targets", "8.9", "12.0", "9.9", bundle.path],
        [bundle.path, "--targets", "8.9", "--targets", "9.9"],
        ["--targets=8.9", bundle.path, "9.9"],
        [bundle.path, "--targets", "8.9", "9.9", "--precision", "fp16"],
    ):
        done = cli("build", "--flavour", "tensorrt_rtx", *arguments)
        assert done.returncode == 2, done.stderr
        assert "Invalid --targets '9.9'" in done.stderr, arguments
    done = cli("build", bundle.path, "8.9", "--flavour", "tensorrt_rtx")
    assert (done.returncode, "Unexpected argument '8.9'" in done.stderr) == (2, True)
    done = cli("build", "--targets", "8.9", "--flavour", "tensorrt_rtx")
    assert (done.returncode, "Which bundle? Give its folder" in done.stderr) == (2, True)


# ------------------------------------------------------------------------------------------------- libraries and GPUs


def without_gpus() -> list[Gpu]:
    raise FileNotFoundError("no NVIDIA driver: libcuda.so.1 is not on this machine")


@pytest.mark.parametrize(("flavour", "extra"), [("tensorrt", "gpu"), ("tensorrt_rtx", "rtx")])
def test_a_missing_library_names_the_extra(bundle: Bundle, stub: Any, flavour: Any, extra: str) -> None:
    for name in MODULES[flavour]:
        stub(name, f"raise ModuleNotFoundError('{name}')")
    with pytest.raises(EnvironmentMissingError, match=rf"'{flavour}', which is not installed. Install it with: pip install 'dissonance\[{extra}\]'"):
        build_plans(bundle.path, flavour=flavour, targets=["8.9"] if flavour == "tensorrt_rtx" else [])


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise ImportError('libnvinfer.so.10: cannot open shared object file')", "is installed and does not load: libnvinfer.so.10: cannot open"),
        ("import os; os.abort()", r"Loading TensorRT ends the process \(signal 6\)"),
        ("__version__ = '10.12.0.36'", "TensorRT 10.12.0.36 is installed; this release works with 10.13 or later, below 12.0"),
        ("__version__ = '12.0.1'", "TensorRT 12.0.1 is installed"),
        ("print('a banner')\n__version__ = '10.13.3.9'", "TensorRT builds plans on the GPU that they are for: no NVIDIA driver"),
        ("__version__ = '11.4.0'", "TensorRT builds plans on the GPU that they are for"),
    ],
)
def test_a_library_that_cannot_be_used_says_why(bundle: Bundle, stub: Any, monkeypatch: pytest.MonkeyPatch, code: str, says: str) -> None:
    stub("tensorrt", code)
    monkeypatch.setattr(machine, "find_gpus", without_gpus)
    with pytest.raises(EnvironmentMissingError, match=says) as caught:
        build_plans(bundle.path, flavour="tensorrt")
    assert "nstall" in str(caught.value) or "--flavour tensorrt_rtx --targets 8.9" in str(caught.value)


def test_tensorrt_rtx_starts_at_1_1() -> None:
    check_version("tensorrt_rtx", "1.1.0.1")
    with pytest.raises(EnvironmentMissingError, match=r"TensorRT-RTX 1\.0\.9 is installed; this release works with 1\.1 or later"):
        check_version("tensorrt_rtx", "1.0.9")


@pytest.mark.parametrize(
    ("gpus", "targets", "config", "error", "says"),
    [
        ([], [], {}, EnvironmentMissingError, r"For which GPUs\? .*--targets 8\.9 12\.0"),
        ([], ["8.9"], {"refit": True}, EnvironmentMissingError, "refit: true needs a GPU"),
        ([], ["8.9"], {"version_compatible": True}, EnvironmentMissingError, "version_compatible: true needs a GPU"),
        ([Gpu("NVIDIA H100", "9.0")], [], {}, EnvironmentMissingError, r"NVIDIA H100 has compute capability 9\.0, .*Use --flavour tensorrt"),
        ([], ["8.9"], {"hardware_compatibility": "ampere_plus"}, UsageError, "hardware_compatibility 'ampere_plus' is for --flavour tensorrt"),
    ],
)
def test_what_needs_a_gpu_says_so(
    bundle: Bundle, stub: Any, monkeypatch: pytest.MonkeyPatch, gpus: Any, targets: Any, config: Any, error: Any, says: str
) -> None:
    stub("tensorrt_rtx", "__version__ = '1.7.1.116'")
    monkeypatch.setattr(machine, "find_gpus", lambda: gpus or without_gpus())
    with pytest.raises(error, match=says):
        build_plans(bundle.path, flavour="tensorrt_rtx", targets=targets, config=BuildConfig(**config))


# ------------------------------------------------------------------------------------------------------------- children


@pytest.mark.parametrize(
    ("code", "timeout_s", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 60, r"building visual\.onnx was ended by SIGSEGV\. Lower the max"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 60, "SIGKILL. The system may have run out of memory"),
        ("raise AttributeError('no such flag')", 60, "ended with exit status 1: AttributeError: no such flag"),
        ("print('no JSON')", 60, "ended with exit status 0"),
        ("import time; time.sleep(60)", 1, r"took longer than timeout_s 1\. Raise it in --config"),
    ],
)
def test_a_child_that_dies_or_hangs_is_one_message(
    tmp_path: Path, stub: Any, monkeypatch: pytest.MonkeyPatch, code: str, timeout_s: int, says: str
) -> None:
    stub("broken_child", code)
    monkeypatch.setattr(tensorrt, "CHILD", "broken_child")
    with pytest.raises(BundleError, match=says) as caught:
        run_child(job_for(tmp_path, b""), timeout_s=timeout_s)
    assert "Traceback" not in str(caught.value)
