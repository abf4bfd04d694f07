"""Windows to try kernels on: odd lengths, masks, and shared sounds."""

from typing import NamedTuple

import torch
from torch import Tensor

from dissonance.kernels.packing import Packing

# Where there is a GPU the same tests run on it; elsewhere Triton interprets the kernels (tests/conftest.py).
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = [1, 7, 31, 32, 33, 75]


class Case(NamedTuple):
    visual: Tensor
    audio: Tensor
    mask: Tensor | None
    weight: Tensor
    bias: Tensor
    packing: Packing


def make_case(
    packing: Packing, *, dim: int, outputs: int, dtype: torch.dtype = torch.float32, valid: float = 1.0, parts: int = 4, seed: int = 0
) -> Case:
    """Rows of random lengths around 3 sqrt(dim); `valid` of the frames are; W such that z has deviation near 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def tensor(value: Tensor) -> Tensor:
        return value.to(DEVICE, dtype)

    mask = None if valid == 1.0 else (torch.rand(packing.rows, generator=generator) < valid).to(DEVICE)
    rows, sounds = 3 * normal(packing.rows, dim), 3 * normal(packing.sound_rows, dim)
    return Case(tensor(rows), tensor(sounds), mask, tensor(normal(outputs, parts * dim + 2)), tensor(normal(outputs)), packing)


def packed(lengths: list[int], **kwargs: Tensor) -> Packing:
    return Packing.of_lengths(torch.tensor(lengths, device=DEVICE), **{name: value.to(DEVICE) for name, value in kwargs.items()})


def on_cpu(case: Case) -> Case:
    """The same case for a reference on a CPU, in float64."""
    packing = Packing(**{name: value.cpu() if isinstance(value, Tensor) else value for name, value in vars(case.packing).items()})
    visual, audio, weight, bias = (tensor.double().cpu() for tensor in (case.visual, case.audio, case.weight, case.bias))
    return Case(visual, audio, None if case.mask is None else case.mask.cpu(), weight, bias, packing)


def rms_ratio(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected|| in float64; NaN does not pass."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return ((found - expected).norm() / expected.norm().clamp(min=1e-300)).item() if expected.numel() else 0.0
