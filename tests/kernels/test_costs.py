"""The closed forms against PyTorch's own count of operations, and against what the arguments of the kernels hold."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dissonance.kernels.costs import (
    H100,
    Problem,
    bound_s,
    crop_bytes,
    crop_operations,
    device_bytes,
    executed_operations,
    l2_bytes,
    mel_bytes,
    operations,
)
from dissonance.kernels.crop_resize_normalize import CropTiling, crop_resize_normalize
from dissonance.kernels.log_mel import log_mel
from dissonance.kernels.match_fuse import Options, launch_forward, match_fuse_reference
from dissonance.kernels.tiling import Tiling
from dissonance.kernels.weights import FusionWeights
from tests.kernels.cases import DEVICE, make_case, packed

BASE = Problem(frames=32, dim=256, outputs=256, max_lag=8)


@pytest.mark.parametrize("parts", [3, 4])
@pytest.mark.parametrize("frames", [7, 32])
def test_operations_are_those_that_torch_counts_in_the_reference(parts: int, frames: int) -> None:
    case = make_case(packed([frames] * 3), dim=64, outputs=48, parts=parts)
    with FlopCounterMode(display=False) as counter:
        match_fuse_reference(case.visual, case.audio, None, case.weight, case.bias, tau=0.07, max_lag=4, packing=case.packing)
    assert counter.get_total_flops() == 3 * operations(Problem(frames=frames, dim=64, outputs=48, max_lag=4, parts=parts))


def test_bytes_are_those_of_the_tensors_that_the_kernels_read_and_write() -> None:
    windows, frames, dim, outputs, lags = 4, 8, 32, 16, 7
    case = make_case(packed([frames] * windows), dim=dim, outputs=outputs, dtype=torch.float16)
    weights, valid = FusionWeights.pack(case.weight, case.bias, dim=dim), torch.ones(windows * frames, dtype=torch.uint8, device=case.visual.device)
    out = launch_forward(case.visual, case.audio, valid, weights, case.packing, Options(0.07, 3), write_z=False)
    result = out.result
    tensors = [case.visual, case.audio, valid, case.packing.window, case.packing.sound_row, result.fused, result.attended, result.matched]
    tensors += [result.row_match, out.log_sum, result.lag_profile, out.pairs, result.best_lag]
    band = 2 * windows * frames * lags * 4  # written by one kernel, read by the other
    expected = sum(tensor.numel() * tensor.element_size() for tensor in tensors) + band
    assert windows * device_bytes(Problem(frames=frames, dim=dim, outputs=outputs, max_lag=3)) == expected


def test_the_bound_is_the_larger_of_both_and_shared_sounds_lower_it() -> None:
    assert bound_s(BASE, H100) == pytest.approx(max(device_bytes(BASE) / 3.0e12, operations(BASE) / 798e12))
    assert device_bytes(BASE) - device_bytes(replace(BASE, tracks=4)) == pytest.approx(0.75 * 32 * 256 * 2)


def test_a_larger_tile_asks_less_of_the_cache() -> None:
    tiling = Tiling.default((9, 0), dtype=torch.bfloat16, dim=256, outputs=256)
    assert l2_bytes(BASE, replace(tiling, block_m=64)) > l2_bytes(BASE, tiling) > l2_bytes(BASE, replace(tiling, block_h=128))
    assert executed_operations(BASE, replace(tiling, block_u=256, block_m=32)) == operations(BASE)  # a tile of one window, one sweep


def test_a_crop_moves_its_pixels_and_its_result_and_its_products_are_counted_as_executed() -> None:
    frames, boxes = torch.zeros(1, 80, 80, 3, dtype=torch.uint8), torch.tensor([[0.0, 0.0, 80.0, 80.0]])
    out = crop_resize_normalize(frames.to(DEVICE), boxes.to(DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE), size_px=16)
    assert crop_bytes((80, 80), 16) == frames.numel() + out.numel() * out.element_size()
    tiling = CropTiling(block_y=16, block_x=16, block_i=16, block_j=32)
    rows, columns = 96, 96  # 16 outputs of 5 pixels and 5 on either side are 90, in blocks of 16 and of 32
    assert crop_operations((80, 80), 16, tiling) == 2 * 2 * 3 * (rows * columns * 16 + 16 * rows * 16)


def test_a_frame_of_mel_moves_its_samples_and_its_bins() -> None:
    sound = torch.zeros(16000, device=DEVICE)
    assert 100 * mel_bytes(80) == 4 * (sound.numel() + log_mel(sound, bins=80).numel())
