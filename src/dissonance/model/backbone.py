"""CLIP and Whisper checkpoints in Hugging Face's layout, from a local folder or the local hub cache: never from the network."""

import json
import os
import re
from pathlib import Path
from typing import Any

from dissonance.config import AudioConfig, VisualConfig
from dissonance.errors import CheckpointError
from dissonance.model.audio import AudioEncoder
from dissonance.model.network import AudioVisualNetwork
from dissonance.model.tensors import load_into, read_tensors, refuse_pickle, weight_files
from dissonance.model.visual import VisualEncoder

# config.json's field -> (ours, the value that transformers takes where config.json does not name it)
_CLIP_FIELDS: dict[str, tuple[str, Any]] = {
    "hidden_size": ("hidden_size", 768),
    "num_hidden_layers": ("layers", 12),
    "num_attention_heads": ("heads", 12),
    "intermediate_size": ("intermediate_size", 3072),
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 32),
    "hidden_act": ("activation", "quick_gelu"),
    "layer_norm_eps": ("layer_norm_eps", 1e-5),
}
_WHISPER_FIELDS: dict[str, tuple[str, Any]] = {
    "d_model": ("hidden_size", 384),
    "encoder_layers": ("layers", 4),
    "encoder_attention_heads": ("heads", 6),
    "encoder_ffn_dim": ("intermediate_size", 1536),
    "num_mel_bins": ("mel_bins", 80),
    "max_source_positions": ("max_positions", 1500),
}
_WHISPER_FIXED = {"activation_function": "gelu", "scale_embedding": False}  # what every released Whisper has, and the encoder here takes for granted

_CLIP_NAMES = (
    (r"^embeddings\.(?!position_ids)", ""),
    (r"^encoder\.layers\.", "layers."),
    (r"^(layers\.\d+)\.mlp\.", r"\1."),
)
_WHISPER_NAMES = (
    (r"^embed_positions\.weight$", "embed_positions"),
    (r"^(layers\.\d+)\.self_attn_layer_norm\.", r"\1.layer_norm1."),
    (r"^(layers\.\d+)\.final_layer_norm\.", r"\1.layer_norm2."),
)


def hub_cache() -> Path:
    """Where huggingface_hub keeps its snapshots: $HF_HUB_CACHE, $HF_HOME/hub, $XDG_CACHE_HOME/huggingface/hub or ~/.cache/huggingface/hub."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def find_checkpoint(backbone: str) -> Path:
    """The folder of a checkpoint: a folder itself, or a model id's main snapshot in the hub cache. Raises CheckpointError."""
    if Path(backbone).exists():
        return Path(backbone)
    repository = hub_cache() / f"models--{backbone.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        revision = ""
    snapshot = repository / "snapshots" / revision
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", backbone) or not re.fullmatch(r"\w+", revision) or not snapshot.is_dir():
        raise CheckpointError(
            f"No checkpoint '{backbone}': it is neither a folder nor in the local hub cache '{hub_cache()}'. "
            f"Nothing is downloaded here: fetch it first (hf download {backbone}), or give a folder with its config.json and model.safetensors."
        )
    return snapshot


def load_clip(encoder: VisualEncoder, folder: Path) -> None:
    """Fill the vision encoder from a CLIPModel, CLIPVisionModel or CLIPVisionModelWithProjection folder; prompts stay. Raises CheckpointError."""
    settings = _read_settings(folder, types=("clip", "clip_vision_model"))
    vision = settings.get("vision_config", settings)
    _check_geometry(encoder.config, vision, _CLIP_FIELDS, folder)
    tensors = read_tensors(weight_files(folder), prefixes=("vision_model.", ""))
    wanted = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
    named = {_rename(name, _CLIP_NAMES): value for name, value in tensors.items() if name.startswith(wanted) and not name.endswith("position_ids")}
    load_into(encoder, named, origin=str(folder), keep=frozenset({"prompts"}))


def load_whisper(encoder: AudioEncoder, folder: Path) -> None:
    """Fill the audio encoder from a WhisperModel, WhisperForConditionalGeneration or encoder-only folder; prompts stay. Raises CheckpointError."""
    settings = _read_settings(folder, types=("whisper",))
    _check_geometry(encoder.config, settings, _WHISPER_FIELDS, folder)
    for field, expected in _WHISPER_FIXED.items():
        if (value := settings.get(field, expected)) != expected:
            raise _mismatch(folder, field, value, expected)
    tensors = read_tensors(weight_files(folder), prefixes=("model.encoder.", "encoder.", ""))
    own = frozenset(name for name in encoder.state_dict() if name.startswith(("residual_prompts", "prepended_prompts")))
    load_into(encoder, {_rename(name, _WHISPER_NAMES): value for name, value in tensors.items()}, origin=str(folder), keep=own)


def load_backbones(network: AudioVisualNetwork) -> None:
    """Fill both encoders from the checkpoints that the network's config names; one without a `backbone` stays as it is. Raises CheckpointError."""
    config = network.config
    if config.visual.backbone is not None:
        load_clip(network.visual, find_checkpoint(config.visual.backbone))
    if config.audio.backbone is not None:
        load_whisper(network.audio, find_checkpoint(config.audio.backbone))


def _read_settings(folder: Path, *, types: tuple[str, ...]) -> dict[str, Any]:
    refuse_pickle(folder)
    file = folder / "config.json"
    try:
        settings = json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"Cannot read '{file}': {error.strerror or error}. A checkpoint is a folder with config.json and model.safetensors."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"'{file}' is not JSON: {error}. Complete the download.") from error
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if kind not in types:
        raise CheckpointError(f"'{file}': model_type is {kind!r}; this encoder takes {' or '.join(types)}. Give another checkpoint.")
    assert isinstance(settings, dict)
    return settings


def _check_geometry(config: VisualConfig | AudioConfig, settings: dict[str, Any], fields: dict[str, tuple[str, Any]], folder: Path) -> None:
    for theirs, (ours, default) in fields.items():
        value, expected = settings.get(theirs, default), getattr(config, ours)
        if value != expected:
            raise _mismatch(folder, theirs, value, expected, ours=ours)


def _mismatch(folder: Path, field: str, value: Any, expected: Any, *, ours: str | None = None) -> CheckpointError:
    named = f"the model's {ours} is {expected!r}" if ours else f"the encoder needs {expected!r}"
    return CheckpointError(f"Checkpoint '{folder}' does not fit: {field} is {value!r}, {named}. Give another checkpoint, or mend the preset.")


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
