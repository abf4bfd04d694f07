"""Alignment, fusion and heads against the formulas written with other primitives; masks; which logit sees which stream."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from dissonance.model.head import HeadOutput
from tests.model.tiny import FRAMES, first_frames, tiny_network

WHOLE = torch.ones(2, FRAMES, dtype=torch.bool)


def streams(windows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(windows, FRAMES, 16), torch.randn(windows, 2 * FRAMES, 16)


@torch.inference_mode()
def test_alignment_is_the_two_convolutions_layer_norm_and_unit_length() -> None:
    align = tiny_network().head.align
    visual, audio = streams()
    v, a = align(visual, audio, WHOLE)
    of_sound = align.audio_proj.weight.view(8, 2, 16).permute(0, 2, 1)  # Conv1d's (out, in, kernel)
    convolved = F.conv1d(audio.transpose(1, 2), of_sound, align.audio_proj.bias, stride=2).transpose(1, 2)
    expected_a = align.audio_norm(convolved)
    expected_v = align.visual_norm(F.conv1d(visual.transpose(1, 2), align.visual_proj.weight[:, :, None], align.visual_proj.bias).transpose(1, 2))
    torch.testing.assert_close(a, expected_a / torch.linalg.vector_norm(expected_a, dim=-1, keepdim=True), atol=1e-6, rtol=0)
    torch.testing.assert_close(v, expected_v / torch.linalg.vector_norm(expected_v, dim=-1, keepdim=True), atol=1e-6, rtol=0)


@pytest.mark.parametrize("attended_sound", [True, False])
@torch.inference_mode()
def test_fusion_is_gelu_of_a_linear_map_of_the_named_parts(attended_sound: bool) -> None:
    head = tiny_network(head={"attended_sound": attended_sound}).head
    out: HeadOutput = head(*streams(), WHOLE)
    for window in range(2):
        for i in range(FRAMES):
            v, a, u = out.visual[window, i], out.audio[window, i], out.match.attended[window, i]
            parts = [v, a, u, v * a] if attended_sound else [v, a, v * a]
            feature = torch.cat([*parts, out.match.matched[window, i, None], out.match.row_match[window, i, None]])
            expected = F.gelu(head.fusion.proj.weight @ feature + head.fusion.proj.bias)
            torch.testing.assert_close(out.fused[window, i], expected, atol=1e-6, rtol=0)


@torch.inference_mode()
def test_temporal_layer_is_torchs_own_pre_norm_encoder_layer() -> None:
    head = tiny_network().head.tail.fused
    oracle = nn.TransformerEncoderLayer(12, 2, 20, dropout=0.0, activation="gelu", batch_first=True, norm_first=True).eval()
    attention = head.layer.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    oracle.self_attn.in_proj_weight.copy_(torch.cat([projection.weight for projection in projections]))
    oracle.self_attn.in_proj_bias.copy_(torch.cat([projection.bias for projection in projections]))
    pairs = ((oracle.self_attn.out_proj, attention.out_proj), (oracle.linear1, head.layer.fc1), (oracle.linear2, head.layer.fc2))
    for theirs, ours in (*pairs, (oracle.norm1, head.layer.layer_norm1), (oracle.norm2, head.layer.layer_norm2)):
        theirs.load_state_dict(ours.state_dict())
    frames, mask = torch.randn(2, FRAMES, 12), first_frames(FRAMES, 4)
    hidden = oracle(frames + head.position_embedding, src_key_padding_mask=~mask)
    pooled = torch.stack([hidden[0].mean(dim=0), hidden[1, :4].mean(dim=0)])
    expected = head.fc2(F.gelu(head.fc1(F.layer_norm(pooled, (12,), head.layer_norm.weight, head.layer_norm.bias))))[:, 0]
    torch.testing.assert_close(head(frames, mask), expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_visual_and_audio_logits_see_their_own_stream_alone() -> None:
    head = tiny_network().head
    (visual, audio), (other_visual, other_audio) = streams(), streams()
    plain, other_sound, other_picture = head(visual, audio, WHOLE), head(visual, other_audio, WHOLE), head(other_visual, audio, WHOLE)
    silent = head(visual, torch.zeros_like(audio), WHOLE)
    assert torch.equal(plain.logit_visual, other_sound.logit_visual)
    assert torch.equal(plain.logit_visual, silent.logit_visual)
    assert torch.equal(plain.logit_audio, other_picture.logit_audio)
    assert not torch.equal(plain.logit_visual, other_picture.logit_visual)
    assert not torch.equal(plain.logit_audio, other_sound.logit_audio)
    assert not torch.equal(plain.logit_fused, other_sound.logit_fused)
    assert not torch.equal(plain.logit_fused, other_picture.logit_fused)


@pytest.mark.parametrize("prompts", [{}, {"per_frame": True, "carry": "replace"}])
@pytest.mark.parametrize("length", [4, 1])
@torch.inference_mode()
def test_a_padded_window_gives_the_numbers_of_the_short_input_alone(prompts: dict[str, Any], length: int) -> None:
    network = tiny_network(prompts=prompts)
    pixels, mel = torch.rand(2, FRAMES, 3, 16, 16), torch.randn(2, 10, 4 * FRAMES)
    padded = network(pixels, mel, first_frames(FRAMES, length))
    alone = network(pixels[1:, :length], mel[1:, :, : 4 * length], torch.ones(1, length, dtype=torch.bool))
    for name in ("logit_visual", "logit_audio", "logit_fused"):
        torch.testing.assert_close(getattr(padded, name)[1:], getattr(alone, name), atol=2e-6, rtol=0)
    for name in ("lag_profile", "lag_valid", "best_lag"):
        torch.testing.assert_close(getattr(padded.match, name)[1:], getattr(alone.match, name), atol=2e-6, rtol=0)
    for name in ("matched", "row_match"):
        torch.testing.assert_close(getattr(padded.match, name)[1:, :length], getattr(alone.match, name), atol=2e-6, rtol=0)
        assert not getattr(padded.match, name)[1, length:].any()


@torch.inference_mode()
def test_what_lies_in_the_padding_changes_no_bit() -> None:
    head = tiny_network().head
    (visual, audio), mask = streams(), first_frames(FRAMES, 3)
    plain = head(visual, audio, mask)
    visual[1, 3:], audio[1, 6:] = float("nan"), -1e9
    again = head(visual, audio, mask)
    for name in ("logit_visual", "logit_audio", "logit_fused"):
        assert torch.equal(getattr(plain, name), getattr(again, name))
    assert all(torch.equal(first, second) for first, second in zip(plain.match, again.match, strict=True))


@torch.inference_mode()
def test_a_window_without_a_valid_frame_gives_numbers_and_says_so() -> None:
    out = tiny_network().head(*streams(1), first_frames(0))
    assert all(torch.isfinite(logit).all() for logit in (out.logit_visual, out.logit_audio, out.logit_fused))
    assert not out.match.lag_valid.any()
    assert not out.match.lag_profile.any()
    assert out.match.best_lag.item() == 0
