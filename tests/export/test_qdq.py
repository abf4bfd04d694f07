"""fp8 and int8-qdq encoders: arithmetic that numpy and ml_dtypes do too, scales that no batch mate moves, and what TensorRT-RTX makes of them."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dissonance.bundle import ENCODERS, Bundle, StaticPrecision, graph_file, open_bundle, write_bundle
from dissonance.config import ScanConfig
from dissonance.engine.runtime.tensorrt_library import MODULES
from dissonance.errors import BundleError, UsageError
from dissonance.export.make import export_bundle
from dissonance.export.onnx import graphs
from dissonance.export.qdq import SMALLEST_SCALE, with_qdq
from dissonance.export.ranges import Clips, clip_samples, largest_inputs
from dissonance.export.tensorrt import build_plans
from dissonance.export.typed import typed
from dissonance.export.validate import Labelled, validate
from dissonance.model.checkpoint import UNTRAINED, load_checkpoint, save_checkpoint
from dissonance.synth.dataset import generate
from tests.export.conftest import Exported

DEMO = open_bundle("demo")
MODEL = DEMO.spec.model
PRECISIONS = get_args(StaticPrecision)
RNG = np.random.default_rng(7)
needs_rtx = pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in MODULES["tensorrt_rtx"]), reason="needs TensorRT-RTX: pip install 'dissonance[rtx]'"
)
Feeds = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Labelled]:
    """One to quantise on, the others to validate on."""
    folder = tmp_path_factory.mktemp("qdq") / "clips"
    return [Labelled(folder / row.file, row.forgery != "none") for row in generate(folder, count=3, seed=57)]


@pytest.fixture(scope="module")
def static_demo(half_demo: Bundle, clips: list[Labelled], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo bundle with its encoders in fp8 and int8-qdq too."""
    files = {name: DEMO.read(name) for name in DEMO.spec.sha256}
    samples = clip_samples(Clips([clips[0].path], "one clip", drawn=True), spec=DEMO.spec, scan=ScanConfig())
    for graph in graphs(load_checkpoint(DEMO.path / "weights.safetensors").network)[:2]:
        half = half_demo.read(graph_file(graph.name, "fp16"))
        largest = largest_inputs(half, samples.feeds(graph))
        files |= {graph_file(graph.name, precision): with_qdq(half, precision, largest) for precision in PRECISIONS}
    spec = DEMO.spec.model_copy(update={"precisions": ("float32", *PRECISIONS), "quantised_on": samples.origin})
    return write_bundle(tmp_path_factory.mktemp("static") / "b", spec, files)


def run(model: bytes, feeds: Feeds) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    outputs: list[NDArray[Any]] = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds)
    return outputs[0].astype(np.float32)


def product(matrix: NDArray[np.float32]) -> bytes:
    """y = x w in fp16."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["n", size]) for name, size in zip("xy", matrix.shape, strict=True))
    weight = numpy_helper.from_array(matrix.astype(np.float16), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], "g", [x], [y], [weight])
    data: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()
    return data


def rounded(values: NDArray[np.float32], precision: str) -> NDArray[np.float32]:
    """To the nearest that 8 bits hold, by numpy's rounding or by ml_dtypes' E4M3."""
    if precision == "fp8":
        return np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return np.clip(np.rint(values), -128, 127).astype(np.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_product_is_the_formula_s(precision: StaticPrecision) -> None:
    """A scale is the largest value over what the type holds at most; columns are levelled before; what lies beyond is clipped."""
    top = {"fp8": 448, "int8-qdq": 127}[precision]
    matrix = (RNG.standard_normal((48, 33)) * RNG.uniform(0.1, 3, 33)).astype(np.float16).astype(np.float32)
    values = np.concatenate([RNG.standard_normal((8, 48)), np.full((1, 48), 9.0), np.zeros((1, 48))]).astype(np.float16).astype(np.float32)
    data = with_qdq(product(matrix), precision, {"x": 4.0})
    largest = np.abs(matrix).max(axis=0)
    of_values, of_matrix = np.float32(np.float16(4.0 / top)), np.float32(np.float16(largest.max() / top))
    columns = np.maximum(largest / largest.max(), 1 / 16).astype(np.float16).astype(np.float32)
    level = (matrix / columns).astype(np.float16)
    counted = rounded(level / (np.float16(of_matrix) if precision == "fp8" else of_matrix), precision)  # the reference divides E4M3's in their type
    expected = columns * ((rounded(values / of_values, precision) * of_values) @ (counted * of_matrix))
    found = run(data, {"x": values.astype(np.float16)})
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
    exact = values[:8] @ matrix
    error = np.sqrt(np.mean((found[:8] - exact) ** 2) / np.mean(exact**2))
    assert {"fp8": 0.02, "int8-qdq": 0.003}[precision] < error < {"fp8": 0.05, "int8-qdq": 0.015}[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_column_of_zeros_and_an_input_of_zeros_have_a_scale_all_the_same(precision: StaticPrecision) -> None:
    matrix = RNG.standard_normal((16, 8)).astype(np.float32)
    matrix[:, 3] = 0
    data = with_qdq(product(matrix), precision, {"x": 0.0})
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(data).graph.initializer if "scale" in tensor.name}
    assert all(scale.dtype == np.float16 and (scale >= SMALLEST_SCALE).all() for scale in scales.values())
    found = run(data, {"x": np.ones((2, 16), np.float16)})
    assert np.isfinite(found).all()
    assert (found[:, 3] == 0).all()


@pytest.mark.parametrize("name", ["visual.onnx", "audio.onnx"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_graph_is_standard_onnx_with_the_mlps_in_8_bits(static_demo: Bundle, name: str, precision: StaticPrecision) -> None:
    """Symmetric, with one scale an activation and one a matrix; attention has none of it. The checker infers every type."""
    model = onnx.load_from_string(static_demo.read(graph_file(name, precision)))
    onnx.checker.check_model(model, full_check=True)
    layers = MODEL.visual.layers if name == "visual.onnx" else MODEL.audio.layers
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made = {output: node for node in model.graph.node for output in node.output}
    quantised = [node for node in model.graph.node if node.op_type == "MatMul" and made.get(node.input[1], node).op_type == "DequantizeLinear"]
    assert len(quantised) == 2 * layers
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == 2 * layers
    kind = {"fp8": ml_dtypes.float8_e4m3fn, "int8-qdq": np.int8}[precision]
    for node in quantised:
        values, weight = (made[name] for name in node.input)
        assert made[values.input[0]].op_type == "QuantizeLinear"
        assert made[values.input[0]].input[1] == values.input[1]
        assert stored[values.input[1]].shape == stored[weight.input[1]].shape == ()
        assert stored[weight.input[0]].dtype == kind
        assert all(stored[zero].dtype == kind and not stored[zero].astype(np.float32).any() for zero in (values.input[2], weight.input[2]))


def test_the_largest_input_is_numpy_s(half_demo: Bundle) -> None:
    """Over all batches, and of the first MLP, whose input ONNX Runtime is asked for."""
    data = half_demo.read("audio.fp16.onnx")
    mask = np.ones((2, MODEL.frames), np.bool_)
    feeds = [
        {"mel": (factor * RNG.standard_normal((2, MODEL.audio.mel_bins, 4 * MODEL.frames))).astype(np.float32), "mask": mask} for factor in (3, 1)
    ]
    found = largest_inputs(data, iter(feeds))
    model = onnx.load_from_string(data)
    tensor = next(node.input[0] for node in model.graph.node if node.op_type == "MatMul" and node.input[0].startswith("gelu"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(tensor, TensorProto.FLOAT16, None))
    assert found[tensor] == pytest.approx(max(np.abs(run(model.SerializeToString(), feed)).max() for feed in feeds), rel=2e-3)


def test_scores_stay_close_and_no_batch_mate_moves_them(static_demo: Bundle, clips: list[Labelled]) -> None:
    found = validate(static_demo, clips[1:], scan=ScanConfig(), threads=1)
    assert found["holds"]
    for precision in PRECISIONS:
        of = found["artefacts"][precision]
        assert 1e-4 < of["probabilities"]["largest"] < static_demo.spec.tolerances[precision].probability
        assert of["batch_mates"] <= 1e-5


def test_export_fixes_scales_on_the_clips_it_is_given_and_on_noise_for_random_weights(
    exported: Exported, clips: list[Labelled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The float32 graphs are those that were exported already, and the fp16 ones are exported once: that is what takes long."""
    halves: dict[str, bytes] = {}
    monkeypatch.setattr("dissonance.export.onnx.export_graph", lambda graph: exported.bundle.read(graph.name))
    monkeypatch.setattr(
        "dissonance.export.precision.typed", lambda graph, precision: halves.setdefault(graph.name, halves.get(graph.name) or typed(graph, precision))
    )
    lines: list[str] = []

    def export(checkpoint: Path, name: str, quantise_on: Clips | None = None) -> Bundle:
        return export_bundle(
            checkpoint=checkpoint, random_weights=False, preset=None, seed=0, out=tmp_path / name, overwrite=False, precisions=PRECISIONS,
            quantise_on=quantise_on and nullcontext(quantise_on), progress=lines.append,
        )  # fmt: skip

    with pytest.raises(UsageError, match="need clips to quantise on"):
        export(exported.checkpoint, "none")
    (tmp_path / "none.mp4").write_bytes(b"no video")
    with pytest.raises(BundleError, match=r"no window of one file has both a face and sound\. Give such clips with --quantise-on"):
        export(exported.checkpoint, "none", Clips([tmp_path / "none.mp4"], "one file", drawn=False))
    assert not (tmp_path / "none").exists()
    of_clip = export(exported.checkpoint, "clip", Clips([clips[0].path], "one clip", drawn=True))
    assert re.fullmatch(r"\d+ windows of one clip", of_clip.spec.quantised_on or "")
    untrained = save_checkpoint(exported.network, tmp_path / "untrained", trained_on=UNTRAINED)
    of_noise = export(untrained, "noise")
    assert of_noise.spec.quantised_on == "noise"
    assert f"scales of 8-bit activations are fixed on {of_clip.spec.quantised_on}" in lines
    for precision in PRECISIONS:
        for graph in ENCODERS:
            name = graph_file(graph, precision)
            assert of_clip.spec.sha256[name] != of_noise.spec.sha256[name]


def test_the_same_graph_gives_the_same_file_in_every_process(tmp_path: Path) -> None:
    """Whatever the order in which sets of names are walked."""
    (tmp_path / "fp16.onnx").write_bytes(product(np.ones((4, 4), np.float32)[:, :3]))
    code = (
        "import sys, hashlib, pathlib; from dissonance.export.qdq import with_qdq;"
        "print(hashlib.sha256(with_qdq(pathlib.Path(sys.argv[1]).read_bytes(), 'fp8', {'x': 2.0})).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "fp16.onnx")]
    found = {subprocess.check_output(command, env={**os.environ, "PYTHONHASHSEED": seed}) for seed in "12"}
    assert len(found) == 1


# ---------------------------------------------------------------------------------------------------------------- TensorRT


@needs_rtx
def test_tensorrt_rtx_builds_both_with_every_mlp_in_8_bits_and_attention_fused(
    static_demo: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    shutil.copytree(static_demo.path, tmp_path / "b")
    bundle, folders = build_plans(tmp_path / "b", flavour="tensorrt_rtx", targets=["8.9"], precisions=PRECISIONS)
    assert [folder.split("-", 3)[3] for folder in folders] == list(PRECISIONS)
    layers = {"visual": MODEL.visual.layers, "audio": MODEL.audio.layers}
    for folder, precision in zip(folders, PRECISIONS, strict=True):
        for name, count in layers.items():
            plan = bundle.spec.plans[folder].graphs[f"{name}.plan"]
            assert (plan.attentions, plan.attentions_fused) == (count, count)
            assert plan.types[{"fp8": "fp8", "int8-qdq": "int8"}[precision]] == 2 * count
            assert len(json.loads(bundle.read(f"{folder}/{name}.layers.json"))) == plan.layers


@pytest.mark.parametrize(
    ("targets", "precisions", "says"),
    [
        (["8.9", "8.6"], ["fp8", "int8-qdq"], r"8\.6 has no fp8; 8\.9 has\. Build for it by itself: --precision int8-qdq\."),
        (["7.5"], ["fp8"], r"7\.5 has no fp8; 8\.9 has\. .*: --precision int8-qdq"),
        (["8.9"], ["bf16"], r"Invalid --precision 'bf16': .* has float32, fp8, int8-qdq"),
        (["8.9"], [], r"Export it again with --precision fp16, or build with --precision fp8 or int8-qdq or float32"),
    ],
)
def test_what_a_chip_or_a_bundle_lacks_is_told_before_any_work(static_demo: Bundle, targets: Any, precisions: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        build_plans(static_demo.path, flavour="tensorrt_rtx", targets=targets, precisions=precisions)
    assert not (static_demo.path / "plans").exists()


def test_the_command_says_which_are_for_tensorrt() -> None:
    done = subprocess.run([sys.executable, "-m", "dissonance", "export", "--help"], capture_output=True, text=True, check=False)
    words = " ".join(done.stdout.replace("│", " ").split())
    assert "int8: for CPUs. fp16, bf16, fp8, int8-qdq: for TensorRT" in words


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["demo", "--precision", "fp16", "--quantise-on", "clips"], "--quantise-on is for --precision fp8 and int8-qdq"),
        (["--random-weights", "--preset", "demo", "--precision", "fp8", "--quantise-on", "clips"], "Random weights are quantised on noise"),
    ],
)
def test_clips_that_would_not_be_used_are_refused(options: list[str], says: str, tmp_path: Path, cli: Any) -> None:
    done = cli("export", *options, "-o", tmp_path / "b")
    assert done.returncode == 2
    assert says in done.stderr
    assert not (tmp_path / "b").exists()


def test_numbers_that_fp16_cannot_hold_are_told() -> None:
    with pytest.raises(BundleError, match="'x' is beyond what fp16 holds"):
        largest_inputs(product(np.ones((4, 4), np.float32)), iter([{"x": np.full((1, 4), np.inf, np.float16)}]))
