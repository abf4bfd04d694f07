"""Rung `kernels`: what the Triton kernels take of every kind of GPU, and what `match_fuse` must move and compute, beside plain PyTorch. Needs no GPU.

Kernels are compiled ahead of time for each compute capability; registers, shared memory and matrix instructions are read from the machine code. The
plain version's bytes are counted on the model's own functions, every operation that PyTorch runs reading its inputs and writing its outputs once.
"""

import json
import os

os.environ.pop("TRITON_INTERPRET", None)  # read when triton is imported; what is interpreted cannot be compiled

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bench._rows import Row, at_most, measured, tell
from dissonance.kernels.costs import (
    H100,
    Problem,
    bound_s,
    crop_bytes,
    crop_operations,
    device_bytes,
    executed_operations,
    l2_bytes,
    mel_bytes,
    operations,
)
from dissonance.kernels.crop_resize_normalize import CropTiling
from dissonance.kernels.resources import SHARED_LIMITS
from dissonance.kernels.survey import SIDE_PX, survey
from dissonance.kernels.tiling import Tiling
from dissonance.model.matching import fuse, match

WINDOWS = 64
PROBLEM = Problem(frames=32, dim=256, outputs=256, max_lag=8)


def run() -> list[Row]:
    """About two minutes on two cores."""
    return [*resources(), *costs(), *crop_and_mel_costs()]


def resources() -> list[Row]:
    """One row a kernel, type and kind of GPU: how many bytes of registers spill."""
    rows = []
    for found in survey(["fp16", "bf16", "fp32"], list(SHARED_LIMITS)):
        used = found.resources
        tell(f"{found.kernel} {found.dtype} {found.capability}")
        matrix = ", ".join(f"{used.instructions[name]} {name}" for name in ("HMMA", "HGMMA") if used.instructions[name]) or "no products"
        how = f"{used.registers} registers, {used.shared_bytes} of {found.shared_limit_bytes} bytes shared, {matrix}"
        spilled = used.stack_bytes + used.instructions["LDL"] + used.instructions["STL"]
        rows.append(at_most(f"{found.kernel}, {found.dtype}, sm_{found.capability}: spilled (bytes, loads, stores)", spilled, 0, how))
    return rows


def costs() -> list[Row]:
    """Of one window of the base preset in 16 bits."""
    tiling = Tiling.default((9, 0), dtype=torch.bfloat16, dim=PROBLEM.dim, outputs=PROBLEM.outputs)
    plain_bytes, plain_operations = plain()
    bound, moved, computed = bound_s(PROBLEM, H100), device_bytes(PROBLEM), operations(PROBLEM)
    by_memory, by_products = moved / H100.bytes_per_s, computed / H100.flops_per_s
    plain_bound = max(plain_bytes / H100.bytes_per_s, plain_operations / H100.flops_per_s)
    limits = f"memory {by_memory * 1e9:.1f}, products {by_products * 1e9:.1f}; nothing has been timed"
    size = f"T {PROBLEM.frames}, D {PROBLEM.dim}, H {PROBLEM.outputs}, 16 bits"
    shared = device_bytes(Problem(**{**vars(PROBLEM), "tracks": 4}))
    return [
        measured("match_fuse: KB a window through device memory", moved / 1e3, size),
        measured("the same with 4 tracks to a sound", shared / 1e3, "the sound is read once for all of them"),
        measured("plain PyTorch: KB a window through device memory", plain_bytes / 1e3, "inputs and outputs of every operation of match and fuse"),
        at_most("match_fuse / plain PyTorch, bytes", moved / plain_bytes, 0.25, size),
        measured("match_fuse: MFLOP a window, needed", computed / 1e6, "the closed form"),
        measured("plain PyTorch: MFLOP a window", plain_operations / 1e6, "PyTorch's own count"),
        measured("match_fuse: MFLOP a window, executed", executed_operations(PROBLEM, tiling) / 1e6, "tiles of S over several windows"),
        measured("bound on an H100: ns a window", bound * 1e9, limits),
        measured("plain PyTorch's bound on an H100: ns a window", plain_bound * 1e9, "the same"),
        measured("match_fuse: KB a window asked of the L2 cache", l2_bytes(PROBLEM, tiling) / 1e3, "the default tiling for 9.0"),
    ]


def crop_and_mel_costs() -> list[Row]:
    """Of a crop and of a frame of mel."""
    rows = []
    for side in (200.0, 400.0):
        moved, computed = crop_bytes((side, side), SIDE_PX), crop_operations((side, side), SIDE_PX, CropTiling())
        limits = f"memory {moved / H100.bytes_per_s * 1e9:.0f}, products {computed / H100.flops_per_s * 1e9:.0f}; nothing has been timed"
        size = f"a face of {side:.0f} pixels to {SIDE_PX}, 16 bits"
        rows.append(measured(f"crop of {side:.0f} px: KB through device memory", moved / 1e3, size))
        rows.append(measured(f"crop of {side:.0f} px: MFLOP, executed", computed / 1e6, "both passes, weights in two parts"))
        rows.append(
            measured(f"crop of {side:.0f} px: bound on an H100, ns", max(moved / H100.bytes_per_s, computed / H100.flops_per_s) * 1e9, limits)
        )
    rows.append(measured("log_mel: bound on an H100, ns a second of sound", 100 * mel_bytes(80) / H100.bytes_per_s * 1e9, "80 bins; memory"))
    return rows


class _Bytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what operations read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func.namespace == "aten" and "_unsafe_view" not in func.name():
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


@torch.inference_mode()
def plain() -> tuple[float, float]:
    """Bytes and operations a window of the model's own functions, from features that are not yet of unit length; W's own bytes left out."""
    generator = torch.Generator().manual_seed(0)
    shape = (WINDOWS, PROBLEM.frames, PROBLEM.dim)
    v, a = (torch.randn(shape, generator=generator).bfloat16() for _ in range(2))
    weight = torch.randn(PROBLEM.outputs, PROBLEM.parts * PROBLEM.dim + 2, generator=generator).bfloat16()
    bias, mask = torch.zeros(PROBLEM.outputs).bfloat16(), torch.ones(shape[:2], dtype=torch.bool)
    with _Bytes() as moved, FlopCounterMode(display=False) as counted:
        v, a = torch.nn.functional.normalize(v, dim=-1), torch.nn.functional.normalize(a, dim=-1)
        fuse(v, a, match(v, a, mask, tau=0.07, max_lag=PROBLEM.max_lag), weight, bias)
    own = weight.numel() * weight.element_size()
    return (moved.total - own) / WINDOWS, counted.get_total_flops() / WINDOWS


if __name__ == "__main__":
    for row in run():
        print(json.dumps(row))
