"""Whisper's encoder with short-time audio prompts.

Whisper: Radford et al., ICML 2023, as in Hugging Face's `WhisperEncoder` (same numbers with the same weights), except that it takes the
window's mel alone: no padding to 30 s, and the positional embedding sliced to the window's 2T tokens.
Short-time audio prompts: Miao et al., AAAI 2025; the residual form is this project's reading.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dissonance.config import AudioConfig
from dissonance.model.layer import TransformerLayer, score_bias

PROMPT_STD = 0.02
# Whisper's positions have a size of 0.7 and would drown what convolutions of torch's usual random weights (0.1) say of the sound: an encoder that
# starts from nothing would learn very late. There the convolutions keep the size of what they are given, times this.
GAIN_FROM_SCRATCH = 4.0
MEL_FRAMES_PER_FRAME = 4  # 100 mel frames a second, 25 video frames
TOKENS_PER_FRAME = 2  # conv2 has stride 2


def sinusoids(length: int, size: int) -> Tensor:
    """Whisper's positional embedding: (length, size), sines then cosines of geometrically spaced timescales up to 10,000."""
    step = math.log(10_000) / (size // 2 - 1)
    angles = torch.arange(length)[:, None] * torch.exp(-step * torch.arange(size // 2))[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ResidualPrompt(nn.Module):
    """h_j <- h_j + W [h_j ; p_j]: one p_j per token of the window, p ~ N(0, 0.02), W zero at the start."""

    def __init__(self, size: int, tokens: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(tokens, size) * PROMPT_STD)
        self.weight = nn.Parameter(torch.zeros(size, 2 * size))

    def forward(self, hidden: Tensor) -> Tensor:
        """`hidden` (windows, tokens, size) -> the same. W is applied in its two halves: W_h h_j + W_p p_j, the second a constant."""
        of_hidden, of_prompt = self.weight.chunk(2, dim=1)
        return hidden + F.linear(hidden, of_hidden) + F.linear(self.tokens[: hidden.shape[1]], of_prompt)


class AudioEncoder(nn.Module):
    """A window's log-mel to two tokens a frame."""

    embed_positions: Tensor

    def __init__(self, config: AudioConfig, *, frames: int) -> None:
        """`frames` is the window's T: the window has 4T mel frames and 2T tokens."""
        super().__init__()
        self.config = config
        size, form = config.hidden_size, config.prompts.form
        self.conv1 = nn.Conv1d(config.mel_bins, size, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(size, size, kernel_size=3, stride=2, padding=1)
        self.register_buffer("embed_positions", sinusoids(config.max_positions, size))
        if config.backbone is None:
            nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
            nn.init.kaiming_normal_(self.conv2.weight, nonlinearity="relu")
            self.conv2.weight.data *= GAIN_FROM_SCRATCH
        self.layers = nn.ModuleList(TransformerLayer(size, config.heads, config.intermediate_size, key_bias=False) for _ in range(config.layers))
        self.layer_norm = nn.LayerNorm(size)
        residual = config.layers if form == "residual" else 0
        self.residual_prompts = nn.ModuleList(ResidualPrompt(size, TOKENS_PER_FRAME * frames) for _ in range(residual))
        self.prepended_prompts = nn.Parameter(torch.randn(config.prompts.count, size) * PROMPT_STD) if form == "prepend" else None

    def forward(self, mel: Tensor, mask: Tensor) -> Tensor:
        """Features of each token.

        `mel` (windows, mel_bins, 4T) float32 normalised log-mel; `mask` (windows, T) bool, True = valid frame, valid ones first.
        Returns (windows, 2T, hidden_size). The tokens of valid frames are what the valid part alone would give; the others mean nothing.

        Padding cannot leak through the convolutions: mel is zeroed beyond the valid frames, as conv1's own zero padding would be, and the last
        valid token of conv2 (stride 2, kernel 3) sees no output of conv1 beyond the last valid mel frame.
        """
        valid = mask.repeat_interleave(MEL_FRAMES_PER_FRAME, dim=1)[:, None, :]
        hidden = F.gelu(self.conv1(mel.masked_fill(~valid, 0.0)))
        hidden = F.gelu(self.conv2(hidden)).transpose(1, 2)
        hidden = hidden + self.embed_positions[: hidden.shape[1]]
        keys = mask.repeat_interleave(TOKENS_PER_FRAME, dim=1)
        prepended = 0
        if self.prepended_prompts is not None:
            prepended = self.prepended_prompts.shape[0]
            hidden = torch.cat([self.prepended_prompts.expand(hidden.shape[0], -1, -1), hidden], dim=1)
            keys = F.pad(keys, (prepended, 0), value=True)
        bias = score_bias(keys)
        for number, layer in enumerate(self.layers):
            if self.residual_prompts:
                hidden = self.residual_prompts[number](hidden)
            hidden = layer(hidden, bias)
        features: Tensor = self.layer_norm(hidden[:, prepended:])
        return features
