"""Graphs in fp16 and bf16: which types meet where, and how far their features are from float32."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from dissonance.bundle import Bundle, graph_file
from dissonance.export.fold import Folded
from dissonance.export.onnx import FromCrops, graphs
from dissonance.export.typed import DTYPES, Typed, typed
from dissonance.model.checkpoint import load_checkpoint
from dissonance.model.network import AudioVisualNetwork
from tests.model.tiny import FRAMES, tiny_network

DEMO = Path(__file__).resolve().parents[2] / "src" / "dissonance" / "bundles" / "demo" / "weights.safetensors"
ONNX_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8}  # half the distance between 1 and the next number
PRECISIONS = ("fp16", "bf16")
FORMS: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    ("fp16", {"carry": "accumulate", "per_frame": True, "readout": "cls+prompt", "count": 2}, {"form": "prepend"}),
    ("bf16", {"carry": "replace", "readout": "cls+prompt", "count": 2}, {"form": "residual"}),
]


@pytest.fixture(scope="module")
def demo() -> AudioVisualNetwork:
    return load_checkpoint(DEMO).network


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """The type of every tensor in a graph, by onnx's own inference."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


@pytest.mark.parametrize(("precision", "prompts", "audio_prompts"), FORMS, ids=["fp16", "bf16"])
def test_products_read_16_bits_and_norms_and_the_stream_are_float32(precision: Any, prompts: dict[str, Any], audio_prompts: dict[str, Any]) -> None:
    network = tiny_network(layers=2, prompts=prompts, audio_prompts=audio_prompts)
    for graph in graphs(network)[:2]:
        model = onnx.load_from_string(typed(graph, precision))
        types, half = types_of(model), ONNX_TYPES[precision]
        kinds = [node.op_type for node in model.graph.node]
        assert kinds.count("Softmax") == 2
        assert kinds.count("LayerNormalization") == {"visual.onnx": 1 + 4 + 2, "audio.onnx": 4 + 1}[graph.name]
        for node in model.graph.node:
            of = [types[name] for name in (*node.input, *node.output) if name]
            if node.op_type in ("MatMul", "Gemm", "Conv", "Softmax"):
                assert set(of) == {half}, node.name
            if node.op_type == "LayerNormalization":
                assert set(of) == {TensorProto.FLOAT}, node.name
                assert [attribute.i for attribute in node.attribute if attribute.name == "stash_type"] in ([], [TensorProto.FLOAT])  # its default
        assert [types[value.name] for value in model.graph.output] == [TensorProto.FLOAT]
        assert types[model.graph.input[0].name] == {"visual.onnx": TensorProto.UINT8, "audio.onnx": TensorProto.FLOAT}[graph.name]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_constants_in_float32_are_norms_and_what_joins_the_stream(half_demo: Bundle, precision: Any) -> None:
    """Counted from the configuration: two vectors a LayerNorm, positions, the prompts of all layers but the last, the sound prompts' rows."""
    visual, audio, frames = half_demo.spec.model.visual, half_demo.spec.model.audio, half_demo.spec.model.frames
    tokens = (visual.image_size // visual.patch_size) ** 2 + 1
    expected = {
        "visual.onnx": visual.hidden_size * (2 * (2 * visual.layers + 2) + tokens + visual.prompts.count * (visual.layers - 1)),
        "audio.onnx": audio.hidden_size * (2 * (2 * audio.layers + 1) + audio.max_positions + 2 * frames * audio.layers),
    }
    for name, elements in expected.items():
        model = onnx.load_from_string(half_demo.read(graph_file(name, precision)))
        wide = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT and tensor.dims]
        assert sum(int(np.prod(tensor.dims)) for tensor in wide) == elements


@pytest.mark.parametrize("precision", PRECISIONS)
@torch.inference_mode()
def test_features_are_as_near_to_float32_as_rounded_weights_are(demo: AudioVisualNetwork, precision: Any) -> None:
    """RMS error of a frame or token of at most 1.5 units of roundoff, of its RMS; with the stream in 16 bits it is 1.7 to 2 in this network."""
    for graph in graphs(demo)[:2]:
        example = graph.example(24, torch.Generator().manual_seed(1))
        folded = graph.module
        narrow = FromCrops(Typed(folded.encoder, DTYPES[precision])) if isinstance(folded, FromCrops) else Typed(folded, DTYPES[precision])
        expected, found = graph.original(*example), narrow(*example)
        if graph.name == "audio.onnx":
            valid = example[1].repeat_interleave(2, dim=1)
            expected, found = expected[valid], found[valid]
        assert found.dtype == torch.float32
        errors = ((found - expected).square().mean(dim=1) / expected.square().mean(dim=1)).sqrt()
        assert errors.median() < 1.5 * ROUNDOFF[precision]


@torch.inference_mode()
def test_the_fp16_files_give_these_features_in_onnx_runtime(demo: AudioVisualNetwork, half_demo: Bundle) -> None:
    """By another implementation; of bf16 it has none for a CPU."""
    for graph in graphs(demo)[:2]:
        example = graph.example(3, torch.Generator().manual_seed(1))
        session = onnxruntime.InferenceSession(half_demo.read(graph_file(graph.name, "fp16")), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, dict(zip(graph.inputs, (value.numpy() for value in example), strict=True)))
        expected = graph.original(*example).numpy()
        if graph.name == "audio.onnx":
            valid = example[1].repeat_interleave(2, dim=1).numpy()
            expected, found = expected[valid], found[valid]
        assert found.dtype == np.float32
        assert np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) < 2 * ROUNDOFF["fp16"]


@pytest.mark.parametrize("precision", PRECISIONS)
@torch.inference_mode()
def test_padding_is_never_heard(precision: Any) -> None:
    """A padded window gives what its valid part alone gives, up to rounding, and one without a valid frame gives numbers."""
    dtype = DTYPES[precision]
    sound = Typed(Folded(tiny_network()).audio, dtype)
    mel = torch.randn(2, 10, 4 * FRAMES, generator=torch.Generator().manual_seed(3))
    padded = sound(mel, torch.arange(FRAMES)[None, :] < torch.tensor([[4], [0]]))
    alone = sound(mel[:1, :, :16], torch.ones(1, 4, dtype=torch.bool))
    assert (padded[:1, :8] - alone).square().mean().sqrt() < ROUNDOFF[precision] * alone.square().mean().sqrt()
    assert bool(torch.isfinite(padded).all())


def test_a_folded_encoder_stays_as_it_is() -> None:
    folded = Folded(tiny_network())
    before = {name: value.clone() for name, value in folded.state_dict().items()}
    Typed(folded.visual, torch.float16), Typed(folded.audio, torch.float16)
    assert all(torch.equal(value, before[name]) for name, value in folded.state_dict().items())
