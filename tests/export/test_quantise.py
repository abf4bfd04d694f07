"""int8 encoders: integer arithmetic that numpy does too, rows that no batch mate moves, and convolutions that PyTorch computes as well."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dissonance.bundle import open_bundle
from dissonance.export.convolutions import as_products
from dissonance.export.quantise import quantised, weight_products

DEMO = open_bundle("demo")
MODEL = DEMO.spec.model
RNG = np.random.default_rng(5)
CROPS = RNG.integers(0, 256, (24, MODEL.visual.image_size, MODEL.visual.image_size, 3), np.uint8)
MEL = RNG.standard_normal((6, MODEL.audio.mel_bins, 4 * MODEL.frames)).astype(np.float32)
MASK = np.arange(MODEL.frames) < np.array([[MODEL.frames], [9], [1], [MODEL.frames], [4], [MODEL.frames]])
Feeds = dict[str, NDArray[Any]]


def run(model: bytes, feeds: Feeds) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    outputs: list[NDArray[np.float32]] = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds)
    return outputs[0]


def graph_of(nodes: list[onnx.NodeProto], shape: list[int | str], constants: dict[str, NDArray[Any]]) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, size)] for name, size in (("x", shape), ("y", None)))
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, tensors), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(("rows", "columns"), [(64, 96), (50, 33), (7, 130)])
@pytest.mark.parametrize("kind", ["normal", "largest together"])
def test_a_product_is_the_formula_s_on_every_processor(rows: int, columns: int, kind: str) -> None:
    """Rows and weights at their ends are what kernels that add in 16 bits get wrong."""
    matrix = RNG.standard_normal((rows, columns)).astype(np.float32)
    values = RNG.standard_normal((9, rows)).astype(np.float32)
    if kind == "largest together":
        matrix, values = np.sign(matrix) * np.float32(0.7), np.abs(np.sign(values)) * np.float32(3)
        matrix[:, : columns // 2] = 0.7
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"])], ["n", rows], {"w": matrix})
    data = quantised(model.SerializeToString())
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(data).graph.initializer}
    steps = np.abs(values).max(axis=1, keepdims=True) / 127
    counts = np.rint(values / steps).astype(np.int64) @ stored["w.bytes"].astype(np.int64)
    np.testing.assert_allclose(run(data, {"x": values}), counts * steps * stored["w.steps"], rtol=2e-6, atol=2e-6 * np.abs(counts * steps).max())
    assert np.abs(matrix - stored["w.bytes"] * stored["w.steps"]).max() <= np.abs(matrix).max() / 126


def test_a_row_of_zeros_gives_zeros_and_nan_stays_nan() -> None:
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"])], ["n", 8], {"w": RNG.standard_normal((8, 12)).astype(np.float32)})
    values = np.stack([np.zeros(8), np.full(8, np.nan), np.ones(8)]).astype(np.float32)
    found = run(quantised(model.SerializeToString()), {"x": values})
    assert (found[0] == 0).all()
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[2]).all()


@pytest.mark.parametrize(("name", "feeds"), [("visual.onnx", {"crops": CROPS}), ("audio.onnx", {"mel": MEL, "mask": MASK})])
def test_no_batch_mate_moves_a_single_bit(name: str, feeds: Feeds) -> None:
    data = quantised(DEMO.read(name))
    together = run(data, feeds)
    for row in range(len(together)):
        assert (run(data, {key: value[row : row + 1] for key, value in feeds.items()})[0] == together[row]).all()
    loudest = {"crops": np.where(CROPS > 127, 255, 0).astype(np.uint8), "mel": 1e4 * MEL, "mask": MASK}
    loud = {key: np.concatenate([value[:3], loudest[key][3:]]) for key, value in feeds.items()}
    assert (run(data, loud)[:3] == together[:3]).all()


@pytest.mark.parametrize(("name", "feeds"), [("visual.onnx", {"crops": CROPS}), ("audio.onnx", {"mel": MEL, "mask": MASK})])
def test_features_stay_close_and_the_mlps_are_what_is_quantised(name: str, feeds: Feeds) -> None:
    before = onnx.load_from_string(DEMO.read(name))
    after = onnx.load_from_string(quantised(DEMO.read(name)))
    layers = MODEL.visual.layers if name == "visual.onnx" else MODEL.audio.layers
    assert len(list(weight_products(before))) == 2 * layers
    assert [node.op_type for node in after.graph.node].count("MatMulIntegerToFloat") == 2 * layers
    assert not [node for node in after.graph.node if node.op_type == "Conv"]
    expected, found = run(before.SerializeToString(), feeds), run(after.SerializeToString(), feeds)
    if "mask" in feeds:
        valid = np.repeat(MASK, 2, axis=1)
        expected, found = expected[valid], found[valid]
    errors = np.sqrt(np.mean((found - expected) ** 2, axis=1) / np.mean(expected**2, axis=1))
    assert np.median(errors) < 0.01
    assert errors.max() < 0.05


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_a_sequence_s_convolution_is_pytorch_s(stride: int, bias: bool) -> None:
    weight, offset = RNG.standard_normal((6, 5, 3)).astype(np.float32), RNG.standard_normal(6).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w", "b"] if bias else ["x", "w"], ["y"], strides=[stride], pads=[1, 1], kernel_shape=[3])
    model = graph_of([node], ["n", 5, 12], {"w": weight, "b": offset})
    as_products(model)
    values = RNG.standard_normal((4, 5, 12)).astype(np.float32)
    expected = torch.nn.functional.conv1d(
        torch.from_numpy(values), torch.from_numpy(weight), torch.from_numpy(offset) if bias else None, stride=stride, padding=1
    )
    np.testing.assert_allclose(run(model.SerializeToString(), {"x": values}), expected.numpy(), atol=1e-5)


def test_the_convolution_of_patches_is_pytorch_s() -> None:
    weight, values = RNG.standard_normal((7, 3, 4, 4)).astype(np.float32), RNG.standard_normal((2, 3, 8, 12)).astype(np.float32)
    model = graph_of([helper.make_node("Conv", ["x", "w"], ["y"], strides=[4, 4], kernel_shape=[4, 4])], ["n", 3, 8, 12], {"w": weight})
    as_products(model)
    expected = torch.nn.functional.conv2d(torch.from_numpy(values), torch.from_numpy(weight), stride=4)
    np.testing.assert_allclose(run(model.SerializeToString(), {"x": values}), expected.numpy(), atol=1e-5)
