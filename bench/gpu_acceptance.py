"""Rung `gpu-acceptance`: everything that only a GPU can show, in one command that ends within eight minutes. No GPU has run it yet.

First the ceilings of this GPU: bytes a second of a large copy, operations a second of a large product. Then every kernel against its plain version in
float64, on data that nobody has seen before, in every type and at odd sizes; runtimes and scans against torch in float32 on a CPU. Then times, each
beside what was predicted of it: max(bytes / bandwidth, operations / peak) with the ceilings as measured. What cannot run here is a row that says why.
"""

import json
import os
import secrets
import time
from collections.abc import Callable

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # read when triton is imported

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from bench._gpu_engine import scans, tensorrt_numbers, torch_numbers
from bench._rows import Row, at_least, at_most, measured, tell
from bench._site import Site, failed, missing, skipped

DEADLINE_S = 420.0  # no step begins after it; none takes longer than a minute
LENGTHS = (1, 7, 31, 32, 33, 75)
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # RMS of the error over RMS
TAU, MAX_LAG = 0.07, 8
CROP_PX = 224


def run() -> list[Row]:
    """All steps, or why not."""
    absent = missing("triton")
    if not torch.cuda.is_available() or absent:
        why = absent or "PyTorch finds no NVIDIA GPU here"
        return [skipped(name, why) for name in STEPS]
    site, rows, started_s = Site("cuda", secrets.randbelow(2**31)), [], time.monotonic()
    tell(f"{torch.cuda.get_device_name()}, seed {site.seed}")
    for name, step in STEPS.items():
        tell(name)
        if time.monotonic() - started_s > DEADLINE_S:
            rows.append(skipped(name, "eight minutes would not be enough"))
            continue
        try:
            rows += step(site)
        except Exception as error:  # one kernel that fails must not hide what the others do
            rows.append(failed(name, error))
        torch.cuda.empty_cache()
    return [{"device": torch.cuda.get_device_name(), **row} for row in rows]


# -------------------------------------------------------------------------------------------------------------- ceilings


def ceilings(site: Site) -> list[Row]:
    """What this GPU can do at best, as measured."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    site.bytes_per_s = 2 * source.numel() / _seconds(lambda: target.copy_(source))
    size = 8192
    left, right = (site.normal(size, size, dtype=torch.bfloat16) for _ in range(2))
    site.flops_per_s = 2 * size**3 / _seconds(lambda: left @ right)
    return [
        measured("bandwidth of device memory, TB/s", site.bytes_per_s / 1e12, "a copy of 1 GiB, bytes read and written"),
        measured("peak of 16-bit products, TFLOP/s", site.flops_per_s / 1e12, f"a product of {size} x {size} in bfloat16"),
    ]


def _seconds(call: Callable[[], object]) -> float:
    import triton

    return float(triton.testing.do_bench(call, warmup=50, rep=200, return_mode="median")) / 1e3


# -------------------------------------------------------------------------------------------------------------- numbers


def match_fuse_numbers(site: Site) -> list[Row]:
    """Forward and backward of `match_fuse`, in every type and at odd sizes."""
    from dissonance.kernels.match_fuse import MatchFuse, Options, match_fuse, match_fuse_reference
    from dissonance.kernels.packing import Packing
    from dissonance.kernels.weights import FusionWeights

    rows = []
    dims = ((128, 96), (256, 256), (40, 24)) if site.large else ((40, 24),)
    for dtype, tolerance in TOLERANCES.items():
        if not site.large and dtype == torch.bfloat16:
            continue  # NumPy, in which kernels are interpreted, has no such type
        forward = backward = 0.0
        for dim, outputs in dims:
            lengths = [*LENGTHS, *torch.randint(1, 201, (300 if site.large else 1,), generator=site.generator()).tolist()]
            packing = Packing.of_lengths(torch.tensor(lengths, device=site.device))
            mask = site.normal(packing.rows) < 1.0
            inputs = [site.normal(packing.rows, dim, dtype=dtype) for _ in range(2)]
            inputs += [site.normal(outputs, 4 * dim + 2, dtype=dtype), site.normal(outputs, dtype=dtype)]
            ours, theirs = ([value.detach().to(kind).requires_grad_() for value in inputs] for kind in (dtype, torch.float64))
            weights = FusionWeights.pack(ours[2], ours[3], dim=dim)
            found = match_fuse(ours[0], ours[1], mask, weights, Options(TAU, MAX_LAG), packing)
            expected = match_fuse_reference(theirs[0], theirs[1], mask, theirs[2], theirs[3], tau=TAU, max_lag=MAX_LAG, packing=packing)
            for name in ("fused", "matched", "lag_profile", "row_match", "attended"):
                forward = max(forward, _rms_ratio(getattr(found, name), getattr(expected, name)))
            weighting = torch.randn(expected.fused.shape, generator=site.generator()).to(site.device)
            for result in (found, expected):
                assert isinstance(result, MatchFuse)
                cost = (result.fused.double() * weighting).sum() + result.matched.double().sum() + result.lag_profile.double().sum()
                cost.backward()  # type: ignore[no-untyped-call]
            gradients = [[leaf.grad for leaf in leaves if leaf.grad is not None] for leaves in (ours, theirs)]
            backward = max(backward, *(_rms_ratio(one, other) for one, other in zip(*gradients, strict=True)))
        rows.append(at_most(f"match_fuse in {_name(dtype)}: error", forward, tolerance, f"relative RMS, windows of 1 to 200 frames, D and H {dims}"))
        rows.append(at_most(f"match_fuse in {_name(dtype)}: error of gradients", backward, 3 * tolerance, "the same"))
    return rows


def crop_numbers(site: Site) -> list[Row]:
    """Crops against the plain version, in levels of 255."""
    from dissonance.kernels.crop_resize_normalize import crop_resize_normalize, crop_resize_normalize_reference

    height, width = (1080, 1920) if site.large else (60, 80)
    frames = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8, generator=site.generator())
    boxes, frame = _boxes(site, 24 if site.large else 3, width=width, height=height), torch.arange(24 if site.large else 3) % 2
    size = CROP_PX if site.large else 16
    expected = crop_resize_normalize_reference(frames, boxes, frame, size_px=size)
    rows = []
    for dtype in TOLERANCES:
        if not site.large and dtype == torch.bfloat16:
            continue
        found = crop_resize_normalize(*(each.to(site.device) for each in (frames, boxes, frame)), size_px=size, dtype=dtype).cpu().double()
        worst = 255 * (found - expected.to(dtype).double()).abs().max().item()
        limit = 1.0 + 255 * torch.finfo(dtype).eps  # a level, and the type's rounding
        rows.append(at_most(f"crops in {_name(dtype)}: largest difference, levels", worst, limit, f"noise of {width}x{height} to {size}"))
    return rows


def _boxes(site: Site, count: int, *, width: int, height: int) -> Tensor:
    """Squares of a sixth of the height to all of it, anywhere in the frame."""
    random = torch.rand(count, 3, generator=site.generator(), dtype=torch.float64)
    side = height / 6 + random[:, 0] * (height - height / 6)
    left, top = random[:, 1] * (width - side), random[:, 2] * (height - side)
    return torch.stack([left, top, left + side, top + side], 1)


def log_mel_numbers(site: Site) -> list[Row]:
    """Whole sounds and windows of them, against a plain version in float64."""
    from dissonance.kernels.log_mel import log_mel, mel_windows
    from dissonance.mel import FLOOR, HOP_LENGTH, N_FFT, mel_filters

    sound = 0.1 * site.normal(16000 * (60 if site.large else 1))
    wide = F.pad(sound.double()[None], (N_FFT // 2, N_FFT // 2), mode="reflect")[0].unfold(0, N_FFT, HOP_LENGTH)[: len(sound) // HOP_LENGTH]
    window = torch.hann_window(N_FFT, periodic=True, dtype=torch.float64, device=sound.device)
    rows = []
    for bins in (80, 128):
        filters = torch.from_numpy(mel_filters(bins)).double().to(sound.device)
        expected = (torch.fft.rfft(wide * window).abs().square() @ filters.T).clamp(min=FLOOR).log10()
        found = log_mel(sound, bins=bins)
        first = torch.arange(0, len(found) - 64, 37, device=sound.device)
        windows = mel_windows(found, first, torch.full_like(first, 64), size=64)
        cut = torch.stack([expected[begin : begin + 64].T for begin in first.tolist()])
        peak = cut.amax(dim=(1, 2), keepdim=True)
        worst = (windows.double() - (torch.maximum(cut, peak - 8) + 4) / 4).abs().max().item()
        rows.append(at_most(f"log-mel with {bins} bins: largest difference", worst, 1e-4, f"{len(first)} windows of noise, normalised"))
    return rows


# ---------------------------------------------------------------------------------------------------------------- times


def match_fuse_times(site: Site) -> list[Row]:
    """`match_fuse` beside its bound, the model's own functions, and those compiled by torch."""
    from dissonance.kernels.costs import Problem, device_bytes, operations
    from dissonance.kernels.match_fuse import Options, match_fuse
    from dissonance.kernels.packing import Packing
    from dissonance.kernels.weights import FusionWeights
    from dissonance.model.matching import fuse, match

    windows, problem = 4096, Problem(frames=32, dim=256, outputs=256, max_lag=MAX_LAG)
    v, a = (site.normal(windows, problem.frames, problem.dim, dtype=torch.bfloat16) for _ in range(2))
    weight, bias = site.normal(problem.outputs, 4 * problem.dim + 2, dtype=torch.bfloat16), site.normal(problem.outputs, dtype=torch.bfloat16)
    packing, packed = Packing.uniform(windows, problem.frames, device="cuda"), FusionWeights.pack(weight, bias, dim=problem.dim)
    mask = torch.ones(windows, problem.frames, dtype=torch.bool, device="cuda")

    def plain(v: Tensor, a: Tensor) -> Tensor:
        v, a = F.normalize(v, dim=-1), F.normalize(a, dim=-1)
        found: Tensor = fuse(v, a, match(v, a, mask, tau=TAU, max_lag=MAX_LAG), weight, bias)
        return found

    compiled = torch.compile(plain)
    with torch.inference_mode():
        ours, eager, inductor = (
            _seconds(call)
            for call in (lambda: match_fuse(v, a, mask, packed, Options(TAU, MAX_LAG), packing), lambda: plain(v, a), lambda: compiled(v, a))
        )
    bound = windows * max(device_bytes(problem) / site.bytes_per_s, operations(problem) / site.flops_per_s)
    size = f"{windows} windows of {problem.frames} frames, D and H {problem.dim}, bfloat16; {ours * 1e6:.0f} us"
    return [
        _with(at_least("match_fuse: share of its bound", bound / ours, 0.6, size), predicted=1.0),
        _with(at_least("match_fuse: plain torch / kernel", eager / ours, 5, f"{eager * 1e6:.0f} us"), predicted=226.1 / 23.6),
        at_least("match_fuse: torch.compile / kernel", inductor / ours, 2, f"{inductor * 1e6:.0f} us"),
    ]


def crop_times(site: Site) -> list[Row]:
    """Crops of 400 pixels out of 1080p."""
    from dissonance.kernels.costs import crop_bytes, crop_operations
    from dissonance.kernels.crop_resize_normalize import DEFAULT_TILING, crop_resize_normalize

    frames = torch.randint(0, 256, (64, 1080, 1920, 3), dtype=torch.uint8, device="cuda")
    corner = torch.rand(256, 2, generator=site.generator()) * torch.tensor([1519.0, 679.0])
    boxes, frame = torch.cat([corner, corner + 400.3], 1).cuda(), (torch.arange(256) % 64).cuda()
    took = _seconds(lambda: crop_resize_normalize(frames, boxes, frame, size_px=CROP_PX))
    side = (400.3, 400.3)
    by_memory = 256 * crop_bytes(side, CROP_PX) / site.bytes_per_s
    by_products = 256 * crop_operations(side, CROP_PX, DEFAULT_TILING) / site.flops_per_s
    how = f"256 crops in {took * 1e6:.0f} us; memory {by_memory * 1e6:.0f}, products {by_products * 1e6:.0f}"
    return [_with(at_least("crops: share of the bandwidth bound", by_memory / took, 0.8, how), predicted=by_memory / max(by_memory, by_products))]


def log_mel_times(site: Site) -> list[Row]:
    """Ten minutes of sound."""
    from dissonance.kernels.costs import mel_bytes
    from dissonance.kernels.log_mel import log_mel

    sound = 0.1 * site.normal(16000 * 600)
    took = _seconds(lambda: log_mel(sound, bins=80))
    bound = 60000 * mel_bytes(80) / site.bytes_per_s
    return [
        measured(
            "log-mel: share of the bandwidth bound", bound / took, f"ten minutes of sound in {took * 1e6:.0f} us; its spectrum passes through memory"
        )
    ]


def encoder_times(site: Site) -> list[Row]:
    """The visual encoder of preset base with random weights."""
    if absent := missing("pydantic", "yaml", "safetensors", "numpy"):
        return [skipped("visual encoder", absent)]
    from torch.utils.flop_counter import FlopCounterMode

    from dissonance.config import load_preset
    from dissonance.engine.runtime.torch_runtime import TorchRuntime
    from dissonance.model.network import build_network

    config, batch = load_preset("base"), 256
    network = build_network(config.model_copy(update={"visual": config.visual.model_copy(update={"backbone": None})}), seed=0).cuda()
    crops = torch.randint(0, 256, (batch, CROP_PX, CROP_PX, 3), dtype=torch.uint8, device="cuda")
    runtime, index = TorchRuntime(network, device="cuda", precision="bf16", graphs=True), torch.arange(batch, device="cuda")
    with runtime._inference():
        with FlopCounterMode(display=False) as counter:
            runtime._encode_frames(crops, index)
        took = _seconds(lambda: runtime._visual(crops, index))
    share = counter.get_total_flops() / took / site.flops_per_s
    how = f"{batch} images in bf16, CUDA graph: {batch / took:.0f} images/s, {counter.get_total_flops() / batch / 1e9:.1f} GFLOP each"
    return [_with(at_least("visual encoder of base, torch runtime: share of the matrix peak", share, 0.6, how), predicted=0.6)]


def _with(row: Row, *, predicted: float) -> Row:
    return {**row, "predicted": predicted}


def _rms_ratio(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||; NaN where one is no number."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


STEPS: dict[str, Callable[[Site], list[Row]]] = {
    "ceilings": ceilings,
    "match_fuse: numbers": match_fuse_numbers,
    "crops: numbers": crop_numbers,
    "log-mel: numbers": log_mel_numbers,
    "torch runtime: numbers": torch_numbers,
    "TensorRT runtime: numbers": tensorrt_numbers,
    "match_fuse: times": match_fuse_times,
    "crops: times": crop_times,
    "log-mel: times": log_mel_times,
    "visual encoder: times": encoder_times,
    "scans": scans,
}


if __name__ == "__main__":
    for row in run():
        print(json.dumps(row))
