"""Find the fastest tiling of `match_fuse` on the GPU that is here: `python -m dissonance.kernels.tune_match_fuse --type bf16 --frames 32`.

Prints the choice as JSON and remembers it (`dissonance.kernels.tuning`). Needs an NVIDIA GPU.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product

import torch

from dissonance.errors import EnvironmentMissingError
from dissonance.kernels.match_fuse import Options, match_fuse
from dissonance.kernels.packing import Packing
from dissonance.kernels.survey import TYPES
from dissonance.kernels.tiling import Tiling
from dissonance.kernels.tuning import cache_file, size_key, tune
from dissonance.kernels.weights import FusionWeights

ROWS = 1 << 19  # enough to fill any GPU; rows and results are over a gigabyte, far more than its caches


def candidates(default: Tiling) -> Iterator[Tiling]:
    """The default first, then what differs from it in tiles, warps and pipeline; all that a kernel can be launched with, fast or slow."""
    yield default
    for columns, outputs, kept, warps, stages in product((16, 32, 64), (32, 64, 128), (64, 128), (4, 8), (2, 3)):
        tiling = replace(default, block_n=columns, block_h=outputs, block_u=kept, warps=warps, stages=stages)
        if tiling != default:
            yield tiling


def main(arguments: list[str]) -> None:
    """Measure one size."""
    parser = argparse.ArgumentParser(prog="dissonance.kernels.tune_match_fuse", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--type", choices=sorted(TYPES), default="bf16")
    for name, size, what in (("dim", 256, "D"), ("outputs", 256, "H"), ("frames", 32, "T"), ("max-lag", 8, "largest lag")):
        parser.add_argument(f"--{name}", type=int, default=size, help=what)
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise EnvironmentMissingError("Tuning a kernel needs an NVIDIA GPU; PyTorch finds none here.")
    dtype, windows = TYPES[chosen.type], ROWS // chosen.frames
    v, a = (torch.randn(windows, chosen.frames, chosen.dim, device="cuda", dtype=dtype) for _ in range(2))
    weight = torch.randn(chosen.outputs, 4 * chosen.dim + 2, device="cuda", dtype=dtype)
    weights = FusionWeights.pack(weight, weight[:, 0], dim=chosen.dim)
    packing = Packing.uniform(windows, chosen.frames, device="cuda")
    default = Tiling.default(torch.cuda.get_device_capability(), dtype=dtype, dim=chosen.dim, outputs=chosen.outputs)
    key = size_key("match_fuse", dtype=dtype, dim=chosen.dim, outputs=chosen.outputs, longest=chosen.frames)

    def launch(tiling: Tiling) -> object:
        return match_fuse(v, a, None, weights, Options(0.07, chosen.max_lag, tiling=tiling), packing)

    best = tune(cache_file(torch.cuda.get_device_name()), key, candidates(default), launch)
    sys.stdout.write(json.dumps({"size": key, **asdict(best)}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
