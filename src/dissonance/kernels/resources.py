"""What a kernel takes of a GPU, without one: it is compiled ahead of time, and its machine code read with the tools inside Triton.

Registers, stack and shared memory are the assembler's own figures. Loads and stores of local memory (LDL, STL) are spilled registers; HMMA and
HGMMA are the products on matrix units. Works only where TRITON_INTERPRET is not set: what is interpreted is not compiled.
"""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dissonance.errors import EnvironmentMissingError

# Compute capabilities that are compiled for, with the bytes of shared memory that a program may have there (CUDA C++ Programming Guide, table of
# technical specifications, less the KiB that the system keeps).
SHARED_LIMITS = {(8, 0): 163 * 1024, (8, 9): 99 * 1024, (9, 0): 227 * 1024, (12, 0): 99 * 1024}

_TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_COUNTED = ("HMMA", "HGMMA", "LDL", "STL")


@dataclass(frozen=True)
class Resources:
    """Of one compiled kernel, a thread or a program."""

    registers: int  # a thread
    stack_bytes: int  # a thread
    shared_bytes: int  # a program
    instructions: Mapping[str, int]  # how often each of HMMA, HGMMA, LDL, STL stands in the machine code


def compile_for(
    kernel: Any, capability: tuple[int, int], types: Mapping[str, str], constants: Mapping[str, object], *, warps: int, stages: int
) -> Resources:
    """Compile a `triton.jit` function whose run-time arguments have `types` ("*fp16", "i32", "fp32"); pointers aligned to 16 bytes.

    Raises EnvironmentMissingError where kernels are interpreted in this process.
    """
    if triton.knobs.runtime.interpret:
        raise EnvironmentMissingError("Kernels are interpreted in this process and cannot be compiled. Unset TRITON_INTERPRET.")
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    aligned: dict[Any, Any] = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*")}
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    source = ASTSource(kernel, signature, dict(constants), aligned)
    compiled = triton.compile(source, target=target, options={"num_warps": warps, "num_stages": stages})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (_read(option, file.name) for option in ("-res-usage", "-sass"))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump gives no resource usage: {usage[:200]!r}")
    counts = {name: len(re.findall(rf"\s{name}\b", code)) for name in _COUNTED}
    return Resources(int(found[1]), int(found[2]), compiled.metadata.shared, counts)


def _read(option: str, path: str) -> str:
    return subprocess.run([str(_TOOL), option, path], capture_output=True, text=True, check=True).stdout
