"""A bundle as a model repository: what Triton reads of it is what the graphs and plans take and give."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import helper
from tritonclient.grpc import model_config_pb2 as triton

from dissonance.bundle import Bundle, graph_file, open_bundle
from dissonance.config import BuildConfig, DetectorConfig, ProfileConfig, ScanConfig, ServeConfig
from dissonance.errors import BundleError, ConfigError, EnvironmentMissingError, OutputError, UsageError
from dissonance.export import repository as module
from dissonance.export.repository import Repository, make_repository, verify_repository
from dissonance.export.tensorrt import build_plans
from tests.export.conftest import Exported
from tests.export.test_plans import pretend
from tests.export.test_tensorrt import needs_rtx

GRAPHS = {"dissonance_visual": "visual.onnx", "dissonance_audio": "audio.onnx", "dissonance_head": "head.onnx"}
MODELS = ("dissonance", "dissonance_audio", "dissonance_head", "dissonance_visual", "dissonance_windows")
Tensors = dict[str, tuple[str, tuple[int, ...]]]  # by name: numpy's type, and the shape of one row


def config_of(repository: Repository | Path, model: str) -> triton.ModelConfig:
    path = repository.path if isinstance(repository, Repository) else repository
    return text_format.Parse((path / model / "config.pbtxt").read_text(), triton.ModelConfig())


def declared(tensors: Any) -> Tensors:
    """What a config declares; dims [1] that are reshaped to none are a number a row."""
    kinds = {"UINT8": "uint8", "FP32": "float32", "BOOL": "bool", "INT64": "int64"}
    found = {}
    for each in tensors:
        shape = tuple(each.reshape.shape) if each.HasField("reshape") else tuple(each.dims)
        found[each.name] = (kinds[triton.DataType.Name(each.data_type).removeprefix("TYPE_")], shape)
    return found


def of_onnx(values: Any) -> Tensors:
    """What an ONNX graph has, without its first dimension."""
    found = {}
    for value in values:
        kind = value.type.tensor_type
        first, *rest = kind.shape.dim
        assert first.dim_param, f"{value.name} has no batch dimension"
        found[value.name] = (np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name, tuple(each.dim_value for each in rest))
    return found


@pytest.fixture(scope="module")
def repositories(half_demo: Bundle, exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Bundle, Repository]]:
    """The demo, in float32 and fp16, and a network with prompts per frame, on Triton's ONNX Runtime backend."""
    folder = tmp_path_factory.mktemp("repositories")

    def make(name: str, bundle: Bundle, **options: Any) -> tuple[Bundle, Repository]:
        return bundle, make_repository(bundle, folder / name, backend="onnxruntime", config=ServeConfig(), **options)

    return {"float32": make("a", half_demo), "fp16": make("b", half_demo, precision="fp16"), "per frame": make("c", exported.bundle)}


@pytest.mark.parametrize("name", ["float32", "fp16", "per frame"])
def test_configs_for_onnxruntime_are_what_the_graphs_take_and_give(repositories: dict[str, tuple[Bundle, Repository]], name: str) -> None:
    bundle, made = repositories[name]
    assert made.models == MODELS
    for model, graph in GRAPHS.items():
        config = config_of(made, model)
        assert (config.name, config.backend, config.default_model_filename) == (model, "onnxruntime", "model.onnx")
        data = (made.path / model / "1" / "model.onnx").read_bytes()
        assert data == bundle.read(graph_file(graph, "fp16" if name == "fp16" else "float32"))
        network = onnx.load_from_string(data).graph
        assert declared(config.input) == of_onnx(network.input)
        assert declared(config.output).items() <= of_onnx(network.output).items()
        assert set(of_onnx(network.output)) - set(declared(config.output)) <= {"row_match"}
    frame_index = {each.name for each in config_of(made, "dissonance_visual").input} - {"crops"}
    assert frame_index == ({"frame_index"} if name == "per frame" else set())


def test_graphs_of_a_repository_run_as_their_config_says(repositories: dict[str, tuple[Bundle, Repository]]) -> None:
    """Fed what the config declares, ONNX Runtime gives what it declares."""
    import onnxruntime

    for _, made in repositories.values():
        for model in GRAPHS:
            config = config_of(made, model)
            session = onnxruntime.InferenceSession((made.path / model / "1" / "model.onnx").read_bytes())
            feeds = {name: np.zeros((3, *shape), dtype) for name, (dtype, shape) in declared(config.input).items()}
            wanted = declared(config.output)
            for (dtype, shape), array in zip(wanted.values(), session.run(list(wanted), feeds), strict=True):
                assert (array.dtype.name, array.shape) == (dtype, (3, *shape))


@pytest.fixture
def planned(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """`half_demo` with plans of TensorRT that hold nothing, in both 16-bit types."""
    pretend(monkeypatch, b"a plan")
    profiles = BuildConfig(frames=ProfileConfig(min=1, opt=64, max=128), windows=ProfileConfig(min=1, opt=8, max=32))
    for precision in ("bf16", "fp16"):
        bundle, _ = build_plans(bundle.path, flavour="tensorrt", precisions=[precision], config=profiles)
    return bundle


def test_configs_for_tensorrt_take_their_batches_from_the_plans(planned: Bundle, tmp_path: Path) -> None:
    made = make_repository(planned, tmp_path / "models", backend="tensorrt", config=ServeConfig(max_batch=96))
    assert made.tensorrt == "10.13.3.9"
    batches = {}
    for model in ("dissonance_visual", "dissonance_audio"):
        config = config_of(made, model)
        assert (config.platform, config.backend, config.default_model_filename) == ("tensorrt_plan", "tensorrt", "model.plan")
        assert config.instance_group[0].kind == triton.ModelInstanceGroup.KIND_GPU
        assert (made.path / model / "1" / "model.plan").read_bytes() == b"a plan"
        assert config.parameters["precision"].string_value == "fp16"
        batches[model] = (config.max_batch_size, list(config.dynamic_batching.preferred_batch_size))
    assert batches == {"dissonance_visual": (96, [64]), "dissonance_audio": (32, [8])}
    head = config_of(made, "dissonance_head")
    assert (head.backend, head.parameters["runtime"].string_value) == ("python", "torch")  # and there the Triton kernel
    assert {path.name for path in (made.path / "dissonance_head" / "1").iterdir()} == {"bundle.json", "model.py", "weights.safetensors"}
    assert config_of(made, "dissonance_windows").max_batch_size == 3  # of 32 frames: the visual encoder's 96
    assert config_of(made, "dissonance_windows").parameters["max_batch"].string_value == "32"
    assert verify_repository(made.path) == made


READ_NETWORK = """
import json, sys
from dissonance.engine.runtime.tensorrt_library import load_library
trt = load_library("tensorrt_rtx")
log = trt.Logger(trt.Logger.ERROR)
network = trt.Builder(log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
assert trt.OnnxParser(network, log).parse(open(sys.argv[1], "rb").read())
def told(count, get):
    return {get(n).name: [str(get(n).dtype).split(".")[-1], list(get(n).shape)] for n in range(count)}
print(json.dumps([told(network.num_inputs, network.get_input), told(network.num_outputs, network.get_output)]))
"""


@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_configs_for_tensorrt_are_what_its_parser_makes_of_the_graphs(planned: Bundle, tmp_path: Path, precision: Any) -> None:
    """The network that a plan is built from, as the real parser reads it; a plan itself can only be opened on a GPU."""
    made = make_repository(planned, tmp_path / "models", backend="tensorrt", config=ServeConfig(), precision=precision)
    kinds = {"UINT8": "uint8", "FLOAT": "float32", "BOOL": "bool", "INT64": "int64"}
    for model in ("dissonance_visual", "dissonance_audio"):
        graph = planned.path / graph_file(GRAPHS[model], precision)
        done = subprocess.run([sys.executable, "-c", READ_NETWORK, str(graph)], capture_output=True, text=True, check=True)
        inputs, outputs = json.loads(done.stdout.splitlines()[-1])
        config = config_of(made, model)
        for side, tensors in ((config.input, inputs), (config.output, outputs)):
            assert {shape[0] for _, shape in tensors.values()} == {-1}
            assert declared(side) == {name: (kinds[kind], tuple(shape[1:])) for name, (kind, shape) in tensors.items()}


def test_a_python_repository_holds_what_each_model_reads_and_no_more(half_demo: Bundle, tmp_path: Path) -> None:
    made = make_repository(half_demo, tmp_path / "models", backend="python", config=ServeConfig())
    assert made.models == MODELS
    files = {path.relative_to(made.path).as_posix() for path in made.path.rglob("*") if path.is_file()}
    own = {"dissonance_visual": "visual.onnx", "dissonance_audio": "audio.onnx", "dissonance_head": "head.onnx", "dissonance": "serve.json"}
    expected = {"repository.json"}
    for model in MODELS:
        named = [own[model]] if model in own else []
        expected |= {f"{model}/config.pbtxt", *(f"{model}/1/{name}" for name in ("bundle.json", "model.py", *named))}
    assert files == expected
    for model in MODELS:
        assert config_of(made, model).parameters["bundle_id"].string_value == half_demo.id


def test_queues_are_bounded_and_models_warmed_up(half_demo: Bundle, tmp_path: Path) -> None:
    config = ServeConfig(max_queue=7, queue_timeout_s=1.5, max_queued_videos=3, videos=4, instances=2, max_queue_delay_us=150)
    made = make_repository(half_demo, tmp_path / "models", backend="python", config=config)
    for model in MODELS:
        found = config_of(made, model)
        policy = found.dynamic_batching.default_queue_policy
        assert policy.timeout_action == triton.ModelQueuePolicy.REJECT
        assert policy.max_queue_size == (3 if model == "dissonance" else 7)
        if model != "dissonance":
            assert policy.default_timeout_microseconds == 1_500_000
            assert found.dynamic_batching.max_queue_delay_microseconds == 150
        assert found.instance_group[0].count == {"dissonance": 4, "dissonance_windows": 4}.get(model, 2)
        warmed = {tensor for each in found.model_warmup for tensor in each.inputs}
        assert warmed == ({each.name for each in found.input} if model in GRAPHS else set())
    assert config_of(made, "dissonance").model_transaction_policy.decoupled


def spoil_a_byte(path: Path) -> None:
    file = path / "dissonance_audio" / "1" / "audio.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte": (spoil_a_byte, r"'dissonance_audio/1/audio\.onnx' was changed: its SHA-256 is"),
    "a config": (lambda path: (path / "dissonance_head/config.pbtxt").write_text("x"), r"'dissonance_head/config\.pbtxt' was changed"),
    "a file more": (lambda path: (path / "dissonance/1/sitecustomize.py").write_text(""), r"holds 'dissonance/1/sitecustomize\.py', which"),
    "a file less": (lambda path: (path / "dissonance/1/serve.json").unlink(), r"cannot read 'dissonance/1/serve\.json'"),
    "no manifest": (lambda path: (path / "repository.json").unlink(), "is not a model repository"),
    "another manifest": (lambda path: (path / "repository.json").write_text("[]"), "is not what `dissonance repository` writes"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_repository_is_refused(half_demo: Bundle, tmp_path: Path, change: str) -> None:
    made = make_repository(half_demo, tmp_path / "models", backend="python", config=ServeConfig())
    (made.path / "dissonance" / "1" / "__pycache__").mkdir()  # which Python writes there
    (made.path / "dissonance" / "1" / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"")
    assert verify_repository(made.path) == made
    spoil, says = CHANGES[change]
    spoil(made.path)
    with pytest.raises(BundleError, match=says):
        verify_repository(made.path)


@pytest.mark.parametrize(("library", "fits"), [("10.13.3", True), ("10.14.1", False), (None, True)])
def test_plans_of_another_tensorrt_are_refused_where_the_library_is_there(
    planned: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str | None, fits: bool
) -> None:
    made = make_repository(planned, tmp_path / "models", backend="tensorrt", config=ServeConfig())
    monkeypatch.setattr(module, "tensorrt_library_version", lambda: library)
    if fits:
        assert verify_repository(made.path) == made
    else:
        with pytest.raises(BundleError, match=r"plans of TensorRT 10\.13\.3\.9; this machine's library is 10\.14\.1"):
            verify_repository(made.path)


def test_what_cannot_be_served_is_told_with_its_remedy(bundle: Bundle, tmp_path: Path) -> None:
    def make(**options: Any) -> Repository:
        return make_repository(bundle, tmp_path / "models", **{"backend": "python", "config": ServeConfig(), **options})

    with pytest.raises(BundleError, match=rf"no TensorRT plans that could be served\. .* dissonance build {bundle.path} --precision fp16"):
        make(backend="tensorrt", precision="fp16")
    with pytest.raises(BundleError, match="no int8 graphs that can be served, only float32, bf16, fp16"):
        make(precision="int8")
    with pytest.raises(BundleError, match="no bf16 graphs that can be served"):
        make(precision="bf16")
    with pytest.raises(ConfigError, match="max_batch 31 is below a window's 32 frames"):
        make(config=ServeConfig(max_batch=31))
    with pytest.raises(UsageError, match="'boxes' is for files that are known before"):
        make(config=ServeConfig(scan=ScanConfig(detector=DetectorConfig(kind="boxes", boxes_file=tmp_path / "boxes.csv"))))
    with pytest.raises(ConfigError, match="allowed_folders: 'videos' is not an absolute path"):
        make(config=ServeConfig(allowed_folders=(Path("videos"),)))
    assert not list(tmp_path.glob("models*"))
    make()
    with pytest.raises(OutputError, match=r"exists already\. Choose another folder, or pass --overwrite"):
        make()
    assert make(overwrite=True).models == MODELS
    (tmp_path / "other").mkdir()
    with pytest.raises(OutputError, match=r"exists already\. Choose another folder"):
        make_repository(bundle, tmp_path / "other", backend="python", config=ServeConfig(), overwrite=True)


def test_plans_are_chosen_by_precision_and_by_name(planned: Bundle, tmp_path: Path) -> None:
    folders = sorted(planned.spec.plans)
    made = make_repository(planned, tmp_path / "a", backend="tensorrt", config=ServeConfig(), plans=folders[0])
    assert config_of(made, "dissonance_visual").parameters["precision"].string_value == "bf16"
    with pytest.raises(UsageError, match="Invalid --plans 'nvidia-l4'"):
        make_repository(planned, tmp_path / "b", backend="tensorrt", config=ServeConfig(), plans="nvidia-l4")
    twin = planned.spec.model_copy(update={"plans": {**planned.spec.plans, "plans/another": planned.spec.plans[folders[1]]}})
    with pytest.raises(UsageError, match=r"several folders of plans; choose one with --plans: plans/another, plans/nvidia"):
        make_repository(Bundle(planned.path, twin, planned.id), tmp_path / "c", backend="tensorrt", config=ServeConfig())


def test_plans_that_were_not_built_here_are_refused_unless_vouched_for(planned: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user's"))
    with pytest.raises(BundleError, match="was not built here by you"):
        make_repository(planned, tmp_path / "a", backend="tensorrt", config=ServeConfig())
    vouched = open_bundle(planned.path, sha256=planned.id)
    assert make_repository(vouched, tmp_path / "a", backend="tensorrt", config=ServeConfig()).models == MODELS


def test_a_detectors_network_travels_with_the_repository(half_demo: Bundle, shared: Path, tmp_path: Path) -> None:
    model = shared / "models" / "yunet_n_dynamic.onnx"
    config = ServeConfig(scan=ScanConfig(detector=DetectorConfig(kind="yunet", yunet_model=model)))
    made = make_repository(half_demo, tmp_path / "models", backend="python", config=config)
    assert (made.path / "dissonance" / "1" / "yunet.onnx").read_bytes() == model.read_bytes()
    assert str(shared) not in (made.path / "dissonance" / "1" / "serve.json").read_text()


def test_without_the_extra_the_command_names_it(half_demo: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(EnvironmentMissingError, match=r"pip install 'dissonance\[serve\]'"):
        make_repository(half_demo, tmp_path / "models", backend="python", config=ServeConfig())


def test_the_command_writes_and_verifies(tmp_path: Path, cli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = cli("repository", "demo", "-o", tmp_path / "models", "--instances", "3", "--max-batch", "64", "--allow-folder", "/srv/videos", "--json")
    assert done.returncode == 0, done.stderr
    assert "synthetic clips only" in done.stderr
    assert json.loads(done.stdout)["models"] == list(MODELS)
    assert config_of(tmp_path / "models", "dissonance_visual").instance_group[0].count == 3
    assert json.loads((tmp_path / "models/dissonance/1/serve.json").read_text())["allowed_folders"] == ["/srv/videos"]
    assert cli("repository", tmp_path / "models", "--verify").returncode == 0
    (tmp_path / "models/dissonance/1/model.py").write_text("import os")
    broken = cli("repository", tmp_path / "models", "--verify")
    assert (broken.returncode, "was changed" in broken.stderr) == (5, True)
    assert cli("serve", tmp_path / "models").returncode == 5
    assert cli("repository", "demo").returncode == 2
    assert cli("repository", tmp_path / "models", "--verify", "-o", tmp_path / "x").returncode == 2
