"""Convolutions as products of rows with a matrix.

ONNX Runtime's Conv chooses its algorithm by the size of the batch, so that its last digits depend on how many windows there are. That is nothing by
itself, but before a rounding to 8 bits it becomes a whole step. A product gives each row the same digits in every batch.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper


def as_products(model: ModelProto) -> None:
    """Replace the convolutions of an encoder: 1-D ones of any stride, and 2-D ones whose kernel is their stride (patches)."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    values = (*model.graph.input, *model.graph.value_info)
    sizes = {value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim] for value in values}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "Conv":
            nodes.append(node)
            continue
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        weight = constants[node.input[1]]
        if weight.ndim == 3:
            made = _of_sequence(node, weight, attributes["strides"][0], attributes["pads"])
        else:
            made = _of_patches(node, weight, *sizes[node.input[0]][2:])
        for item in made:
            if isinstance(item, TensorProto):
                model.graph.initializer.append(item)
            else:
                nodes.append(item)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _of_sequence(node: NodeProto, weight: NDArray[np.float32], stride: int, pads: list[int]) -> Iterator[NodeProto | TensorProto]:
    """(batch, C, L) by (O, C, K): rows hold the K neighbours of a place, C numbers each."""
    out, kernel = node.output[0], weight.shape[2]
    begin, end = pads
    yield _constant(f"{out}.pads", [0, begin, 0, 0, end, 0])
    yield helper.make_node("Transpose", [node.input[0]], [f"{out}.places"], perm=[0, 2, 1])
    yield helper.make_node("Pad", [f"{out}.places", f"{out}.pads"], [f"{out}.padded"])
    yield from (_constant(f"{out}.{name}", value) for name, value in (("axis", [1]), ("stride", [stride])))
    for place in range(kernel):
        last = place - kernel + 1  # the neighbours to the right of this one have to be there too
        yield from (_constant(f"{out}.begin{place}", [place]), _constant(f"{out}.end{place}", [last if last else np.iinfo(np.int64).max]))
        inputs = [f"{out}.padded", f"{out}.begin{place}", f"{out}.end{place}", f"{out}.axis", f"{out}.stride"]
        yield helper.make_node("Slice", inputs, [f"{out}.neighbour{place}"])
    yield helper.make_node("Concat", [f"{out}.neighbour{place}" for place in range(kernel)], [f"{out}.rows"], axis=2)
    yield from _product(node, weight.transpose(2, 1, 0).reshape(-1, weight.shape[0]))
    yield helper.make_node("Transpose", [f"{out}.product"], [out], perm=[0, 2, 1])


def _of_patches(node: NodeProto, weight: NDArray[np.float32], height: int, width: int) -> Iterator[NodeProto | TensorProto]:
    """(batch, C, height, width) by (O, C, P, P): rows are patches, C P P numbers each."""
    out, (channels, size) = node.output[0], weight.shape[1:3]
    down, across = height // size, width // size
    yield _constant(f"{out}.cut", [0, channels, down, size, across, size])
    yield _constant(f"{out}.flat", [0, down * across, channels * size * size])
    yield _constant(f"{out}.square", [0, weight.shape[0], down, across])
    yield helper.make_node("Reshape", [node.input[0], f"{out}.cut"], [f"{out}.pieces"])
    yield helper.make_node("Transpose", [f"{out}.pieces"], [f"{out}.patches"], perm=[0, 2, 4, 1, 3, 5])
    yield helper.make_node("Reshape", [f"{out}.patches", f"{out}.flat"], [f"{out}.rows"])
    yield from _product(node, weight.reshape(weight.shape[0], -1).T)
    yield helper.make_node("Transpose", [f"{out}.product"], [f"{out}.channels_first"], perm=[0, 2, 1])
    yield helper.make_node("Reshape", [f"{out}.channels_first", f"{out}.square"], [out])


def _product(node: NodeProto, matrix: NDArray[np.float32]) -> Iterator[NodeProto | TensorProto]:
    """out.rows by a matrix, and the bias where there is one, to out.product."""
    out = node.output[0]
    yield numpy_helper.from_array(np.ascontiguousarray(matrix), f"{out}.matrix")
    if len(node.input) < 3:
        yield helper.make_node("MatMul", [f"{out}.rows", f"{out}.matrix"], [f"{out}.product"])
    else:
        yield helper.make_node("MatMul", [f"{out}.rows", f"{out}.matrix"], [f"{out}.unbiased"])
        yield helper.make_node("Add", [f"{out}.unbiased", node.input[2]], [f"{out}.product"])


def _constant(name: str, values: list[int]) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)
