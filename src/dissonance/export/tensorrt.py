"""TensorRT plans for a bundle: what to build, each in a process of its own (`plan_child.py`), and into the bundle with them.

Flavour `tensorrt` builds on the GPU that the plan is for. Flavour `tensorrt_rtx` builds for named compute capabilities, with or without a GPU; what
such a build proves is that the parser takes the graph, its types, the profiles, and which attentions become one kernel on those chips.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from dissonance.bundle import ENCODERS, Bundle, PlanGraph, PlanSpec, Precision, add_plans, graph_file, is_shipped, open_bundle
from dissonance.config import BuildConfig
from dissonance.engine.runtime.own_plans import remember_own_plan
from dissonance.engine.runtime.tensorrt_library import RTX_TARGETS, TITLES, Flavour, probe_library
from dissonance.errors import BundleError, DissonanceError, EnvironmentMissingError, OutputError, UsageError
from dissonance.export.plan_child import PlanJob, PlanResult
from dissonance.locks import held
from dissonance.machine import Gpu, look_for_gpus

GRAPHS: dict[str, Literal["frames", "windows"]] = {
    "visual.onnx": "frames", "audio.onnx": "windows", "head.onnx": "windows", "head_tail.onnx": "windows",
}  # fmt: skip
HALF: tuple[Precision, ...] = ("fp16", "bf16")
BUILDABLE: tuple[Precision, ...] = (*HALF, "fp8", "int8-qdq", "float32")
SINCE = {"bf16": "8.0", "fp8": "8.9"}  # the first compute capability whose products have the type
CHILD = "dissonance.export.plan_child"
_ERRORS: dict[str, type[DissonanceError]] = {kind.__name__: kind for kind in (BundleError, EnvironmentMissingError, OutputError)}

Tell = Callable[[str], None]
Done = dict[tuple[str, str], tuple[Path, PlanGraph]]  # by compute capability and ONNX file: the plan's file, and what it is


def build_plans(
    name: str | Path,
    *,
    flavour: Flavour,
    targets: Collection[str] = (),
    precisions: Collection[Precision] = (),
    config: BuildConfig | None = None,
    progress: Tell | None = None,
) -> tuple[Bundle, list[str]]:
    """Build every graph of a bundle for each target and precision, and take the plans into the bundle, whose `id` changes with that.

    `targets`: compute capabilities, for tensorrt_rtx only; none: the GPU of this machine. `precisions`: of the encoders; none: fp16 and bf16, what
    the bundle has of them. The heads are float32 in all of them. Plans of the same name are replaced. Each folder enters the bundle when it is whole,
    so what is finished before an error stays. Returns the bundle and the folders that were built.
    Raises UsageError, BundleError, EnvironmentMissingError and OutputError.
    """
    tell, config = progress or (lambda _: None), config or BuildConfig()
    bundle = open_bundle(name)
    if is_shipped(bundle):
        raise UsageError(f"Bundle '{name}' ships with the package and is not written to. Copy '{bundle.path}' and build the copy.")
    chosen = _choose_precisions(bundle, precisions)
    _check_targets(flavour, targets)
    _check_types(targets, chosen, has=bundle.spec.precisions)
    _check_options(flavour, config)
    version = probe_library(flavour)
    gpu = _find_gpu(flavour, targets, config)
    capabilities = list(dict.fromkeys(targets))
    if gpu and not capabilities:
        capabilities = [gpu.compute_capability]
        _check_types(capabilities, chosen, has=bundle.spec.precisions)
    tell(f"{TITLES[flavour]} {version}, " + (f"on {gpu.name} (compute capability {gpu.compute_capability})" if gpu else "without a GPU"))
    specs = [
        PlanSpec(
            flavour=flavour,
            version=version,
            compute_capability=capability,
            gpu=gpu.name if gpu and flavour == "tensorrt" else "any",
            precision=precision,
            options=config.model_dump(mode="json", exclude={"frames", "windows", "timing_cache", "timeout_s"}),
            graphs={},
        )
        for capability in capabilities
        for precision in chosen
    ]
    with _working_in(bundle.path) as plans:
        done: Done = {}
        for spec in specs:
            bundle = _build_folder(open_bundle(bundle.path), spec, plans, config=config, gpu=gpu, done=done, tell=tell)
    return bundle, [folder_of(spec) for spec in specs]


def folder_of(spec: PlanSpec) -> str:
    """Where a bundle keeps these plans: plans/<gpu>-sm<cc>-<flavour><version>-<precision>."""
    gpu = re.sub(r"[^a-z0-9]+", "-", spec.gpu.lower()).strip("-")
    version = ".".join(spec.version.split(".")[:3])
    return f"plans/{gpu}-sm{spec.compute_capability.replace('.', '')}-{spec.flavour}{version}-{spec.precision}"


# ------------------------------------------------------------------------------------------------------------ what to build


def _choose_precisions(bundle: Bundle, asked: Collection[Precision]) -> list[Precision]:
    has = bundle.spec.precisions
    chosen = list(dict.fromkeys(asked)) or [precision for precision in HALF if precision in has]
    if not chosen:
        there = " or ".join(precision for precision in BUILDABLE if precision in has)
        raise UsageError(
            f"Bundle '{bundle.path}' has its encoders in {', '.join(has)}. Export it again with --precision fp16, or build with --precision {there}."
        )
    for precision in chosen:
        if precision not in BUILDABLE:
            raise UsageError(f"Invalid --precision '{precision}': such encoders are for CPUs. TensorRT plans are built in {', '.join(BUILDABLE)}.")
        if precision not in has:
            raise UsageError(
                f"Invalid --precision '{precision}': bundle '{bundle.path}' has {', '.join(has)}. Export it again with --precision {precision}."
            )
    return chosen


def _check_targets(flavour: Flavour, targets: Collection[str]) -> None:
    if flavour == "tensorrt" and targets:
        raise UsageError("--targets is for --flavour tensorrt_rtx: TensorRT builds for the GPU in this machine.")
    for target in targets:
        if target not in RTX_TARGETS:
            raise UsageError(f"Invalid --targets '{target}'. TensorRT-RTX builds for compute capability {', '.join(RTX_TARGETS)}.")


def _check_types(capabilities: Collection[str], precisions: Collection[Precision], *, has: Collection[Precision]) -> None:
    """A chip that lacks a type is told before the work; the library would say so in the end, and in its own words."""
    for capability in capabilities:
        fits = [precision for precision in BUILDABLE if precision in has and _number(capability) >= _number(SINCE.get(precision, "0.0"))]
        for precision in precisions:
            if precision not in fits:
                instead = next((other for other in precisions if other in fits), fits[0])
                raise UsageError(
                    f"Compute capability {capability} has no {precision}; {SINCE[precision]} has. Build for it by itself: --precision {instead}."
                )


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


def _check_options(flavour: Flavour, config: BuildConfig) -> None:
    if flavour == "tensorrt_rtx" and config.hardware_compatibility != "none":
        raise UsageError(
            f"hardware_compatibility '{config.hardware_compatibility}' is for --flavour tensorrt: a TensorRT-RTX plan is for its compute capability. "
            "Leave it 'none' in --config."
        )


def _find_gpu(flavour: Flavour, targets: Collection[str], config: BuildConfig) -> Gpu | None:
    """The GPU to build on, asked of the driver before TensorRT is, which a missing driver crashes; None where the build needs none."""
    gpus, reason = look_for_gpus()
    if gpus:
        if flavour == "tensorrt_rtx" and not targets and gpus[0].compute_capability not in RTX_TARGETS:
            raise EnvironmentMissingError(
                f"{gpus[0].name} has compute capability {gpus[0].compute_capability}, and TensorRT-RTX builds for {', '.join(RTX_TARGETS)}. "
                "Use --flavour tensorrt for this GPU, or name others with --targets."
            )
        return gpus[0]
    if flavour == "tensorrt":
        raise EnvironmentMissingError(
            f"TensorRT builds plans on the GPU that they are for: {reason}. Build on the machine that will scan, or for RTX GPUs without one: "
            "--flavour tensorrt_rtx --targets 8.9"
        )
    if not targets:
        raise EnvironmentMissingError(f"For which GPUs? There is none here: {reason}. Name their compute capabilities, as in --targets 8.9 12.0")
    for option in ("refit", "version_compatible"):
        if getattr(config, option):
            raise EnvironmentMissingError(
                f"{option}: true needs a GPU to build on, also with TensorRT-RTX: {reason}. Set it to false in --config, or build where there is one."
            )
    return None


# ---------------------------------------------------------------------------------------------------------------- building


@contextmanager
def _working_in(bundle: Path) -> Iterator[Path]:
    """The bundle's folder of plans, for this process alone, without what a build that was killed left there."""
    plans = bundle / "plans"
    try:
        plans.mkdir(exist_ok=True)
        with held(plans / ".lock", taken=f"Another process builds plans in '{bundle}'. Wait until it has ended."):
            for left in plans.glob(".*.partial"):
                shutil.rmtree(left)
            yield plans
    except OSError as error:
        raise OutputError(f"Cannot write plans into bundle '{bundle}': {error.strerror or error}. Free some space or copy the bundle.") from error


def _build_folder(bundle: Bundle, spec: PlanSpec, plans: Path, *, config: BuildConfig, gpu: Gpu | None, done: Done, tell: Tell) -> Bundle:
    """All plans of one GPU and precision, in a folder beside the others that is moved into the bundle when it is whole.

    A plan that is in `done` already, of the same graph and GPU, is copied: the heads are the same in every precision.
    """
    staging = plans / f".{uuid.uuid4().hex[:8]}.partial"
    staging.mkdir()
    try:
        graphs: dict[str, PlanGraph] = {}
        for number, (graph, batch) in enumerate(GRAPHS.items()):
            file, plan = graph_file(graph, spec.precision), staging / graph.replace(".onnx", ".plan")
            if known := done.get((spec.compute_capability, file)):
                there, graphs[plan.name] = known
                for suffix in (".plan", ".layers.json"):
                    shutil.copyfile(there.with_suffix(suffix), plan.with_suffix(suffix))
                continue
            tell(f"building {file} for compute capability {spec.compute_capability} ({number + 1} of {len(GRAPHS)})")
            job = PlanJob(
                flavour=spec.flavour,
                graph=(bundle.path / file).absolute(),
                graph_sha256=bundle.spec.sha256[file],
                plan=plan.absolute(),
                compute_capability=spec.compute_capability,
                profile=getattr(config, batch),
                inspect=gpu is not None and gpu.compute_capability == spec.compute_capability,
                optimization_level=config.optimization_level,
                workspace_mib=config.workspace_mib,
                timing_cache=_timing_cache(spec) if config.timing_cache and spec.flavour == "tensorrt" else None,
                version_compatible=config.version_compatible,
                hardware_compatibility=config.hardware_compatibility,
                refit=config.refit,
            )
            result = run_child(job, timeout_s=config.timeout_s)
            with suppress(OSError):  # then it is refused later on, which says what to do
                remember_own_plan(result.sha256)
            shown = result.model_dump(exclude={"version", "sha256"})
            graphs[plan.name] = PlanGraph(graph=file, graph_sha256=job.graph_sha256, batch=batch, profile=job.profile, **shown)
            fused = f"{result.attentions_fused} of {result.attentions} attentions fused"
            tell(f"{plan.name}: {result.size_bytes / 1e6:.2f} MB in {result.build_s:.1f} s, {fused}")
            if spec.precision != "float32" and graph in ENCODERS and result.attentions_fused < result.attentions:
                tell(f"warning: {file} has {fused}; the others write their scores to memory, and are slower")
        taken = add_plans(bundle, {folder_of(spec): (spec.model_copy(update={"graphs": graphs}), staging)})
        done |= {(spec.compute_capability, made.graph): (bundle.path / folder_of(spec) / name, made) for name, made in graphs.items()}
        return taken
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _timing_cache(spec: PlanSpec) -> Path:
    """One file a GPU and version in the user's cache folder (XDG Base Directory Specification)."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dissonance" / "timing"
    return folder / (Path(folder_of(spec)).name.removesuffix(f"-{spec.precision}") + ".cache")


def run_child(job: PlanJob, *, timeout_s: float) -> PlanResult:
    """Build one plan in a process of its own, in the folder of the plan, where no graph finds another file.

    Raises what the child says it met, and BundleError where it dies or takes longer than `timeout_s`.
    """
    name = f"{TITLES[job.flavour]} building {job.graph.name}"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", CHILD],
            input=job.model_dump_json().encode(),
            capture_output=True,
            cwd=job.plan.parent,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BundleError(
            f"{name} took longer than timeout_s {timeout_s:g}. Raise it in --config, or lower optimization_level or the max of the profile."
        ) from error
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        told = done.stderr.decode(errors="replace").strip().splitlines()
        why = f"was ended by {_signal(-done.returncode)}" if done.returncode < 0 else f"ended with exit status {done.returncode}"
        hint = " The system may have run out of memory." if done.returncode == -signal.SIGKILL else ""
        raise BundleError(
            f"{name} {why}" + (f": {told[-1][:300].rstrip('.')}." if told else ".") + f"{hint} Lower the max of the profile in --config, or try "
            "another version of the library."
        ) from error
    if "error" in answer:
        raise _ERRORS.get(answer["kind"], BundleError)(answer["error"])
    return PlanResult.model_validate(answer["result"])


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
