"""Pairs of windows: which belong together, which mismatches are drawn, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dissonance.training.losses import Logits
from dissonance.training.pairs import NO_LAG, PairedWindows, StreamWindows, draw_cross_pairs
from tests.training.loss_cases import TERMS, full_case, in_sync, loss_of
from tests.training.slow_losses import unit_rows


def test_sound_variants_of_pictures_encoded_once_equal_pictures_encoded_for_each() -> None:
    """Three variants of each of two pictures: pairing them by index is the same as repeating the pictures, but for InfoNCE's choice among pictures,
    where a repeated picture would be its own rival's twin."""
    generator = np.random.default_rng(8)
    v, a = torch.tensor(unit_rows(generator, 2, 5, 3)), torch.tensor(unit_rows(generator, 2, 3, 5, 3))
    picture, sound = torch.tensor([0, 0, 0, 1, 1, 1]), torch.arange(6)

    def stream(features: torch.Tensor, clip: list[int]) -> StreamWindows:
        numbers = torch.tensor(clip)
        return StreamWindows(
            features=features, valid=torch.ones(features.shape[:2], dtype=torch.bool), clip=numbers, identity=numbers, start_frame=numbers * 0
        )

    def paired(pictures: StreamWindows, picture: torch.Tensor) -> PairedWindows:
        sounds = stream(a.flatten(0, 1), [0, 2, 3, 1, 4, 5])
        fake = torch.tensor([False, True, True] * 2)
        return PairedWindows(
            pictures=pictures, sounds=sounds, speech=sounds.valid, picture=picture, sound=sound, picture_fake=fake,
            sound_fake=torch.zeros_like(fake), mismatched=torch.zeros_like(fake),
            true_lag=torch.where(fake, NO_LAG, 0),
        )  # fmt: skip

    once = loss_of()(paired(stream(v, [0, 1]), picture)).as_floats()
    repeated = loss_of()(paired(stream(v[picture], [0, 0, 0, 1, 1, 1]), torch.arange(6))).as_floats()
    assert {name: once[name] for name in TERMS[:6]} == pytest.approx({name: repeated[name] for name in TERMS[:6]})
    assert once["contrast_lag"] == pytest.approx(repeated["contrast_lag"])
    assert once["contrast_windows"] < repeated["contrast_windows"]


def test_mismatches_are_drawn_across_clips_and_within_them() -> None:
    case = full_case()
    case.v_origin = np.stack([np.arange(5), np.arange(5), np.zeros(5, np.int64)], axis=1)
    case.a_origin = np.stack([np.arange(9) % 5, np.arange(9) % 5, np.zeros(9, np.int64)], axis=1)
    case.picture, case.sound = np.arange(11) % 5, np.arange(11) % 5
    batch = case.batch()
    real = {(p, q) for p, q, is_real in zip(case.picture, case.sound, batch.real.tolist(), strict=True) if is_real}
    assert len(real) > 1
    drawn = [draw_cross_pairs(batch, max_shift=4, generator=torch.Generator().manual_seed(seed)).cross for seed in range(40)]
    rows = [tuple(row) for cross in drawn if cross is not None for row in cross.tolist()]
    assert all(len(cross) == 2 * int(batch.real.sum()) for cross in drawn if cross is not None)
    for p, q, shift in rows:
        assert p in {seen for seen, _ in real}
        assert q in {heard for _, heard in real}
        assert p != q if shift == 0 else (p, q) in real
    assert {shift for _, _, shift in rows} == {0, -4, -3, -2, 2, 3, 4}
    assert {q for p, q, shift in rows if shift == 0 and p == min(real)[0]} == {heard for _, heard in real} - {min(real)[1]}
    again = draw_cross_pairs(batch, max_shift=4, generator=torch.Generator().manual_seed(0)).cross
    assert again is not None
    assert drawn[0] is not None
    assert torch.equal(again, drawn[0])


def test_without_another_clip_only_shifts_are_drawn_and_without_a_real_pair_nothing() -> None:
    v = np.ones((2, 5, 1))
    origin = np.zeros((2, 3), np.int64)
    one_clip = draw_cross_pairs(in_sync(v, v, v_origin=origin, a_origin=origin), max_shift=3, generator=torch.Generator())
    assert one_clip.cross is not None
    assert one_clip.cross[:, 2].abs().min() >= 2
    forged = draw_cross_pairs(in_sync(v, v, sound_fake=np.ones(2, bool)), max_shift=3, generator=torch.Generator())
    assert forged.cross is not None
    assert forged.cross.shape == (0, 3)
    assert loss_of()(forged).match_cross.item() == 0.0


def test_tensors_that_would_broadcast_into_nonsense_are_refused() -> None:
    case = full_case()
    batch, logits = case.batch(), case.torch_logits()
    assert logits.visual is not None
    with pytest.raises(ValueError, match=r"logits have shape \(11, 1\), not one for each of the 11 pairs"):
        loss_of()(batch, Logits(visual=logits.visual[:, None]))
    with pytest.raises(ValueError, match=r"picture_fake has shape \(1,\), not \(11,\)"):
        replace(batch, picture_fake=batch.picture_fake[:1])
    with pytest.raises(ValueError, match=r"differ in frames or width"):
        replace(batch, pictures=replace(batch.pictures, features=batch.pictures.features[:, :, :2]))
    with pytest.raises(ValueError, match=r"valid has shape \(5, 1\), not \(5, 6\)"):
        replace(batch.pictures, valid=batch.pictures.valid[:, :1])
    with pytest.raises(ValueError, match="max_shift 1 is below 2 frames"):
        draw_cross_pairs(batch, max_shift=1, generator=torch.Generator())
