"""Which plans are run: those that fit this GPU and library, in the precision that is asked for, built here or vouched for."""

import re
from pathlib import Path
from typing import Any

import pytest

from dissonance.bundle import Bundle, open_bundle
from dissonance.engine.runtime import plans
from dissonance.engine.runtime.plans import Libraries, choose_plans, find_libraries, read_plan
from dissonance.engine.runtime.tensorrt_library import MissingLibraryError
from dissonance.errors import BundleError, EnvironmentMissingError
from dissonance.machine import Gpu
from tests.engine.runtime.planned import GPU, VERSION, copy_of_demo, with_plans

BOTH = Libraries({"tensorrt": VERSION, "tensorrt_rtx": "1.7.1.116"})
HERE = Libraries({"tensorrt": VERSION})
RTX = Libraries({"tensorrt_rtx": "1.7.1.116"})
L4 = Gpu("NVIDIA L4", "8.9")


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return copy_of_demo(tmp_path / "b")


def test_plans_for_this_gpu_library_and_precision_are_chosen(bundle: Bundle) -> None:
    bundle = with_plans(bundle, "plans/bf16", precision="bf16")
    bundle = with_plans(bundle, "plans/fp16")
    bundle = with_plans(bundle, "plans/rtx", flavour="tensorrt_rtx", version="1.7.1.116", gpu="any")
    assert choose_plans(bundle, gpu=GPU, libraries=HERE, precision=None)[0] == "plans/fp16"
    assert choose_plans(bundle, gpu=GPU, libraries=BOTH, precision=None)[0] == "plans/fp16"
    assert choose_plans(bundle, gpu=GPU, libraries=HERE, precision="bf16")[0] == "plans/bf16"
    assert choose_plans(bundle, gpu=GPU, libraries=RTX, precision=None)[0] == "plans/rtx"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"flavour": "tensorrt_rtx", "version": "1.7.1.116"}, "for TensorRT-RTX, which is not installed"),
        ({"version": "10.14.1.4"}, r"built by TensorRT 10\.14\.1\.4, 10\.13\.3\.9 is installed"),
        ({"version": "10.13.0.1"}, r"built by TensorRT 10\.13\.0\.1, 10\.13\.3\.9 is installed"),
        ({"version": "9.3.0", "options": {"version_compatible": True}}, r"built by TensorRT 9\.3\.0, .* is installed"),
        ({"version": "10.14.1", "options": {"version_compatible": True}}, r"built by TensorRT 10\.14\.1, .* is installed"),
        ({"compute_capability": "8.9"}, r"for compute capability 8\.9, this GPU's is 9\.0"),
        ({"gpu": "NVIDIA H200"}, "for NVIDIA H200"),
        ({"precision": "bf16"}, "in bf16, not fp16"),
    ],
)
def test_plans_that_do_not_fit_say_why_and_what_builds_them(bundle: Bundle, changes: dict[str, Any], reason: str) -> None:
    bundle = with_plans(bundle, "plans/other", **changes)
    with pytest.raises(BundleError, match=rf"no TensorRT plans for {GPU.name}: of those it has, none fits: plans/other \({reason}\)\. ") as caught:
        choose_plans(bundle, gpu=GPU, libraries=HERE, precision="fp16")
    command = f"dissonance build {bundle.path} --flavour tensorrt --precision fp16"
    assert str(caught.value).endswith(f". Export it again with --precision fp16, which it lacks. Build them with: {command}")


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "10.13.0.1", "options": {"version_compatible": True}},
        {"gpu": "NVIDIA H200", "options": {"hardware_compatibility": "same_compute_capability"}},
        {"gpu": "NVIDIA A100", "compute_capability": "8.0", "options": {"hardware_compatibility": "ampere_plus"}},
        {"gpu": "any"},
    ],
)
def test_plans_that_were_built_to_be_compatible_fit(bundle: Bundle, changes: dict[str, Any]) -> None:
    bundle = with_plans(bundle, "plans/compatible", **changes)
    assert choose_plans(bundle, gpu=GPU, libraries=HERE, precision="fp16")[0] == "plans/compatible"


def test_a_bundle_without_plans_names_what_makes_them(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"it has none\. Build them with: dissonance build .* --flavour tensorrt_rtx --precision float32$"):
        choose_plans(bundle, gpu=L4, libraries=RTX, precision=None)
    with pytest.raises(BundleError, match=r"it has none\. TensorRT-RTX is not for this GPU: install TensorRT with: pip install"):
        choose_plans(bundle, gpu=GPU, libraries=RTX, precision=None)
    with pytest.raises(BundleError, match=r"it has none\. A bundle that ships is not written to: copy the folder '.*demo', build plans in the copy"):
        choose_plans(open_bundle("demo"), gpu=GPU, libraries=BOTH, precision=None)


def test_of_plans_that_fit_those_that_may_be_run_come_first_then_the_most_exact(bundle: Bundle) -> None:
    bundle = with_plans(bundle, "plans/a-fp16-not-ours", own=False, data={"visual.plan": b"from elsewhere"})
    bundle = with_plans(bundle, "plans/b-bf16-ours", precision="bf16")
    assert choose_plans(bundle, gpu=GPU, libraries=HERE, precision=None)[0] == "plans/b-bf16-ours"
    vouched = open_bundle(bundle.path, sha256=bundle.id)
    assert choose_plans(vouched, gpu=GPU, libraries=HERE, precision=None)[0] == "plans/a-fp16-not-ours"
    bundle = with_plans(bundle, "plans/c-any", gpu="any")
    bundle = with_plans(bundle, "plans/d-older", version="10.13.0.1", options={"version_compatible": True})
    assert choose_plans(bundle, gpu=GPU, libraries=HERE, precision=None)[0] == "plans/d-older"
    bundle = with_plans(bundle, "plans/e-just-this")
    assert choose_plans(bundle, gpu=GPU, libraries=HERE, precision=None)[0] == "plans/e-just-this"


def test_a_library_that_is_installed_and_cannot_be_used_says_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(flavour: str) -> str:
        if flavour == "tensorrt":
            raise EnvironmentMissingError("Loading TensorRT ends the process (signal 11). Install it again.")
        return "1.7.1.116"

    monkeypatch.setattr(plans, "probe_library", probe)
    with pytest.raises(BundleError, match=r"plans/fp16 \(for TensorRT, which cannot be used: Loading TensorRT ends the process \(signal 11\)"):
        choose_plans(with_plans(bundle, "plans/fp16"), gpu=L4, libraries=find_libraries(), precision=None)

    def missing(flavour: str) -> str:
        raise MissingLibraryError(f"{flavour} is not installed.")

    monkeypatch.setattr(plans, "probe_library", missing)
    with pytest.raises(EnvironmentMissingError, match=r"--runtime tensorrt: tensorrt is not installed\. tensorrt_rtx is not installed\."):
        find_libraries()


def test_a_plan_that_is_listed_and_not_there_is_a_bad_bundle(bundle: Bundle) -> None:
    bundle = with_plans(bundle, "plans/fp16")
    with pytest.raises(BundleError, match=r"lists plans in 'plans/fp16' and has no 'tail\.plan' there\. Build them again"):
        read_plan(bundle, "plans/fp16", "tail.plan")


def test_a_plan_of_another_graph_is_stale(bundle: Bundle) -> None:
    bundle = with_plans(bundle, "plans/old")
    graphs = bundle.spec.plans["plans/old"].graphs
    old = {name: made.model_copy(update={"graph_sha256": "0" * 64}) for name, made in graphs.items()}
    plans = {"plans/old": bundle.spec.plans["plans/old"].model_copy(update={"graphs": old})}
    stale = Bundle(bundle.path, bundle.spec.model_copy(update={"plans": plans}), bundle.id)
    with pytest.raises(BundleError, match=r"built from another audio\.onnx"):
        choose_plans(stale, gpu=GPU, libraries=HERE, precision=None)


def test_a_plan_from_elsewhere_is_not_run_unless_the_caller_knows_the_bundle_s_hash(bundle: Bundle) -> None:
    bundle = with_plans(bundle, "plans/fp16", own=False)
    says = r"'plans/fp16/visual\.plan' was not built here by you, .* dissonance build .* --flavour tensorrt --precision fp16; or give --bundle-sha256"
    with pytest.raises(BundleError, match=says) as caught:
        read_plan(bundle, "plans/fp16", "visual.plan")
    assert bundle.id not in str(caught.value)  # to be told by someone else
    vouched = open_bundle(bundle.path, sha256=bundle.id.upper())
    assert read_plan(vouched, "plans/fp16", "visual.plan") == bundle.read("visual.onnx")
    with pytest.raises(BundleError, match=rf"not the one that was asked for: .* is {bundle.id}, not {'0' * 64}"):
        open_bundle(bundle.path, sha256="0" * 64)


def test_a_plan_that_was_changed_is_not_run(bundle: Bundle) -> None:
    bundle = with_plans(bundle, "plans/fp16")
    read_plan(bundle, "plans/fp16", "visual.plan")
    (bundle.path / "plans/fp16/visual.plan").write_bytes(b"something else")
    with pytest.raises(BundleError, match=re.escape("'plans/fp16/visual.plan' was changed")):
        read_plan(bundle, "plans/fp16", "visual.plan")
