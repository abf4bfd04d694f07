"""Where the acceptance run is, and what it says of what cannot run there."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench._rows import Row
from dissonance.machine import is_installed


@dataclass
class Site:
    """Where and on what. `large` is off where kernels are interpreted."""

    device: str
    seed: int
    large: bool = True
    bytes_per_s: float = float("nan")
    flops_per_s: float = float("nan")

    def generator(self) -> torch.Generator:
        """Of random numbers on a CPU."""
        return torch.Generator().manual_seed(self.seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random numbers on the device; other ones every time."""
        self.seed += 1
        return torch.randn(shape, generator=self.generator()).to(self.device, dtype)


def skipped(name: str, why: str) -> Row:
    """A step that was not done."""
    return {"what": f"{name}: skipped", "value": None, "limit": None, "holds": None, "how": why}


def failed(name: str, error: Exception) -> Row:
    """A step that could not be done, and should have been."""
    return {"what": f"{name}: failed", "value": None, "limit": "to run", "holds": False, "how": f"{type(error).__name__}: {error}"[:500]}


def missing(*modules: str) -> str | None:
    """Which of these modules are not installed, as a reason; None where all are."""
    absent = [name for name in modules if not is_installed(name)]
    return f"needs {', '.join(absent)}, which is not installed" if absent else None
