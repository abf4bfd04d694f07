"""What every test may lean on: the shared clips and models, where they are to be found."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dissonance.machine import find_gpus

try:
    find_gpus()
except (FileNotFoundError, RuntimeError):
    os.environ["TRITON_INTERPRET"] = "1"  # without a GPU Triton interprets kernels on CPU tensors; read when triton is imported


def _shared_folder() -> Path | None:
    candidates = [Path(os.environ["DISSONANCE_SHARED"])] if "DISSONANCE_SHARED" in os.environ else []
    candidates.append(Path(__file__).resolve().parents[2] / "shared")
    return next((path for path in candidates if path.is_dir()), None)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real clips (media/) and the face detector (models/); skips where it is not to be found."""
    folder = _shared_folder()
    if folder is None:
        pytest.skip("real clips and models not found: set DISSONANCE_SHARED, or put them in ../shared")
    return folder


@pytest.fixture(scope="session")
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line as a user does."""

    def run(*arguments: object, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dissonance", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, **kwargs)

    return run
