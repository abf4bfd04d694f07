"""The check that stands before a bundle: what it lets through, what it stops, and that a stop leaves nothing behind."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import dissonance.export.onnx
from dissonance.errors import BundleError
from dissonance.export.make import export_bundle
from dissonance.export.onnx import Graph, graphs
from dissonance.export.parity import LIMIT, measure_parity
from tests.export.conftest import Exported


def tampered(data: bytes, amount: float = 0.01) -> bytes:
    """With one weight of the largest tensor changed."""
    model = onnx.load_from_string(data)
    largest = max(model.graph.initializer, key=lambda item: len(item.raw_data))
    values = numpy_helper.to_array(largest).copy()
    values.flat[values.size // 2] += amount
    largest.CopyFrom(numpy_helper.from_array(values, largest.name))
    return bytes(model.SerializeToString())


def graph_of(exported: Exported, name: str) -> Graph:
    return next(graph for graph in graphs(exported.network) if graph.name == name)


@pytest.mark.parametrize("name", ["visual.onnx", "audio.onnx", "head.onnx", "head_tail.onnx"])
def test_one_changed_weight_is_noticed(exported: Exported, name: str) -> None:
    graph, data = graph_of(exported, name), exported.bundle.read(name)
    assert max(measure_parity(graph, data).values()) < LIMIT / 5
    with pytest.raises(BundleError, match=f"{name} does not give torch's numbers"):
        measure_parity(graph, tampered(data, 1.0))


def test_a_failure_leaves_no_bundle_and_says_which_output(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export_and_tamper(graph: Graph) -> bytes:
        data = exported.bundle.read(graph.name)
        return tampered(data, 1.0) if graph.name == "head.onnx" else data

    monkeypatch.setattr(dissonance.export.onnx, "export_graph", export_and_tamper)
    with pytest.raises(BundleError, match=r"head\.onnx.*output '\w+' differs by .*No bundle was written"):
        export_bundle(checkpoint=exported.checkpoint, random_weights=False, preset=None, seed=0, out=tmp_path / "bundle", overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_does_not_run_is_a_bundle_error(exported: Exported) -> None:
    graph = graph_of(exported, "head_tail.onnx")
    with pytest.raises(BundleError, match="does not run in ONNX Runtime"):
        measure_parity(graph, b"not a model")
    with pytest.raises(BundleError, match="does not run in ONNX Runtime"):
        measure_parity(replace(graph, inputs=("other", *graph.inputs[1:])), exported.bundle.read(graph.name))


class Constant(torch.nn.Module):
    """A head whose outputs are given, in float32 or as they are."""

    def __init__(self, outputs: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.outputs


def judge(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, *, torch_lag: int, onnx_lag: int, other: float, valid: bool = True
) -> dict[str, float]:
    """Parity of one window whose profile is 0.5 at lag 0 and `other` at lag 1."""
    profile, lag_valid = torch.tensor([[0.0, 0.0, 0.0, 0.5, other, 0.0, 0.0]]), torch.ones(1, 7, dtype=torch.bool)
    names = ("lag_profile", "lag_valid", "best_lag")
    ours = [profile.numpy(), lag_valid.numpy() & valid, np.array([onnx_lag])]
    monkeypatch.setattr("dissonance.export.parity._run", lambda *_: [ours])
    graph = replace(graph_of(exported, "head.onnx"), outputs=names, original=Constant((profile, lag_valid, torch.tensor([torch_lag]))))
    return measure_parity(graph, b"", batches=(1,))


def test_best_lag_may_differ_only_where_two_lags_tie(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    assert judge(exported, monkeypatch, torch_lag=0, onnx_lag=0, other=0.1)["head.onnx:best_lag"] == 0
    assert judge(exported, monkeypatch, torch_lag=0, onnx_lag=1, other=0.49999)["head.onnx:best_lag"] == pytest.approx(1e-5, rel=0.01)
    with pytest.raises(BundleError, match="best_lag"):
        judge(exported, monkeypatch, torch_lag=0, onnx_lag=1, other=0.4)
    with pytest.raises(BundleError, match="best_lag"):
        judge(exported, monkeypatch, torch_lag=0, onnx_lag=9, other=0.5)
    with pytest.raises(BundleError, match="lag_valid"):
        judge(exported, monkeypatch, torch_lag=0, onnx_lag=0, other=0.1, valid=False)


@pytest.mark.parametrize("wrong", [np.full((1, 2), np.nan, np.float32), np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float64)])
def test_not_a_number_another_shape_or_type_never_passes(exported: Exported, monkeypatch: pytest.MonkeyPatch, wrong: np.ndarray) -> None:
    monkeypatch.setattr("dissonance.export.parity._run", lambda *_: [[wrong]])
    graph = replace(graph_of(exported, "head.onnx"), outputs=("matched",), original=Constant((torch.zeros(1, 2),)))
    with pytest.raises(BundleError, match="matched"):
        measure_parity(graph, b"", batches=(1,))


def test_large_features_are_judged_by_their_scale(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    large = torch.full((1, 2), 1000.0)
    monkeypatch.setattr("dissonance.export.parity._run", lambda *_: [[large.numpy() + np.float32(0.05)]])
    graph = replace(graph_of(exported, "visual.onnx"), original=Constant((large,)))
    assert measure_parity(graph, b"", batches=(1,))["visual.onnx:features"] == pytest.approx(5e-5, rel=0.01)
