"""Which of a bundle's TensorRT plans this machine runs, and whether it may.

A plan fits one GPU and one version of the library: another is an error that names the command which builds one that fits. A plan can run code: one
that this user did not build here is refused, unless the caller vouches for the bundle by its hash.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from dissonance.bundle import Bundle, PlanSpec, Precision, is_shipped
from dissonance.engine.runtime.own_plans import is_own_plan
from dissonance.engine.runtime.tensorrt_library import RTX_TARGETS, TITLES, Flavour, MissingLibraryError, probe_library
from dissonance.errors import BundleError, EnvironmentMissingError, UsageError
from dissonance.machine import Gpu

PREFERRED: tuple[Precision, ...] = ("fp16", "bf16", "fp8", "int8-qdq", "float32")  # where none is asked for


@dataclass(frozen=True)
class Libraries:
    """What there is of TensorRT here: the versions that work, and why one that is installed does not."""

    versions: Mapping[Flavour, str]
    unusable: Mapping[Flavour, str] = field(default_factory=dict)


def find_libraries() -> Libraries:
    """Ask each flavour, in a process of its own. Raises EnvironmentMissingError where none works."""
    versions: dict[Flavour, str] = {}
    unusable: dict[Flavour, str] = {}
    reasons = []
    for flavour in TITLES:
        try:
            versions[flavour] = probe_library(flavour)
        except EnvironmentMissingError as error:
            reasons.append(str(error))
            if not isinstance(error, MissingLibraryError):
                unusable[flavour] = str(error)
    if not versions:
        raise EnvironmentMissingError("--runtime tensorrt: " + " ".join(reasons))
    return Libraries(versions, unusable)


def choose_plans(bundle: Bundle, *, gpu: Gpu, libraries: Libraries, precision: Precision | None) -> tuple[str, PlanSpec]:
    """The folder of plans that fit this GPU and a library that is here, in `precision`, or any.

    Of several: those that may be run, then the first precision of PREFERRED, then those for just this GPU and just this version.
    Raises UsageError for a precision that no plan has; BundleError, which says of every folder why it does not fit, and how one is built that does.
    """
    if precision not in (None, *PREFERRED):
        raise UsageError(f"--runtime tensorrt has no {precision}. Choose another --precision: {', '.join(PREFERRED)}.")
    fitting: dict[str, PlanSpec] = {}
    reasons = []
    for folder, plan in sorted(bundle.spec.plans.items()):
        reason = _misfit(bundle, plan, gpu=gpu, libraries=libraries)
        if reason is None and precision not in (None, plan.precision):
            reason = f"in {plan.precision}, not {precision}"
        if reason is None:
            fitting[folder] = plan
        else:
            reasons.append(f"{folder} ({reason})")

    def rank(folder: str) -> tuple[int | bool, ...]:
        plan = fitting[folder]
        refused = not all(_may_run(bundle, f"{folder}/{name}") for name in plan.graphs)
        version = libraries.versions[plan.flavour]
        return refused, PREFERRED.index(plan.precision), list(TITLES).index(plan.flavour), plan.gpu != gpu.name, plan.version != version

    if fitting:
        chosen = min(fitting, key=rank)
        return chosen, fitting[chosen]
    found = "it has none" if not reasons else "of those it has, none fits: " + "; ".join(reasons)
    raise BundleError(f"Bundle '{bundle.path}' has no TensorRT plans for {gpu.name}: {found}. {_remedy(bundle, gpu, libraries, precision)}")


def read_plan(bundle: Bundle, folder: str, name: str) -> bytes:
    """The bytes of one plan that may be run, those that were checked. Raises BundleError."""
    file = f"{folder}/{name}"
    if file not in bundle.spec.sha256:
        raise BundleError(f"Bundle '{bundle.path}' lists plans in '{folder}' and has no '{name}' there. Build them again with: dissonance build")
    data = bundle.read(file)
    if not _may_run(bundle, file):
        raise BundleError(
            f"Bundle '{bundle.path}': '{file}' was not built here by you, and a TensorRT plan can run code. Build it here with: "
            f"{_command(bundle, bundle.spec.plans[folder].flavour, bundle.spec.plans[folder].precision)}; or give --bundle-sha256 with the hash "
            "of bundle.json that whoever built it told you."
        )
    return data


def _may_run(bundle: Bundle, file: str) -> bool:
    return bundle.vouched or is_own_plan(bundle.spec.sha256.get(file, ""))


def _misfit(bundle: Bundle, plan: PlanSpec, *, gpu: Gpu, libraries: Libraries) -> str | None:
    """Why this machine cannot run these plans; None where it can."""
    options, title = plan.options, TITLES[plan.flavour]
    if plan.flavour in libraries.unusable:
        return f"for {title}, which cannot be used: {libraries.unusable[plan.flavour]}"
    if plan.flavour not in libraries.versions:
        return f"for {title}, which is not installed"
    version = libraries.versions[plan.flavour]
    built, here = _numbers(plan.version), _numbers(version)
    if plan.version != version and not (options.get("version_compatible") and built[:1] == here[:1] and here >= built):
        return f"built by {title} {plan.version}, {version} is installed"
    compatible = options.get("hardware_compatibility", "none")
    if not (plan.compute_capability == gpu.compute_capability or (compatible == "ampere_plus" and _numbers(gpu.compute_capability) >= (8, 0))):
        return f"for compute capability {plan.compute_capability}, this GPU's is {gpu.compute_capability}"
    if plan.gpu not in ("any", gpu.name) and compatible == "none":
        return f"for {plan.gpu}"
    stale = [made.graph for made in plan.graphs.values() if bundle.spec.sha256.get(made.graph) != made.graph_sha256]
    return f"built from another {stale[0]}" if stale else None


def _remedy(bundle: Bundle, gpu: Gpu, libraries: Libraries, precision: Precision | None) -> str:
    """How plans are made that fit: what has to be done first, and the command."""
    if "tensorrt" not in libraries.versions and gpu.compute_capability not in RTX_TARGETS:
        return "TensorRT-RTX is not for this GPU: install TensorRT with: pip install 'dissonance[gpu]'"
    if is_shipped(bundle):
        return f"A bundle that ships is not written to: copy the folder '{bundle.path}', build plans in the copy with `dissonance build`, use that."
    flavour: Flavour = "tensorrt" if "tensorrt" in libraries.versions else "tensorrt_rtx"
    has = bundle.spec.precisions
    wanted = next(each for each in PREFERRED if each in has) if precision is None else precision
    first = "" if wanted in has else f"Export it again with --precision {wanted}, which it lacks. "
    return f"{first}Build them with: {_command(bundle, flavour, wanted)}"


def _command(bundle: Bundle, flavour: Flavour, precision: Precision) -> str:
    return f"dissonance build {shlex.quote(str(bundle.path))} --flavour {flavour} --precision {precision}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
