"""A network small enough to be run thousands of times, in any of its forms."""

from typing import Any

import torch

from dissonance.config import ModelConfig
from dissonance.model.network import AudioVisualNetwork, build_network

FRAMES = 6


def tiny_config(
    *, layers: int = 3, prompts: dict[str, Any] | None = None, audio_prompts: dict[str, Any] | None = None, head: dict[str, Any] | None = None
) -> ModelConfig:
    sizes = {"hidden_size": 16, "layers": layers, "heads": 2, "intermediate_size": 24}
    document = {
        "preset": "tiny",
        "frames": FRAMES,
        "hop": 3,
        "visual": {**sizes, "image_size": 16, "patch_size": 8, "prompts": prompts or {}},
        "audio": {**sizes, "mel_bins": 10, "max_positions": 20, "prompts": audio_prompts or {}},
        "head": {"dim": 8, "fused_dim": 12, "temporal_heads": 2, "temporal_intermediate_size": 20, "max_lag": 3, **(head or {})},
    }
    return ModelConfig.model_validate(document)


def tiny_network(seed: int = 0, **config: Any) -> AudioVisualNetwork:
    """Every weight random: those that start at zero (the residual prompts' matrices, LayerNorm biases) would hide mistakes."""
    network = build_network(tiny_config(**config), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return network


def first_frames(*lengths: int, frames: int = FRAMES) -> torch.Tensor:
    """(windows, frames) bool: the first `lengths` frames of each window are valid."""
    return torch.arange(frames)[None, :] < torch.tensor(lengths)[:, None]
