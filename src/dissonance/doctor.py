"""What is usable on this machine, and why what is not, is not (`dissonance doctor`)."""

import importlib
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Literal

from dissonance.bundle import list_bundles, open_bundle
from dissonance.engine.runtime.tensorrt_library import Flavour, MissingLibraryError, probe_library
from dissonance.errors import DissonanceError
from dissonance.machine import available_cores, find_gpus, find_nvdec, is_installed

Verdict = Literal["ok", "missing", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    name: str
    verdict: Verdict
    detail: str
    needed_for: str

    def as_row(self) -> dict[str, str]:
        """For --json."""
        return asdict(self)


def _python() -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}, {available_cores()} cores"


def _pyav() -> str:
    import av

    version = ".".join(str(part) for part in av.library_versions["libavcodec"])
    wanted = ("h264", "hevc", "vp9", "av1", "aac", "opus")
    absent = [name for name in wanted if name not in av.codecs_available]
    return f"av {av.__version__}, libavcodec {version}" + (f", without {', '.join(absent)}" if absent else "")


def _haar() -> str:
    import cv2

    from dissonance.config import DetectorConfig
    from dissonance.engine.media.detect import make_detector

    make_detector(DetectorConfig())
    return f"OpenCV {cv2.__version__} with its frontal face cascade"


def _onnxruntime() -> str:
    ort = importlib.import_module("onnxruntime")
    return f"{ort.__version__}: {', '.join(ort.get_available_providers())}"


def _isolation() -> str:
    from dissonance.engine.scan.confine import EVERYTHING

    command = [sys.executable, "-P", "-m", "dissonance.engine.scan.confine"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the trial ended with exit status {done.returncode}: {done.stderr.strip()[-200:]}")
    in_force = json.loads(done.stdout)
    if absent := [name for name in EVERYTHING if name not in in_force]:
        raise RuntimeError(f"without {', '.join(absent)} (this system refuses it)")
    return ", ".join(in_force)


def _module(name: str, distribution: str | None = None) -> Callable[[], str]:
    def look() -> str:
        if not is_installed(name):
            raise ModuleNotFoundError(f"the Python module '{name}' is not installed")
        try:
            return metadata.version(distribution or name)
        except metadata.PackageNotFoundError:
            return "installed"

    return look


def _driver() -> str:
    try:
        found = find_gpus()
    except FileNotFoundError as error:
        raise ModuleNotFoundError(str(error)) from error
    return f"{len(found)} GPU(s)" + "".join(f", {gpu.name} (compute capability {gpu.compute_capability})" for gpu in found)


def _nvdec() -> str:
    try:
        return find_nvdec()
    except FileNotFoundError as error:
        raise ModuleNotFoundError(str(error)) from error


def _tensorrt(flavour: Flavour) -> Callable[[], str]:
    def look() -> str:
        try:
            return probe_library(flavour)
        except MissingLibraryError as error:
            raise ModuleNotFoundError(f"the Python module '{flavour}' is not installed") from error

    return look


def _bundle(name: str) -> Callable[[], str]:
    def look() -> str:
        bundle = open_bundle(name)
        return f"preset {bundle.spec.model.preset}, {bundle.warning or 'trained on ' + bundle.spec.trained_on}"

    return look


def examine() -> list[Finding]:
    """Look for everything; never raises."""
    checks: list[tuple[str, Callable[[], str], str, str]] = [
        ("python", _python, "everything", ""),
        ("pyav", _pyav, "reading media", "pip install av"),
        ("haar", _haar, "finding faces (--detector haar)", "pip install 'opencv-python-headless<5'"),
        ("isolation", _isolation, "confining decode workers", "scan files that you do not trust on Linux 5.13 or later, x86_64 or aarch64"),
        ("onnxruntime", _onnxruntime, "scanning; --detector yunet", "pip install 'dissonance[cpu]'"),
        ("torch", _module("torch"), "export, training, scan --runtime torch", "pip install 'dissonance[export]'"),
        ("triton", _module("triton"), "the kernels: training on a GPU with matching: triton", "pip install 'dissonance[gpu]'"),
        ("onnx export", _module("onnxscript"), "export", "pip install 'dissonance[export]'"),
        ("nvidia driver", _driver, "GPU work", "install NVIDIA's driver"),
        ("tensorrt", _tensorrt("tensorrt"), "build, on the GPU that the plan is for; scan --runtime tensorrt", "pip install 'dissonance[gpu]'"),
        (
            "tensorrt_rtx",
            _tensorrt("tensorrt_rtx"),
            "build for RTX GPUs, with or without one; scan --runtime tensorrt",
            "pip install 'dissonance[rtx]'",
        ),
        ("dali", _module("nvidia.dali", "nvidia-dali-cuda130"), "scan --decoder dali, on a GPU", "pip install 'dissonance[gpu]'"),
        ("nvdec", _nvdec, "scan --decoder dali", "install NVIDIA's driver"),
        ("cuda-python", _module("cuda.bindings", "cuda-bindings"), "scan --runtime tensorrt", "pip install cuda-python"),
        *((f"bundle {name}", _bundle(name), "scanning", "reinstall the package") for name in list_bundles()),
    ]
    return [_examine(*check) for check in checks]


def _examine(name: str, look: Callable[[], str], needed_for: str, remedy: str) -> Finding:
    try:
        return Finding(name, "ok", look(), needed_for)
    except (ModuleNotFoundError, ImportError) as error:
        return Finding(name, "missing", f"{error}; {remedy}", needed_for)
    except (DissonanceError, RuntimeError, OSError) as error:
        return Finding(name, "broken", f"{error}; {remedy}", needed_for)
