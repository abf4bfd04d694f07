"""Alignment: both streams to one unit vector of D numbers a frame."""

import torch.nn.functional as F
from torch import Tensor, nn

from dissonance.config import ModelConfig


class Alignment(nn.Module):
    """Conv1d(kernel 2, stride 2) on the sound, a 1x1 convolution on the picture, LayerNorm, unit length.

    Both convolutions are written as the matrix products that they are: a frame's two tokens do not overlap with the next frame's.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.head.dim
        self.visual_proj = nn.Linear(config.visual.feature_size, dim)
        self.visual_norm = nn.LayerNorm(dim)
        self.audio_proj = nn.Linear(2 * config.audio.hidden_size, dim)  # [token 2i ; token 2i+1]
        self.audio_norm = nn.LayerNorm(dim)

    def forward(self, visual: Tensor, audio: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`visual` (windows, T, Fv), `audio` (windows, 2T, Fa), `mask` (windows, T) bool, True = valid.

        Returns v and a, each (windows, T, D): unit rows, zero where masked.
        """
        return self.picture(visual, mask), self.sound(audio, mask)

    def picture(self, visual: Tensor, mask: Tensor) -> Tensor:
        """`visual` (windows, T, Fv), `mask` (windows, T) bool -> v (windows, T, D)."""
        return F.normalize(self.visual_norm(self.visual_proj(visual)), dim=-1).masked_fill(~mask[:, :, None], 0.0)

    def sound(self, audio: Tensor, mask: Tensor) -> Tensor:
        """`audio` (windows, 2T, Fa), `mask` (windows, T) bool -> a (windows, T, D)."""
        tokens = audio.reshape(audio.shape[0], -1, 2 * audio.shape[2])
        return F.normalize(self.audio_norm(self.audio_proj(tokens)), dim=-1).masked_fill(~mask[:, :, None], 0.0)
