"""Strongly typed graphs: weights, products and the stream between layers in fp16 or bf16, float32 where numbers are small or many are summed."""

import copy
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from dissonance.export.onnx import Graph, export_graph

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Typed(nn.Module):
    """An encoder in 16 bits: floating-point inputs are taken in its type, features are given in float32."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).to(dtype)

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        """As the encoder: pixels and frame_index, or mel and mask."""
        features: Tensor = self.module(first) if second is None else self.module(first, second)
        return features.float()


def typed(graph: Graph, precision: Literal["fp16", "bf16"]) -> bytes:
    """The ONNX file of an encoder in this precision."""
    dtype = DTYPES[precision]

    def example(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        return tuple(value.to(dtype) if value.is_floating_point() else value for value in graph.example(batch, generator))

    module = Typed(graph.module, dtype)
    return export_graph(replace(graph, module=module, original=module, example=example))
