"""Builds one plan, in a process of its own, which TensorRT may crash: a PlanJob as JSON on stdin, one line of JSON on stdout.

One code path for TensorRT 10.13 to 11.x and TensorRT-RTX: `trt` is the module. Networks are strongly typed, so precision is what the graph says; what
differs is that RTX is told which compute capability to build for, where TensorRT builds for the GPU that is here and keeps kernels' times.
"""

import contextlib
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Literal

from dissonance.config import Frozen, ProfileConfig
from dissonance.engine.runtime.tensorrt_library import TITLES, Flavour, load_library
from dissonance.errors import BundleError, DissonanceError, EnvironmentMissingError, OutputError
from dissonance.export.layer_report import LayerReport, as_document, from_inspector, from_log
from dissonance.files import write_synced

_NOISE = "catchCudaError"  # what a builder without a GPU says beside every error
_MIB = 2**20


class PlanJob(Frozen):
    """What one process builds."""

    flavour: Flavour
    graph: Path
    graph_sha256: str
    plan: Path  # the file to write; NAME.layers.json is written beside it
    compute_capability: str
    profile: ProfileConfig
    inspect: bool  # a GPU is here that can load the plan
    optimization_level: int
    workspace_mib: int | None
    timing_cache: Path | None
    version_compatible: bool
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"]
    refit: bool


class PlanResult(Frozen):
    """What came of it."""

    version: str
    sha256: str
    size_bytes: int
    build_s: float
    layers: int
    attentions: int
    attentions_fused: int
    types: dict[str, int]


def build_plan(trt: Any, job: PlanJob) -> PlanResult:
    """Build `job` with the module `trt`. Raises BundleError (the graph is refused) or OutputError (the plan cannot be written)."""
    data = _read_graph(job)
    log = _make_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(data):
        told = [parser.get_error(number).desc() for number in range(parser.num_errors)]
        raise BundleError(_refused(job, [*told, *log.errors]))
    attentions = sum(network.get_layer(number).type == trt.LayerType.SOFTMAX for number in range(network.num_layers))
    config = _configure(trt, builder, job)
    profile = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        shapes = [
            [size if dimension == -1 else dimension for dimension in tensor.shape] for size in (job.profile.min, job.profile.opt, job.profile.max)
        ]
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    started = time.monotonic()
    serialized = builder.build_serialized_network(network, config)
    build_s = time.monotonic() - started
    if serialized is None:
        raise BundleError(_refused(job, log.errors))
    if job.timing_cache is not None:
        _keep_timing_cache(config, job.timing_cache)
    report = _report(trt, log, serialized) if job.inspect else from_log(log.listing)
    plan = bytes(serialized)
    _write(job.plan, plan)
    _write(job.plan.with_suffix(".layers.json"), (json.dumps(as_document(report), indent=1) + "\n").encode())
    return PlanResult(
        version=str(trt.__version__),
        sha256=hashlib.sha256(plan).hexdigest(),
        size_bytes=len(plan),
        build_s=build_s,
        layers=len(report.layers),
        attentions=attentions,
        attentions_fused=report.attentions_fused,
        types=report.types,
    )


def _read_graph(job: PlanJob) -> bytes:
    """The graph's bytes, those that were hashed: weights in other files would not be, and are not found (see `parser.parse`)."""
    try:
        data = job.graph.read_bytes()
    except OSError as error:
        raise BundleError(f"Cannot read '{job.graph}': {error.strerror or error}. Export the bundle again.") from error
    if hashlib.sha256(data).hexdigest() != job.graph_sha256:
        raise BundleError(f"'{job.graph}' was changed since the bundle was opened. Export the bundle again.")
    return data


def _configure(trt: Any, builder: Any, job: PlanJob) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = job.optimization_level
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: a float32 graph means float32
    if job.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace_mib * _MIB)
    if job.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if job.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if job.flavour == "tensorrt_rtx":
        name = "SM" + job.compute_capability.replace(".", "")
        capability = getattr(trt.ComputeCapability, name, None)
        if capability is None:
            raise EnvironmentMissingError(
                f"TensorRT-RTX {trt.__version__} does not build for compute capability {job.compute_capability}. Update it."
            )
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(capability, 0):
            raise EnvironmentMissingError(f"TensorRT-RTX {trt.__version__} refuses compute capability {job.compute_capability}. Update it.")
        return config
    if job.hardware_compatibility != "none":
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, job.hardware_compatibility.upper())
    if job.timing_cache is not None:
        known = b""
        with contextlib.suppress(OSError):
            known = job.timing_cache.read_bytes()
        cache = config.create_timing_cache(known)
        if cache is None or not config.set_timing_cache(cache, False):  # damaged, or of another version
            config.set_timing_cache(config.create_timing_cache(b""), False)
    return config


def _keep_timing_cache(config: Any, path: Path) -> None:
    """Losing it costs time only, so a folder that cannot be written is no error."""
    staging = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging.write_bytes(bytes(config.get_timing_cache().serialize()))
        staging.replace(path)


def _report(trt: Any, log: Any, serialized: Any) -> LayerReport:
    engine = trt.Runtime(log).deserialize_cuda_engine(serialized)
    if engine is None:
        raise BundleError(f"TensorRT built a plan that it does not load: {_told(log.errors)}. Update the library or the driver.")
    found = from_inspector(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
    return found if found.layers else from_log(log.listing)


def _make_log(trt: Any) -> Any:
    """A logger that keeps errors and the listing of layers, and prints nothing."""
    severity = trt.ILogger.Severity
    grave = (severity.ERROR, severity.INTERNAL_ERROR)

    class Log(trt.ILogger):  # type: ignore[misc]
        """Where the library's lines go."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.listing: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Called by the library."""
            if severity in grave:
                self.errors.append(message)
            elif "LayerType: " in message:
                self.listing.append(message)

    return Log()


def _refused(job: PlanJob, errors: list[str]) -> str:
    """The message for a graph that the library refuses."""
    told, name = _told(errors), f"{TITLES[job.flavour]} refuses {job.graph.name}"
    everything = " ".join(errors)
    if "same input types" in everything or "same type" in everything:
        return f"{name}: it mixes types where the network is strongly typed ({told}). Export the bundle again with this release."
    if "Failed to open file" in everything or "Failed to import initializer" in everything:
        return f"{name}: its weights are in another file ({told}); a bundle's graphs hold their own. Export the bundle again with this release."
    if "HW-specific datatypes" in everything:
        return f"{name}: compute capability {job.compute_capability} lacks one of its types ({told}). Choose another --precision."
    if "MIN<=OPT<=MAX" in everything:
        return f"{name}: the profile {job.profile} does not fit it ({told}). Mend frames or windows in --config."
    if "insufficient memory" in everything.lower() or "outofmemory" in everything.lower().replace(" ", ""):
        return f"{name}: there is too little GPU memory ({told}). Lower workspace_mib or max of the profile in --config."
    return f"{name}: {told}. Export the bundle again with this release; should it stay so, try another version of the library."


def _told(errors: list[str]) -> str:
    """The first thing that the library said, in one line; it repeats itself."""
    lines = [line.strip() for error in errors for line in error.splitlines() if line.strip() and _NOISE not in line]
    return (max(lines[:2], key=len) if lines else "it gave no reason")[:400].rstrip(".")


def _write(path: Path, data: bytes) -> None:
    try:
        write_synced(path, data)
    except OSError as error:
        raise OutputError(f"Cannot write '{path}': {error.strerror or error}. Free some space, then build again.") from error


def _main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the libraries print to stdout
    job = PlanJob.model_validate_json(sys.stdin.buffer.read())
    try:
        answer: dict[str, Any] = {"result": build_plan(load_library(job.flavour), job).model_dump(mode="json")}
    except DissonanceError as error:
        answer = {"kind": type(error).__name__, "error": str(error)}
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _main()
