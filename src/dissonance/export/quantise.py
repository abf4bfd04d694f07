"""int8 for CPUs: products of 8-bit integers in which every row has a scale of its own, so that no row depends on its batch mates.

For a product x W, with x (rows, K) and W (K, N), symmetric in both (Jacob et al., Quantization and Training of Neural Networks, CVPR 2018):

    s_r = max_k |x_rk| / 127         measured at run time, row by row
    t_n                              known at export, column by column: the smallest that fits, see below
    x W ~ s_r t_n sum_k round(x_rk / s_r) round(W_kn / t_n)

ONNX Runtime's own dynamic quantisation has one scale for the whole batch instead: one row with a large value would coarsen all others, and a hostile
file could move its neighbours' scores.

Rows are stored as unsigned bytes, weights as signed ones. ONNX Runtime's kernel for processors without VNNI adds products of two neighbours in 16
bits that saturate, which would give other numbers there than elsewhere. So t_n is such that any two weights of one sign among four neighbours, which
is how kernels pack them, sum to 128 at most: 255 * 128 fits. That costs less precision than 7 bits for every weight, the usual remedy. (The kernel
for unsigned weights has no such limit, but is no faster than float32 there.)

Quantised are the two products of every MLP, two thirds of all. Attention's four stay in float32: of the demo's scores, all products in 8 bits moved
one probability in 40 clips by 0.022, the MLPs' alone by 0.011, and 0.02 is what a bundle tolerates. Convolutions become float32 products (see
`convolutions.py`).
"""

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dissonance.export.convolutions import as_products
from dissonance.export.onnx import strip_provenance

TOP_OF_ROWS = 127  # stored as unsigned bytes around ZERO_POINT
ZERO_POINT = 128
TOP_OF_WEIGHTS = 127
TOP_OF_PAIRS = 128  # 255 * 128 < 2**15
PACKED = 4  # weights of a column that a kernel keeps together
SMALLEST_ROW = 1e-20  # what a row of zeros is taken to hold at most, so that it is divided by something

CONSTANTS = {
    "int8.top": np.float32(TOP_OF_ROWS),
    "int8.step": np.float32(1 / TOP_OF_ROWS),
    "int8.one": np.float32(1),
    "int8.smallest": np.float32(SMALLEST_ROW),
    "int8.zero_point": np.uint8(ZERO_POINT),
    "int8.zero": np.int8(0),
    "int8.last_axis": np.array([-1], np.int64),
}


def quantised(float32: bytes) -> bytes:
    """The int8 file of an encoder, from its float32 file. Runs in ONNX Runtime only: it uses its operator MatMulIntegerToFloat."""
    model = onnx.load_from_string(float32)
    graph = model.graph
    matrices = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT}
    chosen = {node.output[0] for node in weight_products(model)}
    nodes: list[NodeProto] = []
    stored: dict[str, TensorProto] = {}
    for node in graph.node:
        if node.output[0] not in chosen:
            nodes.append(node)
            continue
        values, weight = node.input
        nodes += _rows_in_bytes(values)
        if weight not in stored:
            for tensor in _columns_in_bytes(weight, numpy_helper.to_array(matrices[weight])):
                stored[tensor.name] = tensor
        unscaled = f"{node.output[0]}.of_rows"
        nodes += [
            helper.make_node(
                "MatMulIntegerToFloat",
                [f"{values}.bytes", f"{weight}.bytes", "int8.one", f"{weight}.steps", "int8.zero_point", "int8.zero"],
                [unscaled],
                domain="com.microsoft",
            ),
            helper.make_node("Mul", [unscaled, f"{values}.steps"], list(node.output)),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *stored.values(), *(numpy_helper.from_array(np.asarray(value), name) for name, value in CONSTANTS.items())])
    as_products(model)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    strip_provenance(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def weight_products(model: ModelProto) -> Iterator[NodeProto]:
    """The products of a float32 or fp16 graph that 8 bits replace: by a constant matrix that is not square, which only MLPs have."""
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
    matrices = {tensor.name: tensor.dims for tensor in model.graph.initializer if len(tensor.dims) == 2 and tensor.data_type in floats}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in matrices:
            rows, columns = matrices[node.input[1]]
            if rows != columns:
                yield node


def _rows_in_bytes(values: str) -> list[NodeProto]:
    """`values`.bytes and `values`.steps: each row of the last axis in unsigned bytes, and what one step of them is worth."""
    make = helper.make_node
    return [
        make("Abs", [values], [f"{values}.size"]),
        make("ReduceMax", [f"{values}.size", "int8.last_axis"], [f"{values}.largest"], keepdims=1),
        make("Max", [f"{values}.largest", "int8.smallest"], [f"{values}.range"]),
        make("Mul", [f"{values}.range", "int8.step"], [f"{values}.steps"]),
        make("Div", ["int8.top", f"{values}.range"], [f"{values}.per_step"]),
        make("Mul", [values, f"{values}.per_step"], [f"{values}.counted"]),
        make("QuantizeLinear", [f"{values}.counted", "int8.one", "int8.zero_point"], [f"{values}.bytes"]),
    ]


def _columns_in_bytes(name: str, matrix: NDArray[np.float32]) -> list[TensorProto]:
    """`name`.bytes and `name`.steps of a matrix (K, N)."""
    rows, columns = matrix.shape
    packed = np.zeros((-(-rows // PACKED), PACKED, columns), np.float32)
    packed.reshape(-1, columns)[:rows] = matrix
    pairs = np.max([np.sort(np.maximum(side, 0), axis=1)[:, -2:].sum(axis=1).max(axis=0) for side in (packed, -packed)], axis=0)
    steps = np.maximum(np.maximum(np.abs(matrix).max(axis=0) / TOP_OF_WEIGHTS, pairs / (TOP_OF_PAIRS - 1)), SMALLEST_ROW).astype(np.float32)
    counted = np.rint(matrix / steps).astype(np.int8)  # rounding adds at most 1 to a pair
    return [numpy_helper.from_array(counted, f"{name}.bytes"), numpy_helper.from_array(steps, f"{name}.steps")]
