"""The audio encoder with prompts, against transformers' own layers driven by hand, and its mask against short inputs."""

from typing import Any

import pytest
import torch
from bench._peers import whisper_features
from transformers import WhisperConfig as HFConfig
from transformers import WhisperModel

from dissonance.model.audio import AudioEncoder, sinusoids
from dissonance.model.backbone import load_whisper
from tests.model.tiny import FRAMES, first_frames, tiny_network


@pytest.fixture(scope="module")
def theirs() -> WhisperModel:
    torch.manual_seed(6)
    sizes = {"d_model": 16, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "num_mel_bins": 10, "max_source_positions": 20}
    small = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8, "vocab_size": 8, "max_target_positions": 4}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    model = WhisperModel(HFConfig(**sizes, **small, **tokens)).eval()
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def ours_with(theirs: WhisperModel, tmp_path: Any, **prompts: Any) -> AudioEncoder:
    theirs.save_pretrained(tmp_path)
    encoder = tiny_network(audio_prompts=prompts).audio
    load_whisper(encoder, tmp_path)
    return encoder


@pytest.mark.parametrize("form", [{"form": "residual"}, {"form": "prepend", "count": 3}, {"form": "none"}])
@pytest.mark.parametrize("frames", [FRAMES, 4])
@torch.inference_mode()
def test_every_form_equals_transformers_layers_driven_by_hand(theirs: WhisperModel, tmp_path: Any, form: dict[str, Any], frames: int) -> None:
    encoder = ours_with(theirs, tmp_path, **form)
    mel = torch.randn(3, 10, 4 * frames)
    found = encoder(mel, torch.ones(3, frames, dtype=torch.bool))
    assert found.shape == (3, 2 * frames, 16)
    expected = whisper_features(theirs.encoder, mel, residual=list(encoder.residual_prompts), prepended=encoder.prepended_prompts)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", [{"form": "residual"}, {"form": "prepend", "count": 3}, {"form": "none"}])
@torch.inference_mode()
def test_a_padded_window_gives_what_the_short_input_alone_gives(form: dict[str, Any]) -> None:
    encoder = tiny_network(audio_prompts=form).audio.double()  # so that rounding hides nothing
    mel, lengths = torch.randn(3, 10, 4 * FRAMES, dtype=torch.float64), (FRAMES, 3, 1)
    found = encoder(mel, first_frames(*lengths))
    for window, length in enumerate(lengths):
        alone = encoder(mel[window : window + 1, :, : 4 * length], torch.ones(1, length, dtype=torch.bool))
        torch.testing.assert_close(found[window : window + 1, : 2 * length], alone, atol=1e-12, rtol=0)


@torch.inference_mode()
def test_what_lies_in_the_padding_changes_no_bit() -> None:
    encoder = tiny_network().audio
    mel, mask = torch.randn(1, 10, 4 * FRAMES), first_frames(4)
    plain = encoder(mel, mask)[:, :8]
    mel[:, :, 16:] = float("nan")
    assert torch.equal(encoder(mel, mask)[:, :8], plain)


@torch.inference_mode()
def test_a_window_without_a_valid_frame_gives_numbers() -> None:
    assert torch.isfinite(tiny_network().audio(torch.randn(1, 10, 4 * FRAMES), first_frames(0))).all()


def test_positional_embedding_is_whispers() -> None:
    expected = WhisperModel(HFConfig(d_model=64, encoder_layers=0, decoder_layers=0, vocab_size=8, pad_token_id=0)).encoder.embed_positions.weight
    torch.testing.assert_close(sinusoids(1500, 64), expected.detach(), atol=1e-6, rtol=0)
