"""How the kernels are cut into tiles: defaults for each kind of GPU, and what was measured as fastest on this one (`tuning.py`)."""

from dataclasses import dataclass, replace
from typing import Self

import torch
import triton


@dataclass(frozen=True)
class Tiling:
    """Sizes of tiles, all powers of two from 16."""

    block_m: int  # rows a program owns
    block_n: int  # columns of S at a time
    block_h: int  # outputs of W at a time
    block_k: int  # columns of v, a, u and W in one product
    block_u: int  # columns of u kept on the chip
    warps: int  # of 32 threads
    stages: int  # of the software pipeline that loads ahead

    @classmethod
    def default(cls, capability: tuple[int, int], *, dtype: torch.dtype, dim: int, outputs: int) -> Self:
        """For a compute capability: the largest tiles found to compile without a spilled register for D up to 256, not chosen by timing.

        | inputs | GPU | block_m | block_n | block_h | block_k | block_u | warps | stages |
        | --- | --- | --- | --- | --- | --- | --- | --- | --- |
        | 16 bits | 9.0 | 128 | 32 | 64 | 32 | 128 | 8 | 2 |
        | 16 bits | others | 128 | 16 | 64 | 32 | 128 | 8 | 2 |
        | float32 | all | 64 | 16 | 32 | 32 | 64 | 8 | 2 |

        block_h, block_k and block_u are smaller where W and D are.
        """
        half = dtype != torch.float32
        return cls(
            block_m=128 if half else 64,
            block_n=32 if half and capability[0] == 9 else 16,
            block_h=_at_most(64 if half else 32, outputs),
            block_k=_at_most(32, dim),
            block_u=_at_most(128 if half else 64, dim),
            warps=8,
            stages=2,
        )

    def with_similarity(self) -> Self:
        """The same where S is written too, which takes registers: block_n 16."""
        return replace(self, block_n=16)

    @classmethod
    def default_backward(cls, capability: tuple[int, int], *, dtype: torch.dtype, dim: int, outputs: int) -> Self:
        """For the backward kernel: the forward's, but block_m and block_u 64 on GPUs other than 9.0. It streams no W, so few rows cost little."""
        tiling = cls.default(capability, dtype=dtype, dim=dim, outputs=outputs)
        return tiling if capability[0] == 9 else replace(tiling, block_m=64, block_u=min(64, tiling.block_u))


def _at_most(block: int, size: int) -> int:
    return int(min(block, max(16, triton.next_power_of_2(size))))
