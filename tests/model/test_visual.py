"""The vision encoder with prompts, against transformers' own layers driven by hand."""

from typing import Any

import pytest
import torch
from bench._peers import clip_features
from transformers import CLIPVisionConfig as HFVisionConfig
from transformers import CLIPVisionModel

from dissonance.model.backbone import load_clip
from dissonance.model.network import build_network
from dissonance.model.visual import VisualEncoder
from tests.model.tiny import FRAMES, tiny_config


@pytest.fixture(scope="module")
def theirs() -> CLIPVisionModel:
    torch.manual_seed(5)
    config = HFVisionConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8)
    model = CLIPVisionModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def ours_with(theirs: CLIPVisionModel, tmp_path: Any, **prompts: Any) -> VisualEncoder:
    theirs.save_pretrained(tmp_path)
    encoder = build_network(tiny_config(prompts=prompts), seed=3).visual.eval()
    load_clip(encoder, tmp_path)
    return encoder


@pytest.mark.parametrize("carry", ["accumulate", "replace"])
@pytest.mark.parametrize("readout", ["cls", "prompt", "cls+prompt"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("per_frame", [False, True])
@torch.inference_mode()
def test_every_form_equals_transformers_layers_driven_by_hand(
    theirs: CLIPVisionModel, tmp_path: Any, carry: str, readout: str, count: int, per_frame: bool
) -> None:
    encoder = ours_with(theirs, tmp_path, carry=carry, readout=readout, count=count, per_frame=per_frame)
    assert encoder.prompts is not None
    pixels, index = torch.rand(4, 3, 16, 16), torch.tensor([5, 0, 2, 5])
    prompts = encoder.prompts[index] if per_frame else encoder.prompts.expand(4, -1, -1, -1)
    expected = clip_features(theirs, (pixels - encoder.mean) / encoder.std, prompts, carry=carry, readout=readout)
    found = encoder(pixels, index if per_frame else None)
    assert found.shape == (4, encoder.config.feature_size)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_without_prompts_it_is_clip(theirs: CLIPVisionModel, tmp_path: Any) -> None:
    encoder = ours_with(theirs, tmp_path, count=0)
    pixels = torch.rand(3, 3, 16, 16)
    expected = theirs((pixels - encoder.mean) / encoder.std).pooler_output
    torch.testing.assert_close(encoder(pixels), expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_frame_does_not_depend_on_its_batch_mates(theirs: CLIPVisionModel, tmp_path: Any) -> None:
    encoder = ours_with(theirs, tmp_path)
    pixels = torch.rand(FRAMES, 3, 16, 16)
    torch.testing.assert_close(encoder(pixels)[2:3], encoder(pixels[2:3]), atol=1e-6, rtol=0)


def test_per_frame_without_an_index_is_refused(theirs: CLIPVisionModel, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="frame_index"):
        ours_with(theirs, tmp_path, per_frame=True)(torch.rand(1, 3, 16, 16))


def starting(backbone: str | None) -> VisualEncoder:
    visual = tiny_config().visual.model_copy(update={"hidden_size": 64, "image_size": 64, "backbone": backbone})
    torch.manual_seed(2)
    return VisualEncoder(visual, frames=FRAMES)


def test_positions_start_at_half_a_deviation_from_scratch_only() -> None:
    assert starting(None).position_embedding.weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert starting("some/clip").position_embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)


@torch.inference_mode()
def test_half_of_the_patches_filters_start_blind_to_the_mean_from_scratch_only() -> None:
    """On pictures of one colour they say nothing; on noise they are six times as loud as the others."""
    plain, noise = torch.rand(1, 3, 1, 1).expand(1, 3, 64, 64), torch.randn(4, 3, 64, 64)
    ours, theirs = starting(None).patch_embedding, starting("some/clip").patch_embedding
    assert ours(plain)[:, :32].abs().max() < 1e-5
    assert ours(plain)[:, 32:].abs().max() > 0.1
    assert theirs(plain)[:, :32].abs().max() > 0.1
    assert (ours(noise)[:, :32].std() / ours(noise)[:, 32:].std()).item() == pytest.approx(6, rel=0.05)
    assert (theirs(noise)[:, :32].std() / theirs(noise)[:, 32:].std()).item() == pytest.approx(1, rel=0.05)


@torch.inference_mode()
def test_matrices_keep_the_variance_of_what_they_are_given_from_scratch_only() -> None:
    for backbone, expected in ((None, 1.0), ("some/clip", 1 / 3)):
        for layer in starting(backbone).layers:
            attention = layer.self_attn
            for matrix in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, layer.fc1, layer.fc2):
                given = torch.randn(4000, matrix.in_features)
                assert matrix(given).var().item() == pytest.approx(expected, rel=0.15)
                assert bool((matrix.bias == 0).all()) == (backbone is None)


@pytest.mark.parametrize("carry", ["accumulate", "replace"])
def test_recomputing_keeps_less_and_gives_the_same_gradients(carry: str) -> None:
    """Equal to the last bit: the backward pass does again what the forward pass did."""

    def gradients(*, recompute: bool) -> tuple[list[torch.Tensor], int]:
        encoder = build_network(tiny_config(prompts={"carry": carry}), seed=3).visual
        encoder.recompute = recompute
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        pixels = torch.rand(6, 3, encoder.config.image_size, encoder.config.image_size, generator=torch.Generator().manual_seed(1))
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            features = encoder(pixels)
        (features**2).sum().backward()
        return [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None], kept

    (kept_grads, kept), (recomputed_grads, less) = gradients(recompute=False), gradients(recompute=True)
    assert len(kept_grads) == len(recomputed_grads) > 10
    assert all(torch.equal(one, other) for one, other in zip(kept_grads, recomputed_grads, strict=True))
    assert less < kept / 4
