"""What the kernels become on GPUs that are not here: nothing spills, and every product runs on matrix units."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from dissonance.kernels import resources, survey
from dissonance.kernels.survey import DIM, OUTPUTS
from dissonance.kernels.tiling import Tiling

pytestmark = pytest.mark.xdist_group("resources")  # compiled once
TARGETS = ["8.0", "8.9", "9.0", "12.0"]


def run_survey(*arguments: str) -> list[dict[str, Any]]:
    """In a process without TRITON_INTERPRET: an interpreted kernel cannot be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "dissonance.kernels.survey", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def surveyed() -> list[dict[str, Any]]:
    return [
        *run_survey("--types", "fp16", "--targets", *TARGETS),
        *run_survey("--types", "fp32", "--targets", "9.0", "--only", "match_fuse"),
        *run_survey("--types", "fp32", "--targets", *TARGETS, "--only", "mel"),
    ]


def test_nothing_spills_and_everything_fits(surveyed: list[dict[str, Any]]) -> None:
    assert {row["capability"] for row in surveyed} == set(TARGETS)
    for row in surveyed:
        used, where = row["resources"], f"{row['kernel']} in {row['dtype']} for {row['capability']}"
        assert used["stack_bytes"] == used["instructions"]["LDL"] == used["instructions"]["STL"] == 0, where
        assert 0 < used["registers"] <= 255, where
        assert used["shared_bytes"] <= row["shared_limit_bytes"], where


def forward_products(tiling: Tiling) -> list[tuple[int, int, int]]:
    """(rows, columns, depth) of every product that stands in the forward kernel's code: S and u for each part of D, then four for z."""
    sweeps = -(-DIM // tiling.block_u) * [(tiling.block_m, tiling.block_n, tiling.block_k), (tiling.block_m, tiling.block_u, tiling.block_n)]
    return sweeps + 4 * [(tiling.block_m, tiling.block_h, tiling.block_k)]


def test_the_forward_kernel_has_exactly_the_matrix_instructions_of_its_products(surveyed: list[dict[str, Any]]) -> None:
    """In 16 bits one HMMA is 16 x 8 x 16 for a warp, one HGMMA 64 x (all columns) x 16 for four warps (PTX ISA, mma and wgmma)."""
    for row in surveyed:
        counts, major, minor = row["resources"]["instructions"], *map(int, row["capability"].split("."))
        if row["kernel"] != "match_fuse" or row["dtype"] != "fp16":
            continue
        tiling = Tiling.default((major, minor), dtype=torch.float16, dim=DIM, outputs=OUTPUTS)
        assert tiling.block_m >= 128
        if major == 9:
            expected = sum(m // 64 * (k // 16) for m, _, k in forward_products(tiling)) // (tiling.warps // 4)
            assert (counts["HGMMA"], counts["HMMA"]) == (expected, 0)
        else:
            expected = sum(m * n * k for m, n, k in forward_products(tiling)) // (16 * 8 * 16 * tiling.warps)
            assert (counts["HMMA"], counts["HGMMA"]) == (expected, 0)


def test_every_product_runs_on_matrix_units(surveyed: list[dict[str, Any]]) -> None:
    """float32 too."""
    found = {(row["kernel"], row["dtype"], row["capability"]): row["resources"]["instructions"] for row in surveyed if row["products"]}
    assert {
        ("match_fuse", "fp32", "9.0"),
        *((name, dtype, target) for name, dtype in (("crop", "fp16"), ("mel", "fp32")) for target in TARGETS),
    } <= set(found)
    assert all(counts["HMMA"] + counts["HGMMA"] > 0 for counts in found.values())


def test_a_kernel_that_there_is_not_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        survey.main(["--types", "fp16", "--only", "mel"])
    assert ended.value.code == 2
    assert "there is no kernel 'mel' for fp16" in capsys.readouterr().err


@pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="kernels are not interpreted where there is a GPU")
def test_an_interpreted_kernel_is_an_error_that_says_so() -> None:
    with pytest.raises(resources.EnvironmentMissingError, match="Unset TRITON_INTERPRET"):
        resources.compile_for(None, (9, 0), {}, {}, warps=4, stages=1)
