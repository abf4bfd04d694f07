"""The kernel's gradients against PyTorch's own, which differentiates the model's functions in float64."""

import pytest
import torch
from torch import Tensor

from dissonance.kernels.match_fuse import MatchFuse, Options, match_fuse, match_fuse_reference
from dissonance.kernels.packing import Packing
from dissonance.kernels.tiling import Tiling
from dissonance.kernels.weights import FusionWeights
from tests.kernels.cases import Case, make_case, on_cpu, packed, rms_ratio

TAU, MAX_LAG = 0.07, 8
SMALL = Tiling(block_m=32, block_n=16, block_h=16, block_k=16, block_u=16, warps=4, stages=1)
EVERY = ("fused", "matched", "lag_profile", "row_match", "attended")


def leaves(case: Case) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in (case.visual, case.audio, case.weight, case.bias)]


def cost(found: MatchFuse, results: tuple[str, ...]) -> Tensor:
    """A random weighting of some results, the same for every implementation."""
    generator, total = torch.Generator().manual_seed(9), torch.zeros((), dtype=torch.float64)
    for name in results:
        value = getattr(found, name).double().cpu()
        total = total + (value * torch.randn(value.shape, generator=generator, dtype=torch.float64)).sum()
    return total


def gradients_of_both(case: Case, results: tuple[str, ...], tiling: Tiling | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Of v, a, W and b: the kernel's, and the reference's in float64 on a CPU. Zeros where nothing arrives."""
    plain = on_cpu(case)
    ours, theirs = leaves(case), leaves(plain)
    weights = FusionWeights.pack(ours[2], ours[3], dim=case.visual.shape[-1])
    cost(match_fuse(ours[0], ours[1], case.mask, weights, Options(TAU, MAX_LAG, tiling=tiling), case.packing), results).backward()
    expected = match_fuse_reference(theirs[0], theirs[1], plain.mask, theirs[2], theirs[3], tau=TAU, max_lag=MAX_LAG, packing=plain.packing)
    cost(expected, results).backward()
    both = [[torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in side] for side in (ours, theirs)]
    return both[0], both[1]


@pytest.mark.parametrize("results", [EVERY, *((name,) for name in EVERY)], ids="+".join)
def test_gradients_equal_torchs_through_every_result(results: tuple[str, ...]) -> None:
    """Windows of odd lengths over several programs, masked frames, a window that is empty and one without a valid frame."""
    case = make_case(packed([1, 7, 26, 0, 4]), dim=40, outputs=24, valid=0.8, seed=2)
    assert case.mask is not None
    case.mask[-4:] = False
    case.mask[0] = True
    for ours, theirs in zip(*gradients_of_both(case, results, SMALL), strict=True):
        assert ours.shape == theirs.shape
        assert rms_ratio(ours, theirs) <= 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 4e-3)], ids=["float32", "float16"])
def test_gradients_with_the_default_tiles(dtype: torch.dtype, tolerance: float) -> None:
    case = make_case(packed([31, 75]), dim=128, outputs=64, dtype=dtype, valid=0.8)
    for ours, theirs in zip(*gradients_of_both(case, EVERY), strict=True):
        assert ours.dtype == dtype
        assert rms_ratio(ours, theirs) <= tolerance


def test_a_shared_sound_gathers_the_gradients_of_its_tracks() -> None:
    device = make_case(packed([1]), dim=16, outputs=16).visual.device
    case = make_case(Packing.uniform(3, 9, device=device, sound=torch.tensor([1, 0, 1], device=device)), dim=32, outputs=16, parts=3)
    for ours, theirs in zip(*gradients_of_both(case, EVERY, SMALL), strict=True):
        assert rms_ratio(ours, theirs) <= 1e-5


def test_training_gives_the_results_of_inference() -> None:
    case = make_case(packed([5, 12]), dim=32, outputs=16, valid=0.8)
    weights, options = FusionWeights.pack(case.weight, case.bias, dim=32), Options(TAU, MAX_LAG, write_similarity=True, tiling=SMALL)
    plain = match_fuse(case.visual, case.audio, case.mask, weights, options, case.packing)
    trained = match_fuse(case.visual.requires_grad_(), case.audio, case.mask, weights, options, case.packing)
    assert trained.similarity is not None
    assert not trained.similarity.requires_grad
    for one, other in zip(trained, plain, strict=True):
        torch.testing.assert_close(one.detach(), other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("parts", [3, 4])
@pytest.mark.parametrize("loss", ["sum", "transposed"])
def test_gradients_that_are_not_contiguous_are_taken_as_they_are(parts: int, loss: str) -> None:
    """`sum` hands down one number for every element, a transposed loss a column-major matrix."""
    case = make_case(packed([5, 9]), dim=32, outputs=16, parts=parts)
    both = []
    for kernel in (True, False):
        v, a, weight, bias = leaves(case if kernel else on_cpu(case))
        if kernel:
            weights = FusionWeights.pack(weight, bias, dim=32)
            found = match_fuse(v, a, None, weights, Options(TAU, MAX_LAG, tiling=SMALL), case.packing)
        else:
            found = match_fuse_reference(v, a, None, weight, bias, tau=TAU, max_lag=MAX_LAG, packing=on_cpu(case).packing)
        if loss == "sum":
            (found.attended.sum() + found.matched.sum()).backward()
        else:
            sum(value.t().log_softmax(dim=0)[3].square().sum() for value in (found.attended, found.lag_profile)).backward()
        both.append((v.grad, a.grad))
    for ours, theirs in zip(*both, strict=True):
        assert rms_ratio(ours, theirs) <= 1e-5


def test_a_second_derivative_is_refused() -> None:
    case = make_case(packed([4]), dim=16, outputs=16)
    v, a, weight, bias = leaves(case)
    found = match_fuse(v, a, None, FusionWeights.pack(weight, bias, dim=16), Options(TAU, MAX_LAG, tiling=SMALL), case.packing)
    (first,) = torch.autograd.grad(found.fused.square().sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
