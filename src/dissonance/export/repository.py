"""A bundle as a model repository that NVIDIA Triton Inference Server loads, and the check of one before a server starts. Imports no torch.

Each model's folder holds all that it needs: its config.pbtxt, and in `1/` its plan, its ONNX graph, or a `model.py` with the part of the bundle that
it reads.
`repository.json` has every file's SHA-256.
"""

import ctypes
import ctypes.util
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dissonance.bundle import Bundle, Precision, graph_file
from dissonance.config import ServeConfig
from dissonance.engine.media.detect import make_detector
from dissonance.engine.runtime.plans import PREFERRED, read_plan
from dissonance.engine.serve.interface import AUDIO, HEAD, VIDEO, VISUAL, WINDOWS
from dissonance.errors import BundleError, ConfigError, OutputError, UsageError, require_extra
from dissonance.files import replacing_folder, write_synced

Backend = Literal["python", "onnxruntime", "tensorrt"]
MANIFEST = "repository.json"
_CLASSES = {
    VISUAL: ("networks", "Visual"),
    AUDIO: ("networks", "Audio"),
    HEAD: ("networks", "Head"),
    WINDOWS: ("networks", "Windows"),
    VIDEO: ("endpoint", "Video"),
}
_GRAPHS = {VISUAL: "visual.onnx", AUDIO: "audio.onnx", HEAD: "head.onnx"}
_FLAVOUR = "tensorrt"  # Triton's backend runs these; TensorRT-RTX has no backend


@dataclass(frozen=True)
class Batches:
    """Rows of a network's batch: what it takes at most, and what it is fastest for."""

    largest: int
    preferred: int


@dataclass(frozen=True)
class Repository:
    """A repository that was written or checked."""

    path: Path
    bundle_id: str
    backend: Backend
    models: tuple[str, ...]
    tensorrt: str | None  # the version of TensorRT that its plans need


def make_repository(
    bundle: Bundle,
    out: Path,
    *,
    backend: Backend,
    config: ServeConfig,
    precision: Precision | None = None,
    plans: str | None = None,
    overwrite: bool = False,
) -> Repository:
    """Write the repository of a bundle: it is whole or not there.

    backend: python, the networks by ONNX Runtime inside Triton's Python backend, on a CPU; onnxruntime, the graphs on Triton's own backend; tensorrt,
    the encoders' plans on Triton's backend and the head by torch and the Triton kernel. precision: of the encoders; by default float32, of plans
    the first there are. plans: which folder of plans, where several would do.
    Raises UsageError, ConfigError, BundleError, EnvironmentMissingError, OutputError.
    """
    require_extra("serve", "Making a model repository", "tritonclient.grpc", "google.protobuf")
    from dissonance.export.model_configs import as_text, model_configs

    if out.exists() and not (overwrite and (out / MANIFEST).is_file()):
        remedy = "Choose another folder." if overwrite else "Choose another folder, or pass --overwrite to replace a repository."
        raise OutputError(f"'{out}' exists already. {remedy}")
    frames = bundle.spec.model.frames
    if config.max_batch < frames:
        raise ConfigError(f"max_batch {config.max_batch} is below a window's {frames} frames, which go through the visual encoder as one batch.")
    folder = _plans_folder(bundle, precision, plans) if backend == "tensorrt" else None
    precision = bundle.spec.plans[folder].precision if folder else precision or "float32"
    if precision not in bundle.spec.precisions or (folder is None and precision == "bf16"):
        raise BundleError(f"Bundle '{bundle.path}' has no {precision} graphs that can be served, only {', '.join(bundle.spec.precisions)}.")
    files = _network_files(bundle, backend, precision, folder) | _video_files(config)
    batches = {name: _batches(bundle, config, folder, graph) for name, graph in _GRAPHS.items()}
    configs = model_configs(bundle, config, backend=backend, precision=precision, batches=batches)
    for name, model in configs.items():
        files[f"{name}/config.pbtxt"] = as_text(model).encode()
        if model.backend == "python":
            module, kind = _CLASSES[name]
            files[f"{name}/1/model.py"] = f"from dissonance.engine.serve.{module} import {kind} as TritonPythonModel  # noqa: F401\n".encode()
    needed = bundle.spec.plans[folder].version if folder else None
    manifest = {
        "bundle_id": bundle.id,
        "backend": backend,
        "precision": precision,
        "tensorrt": needed,
        "models": sorted(configs),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
    }
    _write(out, {**files, MANIFEST: (json.dumps(manifest, indent=1) + "\n").encode()})
    return Repository(out, bundle.id, backend, tuple(sorted(configs)), needed)


def verify_repository(path: Path) -> Repository:
    """Check that a repository's files are those that were written, and no other; and its plans' version, where this machine has TensorRT's library.

    Raises BundleError.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        expected: dict[str, str] = manifest["sha256"]
        found = Repository(path, manifest["bundle_id"], manifest["backend"], tuple(manifest["models"]), manifest["tensorrt"])
    except OSError as error:
        raise BundleError(f"'{path}' is not a model repository: cannot read {MANIFEST}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"'{path}': {MANIFEST} is not what `dissonance repository` writes: {error!r}. Make the repository again.") from error
    present = {each.relative_to(path).as_posix() for each in path.rglob("*") if not each.is_dir() and "__pycache__" not in each.parts}
    for name in sorted(present | set(expected)):
        if name == MANIFEST:
            continue
        if name not in expected:
            raise BundleError(f"'{path}' holds '{name}', which `dissonance repository` did not write. Remove it, or make the repository again.")
        try:
            actual = hashlib.sha256((path / name).read_bytes()).hexdigest()
        except OSError as error:
            raise BundleError(f"'{path}': cannot read '{name}': {error.strerror or error}. Make the repository again.") from error
        if actual != expected[name]:
            raise BundleError(
                f"'{path}': '{name}' was changed: its SHA-256 is {actual}, {MANIFEST} says {expected[name]}. Make the repository again."
            )
    here = tensorrt_library_version() if found.tensorrt is not None else None
    if here is not None and here != ".".join(str(found.tensorrt).split(".")[:3]):
        raise BundleError(
            f"'{path}' has plans of TensorRT {found.tensorrt}; this machine's library is {here}, and would not load them. "
            "Build them in the server's image: dissonance build BUNDLE, then dissonance repository BUNDLE --backend tensorrt."
        )
    return found


def tensorrt_library_version() -> str | None:
    """Of the TensorRT library that a server on this machine would use, major.minor.patch; None where there is none."""
    for name in ("libnvinfer.so.10", "libnvinfer.so.11", ctypes.util.find_library("nvinfer")):
        try:
            number = int(ctypes.CDLL(name).getInferLibVersion()) if name else 0
        except (OSError, AttributeError):
            continue
        if number:
            return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return None


def _plans_folder(bundle: Bundle, precision: Precision | None, plans: str | None) -> str:
    """The folder of plans that is served. Raises UsageError, BundleError."""
    fitting = {name: plan for name, plan in bundle.spec.plans.items() if plan.flavour == _FLAVOUR and precision in (None, plan.precision)}
    if plans is not None:
        named = {name: plan for name, plan in fitting.items() if plans in (name, name.removeprefix("plans/"))}
        if not named:
            raise UsageError(f"Invalid --plans '{plans}'. Bundle '{bundle.path}' has: {', '.join(fitting) or '(no plans of TensorRT)'}.")
        fitting = named
    if not fitting:
        wanted = "" if precision is None else f" --precision {precision}"
        raise BundleError(
            f"Bundle '{bundle.path}' has no TensorRT plans that could be served. Build them on the server's GPU, with the TensorRT that its image "
            f"has: dissonance build {bundle.path}{wanted}"
        )
    best = min(PREFERRED.index(plan.precision) for plan in fitting.values())
    chosen = [name for name, plan in fitting.items() if PREFERRED.index(plan.precision) == best]
    if len(chosen) > 1:
        raise UsageError(f"Bundle '{bundle.path}' has several folders of plans; choose one with --plans: {', '.join(sorted(chosen))}.")
    return chosen[0]


def _batches(bundle: Bundle, config: ServeConfig, folder: str | None, graph: str) -> Batches:
    """Of one network: the config's, within the plan's profile where there is one."""
    if folder is None or graph == "head.onnx":
        return Batches(config.max_batch, config.max_batch)
    profile = bundle.spec.plans[folder].graphs[f"{graph.removesuffix('.onnx')}.plan"].profile
    least = bundle.spec.model.frames if graph == "visual.onnx" else 1
    if profile.max < least or profile.min > 1:
        raise BundleError(
            f"Bundle '{bundle.path}': '{folder}/{graph}' takes batches of {profile.min} to {profile.max}; serving needs 1 to {least} at least. "
            "Build the plans again with another profile (configs/build/default.yaml)."
        )
    return Batches(min(config.max_batch, profile.max), profile.opt)


def _network_files(bundle: Bundle, backend: Backend, precision: Precision, folder: str | None) -> dict[str, bytes]:
    """What the networks' folders hold besides config.pbtxt and model.py."""
    document = (bundle.path / "bundle.json").read_bytes()
    if hashlib.sha256(document).hexdigest() != bundle.id:
        raise BundleError(f"Bundle '{bundle.path}': bundle.json was changed since the bundle was opened. Try again.")
    files: dict[str, bytes] = {f"{name}/1/bundle.json": document for name in (WINDOWS, VIDEO)}
    for name, graph in _GRAPHS.items():
        if backend == "python":
            file = graph_file(graph, precision)
            files |= {f"{name}/1/bundle.json": document, f"{name}/1/{file}": bundle.read(file)}
        elif backend == "onnxruntime":
            files[f"{name}/1/model.onnx"] = bundle.read(graph_file(graph, precision))
        elif name == HEAD:
            files |= {f"{name}/1/bundle.json": document, f"{name}/1/weights.safetensors": bundle.read("weights.safetensors")}
        else:
            assert folder is not None
            files[f"{name}/1/model.plan"] = read_plan(bundle, folder, f"{graph.removesuffix('.onnx')}.plan")
    return files


def _video_files(config: ServeConfig) -> dict[str, bytes]:
    """The endpoint's settings, and the face detector's network where it has one."""
    detector = config.scan.detector
    if detector.kind == "boxes":
        raise UsageError("The detector 'boxes' is for files that are known before; a server needs haar or yunet (scan.detector.kind).")
    make_detector(detector)  # a wrong model file is told now
    missing = [str(folder) for folder in config.allowed_folders if not Path(folder).is_absolute()]
    if missing:
        raise ConfigError(f"allowed_folders: '{missing[0]}' is not an absolute path. Give the folder as the server sees it.")
    data: dict[str, Any] = config.model_dump(mode="json")
    files: dict[str, bytes] = {}
    if detector.kind == "yunet" and detector.yunet_model is not None:
        files[f"{VIDEO}/1/yunet.onnx"] = Path(detector.yunet_model).read_bytes()
        data["scan"]["detector"]["yunet_model"] = "yunet.onnx"
    files[f"{VIDEO}/1/serve.json"] = (json.dumps(data, indent=1) + "\n").encode()
    return files


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    try:
        with replacing_folder(out) as staging:
            for name, data in files.items():
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                write_synced(staging / name, data)
    except OSError as error:
        raise OutputError(f"Cannot write '{out}': {error.strerror or error}. Free some space or choose another folder.") from error
