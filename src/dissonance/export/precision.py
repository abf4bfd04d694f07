"""The encoders in other precisions than float32: one function, one file a family.

| precision | what it is | where |
| --- | --- | --- |
| fp16, bf16 | a strongly typed graph: weights and products in 16 bits, features float32 | `typed.py` |
| int8 | products of 8-bit integers with a scale for each row, for ONNX Runtime on a CPU | `quantise.py` |
"""

from dissonance.bundle import Precision
from dissonance.export.onnx import Graph
from dissonance.export.quantise import quantised
from dissonance.export.typed import typed


def in_precision(graph: Graph, precision: Precision, float32: bytes) -> bytes:
    """The ONNX file of an encoder in another precision; `float32` is its file in that one."""
    if precision == "int8":
        return quantised(float32)
    if precision in ("fp16", "bf16"):
        return typed(graph, precision)
    raise AssertionError(precision)
