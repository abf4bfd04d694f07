"""The kernel against the model's own functions, formulas in loops, and the ONNX head that ships."""

import numpy as np
import onnxruntime
import pytest
import torch

from dissonance.bundle import open_bundle
from dissonance.kernels.match_fuse import MatchFuse, Options, match_fuse, match_fuse_reference
from dissonance.kernels.packing import Packing
from dissonance.kernels.tiling import Tiling
from dissonance.kernels.weights import FusionWeights
from dissonance.model.checkpoint import load_checkpoint
from tests.kernels.cases import DEVICE, LENGTHS, Case, make_case, on_cpu, packed, rms_ratio
from tests.model.test_matching import slow_match

TAU, MAX_LAG = 0.07, 8
SMALL = Tiling(block_m=16, block_n=16, block_h=16, block_k=16, block_u=16, warps=4, stages=1)  # many programs even for little windows


def run(case: Case, *, max_lag: int = MAX_LAG, tiling: Tiling | None = None, similarity: bool = False) -> MatchFuse:
    weights = FusionWeights.pack(case.weight, case.bias, dim=case.visual.shape[-1])
    options = Options(TAU, max_lag, write_similarity=similarity, tiling=tiling)
    return match_fuse(case.visual, case.audio, case.mask, weights, options, case.packing)


def reference(case: Case, *, max_lag: int = MAX_LAG) -> MatchFuse:
    """In float64 on a CPU, from the same inputs."""
    v, a, mask, weight, bias, packing = on_cpu(case)
    return match_fuse_reference(v, a, mask, weight, bias, tau=TAU, max_lag=max_lag, packing=packing)


def assert_equal(found: MatchFuse, expected: MatchFuse, tolerance: float) -> None:
    for name, value in zip(MatchFuse._fields, expected, strict=True):
        result = getattr(found, name)
        if result is None:
            continue
        if value.is_floating_point():
            assert rms_ratio(result, value.reshape(result.shape)) <= tolerance, name
        else:
            assert torch.equal(result.cpu(), value), name


@pytest.mark.parametrize(
    ("dtype", "dim", "valid"), [(torch.float32, 128, 0.7), (torch.float32, 256, 1.0), (torch.float16, 128, 1.0), (torch.float16, 256, 0.7)]
)
def test_equals_the_models_functions_for_windows_of_odd_lengths(dtype: torch.dtype, dim: int, valid: float) -> None:
    case = make_case(packed(LENGTHS), dim=dim, outputs=96, dtype=dtype, valid=valid)
    found = run(case, similarity=True)
    assert found.fused.dtype == found.attended.dtype == dtype
    assert_equal(found, reference(case), 1e-5 if dtype == torch.float32 else 2e-3)


@pytest.mark.parametrize(("max_lag", "parts"), [(0, 4), (3, 3), (8, 4)])
def test_any_sizes_lags_and_tiles(max_lag: int, parts: int) -> None:
    """D and H that are no powers of two, windows over many programs, without u, an empty window."""
    case = make_case(packed([5, 0, 50, 3]), dim=40, outputs=24, valid=0.8, parts=parts)
    assert_equal(run(case, max_lag=max_lag, tiling=SMALL, similarity=True), reference(case, max_lag=max_lag), 1e-5)


def test_equals_the_formulas_in_loops() -> None:
    lengths = [9, 4]
    case = make_case(packed(lengths), dim=16, outputs=16, valid=0.7, seed=3)
    assert case.mask is not None
    found = run(case, max_lag=3)
    for window, first in enumerate([0, 9]):
        rows = slice(first, first + lengths[window])
        v, a = (torch.nn.functional.normalize(x[rows].double(), dim=-1).cpu().numpy() for x in (case.visual, case.audio))
        expected = slow_match(v, a, case.mask[rows].tolist(), tau=TAU, max_lag=3)
        for name in ("matched", "row_match", "attended"):
            np.testing.assert_allclose(getattr(found, name)[rows].cpu().numpy(), expected[name], atol=2e-6, err_msg=name)
        for name in ("lag_profile", "lag_valid", "best_lag"):
            np.testing.assert_allclose(getattr(found, name)[window].cpu().numpy(), expected[name], atol=1e-6, err_msg=name)


def test_tracks_that_share_sounds_get_what_copies_of_them_would() -> None:
    """Three faces hear the first sound, one the second; the sound is stored once."""
    sound = torch.tensor([0, 1, 0, 0])
    shared = make_case(Packing.uniform(4, 33, device=DEVICE, sound=sound.to(DEVICE)), dim=64, outputs=64, valid=0.8)
    assert len(shared.audio) == 2 * 33
    copied = shared._replace(audio=shared.audio.view(2, 33, 64)[sound].reshape(-1, 64), packing=Packing.uniform(4, 33, device=DEVICE))
    for one, other in zip(run(shared), run(copied), strict=True):
        assert one is other is None or torch.equal(one, other)
    assert_equal(run(shared), reference(shared), 1e-5)
    ragged = packed([5, 9, 5], sound=torch.tensor([1, 0, 1]), sound_lengths=torch.tensor([9, 5]))
    assert ragged.sound_row.tolist() == [9, 10, 11, 12, 13, *range(9), 9, 10, 11, 12, 13]


@torch.inference_mode()
def test_the_head_with_the_kernel_in_it_gives_the_shipped_onnx_heads_numbers() -> None:
    """Alignment in torch, the kernel, then head_tail.onnx; against head.onnx alone. D is 64; masks of every kind, one window without a frame."""
    bundle = open_bundle("demo")
    whole, tail = (onnxruntime.InferenceSession(bundle.read(name), providers=["CPUExecutionProvider"]) for name in ("head.onnx", "head_tail.onnx"))
    network = load_checkpoint(bundle.path / "weights.safetensors").network.eval()
    config, generator = network.config, torch.Generator().manual_seed(5)
    frames = config.frames
    visual = torch.randn(5, frames, config.visual.feature_size, generator=generator)
    audio = torch.randn(5, 2 * frames, config.audio.hidden_size, generator=generator)
    mask = torch.arange(frames)[None] < torch.tensor([frames, 17, 1, 0, frames])[:, None]
    mask[4] = torch.rand(frames, generator=generator) < 0.5
    names = [item.name for item in whole.get_outputs()]
    expected = dict(zip(names, whole.run(None, {"visual": visual.numpy(), "audio": audio.numpy(), "mask": mask.numpy()}), strict=True))
    v, a = network.head.align(visual, audio, mask)
    weights = FusionWeights.pack(network.head.fusion.proj.weight, network.head.fusion.proj.bias, dim=config.head.dim)
    options = Options(config.head.tau, config.head.max_lag, write_similarity=True)
    found = match_fuse(v.to(DEVICE), a.to(DEVICE), mask.to(DEVICE), FusionWeights(*(part.to(DEVICE) for part in weights)), options)
    for name in ("matched", "lag_profile", "row_match"):
        np.testing.assert_allclose(getattr(found, name).cpu().numpy(), expected[name], atol=1e-5, rtol=0, err_msg=name)
    for name in ("lag_valid", "best_lag"):
        np.testing.assert_array_equal(getattr(found, name).cpu().numpy(), expected[name], err_msg=name)
    logits = tail.run(None, {"fused": found.fused.cpu().numpy(), "visual": v.numpy(), "audio": a.numpy(), "mask": mask.numpy()})
    for name, logit in zip([item.name for item in tail.get_outputs()], logits, strict=True):
        np.testing.assert_allclose(logit, expected[name], atol=2e-5, rtol=0, err_msg=name)


def test_similarity_is_the_plain_product() -> None:
    case = make_case(Packing.uniform(3, 33, device=DEVICE), dim=64, outputs=32, seed=1)
    weights = FusionWeights.pack(case.weight, case.bias, dim=64)
    v, a = case.visual.view(3, 33, 64), case.audio.view(3, 33, 64)
    found = match_fuse(v, a, None, weights, Options(TAU, MAX_LAG, write_similarity=True)).similarity
    assert found is not None
    v, a = (x.double().cpu().numpy() for x in (v, a))
    expected = np.einsum("wid,wjd->wij", v / np.linalg.norm(v, axis=-1, keepdims=True), a / np.linalg.norm(a, axis=-1, keepdims=True))
    np.testing.assert_allclose(found.cpu().numpy(), expected, atol=1e-6)


def test_frames_that_are_not_valid_are_never_seen_whatever_they_hold() -> None:
    """A window without a valid frame gives zeros and GELU(b), like every padded frame; a valid row of zeros has m = 0, not NaN."""
    case = make_case(packed([6, 4, 8]), dim=16, outputs=16, valid=0.6)
    mask = torch.tensor([True] * 4 + [False] * 2 + [False] * 4 + [True] * 8, device=DEVICE)
    case.visual[10] = 0.0  # a valid frame without a feature
    plain = run(case._replace(mask=mask), similarity=True)
    case.visual[~mask], case.audio[~mask] = float("nan"), float("inf")
    for one, other in zip(run(case._replace(mask=mask), similarity=True), plain, strict=True):
        assert torch.equal(one, other)
    assert torch.isfinite(plain.fused).all()
    assert plain.best_lag[1] == 0
    assert not plain.lag_valid[1].any()
    torch.testing.assert_close(plain.fused[~mask], torch.nn.functional.gelu(case.bias).expand(6, 16), atol=1e-6, rtol=0)
    assert plain.matched[10] == 0
    torch.testing.assert_close(plain.row_match[10].cpu(), torch.tensor(1 / 8))


def test_ties_of_lags_go_to_the_smallest_and_then_to_the_positive_one() -> None:
    turns = torch.tensor([1.0, -1.0], device=DEVICE).repeat(4)[None, :, None] * torch.eye(16, device=DEVICE)[0]
    weights = FusionWeights.pack(torch.ones(16, 66, device=DEVICE), torch.ones(16, device=DEVICE), dim=16)
    assert match_fuse(turns, turns, None, weights, Options(1.0, 4)).best_lag.item() == 0
    assert match_fuse(turns, -turns, None, weights, Options(1.0, 4)).best_lag.item() == 1


def test_a_window_alone_gives_what_it_gives_among_others() -> None:
    lengths = [7, 33, 20]
    case = make_case(packed(lengths), dim=64, outputs=32, dtype=torch.float16)
    every = run(case)
    for window, first in enumerate([0, 7, 40]):
        rows = slice(first, first + lengths[window])
        alone = run(case._replace(visual=case.visual[rows], audio=case.audio[rows], packing=packed(lengths[window : window + 1])))
        assert rms_ratio(every.fused[rows], alone.fused) <= 5e-4
        torch.testing.assert_close(every.row_match[rows], alone.row_match, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(every.lag_profile[window], alone.lag_profile[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_window_that_is_no_number_spoils_no_other(value: float) -> None:
    """In one tile: no score depends on its batch mates."""
    case = make_case(packed([6, 5, 7]), dim=32, outputs=16)
    expected = run(case, tiling=SMALL)
    case.audio[8, 3] = value
    found = run(case, tiling=SMALL)
    others = torch.ones(18, dtype=torch.bool)
    others[6:11] = False
    for name in ("fused", "attended", "matched", "row_match"):
        assert torch.equal(getattr(found, name)[others], getattr(expected, name)[others])
        assert not torch.isfinite(getattr(found, name)[8]).all()
    assert found.best_lag.tolist() == reference(case).best_lag.tolist() == [expected.best_lag[0], 0, expected.best_lag[2]]


def test_what_does_not_fit_is_refused() -> None:
    case = make_case(packed([5, 3]), dim=16, outputs=16)
    weights, options = FusionWeights.pack(case.weight, case.bias, dim=16), Options(TAU, 2)
    with pytest.raises(ValueError, match="need a packing"):
        match_fuse(case.visual, case.audio, None, weights, options)
    with pytest.raises(ValueError, match="Invalid shapes"):
        match_fuse(case.visual[:-1], case.audio, None, weights, options, case.packing)
    with pytest.raises(ValueError, match="Invalid mask"):
        match_fuse(case.visual, case.audio, torch.ones(3, dtype=torch.bool, device=DEVICE), weights, options, case.packing)
    with pytest.raises(ValueError, match="Invalid types"):
        match_fuse(case.visual.half(), case.audio, None, weights, options, case.packing)
    with pytest.raises(ValueError, match="Invalid weight"):
        FusionWeights.pack(case.weight, case.bias, dim=15)
    with pytest.raises(ValueError, match="sound of its own length"):
        packed([5, 3], sound=torch.tensor([0, 0]), sound_lengths=torch.tensor([5]))
    with pytest.raises(ValueError, match="sound of its own length"):
        packed([5], sound=torch.tensor([-1]), sound_lengths=torch.tensor([5]))
    for sound in ([0, 1, 0], [0, -1]):
        with pytest.raises(ValueError, match="an index from 0 for every window"):
            Packing.uniform(2, 3, sound=torch.tensor(sound))
