"""What only a GPU can prove of `match_fuse`. No GPU has run these yet."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dissonance.kernels.packing import Packing
from dissonance.kernels.tiling import Tiling
from dissonance.kernels.tuning import tune
from tests.kernels.cases import Case, make_case, packed, rms_ratio
from tests.kernels.test_match_fuse import assert_equal, reference, run
from tests.kernels.test_match_fuse_backward import EVERY, gradients_of_both

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU; PyTorch finds none here")]

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def many(dtype: torch.dtype, *, windows: int = 600) -> Case:
    """Windows of 1 to 200 frames: hundreds of programs at once."""
    lengths = torch.randint(1, 201, (windows,), generator=torch.Generator().manual_seed(1)).tolist()
    return make_case(packed(lengths), dim=256, outputs=256, dtype=dtype, valid=0.9)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_the_reference_in_float64(dtype: torch.dtype) -> None:
    """bfloat16 and the matrix units themselves, which the interpreter cannot stand for. best_lag may differ where two lags are equal to rounding."""
    case = many(dtype)
    found, expected = run(case), reference(case)
    tied = expected.lag_profile.gather(1, 8 + found.best_lag.cpu()[:, None]) - expected.lag_profile.gather(1, 8 + expected.best_lag[:, None])
    assert tied.abs().max() <= 1e-5
    assert_equal(found._replace(best_lag=expected.best_lag), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_equal_torchs(dtype: torch.dtype) -> None:
    case = many(dtype, windows=40)
    ours, theirs = gradients_of_both(case, EVERY)
    for one, other in zip(ours, theirs, strict=True):
        assert rms_ratio(one, other) <= 3 * TOLERANCE[dtype]


def test_a_result_is_the_same_in_every_run_and_in_memory_full_of_nan() -> None:
    """A race, or a read of u or S_ii before they are written, would show."""
    case = many(torch.bfloat16)
    first = run(case, similarity=True)
    for _ in range(20):
        poison = torch.full((64 << 20,), float("nan"), device="cuda")
        del poison  # its memory is what the next results are put into
        for one, other in zip(run(case, similarity=True), first, strict=True):
            assert one is not None
            assert torch.equal(one, other)


def test_tuning_measures_and_remembers(tmp_path: Path) -> None:
    case = make_case(Packing.uniform(256, 32, device="cuda"), dim=256, outputs=256, dtype=torch.bfloat16)
    default = Tiling.default(torch.cuda.get_device_capability(), dtype=torch.bfloat16, dim=256, outputs=256)
    huge = replace(default, block_m=256, block_n=256, block_k=256, stages=8)  # fits no GPU's shared memory
    assert tune(tmp_path / "gpu.json", "key", [huge, default], lambda tiling: run(case, tiling=tiling)) == default
