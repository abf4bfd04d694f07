"""Which tiling is fastest on this GPU: measured once for a problem's size, on a GPU only, and remembered on disk.

`tune` measures; nothing else does, so a launch never stops to measure, and results do not change in their last digits because two runs measured
differently. Choices are JSON, one file a GPU and version of Triton, in `$XDG_CACHE_HOME/dissonance/kernels` (default `~/.cache`). Delete it to go
back to the defaults (`Tiling.default`).
"""

import json
import os
import platform
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
import triton

from dissonance.errors import EnvironmentMissingError
from dissonance.files import write_text
from dissonance.kernels.tiling import Tiling


class Launch(Protocol):
    """Something that runs a kernel with a tiling."""

    def __call__(self, tiling: Tiling, /) -> object: ...


def size_key(kernel: str, *, dtype: torch.dtype, dim: int, outputs: int, longest: int) -> str:
    """What a choice holds for: windows are put together by the power of two that their longest fits into."""
    return f"{kernel} {str(dtype).removeprefix('torch.')} D{dim} H{outputs} T{triton.next_power_of_2(max(longest, 1))}"


def cache_file(gpu: str) -> Path:
    """Where the choices for a GPU of this name are."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "dissonance" / "kernels" / f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu)}-triton{triton.__version__}-{platform.machine()}.json"


def chosen_tiling(device: torch.device, *, dtype: torch.dtype, dim: int, outputs: int, longest: int) -> Tiling:
    """What was measured as fastest on this GPU for the forward kernel at this size, or else the default."""
    found = None
    if device.type == "cuda":
        key = size_key("match_fuse", dtype=dtype, dim=dim, outputs=outputs, longest=longest)
        found = remembered(cache_file(torch.cuda.get_device_name(device))).get(key)
    return found or Tiling.default(capability_of(device), dtype=dtype, dim=dim, outputs=outputs)


def capability_of(device: torch.device) -> tuple[int, int]:
    """The compute capability; on a CPU, in Triton's interpreter, (9, 0)."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


@lru_cache(maxsize=8)
def remembered(path: Path) -> dict[str, Tiling]:
    """The choices in a file; none where it is missing or not what `tune` writes. Read once a process."""
    try:
        return {str(key): Tiling(**{name: int(size) for name, size in sizes.items()}) for key, sizes in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def tune(
    path: Path, key: str, candidates: Iterable[Tiling], launch: Launch, *, measure: Callable[[Callable[[], object]], float] | None = None
) -> Tiling:
    """Measure every candidate, remember the fastest for `key` in `path`, and return it. Candidates that do not fit the GPU are left out.

    `measure` gives the time of a call (None: the median of `triton.testing.do_bench`, which needs a GPU). Raises EnvironmentMissingError without one,
    RuntimeError where no candidate runs.
    """
    if measure is None:
        if not torch.cuda.is_available():
            raise EnvironmentMissingError("Tuning a kernel needs an NVIDIA GPU; PyTorch finds none here.")
        measure = _median_ms
    times: dict[Tiling, float] = {}
    for tiling in candidates:
        try:
            times[tiling] = measure(lambda tiling=tiling: launch(tiling))  # type: ignore[misc]
        except triton.runtime.errors.OutOfResources:
            continue
    if not times:
        raise RuntimeError(f"no tiling of {key} runs on this GPU")
    best = min(times, key=times.__getitem__)
    remembered.cache_clear()  # another process may have added to it
    choices = {**remembered(path), key: best}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({name: asdict(tiling) for name, tiling in sorted(choices.items())}, indent=1))
    remembered.cache_clear()
    return best


def _median_ms(call: Callable[[], object]) -> float:
    return float(triton.testing.do_bench(call, return_mode="median"))
