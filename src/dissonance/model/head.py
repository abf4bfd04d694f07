"""Everything after the encoders: alignment, matching, fusion and the three heads."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dissonance.config import HeadConfig, ModelConfig
from dissonance.model.align import Alignment
from dissonance.model.layer import TransformerLayer, score_bias
from dissonance.model.matching import Match, fuse, match


class HeadOutput(NamedTuple):
    """What a window gives."""

    logit_visual: Tensor  # (windows,): is the picture fake; depends on the picture alone
    logit_audio: Tensor  # (windows,): is the sound fake; depends on the sound alone
    logit_fused: Tensor  # (windows,): is either fake
    match: Match
    visual: Tensor  # v (windows, T, D), aligned
    audio: Tensor  # a (windows, T, D), aligned
    fused: Tensor  # g (windows, T, H)


class Fusion(nn.Module):
    """W and b of `matching.fuse`; u is left out where `attended_sound` is off."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.fused_input_size, config.fused_dim)

    def forward(self, visual: Tensor, audio: Tensor, matched: Match) -> Tensor:
        """v, a (windows, T, D) -> g (windows, T, H)."""
        return fuse(visual, audio, matched, self.proj.weight, self.proj.bias)


class TemporalHead(nn.Module):
    """One logit for a window: position, one pre-norm transformer layer over the frames, mean over the valid ones, LayerNorm, MLP."""

    def __init__(self, config: HeadConfig, *, dim: int, frames: int, gain: float = 1.0) -> None:
        """`gain` multiplies the input: sqrt(D) gives a unit vector's entries unit variance, as the layer expects them."""
        super().__init__()
        self.gain = gain
        self.position_embedding = nn.Parameter(torch.randn(frames, dim) * 0.02)
        self.layer = TransformerLayer(dim, config.temporal_heads, config.temporal_intermediate_size)
        self.layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, dim)
        self.fc2 = nn.Linear(dim, 1)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """`frames` (windows, T, dim), `mask` (windows, T) bool -> (windows,)."""
        hidden = self.layer(frames * self.gain + self.position_embedding[: frames.shape[1]], score_bias(mask))
        valid = mask.to(hidden.dtype)
        pooled = (hidden * valid[:, :, None]).sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp(min=1.0)
        logit: Tensor = self.fc2(F.gelu(self.fc1(self.layer_norm(pooled))))
        return logit[:, 0]


class HeadTail(nn.Module):
    """What follows the matching kernel: the three heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        head = config.head
        self.visual = TemporalHead(head, dim=head.dim, frames=config.frames, gain=head.dim**0.5)
        self.audio = TemporalHead(head, dim=head.dim, frames=config.frames, gain=head.dim**0.5)
        self.fused = TemporalHead(head, dim=head.fused_dim, frames=config.frames)

    def forward(self, fused: Tensor, visual: Tensor, audio: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """g (windows, T, H), v and a (windows, T, D), `mask` (windows, T) bool -> visual, audio and fused logits, each (windows,)."""
        return self.visual(visual, mask), self.audio(audio, mask), self.fused(fused, mask)


class Head(nn.Module):
    """From encoder features to logits. A stream that is missing is fed as zeros; its own and the fused logit then mean nothing."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tau, self.max_lag = config.head.tau, config.head.max_lag
        self.align = Alignment(config)
        self.fusion = Fusion(config.head)
        self.tail = HeadTail(config)

    def forward(self, visual: Tensor, audio: Tensor, mask: Tensor) -> HeadOutput:
        """`visual` (windows, T, Fv), `audio` (windows, 2T, Fa) as the encoders give them, `mask` (windows, T) bool, True = valid frame."""
        v, a = self.align(visual, audio, mask)
        matched = match(v, a, mask, tau=self.tau, max_lag=self.max_lag)
        g = self.fusion(v, a, matched)
        logit_visual, logit_audio, logit_fused = self.tail(g, v, a, mask)
        return HeadOutput(logit_visual, logit_audio, logit_fused, matched, v, a, g)
