"""One pass over a batch, against the whole network's own forward pass and the slow losses."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from dissonance.model.network import AudioVisualNetwork, build_network
from dissonance.training.batches import Batch, Names, collate, stack
from dissonance.training.config import BatchConfig
from dissonance.training.losses import LossConfig, MultiTaskLoss
from dissonance.training.pairs import draw_cross_pairs
from dissonance.training.sampling import Draw
from dissonance.training.step import cost, forward, fused_features, pixels_of
from tests.model.tiny import tiny_network
from tests.training.slow_losses import Case, slow_losses
from tests.training.tiny import FRAMES, loader_of, named, shaken, tiny_model, tiny_run, toy_clip

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prompts per frame": {"prompts": {"count": 2, "per_frame": True, "readout": "cls+prompt"}},
    "prepended sound prompts": {"audio_prompts": {"form": "prepend"}},
}


def shaken_network(**form: Any) -> AudioVisualNetwork:
    return shaken(build_network(tiny_model(**form), seed=1))


def mixed_batch() -> Batch:
    """Real pictures of 6 and 8 frames with two mismatches each, one of 5 frames without, and a fake one of 6; some of it is not spoken."""
    clips = {"long": toy_clip(1), "other": toy_clip(2), "short": toy_clip(3, tracks=[(4, 5)], frames=12), "fake": toy_clip(4, tracks=[(3, 6)])}
    for clip in clips.values():
        clip.speech[::3] = False
    loader = loader_of(clips.__getitem__, batch=BatchConfig(windows=4, mismatches=2, apart_frames=3))
    labels = [named(uri, sound_fake=uri == "fake") for uri in clips]
    batch = collate(
        [loader.load(Draw(number, label, 5)) for number, label in enumerate(labels)],
        clips=Names(list(clips)),
        identities=Names([label.identity for label in labels]),
    )
    batch.mask[0, 6:] = False
    return batch


def test_the_batch_has_what_these_tests_are_about() -> None:
    batch = mixed_batch()
    assert len(batch.picture) == batch.windows + 4
    assert batch.mask.sum(dim=1).tolist() == [6, 8, 5, 6]
    assert batch.mismatched.any()
    assert not batch.speech.all()


def test_pixels_are_channels_first_in_0_to_1() -> None:
    crops = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4, 3)).astype(np.uint8)
    expected = np.transpose(crops, (0, 1, 4, 2, 3)).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(pixels_of(torch.from_numpy(crops)).numpy(), expected)


@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_pairs_are_what_the_network_says_of_each_picture_and_sound(form: str) -> None:
    """`AudioVisualNetwork.forward` on pictures that are encoded anew for each sound."""
    network, batch = shaken_network(**FORMS[form]), mixed_batch()
    pairs, logits = forward(network, batch, fused=True)
    again = batch.picture
    expected = network(pixels_of(batch.pixels[again]), batch.mel, batch.mask[again])
    assert logits.visual is not None
    assert logits.audio is not None
    assert logits.fused is not None
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(logits.visual, expected.logit_visual, **close)
    torch.testing.assert_close(logits.audio, expected.logit_audio, **close)
    torch.testing.assert_close(logits.fused, expected.logit_fused, **close)
    torch.testing.assert_close(pairs.pictures.features[pairs.picture], expected.visual, **close)
    torch.testing.assert_close(pairs.sounds.features[pairs.sound], expected.audio, **close)
    assert torch.equal(pairs.valid, batch.mask[again])
    for spread in (expected.logit_visual, expected.logit_audio, expected.logit_fused):
        assert spread.std() > 1e-4  # ten times the tolerance, or the comparison would say little


@torch.inference_mode()
def test_without_the_fused_head_the_rest_is_the_same() -> None:
    network, batch = shaken_network(), mixed_batch()
    with_it, logits_with = forward(network, batch, fused=True)
    without, logits = forward(network, batch, fused=False)
    assert logits.fused is None
    assert logits.visual is not None
    assert logits.audio is not None
    assert torch.equal(logits.visual, logits_with.visual)
    assert torch.equal(logits.audio, logits_with.audio)
    assert torch.equal(without.sounds.features, with_it.sounds.features)
    terms = cost(network, MultiTaskLoss(LossConfig(), max_lag=3), batch, fused=False, precision=torch.float32, seed=0)
    assert terms.bce_fused == 0
    assert terms.bce_visual > 0


def test_without_the_fused_head_its_weights_have_no_gradient() -> None:
    network = shaken_network()
    terms = cost(network, MultiTaskLoss(LossConfig(), max_lag=3), mixed_batch(), fused=False, precision=torch.float32, seed=0)
    terms.total.backward()  # type: ignore[no-untyped-call]
    untouched = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert untouched == {name for name, _ in network.named_parameters() if name.startswith(("head.fusion.", "head.tail.fused."))}


@torch.inference_mode()
def test_the_cost_of_mismatched_pairs_is_the_slow_one() -> None:
    network, batch = shaken_network(), mixed_batch()
    config = LossConfig(margin=-0.9, tau=0.2)  # so that every mismatch costs something
    pairs, logits = forward(network, batch, fused=True)
    crossed = draw_cross_pairs(pairs, max_shift=3, generator=torch.Generator().manual_seed(11))
    assert crossed.cross is not None
    assert logits.visual is not None
    assert logits.audio is not None
    assert logits.fused is not None
    sounds = batch.picture
    own = batch.windows
    case = Case(
        v=pairs.pictures.features.double().numpy(),
        a=pairs.sounds.features.double().numpy(),
        v_valid=batch.mask.numpy(),
        a_valid=batch.mask[sounds].numpy(),
        speech=batch.speech.numpy(),
        v_origin=torch.stack([batch.clip[:own], batch.identity[:own], batch.picture_start], 1).numpy(),
        a_origin=torch.stack([batch.clip, batch.identity, batch.sound_start], 1).numpy(),
        picture=batch.picture.numpy(),
        sound=np.arange(len(sounds)),
        picture_fake=batch.picture_fake.numpy(),
        sound_fake=batch.sound_fake.numpy(),
        mismatched=batch.mismatched.numpy(),
        true_lag=batch.true_lag.numpy(),
        cross=crossed.cross.numpy(),
        logits=torch.stack([logits.visual, logits.audio, logits.fused]).double().numpy(),
    )
    expected = slow_losses(case, config, tau=config.tau, max_lag=3)
    terms = cost(network, MultiTaskLoss(config, max_lag=3), batch, fused=True, precision=torch.float32, seed=11).as_floats()
    assert terms == pytest.approx(expected, abs=1e-5)
    assert min(terms.values()) > 0  # each has members
    without = {**expected, "bce_fused": 0.0, "total": expected["total"] - expected["bce_fused"]}
    terms = cost(network, MultiTaskLoss(config, max_lag=3), batch, fused=False, precision=torch.float32, seed=11).as_floats()
    assert terms == pytest.approx(without, abs=1e-5)


@torch.inference_mode()
def test_glimpses_count_in_the_cost_of_the_single_heads_like_windows() -> None:
    """The mean over own windows and glimpses, each as scikit-learn's log_loss has it; nothing else changes."""
    network, batch = shaken_network(), mixed_batch()
    clip = toy_clip(5, frames=40)
    loader = loader_of(lambda _: clip, batch=BatchConfig(windows=4, glimpses=4))
    labels = [named("a"), named("b", picture_fake=True), named("c", sound_fake=True), named("d", picture_fake=True)]
    glimpses = [loader.glimpse(Draw(number, label, 5)) for number, label in enumerate(labels)]
    short = glimpses[0].mask.copy()
    short[1:] = False  # of its two frames one is there
    stacked = stack([replace(glimpses[0], mask=short), *glimpses[1:]])
    loss = MultiTaskLoss(LossConfig(), max_lag=3)

    def terms(batch: Batch) -> dict[str, float]:
        return cost(network, loss, batch, fused=True, precision=torch.float32, seed=0).as_floats()

    without, found = terms(batch), terms(replace(batch, glimpses=stacked))
    silence = torch.zeros(4, FRAMES - 2, *stacked.pixels.shape[2:], dtype=torch.uint8)
    whole = torch.cat([stacked.pixels, silence], dim=1)
    seen = stacked.mask & (torch.arange(FRAMES) < 2)
    of_picture = network(pixels_of(whole), stacked.mel, seen).logit_visual
    of_sound = network(pixels_of(whole), stacked.mel, stacked.mask).logit_audio
    for name, logits, fake in (("bce_visual", of_picture, stacked.picture_fake), ("bce_audio", of_sound, stacked.sound_fake)):
        own = log_loss(fake.numpy(), torch.sigmoid(logits).double().numpy(), labels=[False, True])
        assert found[name] == pytest.approx((batch.windows * without[name] + 4 * own) / (batch.windows + 4), abs=1e-5)
        assert abs(found[name] - without[name]) > 1e-3
    assert {name: value for name, value in found.items() if name not in ("bce_visual", "bce_audio", "total")} == {
        name: value for name, value in without.items() if name not in ("bce_visual", "bce_audio", "total")
    }


@torch.inference_mode()
def test_bfloat16_costs_about_the_same_and_is_summed_in_float32() -> None:
    network, batch = shaken_network(), mixed_batch()
    clip = toy_clip(5, frames=40)
    batch = replace(batch, glimpses=stack([loader_of(lambda _: clip).glimpse(Draw(0, named("a"), 5))]))
    loss = MultiTaskLoss(LossConfig(), max_lag=3)
    wide, narrow = (cost(network, loss, batch, fused=True, precision=precision, seed=0) for precision in (torch.float32, torch.bfloat16))
    assert narrow.total.dtype == torch.float32
    assert narrow.total.item() != wide.total.item()
    for name, value in wide.as_floats().items():
        assert narrow.as_floats()[name] == pytest.approx(value, rel=0.1, abs=0.1), name


@pytest.mark.parametrize("max_lag", [0, 1, 3])
def test_a_model_that_looks_at_no_lags_trains_too(max_lag: int) -> None:
    """Mismatches by a shift are by 2 frames at least, whatever lags the model scores."""
    network = build_network(tiny_model(max_lag=max_lag), seed=0)
    terms = cost(network, MultiTaskLoss(tiny_run().loss, max_lag=max_lag), mixed_batch(), fused=True, precision=torch.float32, seed=0)
    assert torch.isfinite(terms.total)


@pytest.mark.parametrize("attended_sound", [True, False])
def test_the_kernel_that_trains_on_a_gpu_has_the_models_numbers_and_gradients(attended_sound: bool) -> None:
    """Interpreted where there is no GPU; every parameter of the fusion and both features."""
    network, device = tiny_network(head={"attended_sound": attended_sound}), "cuda" if torch.cuda.is_available() else "cpu"
    head, config = network.head.to(device), network.config
    generator, frames = torch.Generator().manual_seed(4), config.frames
    mask = torch.arange(frames)[None] < torch.tensor([frames, 3, 0])[:, None]
    drawn = torch.randn(2, 3, frames, config.head.dim, generator=generator)
    weighting = torch.randn(3, frames, config.head.fused_dim, generator=generator).to(device)
    found = []
    for kernel in (True, False):
        leaves = [feature.to(device).requires_grad_() for feature in drawn]
        v, a = (torch.nn.functional.normalize(leaf, dim=-1).masked_fill(~mask[:, :, None].to(device), 0.0) for leaf in leaves)  # as alignment ends
        fused = fused_features(head, v, a, mask.to(device), kernel=kernel)
        found.append((fused, *torch.autograd.grad((fused * weighting).sum(), [*leaves, *head.fusion.parameters()])))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
