"""The encoders in other precisions than float32: one function, one file a family.

| precision | what it is | where |
| --- | --- | --- |
| fp16, bf16 | a strongly typed graph: weights and products in 16 bits, features float32; for TensorRT | `typed.py` |
| int8 | products of 8-bit integers with a scale for each row, for ONNX Runtime on a CPU | `quantise.py` |
| fp8, int8-qdq | the fp16 graph with products in 8 bits by static scales; for TensorRT | `qdq.py`, `ranges.py` |
"""

from collections.abc import Iterator, Sequence
from typing import cast, get_args

from dissonance.bundle import Precision, StaticPrecision
from dissonance.export.onnx import Graph
from dissonance.export.qdq import with_qdq
from dissonance.export.quantise import quantised
from dissonance.export.ranges import Samples, largest_inputs
from dissonance.export.typed import typed


def in_precisions(graph: Graph, precisions: Sequence[Precision], *, float32: bytes, samples: Samples | None) -> Iterator[tuple[Precision, bytes]]:
    """The ONNX file of an encoder in each of these; `float32` is its file in that one. `samples`: needed for fp8 and int8-qdq."""
    half, largest = b"", dict[str, float]()
    for precision in precisions:
        if precision == "int8":
            yield precision, quantised(float32)
        elif precision == "bf16":
            yield precision, typed(graph, precision)
        elif precision == "fp16":
            half = half or typed(graph, "fp16")
            yield precision, half
        elif precision in get_args(StaticPrecision):
            assert samples is not None
            half = half or typed(graph, "fp16")
            largest = largest or largest_inputs(half, samples.feeds(graph))
            yield precision, with_qdq(half, cast(StaticPrecision, precision), largest)
        else:
            raise AssertionError(precision)
