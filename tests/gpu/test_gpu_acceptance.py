"""The acceptance run where there is no GPU: it ends well and says what it skipped; its comparisons run in Triton's interpreter, and can fail."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bench import gpu_acceptance
from bench._gpu_engine import scans
from bench._rows import Row
from bench._site import Site
from bench.gpu_acceptance import STEPS, crop_numbers, log_mel_numbers, match_fuse_numbers

ROOT = Path(__file__).resolve().parents[2]
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
NUMBERS = [match_fuse_numbers, crop_numbers, log_mel_numbers, scans]


@without_gpu
def test_without_a_gpu_every_step_is_skipped_with_its_reason() -> None:
    done = subprocess.run([sys.executable, "-m", "bench.gpu_acceptance"], cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["what"] for row in rows] == [f"{name}: skipped" for name in STEPS]
    assert {row["how"] for row in rows} == {"PyTorch finds no NVIDIA GPU here"}
    assert {row["holds"] for row in rows} == {None}


@pytest.mark.parametrize("step", NUMBERS, ids=lambda step: step.__name__)
def test_comparisons_hold_in_the_interpreter(step: Callable[[Site], list[Row]]) -> None:
    rows = step(Site("cuda" if torch.cuda.is_available() else "cpu", seed=5, large=False))
    assert rows
    assert all(row["holds"] or row["limit"] is None for row in rows), rows
    assert any(row["holds"] for row in rows)


@without_gpu
@pytest.mark.parametrize(
    ("step", "module", "function"),
    [
        (crop_numbers, "crop_resize_normalize", "crop_resize_normalize"),
        (log_mel_numbers, "log_mel", "mel_windows"),
    ],
)
def test_a_kernel_that_is_off_does_not_pass(step: Callable[[Site], list[Row]], module: str, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"dissonance.kernels.{module}.{function}"
    right = getattr(sys.modules[f"dissonance.kernels.{module}"], function)
    monkeypatch.setattr(place, lambda *arguments, **options: right(*arguments, **options) * 1.02)
    rows = step(Site("cpu", seed=5, large=False))
    assert not any(row["holds"] for row in rows)


@without_gpu
def test_a_step_that_fails_costs_its_own_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_site: Site) -> list[Row]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(gpu_acceptance, "STEPS", {"first": broken, "second": lambda site: [{"what": site.device, "holds": True}]})
    first, second = gpu_acceptance.run()
    assert (first["holds"], first["how"]) == (False, "RuntimeError: out of memory")
    assert second == {"device": "a GPU", "what": "cuda", "holds": True}
    monkeypatch.setattr(gpu_acceptance, "DEADLINE_S", -1.0)
    assert {row["how"] for row in gpu_acceptance.run()} == {"eight minutes would not be enough"}
