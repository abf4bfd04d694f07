"""Hugging Face checkpoints: the same numbers as transformers at the real geometries, and every way in which a folder can be wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from dissonance.config import load_preset
from dissonance.errors import CheckpointError
from dissonance.model.audio import AudioEncoder
from dissonance.model.backbone import find_checkpoint, load_backbones, load_clip, load_whisper
from dissonance.model.network import build_network, count_parameters
from dissonance.model.visual import VisualEncoder
from tests.model.tiny import tiny_config, tiny_network

VISION = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 16, "patch_size": 8}
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 16}
ENCODER = {"d_model": 16, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "num_mel_bins": 10, "max_source_positions": 20}
DECODER = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8, "vocab_size": 8, "max_target_positions": 4}
TOKENS = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)


def shaken(model: Any) -> Any:
    """With every bias and LayerNorm away from its start, so that none can be forgotten; features stay of normal scale."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
            elif "embed_positions" not in name:
                parameter *= 1.5
    return model.eval()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    shaken(CLIPVisionModel(CLIPVisionConfig(**VISION))).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.fixture
def whisper(tmp_path: Path) -> Path:
    shaken(WhisperModel(WhisperConfig(**ENCODER, **DECODER, **TOKENS))).save_pretrained(tmp_path / "whisper")
    return tmp_path / "whisper"


def visual() -> VisualEncoder:
    return build_network(tiny_config(prompts={"count": 0}), seed=3).visual.eval()


def edit(folder: Path, **changes: Any) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changes))


@torch.inference_mode()
def test_vit_b_16_equals_transformers(tmp_path: Path) -> None:
    config = load_preset("base").visual
    config = config.model_copy(update={"prompts": config.prompts.model_copy(update={"count": 0})})
    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "image_size": 224, "patch_size": 16}
    theirs = shaken(CLIPVisionModel(CLIPVisionConfig(**sizes)))
    theirs.save_pretrained(tmp_path)
    ours = VisualEncoder(config, frames=32).eval()
    load_clip(ours, tmp_path)
    pixels = torch.rand(2, 3, 224, 224)
    mean, std = torch.tensor(config.mean).view(3, 1, 1), torch.tensor(config.std).view(3, 1, 1)
    expected = theirs((pixels - mean) / std).pooler_output
    assert 0.3 < expected.std() < 3
    torch.testing.assert_close(ours(pixels), expected, atol=1e-5, rtol=0)
    assert sum(parameter.numel() for parameter in ours.parameters()) == theirs.num_parameters()


@pytest.mark.parametrize("form", ["none", "residual"])
@torch.inference_mode()
def test_whisper_base_equals_transformers_at_full_length_and_on_short_inputs(tmp_path: Path, form: str) -> None:
    config = load_preset("base").audio
    config = config.model_copy(update={"prompts": config.prompts.model_copy(update={"form": form})})
    sizes = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048, "num_mel_bins": 80}
    theirs = shaken(WhisperModel(WhisperConfig(**sizes, **DECODER, **TOKENS)))
    theirs.save_pretrained(tmp_path)
    encoder = theirs.encoder
    ours = AudioEncoder(config, frames=750).eval()
    load_whisper(ours, tmp_path)
    if form == "none":
        mel = torch.randn(1, 80, 3000)
        torch.testing.assert_close(ours(mel, torch.ones(1, 750, dtype=torch.bool)), encoder(mel).last_hidden_state, atol=1e-5, rtol=0)
    for frames in (32, 7):  # transformers takes one length only: its own embedding, cut to that length
        encoder.config.max_source_positions = 2 * frames
        encoder.embed_positions = torch.nn.Embedding.from_pretrained(encoder.embed_positions.weight[: 2 * frames])
        mel = torch.randn(2, 80, 4 * frames)
        expected = encoder(mel).last_hidden_state
        assert 0.3 < expected.std() < 3
        torch.testing.assert_close(ours(mel, torch.ones(2, frames, dtype=torch.bool)), expected, atol=1e-5, rtol=0)
    if form == "none":
        # the positional embedding is a parameter there, a constant here
        assert sum(parameter.numel() for parameter in ours.parameters()) == encoder.num_parameters() - encoder.embed_positions.weight.numel()


@pytest.mark.parametrize("kind", ["clip", "vision", "projection", "sharded"])
@torch.inference_mode()
def test_every_kind_of_clip_folder_loads(tmp_path: Path, kind: str) -> None:
    if kind in ("clip", "sharded"):
        model = shaken(CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=8)))
        inner = model.vision_model
    elif kind == "projection":
        model = shaken(CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=8)))
        inner = model.vision_model
    else:
        model = inner = shaken(CLIPVisionModel(CLIPVisionConfig(**VISION)))
    model.save_pretrained(tmp_path, max_shard_size="8KB" if kind == "sharded" else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (kind == "sharded")
    ours, pixels = visual(), torch.rand(2, 3, 16, 16)
    load_clip(ours, tmp_path)
    torch.testing.assert_close(ours(pixels), inner((pixels - ours.mean) / ours.std).pooler_output, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["model", "generation", "encoder", "sharded", "half"])
@torch.inference_mode()
def test_every_kind_of_whisper_folder_loads(tmp_path: Path, kind: str) -> None:
    config = WhisperConfig(**ENCODER, **DECODER, **TOKENS)
    model: Any = WhisperForConditionalGeneration(config) if kind == "generation" else WhisperModel(config)
    model = shaken(model.half().float() if kind == "half" else model)
    encoder = model.get_encoder()
    if kind == "half":
        model = model.half()
    (encoder if kind == "encoder" else model).save_pretrained(tmp_path, max_shard_size="8KB" if kind == "sharded" else "1GB")
    ours, mel = AudioEncoder(tiny_config(audio_prompts={"form": "none"}).audio, frames=10).eval(), torch.randn(2, 10, 40)
    load_whisper(ours, tmp_path)
    expected = encoder.float()(mel).last_hidden_state
    torch.testing.assert_close(ours(mel, torch.ones(2, 10, dtype=torch.bool)), expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_prompts_are_left_as_they_were(clip: Path, whisper: Path) -> None:
    network = tiny_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    load_clip(network.visual, clip)
    load_whisper(network.audio, whisper)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert "visual.layers.0.fc1.weight" in changed
    assert "audio.layers.0.fc1.weight" in changed
    assert not any("prompts" in name or name.startswith("head.") for name in changed)


def test_backbones_are_found_in_the_hub_cache_without_the_network(tmp_path: Path, clip: Path, whisper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    repository = tmp_path / "home" / "hub" / "models--someone--tiny-clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abcd")
    shutil.copytree(clip, repository / "snapshots" / "0123abcd")
    assert find_checkpoint("someone/tiny-clip") == repository / "snapshots" / "0123abcd"
    config = tiny_config()
    config = config.model_copy(
        update={
            "visual": config.visual.model_copy(update={"backbone": "someone/tiny-clip"}),
            "audio": config.audio.model_copy(update={"backbone": str(whisper)}),
        }
    )
    network = build_network(config, seed=0)
    load_backbones(network)
    assert torch.equal(network.visual.class_embedding, CLIPVisionModel.from_pretrained(clip).embeddings.class_embedding)
    assert torch.equal(network.audio.conv1.weight, WhisperModel.from_pretrained(whisper).encoder.conv1.weight)
    assert count_parameters(network)["trainable"] < count_parameters(network)["total"]


@pytest.mark.parametrize("backbone", ["someone/absent", "no-such-folder", "../../etc", "a/b/c"])
def test_a_backbone_that_is_not_here_is_an_error_that_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"Nothing is downloaded here: fetch it first|model_type|Cannot read"):
        load_clip(visual(), find_checkpoint(backbone))


@pytest.mark.parametrize(
    ("field", "value", "ours"),
    [("hidden_size", 32, 16), ("num_hidden_layers", 2, 3), ("num_attention_heads", 4, 2), ("intermediate_size", 48, 24), ("image_size", 32, 16),
     ("patch_size", 4, 8), ("hidden_act", "gelu", "quick_gelu"), ("layer_norm_eps", 1e-6, 1e-5)],
)  # fmt: skip
def test_clip_geometry_that_differs_names_the_field_and_both_values(clip: Path, field: str, value: Any, ours: Any) -> None:
    edit(clip, **{field: value})
    with pytest.raises(CheckpointError, match=rf"{field} is {value!r}, the model's \w+ is {ours!r}"):
        load_clip(visual(), clip)


@pytest.mark.parametrize(
    ("field", "value"),
    [("d_model", 32), ("encoder_layers", 2), ("encoder_attention_heads", 4), ("encoder_ffn_dim", 48), ("num_mel_bins", 128),
     ("max_source_positions", 1500), ("activation_function", "relu"), ("scale_embedding", True)],
)  # fmt: skip
def test_whisper_geometry_that_differs_names_the_field_and_the_value(whisper: Path, field: str, value: Any) -> None:
    edit(whisper, **{field: value})
    with pytest.raises(CheckpointError, match=rf"{field} is {value!r}"):
        load_whisper(tiny_network().audio, whisper)


def test_weights_that_do_not_fit_their_own_config_are_refused(clip: Path) -> None:
    tensors = load((clip / "model.safetensors").read_bytes())
    name = next(name for name in tensors if name.endswith("layers.1.mlp.fc1.weight"))
    for change, message in (
        ({name: torch.full((24, 16), float("nan"))}, "layers.1.fc1.weight holds NaN or infinity"),
        ({name: torch.zeros(24, 15)}, r"layers.1.fc1.weight has shape \(24, 15\), the model's has \(24, 16\)"),
        ({name.replace("layers.1", "layers.7"): torch.zeros(24, 16)}, "unknown layers.7.fc1.weight"),
    ):
        save_file(tensors | change, clip / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load_clip(visual(), clip)
    save_file({key: value for key, value in tensors.items() if key != name}, clip / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks layers\.1\.fc1\.weight"):
        load_clip(visual(), clip)


def test_a_refused_checkpoint_changes_nothing(clip: Path) -> None:
    encoder = visual()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    tensors = load((clip / "model.safetensors").read_bytes())
    save_file(tensors | {"post_layernorm.bias": torch.full((16,), float("inf"))}, clip / "model.safetensors")
    with pytest.raises(CheckpointError):
        load_clip(encoder, clip)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_a_pickle_is_refused_unopened_with_the_remedy(clip: Path, name: str) -> None:
    (clip / "model.safetensors").rename(clip / name)
    with pytest.raises(CheckpointError, match=rf"{name}' is a pickle.*[Cc]onvert it to safetensors"):
        load_clip(visual(), clip)


def test_a_shard_that_is_a_pickle_missing_or_outside_the_folder_is_refused(clip: Path) -> None:
    (clip / "model.safetensors").unlink()
    for shard, message in (("pytorch_model.bin", "pickle"), ("gone.safetensors", "not there"), ("../other.safetensors", "not a plain file name")):
        (clip / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(CheckpointError, match=message):
            load_clip(visual(), clip)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64])
def test_damaged_files_are_errors_that_name_the_file(clip: Path, content: bytes) -> None:
    (clip / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_clip(visual(), clip)
    (clip / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_clip(visual(), clip)


def test_another_kind_of_model_is_refused(clip: Path, whisper: Path) -> None:
    with pytest.raises(CheckpointError, match="model_type is 'whisper'"):
        load_clip(visual(), whisper)
    with pytest.raises(CheckpointError, match="model_type is 'clip_vision_model'"):
        load_whisper(tiny_network().audio, clip)
