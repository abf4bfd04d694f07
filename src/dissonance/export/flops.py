"""What a graph costs: floating-point operations and parameters."""

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dissonance.export.onnx import Graph


class Cost(NamedTuple):
    """Of one frame or one window. flops: of products and convolutions, a multiplication and an addition each. parameters: constants included."""

    flops: int
    parameters: int


def cost_of(graph: Graph, module: nn.Module) -> Cost:
    """What one frame or window costs in this module, which takes a graph's inputs."""
    example = graph.example(1, torch.Generator().manual_seed(0))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module(*example)
    tensors = [*module.parameters(), *module.buffers()]
    return Cost(counter.get_total_flops(), sum(tensor.numel() for tensor in tensors))
