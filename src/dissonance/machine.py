"""What this machine is, and what it lends us."""

import ctypes
import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute of cuda.h


class Gpu(NamedTuple):
    """An NVIDIA GPU: its name as the driver has it, and its compute capability, as in "9.0"."""

    name: str
    compute_capability: str


def find_gpus() -> list[Gpu]:
    """The NVIDIA GPUs that this process may use, asked of the driver itself. Raises FileNotFoundError (no driver) or RuntimeError (it fails)."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise FileNotFoundError("no NVIDIA driver: libcuda.so.1 is not on this machine") from error

    def call(function: str, *arguments: object) -> None:
        if code := getattr(driver, function)(*arguments):
            raise RuntimeError(f"the NVIDIA driver answers {function} with error {code}")

    count, device, value, name = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    call("cuInit", 0)
    call("cuDeviceGetCount", ctypes.byref(count))
    found = []
    for number in range(count.value):
        call("cuDeviceGet", ctypes.byref(device), number)
        call("cuDeviceGetName", name, len(name), device)
        capability = []
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
            call("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
            capability.append(str(value.value))
        found.append(Gpu(name.value.decode(errors="replace"), ".".join(capability)))
    return found


def look_for_gpus() -> tuple[list[Gpu], str]:
    """`find_gpus`, and why there is none where there is none."""
    try:
        return find_gpus(), "the driver finds no NVIDIA GPU"
    except (FileNotFoundError, RuntimeError) as error:
        return [], str(error)


def find_nvdec() -> str:
    """The library of the driver that decodes video. Raises FileNotFoundError."""
    name = "libnvcuvid.so.1"
    try:
        ctypes.CDLL(name)
    except OSError as error:
        raise FileNotFoundError(f"NVDEC's {name} is not on this machine; in a container NVIDIA_DRIVER_CAPABILITIES must have video") from error
    return name


def is_installed(module: str) -> bool:
    """Whether a Python module is here, by its full name; it is not imported, but the packages that it is in are."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of such a package
        return False


def available_cores() -> int:
    """CPU cores this process may use: those of its affinity mask where the system has one, which a container may have narrowed."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine() -> str:
    """Its processor, for measurements: they hold on such a one."""
    model = "unknown CPU"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores"
