"""CLIP's vision encoder with sequential visual prompts.

CLIP: Radford et al., ICML 2021, as in Hugging Face's `CLIPVisionModel` (same numbers with the same weights). Sequential visual prompts:
Miao et al., AAAI 2025; `carry: replace` is VPT-Deep (Jia et al., ECCV 2022).

Layer l has k learned tokens P_l. They join after `pre_layrnorm`, have no positional embedding, and are put *behind* the sequence:
[CLS, patches, P_1, P_2, ...]. Attention does not see the order of its tokens, so the place changes no number; behind, CLS stays row 0,
and the newest prompts are always the last k rows.
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dissonance.config import VisualConfig, VisualPromptConfig
from dissonance.model.layer import TransformerLayer

POSITION_STD = 0.02
# A small ViT that starts from nothing needs to tell places apart at once: 0.5 learns, CLIP's own 0.02 does not.
POSITION_STD_FROM_SCRATCH = 0.5
# Of a patch, its mean has by far the most energy, so that random filters see little else; a forged patch differs in its detail. From scratch, half of
# the filters start blind to the mean, and so much louder, which makes up for most of what they no longer hear.
DETAIL_GAIN_FROM_SCRATCH = 6.0


class VisualEncoder(nn.Module):
    """Frames to features, one frame at a time."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: VisualConfig, *, frames: int) -> None:
        """`frames` is the window's T: under `per_frame` there is one prompt set for each."""
        super().__init__()
        self.config = config
        self.recompute = False  # layers' activations, in the backward pass, instead of keeping them
        size = config.hidden_size
        patches = (config.image_size // config.patch_size) ** 2
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        self.class_embedding = nn.Parameter(torch.randn(size) * size**-0.5)
        self.patch_embedding = nn.Conv2d(3, size, kernel_size=config.patch_size, stride=config.patch_size, bias=False)
        self.position_embedding = nn.Embedding(patches + 1, size)
        nn.init.normal_(self.position_embedding.weight, std=POSITION_STD)
        self.pre_layrnorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(
            TransformerLayer(size, config.heads, config.intermediate_size, activation=config.activation, eps=config.layer_norm_eps)
            for _ in range(config.layers)
        )
        self.post_layernorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        if config.backbone is None:
            self._start_from_scratch()
        self.prompts: nn.Parameter | None = None
        if config.prompts.count:
            sets = frames if config.prompts.per_frame else 1
            bound = math.sqrt(6 / (3 * config.patch_size**2 + size))  # VPT's own initialisation
            self.prompts = nn.Parameter(torch.empty(sets, config.layers, config.prompts.count, size).uniform_(-bound, bound))

    def _start_from_scratch(self) -> None:
        nn.init.normal_(self.position_embedding.weight, std=POSITION_STD_FROM_SCRATCH)
        with torch.no_grad():
            detail = self.patch_embedding.weight[: self.config.hidden_size // 2]
            detail -= detail.mean(dim=(2, 3), keepdim=True)
            detail *= DETAIL_GAIN_FROM_SCRATCH
        for layer in self.layers:
            assert isinstance(layer, TransformerLayer)
            layer.start_from_scratch()

    @property
    def takes_frame_index(self) -> bool:
        """Whether a frame's features depend on its place in the window."""
        return self.prompts is not None and self.config.prompts.per_frame

    def forward(self, pixels: Tensor, frame_index: Tensor | None = None) -> Tensor:
        """Features of each frame.

        `pixels` (frames, 3, image_size, image_size) float32 RGB in [0, 1]: CLIP's mean and deviation are applied here.
        `frame_index` (frames,) int64: each frame's place in its window, under `per_frame` only.
        Returns (frames, feature_size): `cls` is CLS through `post_layernorm`; `prompt` the mean over the last layer's own k prompts, each through
        `post_layernorm`; `cls+prompt` the one after the other.
        """
        hidden = self.patch_embedding((pixels - self.mean) / self.std).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.class_embedding.expand(pixels.shape[0], 1, -1), hidden], dim=1) + self.position_embedding.weight
        hidden = self.pre_layrnorm(hidden)
        prompts = self._prompts_of(pixels.shape[0], frame_index)
        tokens = hidden.shape[1]
        for number, layer in enumerate(self.layers):
            if prompts is not None:
                carried = hidden if self.config.prompts.carry == "accumulate" else hidden[:, :tokens]
                hidden = torch.cat([carried, prompts[:, number]], dim=1)
            hidden = checkpoint(layer, hidden, use_reentrant=False) if self.recompute and torch.is_grad_enabled() else layer(hidden)
        return read_out(hidden, self.config.prompts, self.post_layernorm)

    def _prompts_of(self, frames: int, frame_index: Tensor | None) -> Tensor | None:
        """(frames, layers, k, hidden_size): each frame's prompts, or None where there are none."""
        if self.prompts is None:
            return None
        if not self.takes_frame_index:
            return self.prompts.expand(frames, -1, -1, -1)
        if frame_index is None:
            raise ValueError("per_frame prompts need frame_index, each frame's place in its window")
        return self.prompts[frame_index]


def read_out(hidden: Tensor, prompts: VisualPromptConfig, norm: nn.LayerNorm) -> Tensor:
    """A frame's features from the last layer's rows `hidden` (frames, rows, size): CLS is the first, the layer's own k prompts are the last."""
    parts: list[Tensor] = []
    if prompts.readout != "prompt":
        parts.append(norm(hidden[:, 0]))
    if prompts.readout != "cls":
        parts.append(norm(hidden[:, -prompts.count :]).mean(dim=1))
    return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
