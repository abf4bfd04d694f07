"""Which of a bundle's TensorRT plans this machine runs, and whether it may.

A plan fits one GPU and one version of the library: another is an error that names the command which builds one that fits. A plan can run code: one
that this user did not build here is refused, unless the caller vouches for the bundle by its hash.
"""

from collections.abc import Mapping

from dissonance.bundle import Bundle, PlanSpec, Precision
from dissonance.engine.runtime.own_plans import is_own_plan
from dissonance.engine.runtime.tensorrt_library import TITLES, Flavour
from dissonance.errors import BundleError
from dissonance.machine import Gpu

PREFERRED: tuple[Precision, ...] = ("fp16", "bf16", "fp8", "int8-qdq", "float32")  # where none is asked for


def choose_plans(bundle: Bundle, *, gpu: Gpu, versions: Mapping[Flavour, str], precision: Precision | None) -> tuple[str, PlanSpec]:
    """The folder of plans that fit this GPU and one of the installed libraries (`versions`), in `precision` or the first of PREFERRED there is.

    Raises BundleError, which says of every folder why it does not fit, and how one is built that does.
    """
    fitting: dict[str, PlanSpec] = {}
    reasons = []
    for folder, plan in sorted(bundle.spec.plans.items()):
        reason = _misfit(bundle, plan, gpu=gpu, versions=versions)
        if reason is None and precision not in (None, plan.precision):
            reason = f"in {plan.precision}, not {precision}"
        if reason is None:
            fitting[folder] = plan
        else:
            reasons.append(f"{folder} ({reason})")
    for wanted in PREFERRED:
        for flavour in versions:
            for folder, plan in fitting.items():
                if (plan.precision, plan.flavour) == (wanted, flavour):
                    return folder, plan
    found = "it has none" if not reasons else "of those it has, none fits: " + "; ".join(reasons)
    raise BundleError(f"Bundle '{bundle.path}' has no TensorRT plans for {gpu.name}: {found}. {_remedy(bundle, versions, precision)}")


def read_plan(bundle: Bundle, folder: str, name: str) -> bytes:
    """The bytes of one plan that may be run, those that were checked. Raises BundleError."""
    file = f"{folder}/{name}"
    data = bundle.read(file)
    if not (bundle.vouched or is_own_plan(bundle.spec.sha256[file])):
        raise BundleError(
            f"Bundle '{bundle.path}': '{file}' was not built here by you, and a TensorRT plan can run code. Build it here with: "
            f"{_command(bundle, bundle.spec.plans[folder].flavour, bundle.spec.plans[folder].precision)}; or give --bundle-sha256 with the hash "
            "of bundle.json that whoever built it told you."
        )
    return data


def _misfit(bundle: Bundle, plan: PlanSpec, *, gpu: Gpu, versions: Mapping[Flavour, str]) -> str | None:
    """Why this machine cannot run these plans; None where it can."""
    options = plan.options
    if plan.flavour not in versions:
        return f"for {TITLES[plan.flavour]}, which is not installed"
    version = versions[plan.flavour]
    newer = options.get("version_compatible") and _numbers(plan.version)[0] == _numbers(version)[0] and _numbers(version) >= _numbers(plan.version)
    if plan.version != version and not newer:
        return f"built by {TITLES[plan.flavour]} {plan.version}, {version} is installed"
    compatible = options.get("hardware_compatibility", "none")
    if not (plan.compute_capability == gpu.compute_capability or (compatible == "ampere_plus" and _numbers(gpu.compute_capability) >= (8, 0))):
        return f"for compute capability {plan.compute_capability}, this GPU's is {gpu.compute_capability}"
    if plan.gpu not in ("any", gpu.name) and compatible == "none":
        return f"for {plan.gpu}"
    stale = [made.graph for made in plan.graphs.values() if bundle.spec.sha256.get(made.graph) != made.graph_sha256]
    return f"built from another {stale[0]}" if stale else None


def _remedy(bundle: Bundle, versions: Mapping[Flavour, str], precision: Precision | None) -> str:
    flavour: Flavour = "tensorrt" if "tensorrt" in versions else "tensorrt_rtx"
    return f"Build them with: {_command(bundle, flavour, precision)}"


def _command(bundle: Bundle, flavour: Flavour, precision: Precision | None) -> str:
    return f"dissonance build '{bundle.path}' --flavour {flavour}" + (f" --precision {precision}" if precision else "")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
