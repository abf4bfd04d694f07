"""TensorRT and TensorRT-RTX: which is here, and is it one that this release works with? The module is a value; nothing else knows its name.

Either library can end the process that loads it, so `probe_library` asks in a process of its own, which runs this module.
"""

import contextlib
import importlib
import json
import re
import subprocess
import sys
from typing import Any, Literal, cast, get_args

from dissonance.errors import EnvironmentMissingError, UsageError, missing_extra

Flavour = Literal["tensorrt", "tensorrt_rtx"]
TITLES: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
# NVIDIA's package re-exports its bindings under a shorter name; a machine may have the bindings alone.
MODULES: dict[Flavour, tuple[str, ...]] = {"tensorrt": ("tensorrt", "tensorrt_bindings"), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
EXTRAS: dict[Flavour, str] = {"tensorrt": "gpu", "tensorrt_rtx": "rtx"}
VERSIONS: dict[Flavour, tuple[tuple[int, int], tuple[int, int] | None]] = {
    "tensorrt": ((10, 13), (12, 0)),
    "tensorrt_rtx": ((1, 1), None),
}  # from, below
RTX_TARGETS = ("7.5", "8.0", "8.6", "8.9", "12.0")  # compute capabilities; data-centre chips (9.0, 10.0) are flavour tensorrt's
PROBE_TIMEOUT_S = 120.0


class MissingLibraryError(EnvironmentMissingError):
    """The library is not installed (one that is, and cannot be used, is an EnvironmentMissingError only)."""


def parse_flavour(name: str) -> Flavour:
    """A flavour by its name. Raises UsageError."""
    if name not in get_args(Flavour):
        raise UsageError(f"Invalid --flavour '{name}'. Supported values are {', '.join(get_args(Flavour))}.")
    return cast(Flavour, name)


def load_library(flavour: Flavour) -> Any:
    """Import a flavour's module into this process. Raises MissingLibraryError, or EnvironmentMissingError where it does not load or fit."""
    install = f"Install it with: pip install 'dissonance[{EXTRAS[flavour]}]'"
    for name in MODULES[flavour]:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError) as error:
            raise EnvironmentMissingError(f"{TITLES[flavour]} is installed and does not load: {error}. {install}") from error
        check_version(flavour, str(module.__version__))
        return module
    raise MissingLibraryError(str(missing_extra(MODULES[flavour][0], EXTRAS[flavour], TITLES[flavour])))


def check_version(flavour: Flavour, version: str) -> None:
    """Raise EnvironmentMissingError unless this release works with that version."""
    first, end = VERSIONS[flavour]
    numbers = re.match(r"(\d+)\.(\d+)", version)
    found = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if found < first or (end is not None and found >= end):
        wanted = f"{first[0]}.{first[1]} or later" + (f", below {end[0]}.{end[1]}" if end else "")
        raise EnvironmentMissingError(
            f"{TITLES[flavour]} {version} is installed; this release works with {wanted}. "
            f"Install one that fits with: pip install 'dissonance[{EXTRAS[flavour]}]'"
        )


def probe_library(flavour: Flavour) -> str:
    """The version that is installed, asked in a process of its own. Raises as `load_library`, and EnvironmentMissingError where that process dies."""
    command = [sys.executable, "-P", "-m", "dissonance.engine.runtime.tensorrt_library", flavour]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentMissingError(f"{TITLES[flavour]} does not load within {PROBE_TIMEOUT_S:.0f} seconds. Install it again.") from error
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        reason = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
        raise EnvironmentMissingError(
            f"Loading {TITLES[flavour]} ends the process ({reason}): {done.stderr.strip()[-300:]}. Install it again."
        ) from error
    if "version" in answer:
        return str(answer["version"])
    raise (MissingLibraryError if answer["missing"] else EnvironmentMissingError)(answer["error"])


def _answer(flavour: Flavour) -> dict[str, Any]:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return {"version": str(load_library(flavour).__version__)}
    except EnvironmentMissingError as error:
        return {"error": str(error), "missing": isinstance(error, MissingLibraryError)}


if __name__ == "__main__":
    print(json.dumps(_answer(parse_flavour(sys.argv[1]))), flush=True)  # noqa: T201
