"""What every kernel takes of every kind of GPU, compiled ahead of time with the default tilings: `python -m dissonance.kernels.survey`.

Prints JSON, one kernel, type and GPU a line. Sizes are the presets', also the largest that the defaults are made for: D 256, H 256, max_lag 8, crops
of 224 pixels, 128 bins and frames of mel. The type is the inputs', or what crops and mel windows are written in; the spectrum is fp32 always. Runs in
a process of its own wherever kernels are interpreted in the caller's.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from dissonance.kernels import crop_resize_normalize, log_mel, match_fuse, match_fuse_backward
from dissonance.kernels.resources import SHARED_LIMITS, Resources, compile_for
from dissonance.kernels.tiling import Tiling

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
DIM, OUTPUTS, MAX_LAG, SIDE_PX, BINS, MEL_FRAMES = 256, 256, 8, 224, 128, 128


@dataclass(frozen=True)
class Surveyed:
    """One kernel for one type on one kind of GPU."""

    kernel: str
    dtype: str
    capability: str  # "9.0"
    resources: Resources
    shared_limit_bytes: int
    products: bool  # whether it multiplies matrices

    def as_row(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def survey(
    dtypes: list[str], capabilities: list[tuple[int, int]], *, only: str | None = None, dim: int = DIM, outputs: int = OUTPUTS
) -> Iterator[Surveyed]:
    """Compile everything, or the kernel `only`; seconds a kernel. Raises EnvironmentMissingError where kernels are interpreted in this process."""
    for capability in capabilities:
        for dtype in dtypes:
            for each in _kernels(dtype, capability, dim, outputs):
                if only in (None, each.name):
                    found = compile_for(each.function, capability, each.types, each.constants, warps=each.warps, stages=each.stages)
                    yield Surveyed(each.name, dtype, "{}.{}".format(*capability), found, SHARED_LIMITS[capability], each.products)


class _Kernel(NamedTuple):
    """A kernel as it is launched. products: whether it multiplies matrices."""

    name: str
    function: Any
    types: dict[str, str]
    constants: dict[str, object]
    warps: int
    stages: int
    products: bool = True


def _kernels(dtype: str, capability: tuple[int, int], dim: int, outputs: int) -> Iterator[_Kernel]:
    tiling = Tiling.default(capability, dtype=TYPES[dtype], dim=dim, outputs=outputs)
    for name, tiles, write_z, write_s in (
        ("match_fuse", tiling, False, False),
        ("match_fuse in training", tiling, True, False),
        ("match_fuse with S", tiling.with_similarity(), False, True),
    ):
        constants = {
            **match_fuse.kernel_constants(tiles, dim=dim, outputs=outputs, max_lag=MAX_LAG, parts=4),
            "WRITE_Z": write_z, "WRITE_S": write_s, "PRECISION": "tf32x3",
        }  # fmt: skip
        yield _Kernel(name, match_fuse._match_fuse_kernel, match_fuse.argument_types(dtype), constants, tiles.warps, tiles.stages)
    tiling = Tiling.default_backward(capability, dtype=TYPES[dtype], dim=dim, outputs=outputs)
    types = match_fuse_backward.backward_argument_types(dtype)
    for name, of_sound in (("match_backward v", False), ("match_backward a", True)):
        constants = {**match_fuse_backward.backward_constants(tiling, dim=dim, max_lag=MAX_LAG), "OF_SOUND": of_sound, "PRECISION": "tf32x3"}
        yield _Kernel(name, match_fuse_backward._match_backward_kernel, types, constants, tiling.warps, tiling.stages)
    constants = {"MAX_LAG": MAX_LAG, "LAGS": match_fuse.padded_lags(MAX_LAG), "BLOCK": match_fuse.LAG_BLOCK}
    yield _Kernel("lag", match_fuse._lag_kernel, match_fuse.LAG_ARGUMENT_TYPES, constants, 1, 2, products=False)

    crop, types = crop_resize_normalize, crop_resize_normalize.crop_argument_types(dtype)
    crops = crop.DEFAULT_TILING
    yield _Kernel("crop", crop._crop_kernel, types, {**crop.crop_constants(crops, size_px=SIDE_PX)}, crops.warps, crops.stages)
    if dtype == "fp32":
        yield _Kernel("mel", log_mel._mel_kernel, log_mel.MEL_ARGUMENT_TYPES, {**log_mel.mel_constants(BINS)}, log_mel.WARPS, log_mel.STAGES)
    types, constants = log_mel.window_argument_types(dtype), {**log_mel.window_constants(BINS, size=MEL_FRAMES)}
    yield _Kernel("mel windows", log_mel._window_kernel, types, constants, log_mel.WARPS, log_mel.STAGES, products=False)


def main(arguments: list[str]) -> None:
    """Print the survey of the types and compute capabilities that are named."""
    parser = argparse.ArgumentParser(prog="dissonance.kernels.survey", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--types", nargs="+", choices=sorted(TYPES), default=["fp16"])
    parser.add_argument("--targets", nargs="+", default=["{}.{}".format(*capability) for capability in SHARED_LIMITS], help="such as 9.0")
    parser.add_argument("--only", metavar="KERNEL", help="one of the names that are printed (default: all)")
    chosen = parser.parse_args(arguments)
    capabilities = [(int(target.split(".")[0]), int(target.split(".")[1])) for target in chosen.targets]
    found = False
    for row in survey(chosen.types, capabilities, only=chosen.only):
        found = True
        sys.stdout.write(json.dumps(row.as_row()) + "\n")
        sys.stdout.flush()
    if not found:
        parser.error(f"there is no kernel '{chosen.only}' for {', '.join(chosen.types)}")


if __name__ == "__main__":
    main(sys.argv[1:])
