"""The four graphs: their interface, torch's numbers at any batch, every form, and no trace of where they were made."""

import io
import os
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from dissonance.bundle import Bundle, open_bundle
from dissonance.export.onnx import OPSET, export_graph, graphs
from dissonance.export.parity import measure_parity
from dissonance.model.checkpoint import load_checkpoint
from dissonance.model.network import AudioVisualNetwork
from tests.export.conftest import Exported
from tests.model.tiny import FRAMES, first_frames, tiny_network

GRAPHS = ("visual.onnx", "audio.onnx", "head.onnx", "head_tail.onnx")


def session(bundle: Bundle, name: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(bundle.read(name), providers=["CPUExecutionProvider"])


def test_the_interface_is_the_documented_one(exported: Exported) -> None:
    fv, fa, dim, fused, lags = 32, 16, 8, 12, 7
    expected = {
        "visual.onnx": (
            {"crops": ["frames", 16, 16, 3], "frame_index": ["frames"]},
            {"features": ["frames", fv]},
        ),
        "audio.onnx": ({"mel": ["windows", 10, 4 * FRAMES], "mask": ["windows", FRAMES]}, {"features": ["windows", 2 * FRAMES, fa]}),
        "head.onnx": (
            {"visual": ["windows", FRAMES, fv], "audio": ["windows", 2 * FRAMES, fa], "mask": ["windows", FRAMES]},
            {"logit_visual": ["windows"], "logit_audio": ["windows"], "logit_fused": ["windows"], "matched": ["windows", FRAMES],
             "lag_profile": ["windows", lags], "lag_valid": ["windows", lags], "best_lag": ["windows"], "row_match": ["windows", FRAMES]},
        ),
        "head_tail.onnx": (
            {"fused": ["windows", FRAMES, fused], "visual": ["windows", FRAMES, dim], "audio": ["windows", FRAMES, dim], "mask": ["windows", FRAMES]},
            {"logit_visual": ["windows"], "logit_audio": ["windows"], "logit_fused": ["windows"]},
        ),
    }  # fmt: skip
    types = {
        "crops": "tensor(uint8)",
        "mask": "tensor(bool)",
        "lag_valid": "tensor(bool)",
        "best_lag": "tensor(int64)",
        "frame_index": "tensor(int64)",
    }
    for name, (inputs, outputs) in expected.items():
        opened = session(exported.bundle, name)
        assert {item.name: item.shape for item in opened.get_inputs()} == inputs
        assert {item.name: item.shape for item in opened.get_outputs()} == outputs
        assert [item.name for item in opened.get_outputs()] == list(outputs)
        for item in (*opened.get_inputs(), *opened.get_outputs()):
            assert item.type == types.get(item.name, "tensor(float)"), item.name
        model = onnx.load_from_string(exported.bundle.read(name))
        assert [(entry.domain, entry.version) for entry in model.opset_import if entry.domain == ""] == [("", OPSET)]
        assert {node.domain for node in model.graph.node} == {""}, "only standard operators: TensorRT reads the file too"


@pytest.mark.parametrize("windows", [1, 5])
def test_the_graphs_in_a_row_give_torchs_numbers(exported: Exported, windows: int) -> None:
    generator = torch.Generator().manual_seed(windows)
    crops = torch.randint(256, (windows, FRAMES, 16, 16, 3), generator=generator, dtype=torch.uint8)
    mel = torch.randn(windows, 10, 4 * FRAMES, generator=generator)
    mask = first_frames(*(FRAMES, 4, 1, FRAMES, 0)[:windows])
    index = np.tile(np.arange(FRAMES), windows)
    (visual,) = session(exported.bundle, "visual.onnx").run(None, {"crops": crops.flatten(0, 1).numpy(), "frame_index": index})
    (audio,) = session(exported.bundle, "audio.onnx").run(None, {"mel": mel.numpy(), "mask": mask.numpy()})
    names = [item.name for item in session(exported.bundle, "head.onnx").get_outputs()]
    feed = {"visual": visual.reshape(windows, FRAMES, -1), "audio": audio, "mask": mask.numpy()}
    found = dict(zip(names, session(exported.bundle, "head.onnx").run(None, feed), strict=True))
    with torch.inference_mode():
        out = exported.network(crops.permute(0, 1, 4, 2, 3) / 255.0, mel, mask)
    for name, value in found.items():
        expected = getattr(out, name) if name.startswith("logit") else getattr(out.match, name)
        np.testing.assert_allclose(value, expected.numpy(), atol=2e-5, rtol=0, err_msg=name)
    feed = {"fused": out.fused.numpy(), "visual": out.visual.numpy(), "audio": out.audio.numpy(), "mask": mask.numpy()}
    for value, expected in zip(session(exported.bundle, "head_tail.onnx").run(None, feed), out[:3], strict=True):
        np.testing.assert_allclose(value, expected.numpy(), atol=2e-5, rtol=0)


def test_onnx_runtime_sees_nothing_of_the_padding(exported: Exported) -> None:
    generator = torch.Generator().manual_seed(0)
    mel, mask = torch.randn(1, 10, 4 * FRAMES, generator=generator).numpy(), first_frames(4).numpy()
    audio = session(exported.bundle, "audio.onnx")
    plain = audio.run(None, {"mel": mel, "mask": mask})[0][:, :8]
    mel[:, :, 16:] = np.nan
    np.testing.assert_array_equal(audio.run(None, {"mel": mel, "mask": mask})[0][:, :8], plain)


@pytest.mark.parametrize("name", GRAPHS)
def test_nothing_tells_where_a_graph_was_made(exported: Exported, name: str) -> None:
    for bundle in (exported.bundle, open_bundle("demo")):
        data = bundle.read(name)
        strangers = (
            Path.cwd(),
            Path.home(),
            Path(__file__).parents[2],
            sysconfig.get_paths()["purelib"],
            "site-packages",
            ".py",
            "Traceback",
            "stack_trace",
        )
        for stranger in strangers:
            assert os.fsencode(stranger) not in data, f"{name} holds '{stranger}'"
        text = str(onnx.load_model(io.BytesIO(data), load_external_data=False))
        assert "metadata_props" not in text
        assert "doc_string" not in text


def test_the_same_weights_give_the_same_bytes(exported: Exported) -> None:
    audio = graphs(load_checkpoint(exported.checkpoint).network)[1]
    assert export_graph(audio) == exported.bundle.read("audio.onnx")


def export_one(network: AudioVisualNetwork, name: str) -> tuple[bytes, dict[str, float]]:
    graph = next(graph for graph in graphs(network) if graph.name == name)
    data = export_graph(graph)
    return data, measure_parity(graph, data)


@pytest.mark.parametrize(
    "prompts",
    [
        {"count": 0},
        {"count": 2, "readout": "prompt"},
        {"count": 1, "carry": "replace", "per_frame": True},
    ],
    ids=str,
)
def test_the_other_visual_forms_export(prompts: dict[str, Any]) -> None:
    data, errors = export_one(tiny_network(layers=2, prompts=prompts), "visual.onnx")
    assert max(errors.values()) < 1e-5
    inputs = {item.name for item in onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).get_inputs()}
    assert inputs == ({"crops", "frame_index"} if prompts.get("per_frame") else {"crops"})


@pytest.mark.parametrize("form", ["prepend", "none"])
def test_the_other_audio_forms_export(form: str) -> None:
    _, errors = export_one(tiny_network(layers=1, audio_prompts={"form": form}), "audio.onnx")
    assert max(errors.values()) < 1e-5


def test_the_head_exports_without_attended_sound() -> None:
    _, errors = export_one(tiny_network(head={"attended_sound": False, "max_lag": 0}), "head.onnx")
    assert max(errors.values()) < 1e-5
