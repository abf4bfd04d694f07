"""The fusion's weights in the layout that kernels read."""

from typing import NamedTuple

import torch
from torch import Tensor


class FusionWeights(NamedTuple):
    """W and b as the kernel reads them: every part of W with rows of D numbers, aligned, which (H, 4D + 2) is not. Differentiable."""

    parts: Tensor  # (4, H, D): of v, a, v * a, u; (3, H, D) without u
    scalars: Tensor  # (2, H): of m, pi
    bias: Tensor  # (H,)

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor, *, dim: int, dtype: torch.dtype | None = None) -> "FusionWeights":
        """From `Fusion.proj`: `weight` (H, 4 dim + 2) or (H, 3 dim + 2), `bias` (H,), in `dtype` (None: as they are). Raises ValueError otherwise."""
        count = (weight.shape[1] - 2) // dim
        if weight.shape[1] != count * dim + 2 or count not in (3, 4):
            raise ValueError(f"Invalid weight {tuple(weight.shape)}. Supported are {4 * dim + 2} and {3 * dim + 2} columns for rows of {dim}.")
        parts = weight[:, : count * dim].unflatten(1, (count, dim)).transpose(0, 1)
        parts = parts[[0, 1, 3, 2] if count == 4 else [0, 1, 2]]
        return cls(parts.to(dtype).contiguous(), weight[:, count * dim :].t().to(dtype).contiguous(), bias.to(dtype).contiguous())
