"""The stages of a scan as NVTX ranges, which NVIDIA Nsight Systems shows in time, thread by thread: what overlaps, and what waits for what.

`nsys profile --trace cuda,nvtx dissonance scan ...`. Without the module nvtx, of the extra `gpu`, they are nothing. Decoding is in other processes.
"""

import contextlib
import importlib
from collections.abc import Callable
from typing import Any, Literal, TypeVar

Stage = Literal["receive", "encode frames", "encode sound", "match and fuse", "decide", "write"]
Result = TypeVar("Result")


def _load() -> Any:
    try:
        return importlib.import_module("nvtx")
    except ImportError:
        return None


_nvtx = _load()


def stage(name: Stage) -> contextlib.AbstractContextManager[Any]:
    """A range around what is done inside."""
    if _nvtx is None:
        return contextlib.nullcontext()
    found: contextlib.AbstractContextManager[Any] = _nvtx.annotate(name, domain="dissonance")
    return found


def staged(name: Stage, call: Callable[..., Result]) -> Callable[..., Result]:
    """The call inside a range, in whichever thread it is made."""

    def run(*arguments: Any) -> Result:
        with stage(name):
            return call(*arguments)

    return run
