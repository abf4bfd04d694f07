"""How plans enter a bundle: replaced by name, named after their GPU, and so that an interruption anywhere leaves a bundle that opens."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dissonance import machine
from dissonance.bundle import Bundle, PlanSpec, add_plans, open_bundle
from dissonance.config import BuildConfig
from dissonance.engine.runtime.own_plans import is_own_plan
from dissonance.errors import OutputError, UsageError
from dissonance.export import tensorrt
from dissonance.export.plan_child import PlanJob, PlanResult
from dissonance.export.tensorrt import build_plans
from dissonance.machine import Gpu


def pretend(monkeypatch: pytest.MonkeyPatch, content: bytes) -> list[PlanJob]:
    """Builds that write `content`, so that only what is around them is looked at. Returns the jobs as they come."""
    jobs: list[PlanJob] = []

    def child(job: PlanJob, *, timeout_s: float) -> PlanResult:
        assert timeout_s > 0
        jobs.append(job)
        job.plan.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        return PlanResult(
            version="1.7.1", sha256=digest, size_bytes=len(content), build_s=1, layers=9, attentions=3, attentions_fused=2, types={"fp16": 9}
        )

    monkeypatch.setattr(tensorrt, "run_child", child)
    monkeypatch.setattr(tensorrt, "probe_library", lambda flavour: {"tensorrt": "10.13.3.9", "tensorrt_rtx": "1.7.1.116"}[flavour])
    monkeypatch.setattr(machine, "find_gpus", lambda: [Gpu("NVIDIA H100 80GB HBM3", "9.0")])
    return jobs


def test_plans_of_the_same_name_are_replaced_and_others_stay(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, b"one")
    build_plans(bundle.path, flavour="tensorrt_rtx", targets=["8.9", "8.9", "8.0"], precisions=["fp16"])
    pretend(monkeypatch, b"two")
    again, folders = build_plans(bundle.path, flavour="tensorrt_rtx", targets=["8.0"], precisions=["fp16"])
    assert folders == ["plans/any-sm80-tensorrt_rtx1.7.1-fp16"]
    assert again.read(f"{folders[0]}/visual.plan") == b"two"
    assert again.read("plans/any-sm89-tensorrt_rtx1.7.1-fp16/visual.plan") == b"one"
    assert is_own_plan(hashlib.sha256(b"two").hexdigest())
    assert not is_own_plan(hashlib.sha256(b"three").hexdigest())


def test_a_plan_for_this_gpu_is_named_after_it_and_keeps_its_times(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = pretend(monkeypatch, b"one")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lines: list[str] = []
    built, folders = build_plans(bundle.path, flavour="tensorrt", precisions=["bf16"], progress=lines.append)
    assert folders == ["plans/nvidia-h100-80gb-hbm3-sm90-tensorrt10.13.3-bf16"]
    assert built.spec.plans[folders[0]].gpu == "NVIDIA H100 80GB HBM3"
    assert {job.timing_cache for job in jobs} == {tmp_path / "cache" / "dissonance" / "timing" / "nvidia-h100-80gb-hbm3-sm90-tensorrt10.13.3.cache"}
    assert all(job.inspect for job in jobs)
    assert "warning: visual.bf16.onnx has 2 of 3 attentions fused" in " ".join(lines)
    jobs = pretend(monkeypatch, b"one")
    build_plans(bundle.path, flavour="tensorrt", precisions=["bf16"], config=BuildConfig(timing_cache=False))
    assert {job.timing_cache for job in jobs} == {None}


@pytest.mark.parametrize("step", range(1, 6))
def test_a_bundle_opens_wherever_taking_plans_in_was_interrupted(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Stopped at each change that is made on disk, when plans are added beside others and when they replace some."""
    spec = PlanSpec(flavour="tensorrt_rtx", version="1.7.1", compute_capability="8.9", gpu="any", precision="fp16", options={}, graphs={})

    def ready(content: bytes) -> Path:
        folder = Path(os.path.realpath(tmp_path)) / f"ready-{content.decode()}"
        folder.mkdir()
        (folder / "visual.plan").write_bytes(content)
        return folder

    first = add_plans(bundle, {"plans/a": (spec, ready(b"old"))})
    changes = 0

    class StoppedError(BaseException):
        pass

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **options: Any) -> Any:
            nonlocal changes
            changes += 1
            if changes == step:
                raise StoppedError
            return change(*arguments, **options)

        return instead

    with monkeypatch.context() as patched:
        for owner, name in ((Path, "rename"), (Path, "replace"), (shutil, "rmtree")):
            patched.setattr(owner, name, counted(getattr(owner, name)))
        try:
            add_plans(first, {"plans/a": (spec, ready(b"new"))})
        except StoppedError:
            assert step <= 4
        else:
            assert step == 5, "there are four changes: forget, remove, move, name"
    opened = open_bundle(bundle.path)
    assert opened.spec.sha256.items() >= bundle.spec.sha256.items()
    if opened.spec.plans:
        assert opened.read("plans/a/visual.plan") == (b"new" if step == 5 else b"old")


def test_two_builds_in_one_bundle_and_a_folder_that_cannot_be_written(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, b"one")
    with tensorrt._working_in(bundle.path), pytest.raises(UsageError, match="Another process builds plans in"):
        build_plans(bundle.path, flavour="tensorrt_rtx", targets=["8.0"], precisions=["fp16"])
    shutil.rmtree(bundle.path / "plans")
    (bundle.path / "plans").write_text("in the way")
    with pytest.raises(OutputError, match="Cannot write plans into bundle"):
        build_plans(bundle.path, flavour="tensorrt_rtx", targets=["8.0"], precisions=["fp16"])
