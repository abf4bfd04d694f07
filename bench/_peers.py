"""transformers' own encoders with learned prompts, driven by hand: what folded graphs are timed against, and what tests compare our encoders with."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import CLIPVisionModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from dissonance.model.audio import ResidualPrompt


def clip_features(model: CLIPVisionModel, pixels: Tensor, prompts: Tensor, *, carry: str = "accumulate", readout: str = "cls") -> Tensor:
    """`pixels` (frames, 3, S, S), normalised, and `prompts` (frames, layers, k, size) to features (frames, size), twice as wide for `cls+prompt`.

    The prompts are put right behind CLS, as VPT does: attention must not care.
    """
    count = prompts.shape[2]
    hidden = model.pre_layrnorm(model.embeddings(pixels))
    cls, patches, carried = hidden[:, :1], hidden[:, 1:], prompts[:, :0, 0]
    for number, layer in enumerate(model.encoder.layers):
        carried = torch.cat([prompts[:, number], carried if carry == "accumulate" else carried[:, :0]], dim=1)
        out = layer(torch.cat([cls, carried, patches], dim=1), None)
        cls, carried, patches = out[:, :1], out[:, 1 : 1 + carried.shape[1]], out[:, 1 + carried.shape[1] :]
    of_cls, of_prompt = model.post_layernorm(cls[:, 0]), model.post_layernorm(carried[:, :count]).mean(dim=1)
    found: Tensor = {"cls": of_cls, "prompt": of_prompt, "cls+prompt": torch.cat([of_cls, of_prompt], dim=1)}[readout]
    return found


def whisper_features(model: WhisperEncoder, mel: Tensor, *, residual: Sequence[ResidualPrompt] = (), prepended: Tensor | None = None) -> Tensor:
    """`mel` (windows, bins, 4T) to features (windows, 2T, size); `residual` prompts one a layer, `prepended` (k, size)."""
    hidden = F.gelu(model.conv2(F.gelu(model.conv1(mel)))).transpose(1, 2)
    tokens = hidden.shape[1]
    hidden = hidden + model.embed_positions.weight[:tokens]
    if prepended is not None:
        hidden = torch.cat([prepended.expand(len(mel), -1, -1), hidden], dim=1)
    for number, layer in enumerate(model.layers):
        if residual:
            prompt = residual[number]
            both = torch.cat([hidden, prompt.tokens[:tokens].expand(len(mel), -1, -1)], dim=-1)
            hidden = hidden + F.linear(both, prompt.weight)
        hidden = layer(hidden, None)
    found: Tensor = model.layer_norm(hidden)[:, -tokens:]
    return found
