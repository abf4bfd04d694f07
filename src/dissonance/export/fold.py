"""Folding: learned prompts, fixed normalisation and scales become constants of the encoders, which then give the same features with less work.

A prompt is fresh in the layer that it enters. Each fold (`folds.py` says what they are) is exact up to rounding and can be left out.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dissonance.export.folds import FOLDS, Fold
from dissonance.model.audio import MEL_FRAMES_PER_FRAME, TOKENS_PER_FRAME, AudioEncoder, ResidualPrompt
from dissonance.model.layer import TransformerLayer, activate, attend, score_bias
from dissonance.model.network import AudioVisualNetwork
from dissonance.model.visual import VisualEncoder, read_out

MIN_QUERIES = 2  # of the last layer


class Folded(nn.Module):
    """The encoders of a network, folded; each takes and gives what its original does. The head has no prompts and stays as it is."""

    def __init__(self, network: AudioVisualNetwork, folds: Collection[Fold] = FOLDS) -> None:
        """The network is not changed, and shares no weights with this."""
        super().__init__()
        with torch.no_grad():
            self.visual = FoldedVisualEncoder(network.visual, folds)
            self.audio = FoldedAudioEncoder(network.audio, folds)
        self.requires_grad_(False).eval()


@dataclass(frozen=True)
class Rows:
    """Which rows of its input a layer computes: the first `carried` (None: all) of those that come from below, and the fresh ones or not."""

    carried: int | None = None
    fresh: bool = True


class FoldedLayer(nn.Module):
    """`TransformerLayer` with fresh rows that come from no input: x + attention(LN(x)), then x + MLP(LN(x)), of the rows that are asked for."""

    def __init__(
        self, layer: TransformerLayer, *, fresh: Tensor | None = None, rows: Rows | None = None, front: bool = False, folds: Collection[Fold] = FOLDS
    ) -> None:
        """`fresh` (sets, k, size): the prompts that enter here, one set for all or one for each place in a window. `front`: before the rest."""
        super().__init__()
        attention = layer.self_attn
        self.heads, self.activation, self.front = attention.heads, layer.activation, front
        self.rows = rows or Rows()
        self.query = _linear(attention.q_proj, scale=(attention.q_proj.out_features // attention.heads) ** -0.5 if "scale" in folds else 1.0)
        self.key, self.value, self.out = _linear(attention.k_proj), _linear(attention.v_proj), _linear(attention.out_proj)
        self.layer_norm1, self.layer_norm2 = _norm(layer.layer_norm1), _norm(layer.layer_norm2)
        self.fc1, self.fc2 = _linear(layer.fc1), _linear(layer.fc2)
        self.scaled = "scale" in folds
        self.fresh: Tensor | None
        self.register_buffer("fresh", None if fresh is None else fresh.detach().clone())
        self.constant = fresh is not None and "prompts" in folds
        if self.constant:
            normed = self.layer_norm1(self.fresh)
            for name, projection in (("fresh_query", self.query), ("fresh_key", self.key), ("fresh_value", self.value)):
                self.register_buffer(name, projection(normed))

    def forward(self, hidden: Tensor, index: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """`hidden` (batch, n, size), the carried rows; `index` (batch,): which set of fresh rows; `bias` as `score_bias` gives it, for all rows."""
        batch = hidden.shape[0]
        asked = hidden if self.rows.carried is None else hidden[:, : self.rows.carried]
        normed = self.layer_norm1(hidden)
        query, key, value = self.query(normed[:, : asked.shape[1]]), self.key(normed), self.value(normed)
        if self.fresh is not None:
            fresh = self._of("fresh", batch, index)
            if self.constant:
                of_query, of_key, of_value = (self._of(f"fresh_{name}", batch, index) for name in ("query", "key", "value"))
            else:
                of_fresh = self.layer_norm1(fresh)
                of_query, of_key, of_value = self.query(of_fresh), self.key(of_fresh), self.value(of_fresh)
            key, value = self._joined(of_key, key), self._joined(of_value, value)
            if self.rows.fresh:
                query, asked = self._joined(of_query, query), self._joined(fresh, asked)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        hidden = asked + self.out(attend(query, key, value, bias, scaled=self.scaled).transpose(1, 2).flatten(2))
        out: Tensor = hidden + self.fc2(activate(self.fc1(self.layer_norm2(hidden)), self.activation))
        return out

    def _of(self, name: str, batch: int, index: Tensor | None) -> Tensor:
        """(batch, k, size): a constant for each input."""
        table: Tensor = getattr(self, name)
        return table.expand(batch, -1, -1) if table.shape[0] == 1 else table.index_select(0, cast(Tensor, index))

    def _joined(self, fresh: Tensor, carried: Tensor) -> Tensor:
        return torch.cat([fresh, carried] if self.front else [carried, fresh], dim=1)


class FoldedVisualEncoder(nn.Module):
    """`VisualEncoder` after folding."""

    mean: Tensor
    std: Tensor
    positions: Tensor

    def __init__(self, encoder: VisualEncoder, folds: Collection[Fold]) -> None:
        super().__init__()
        self.config = config = encoder.config
        self.takes_frame_index = encoder.takes_frame_index
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size, bias=False)
        weight, positions = encoder.patch_embedding.weight.detach().clone(), encoder.position_embedding.weight.detach().clone()
        positions[0] += encoder.class_embedding
        self.normalises = "pixels" not in folds
        if self.normalises:
            self.register_buffer("mean", encoder.mean.clone())
            self.register_buffer("std", encoder.std.clone())
        else:
            weight /= encoder.std
            positions[1:] -= (weight * encoder.mean).sum(dim=(1, 2, 3))
        self.patch_embedding.weight = nn.Parameter(weight)
        self.register_buffer("positions", positions)
        self.pre_layrnorm, self.post_layernorm = _norm(encoder.pre_layrnorm), _norm(encoder.post_layernorm)
        layers = [cast(TransformerLayer, layer) for layer in encoder.layers]
        prompts = encoder.prompts
        self.layers = nn.ModuleList(
            FoldedLayer(
                layer,
                fresh=None if prompts is None else prompts[:, number],
                rows=self._rows(last=number == len(layers) - 1, folds=folds),
                folds=folds,
            )
            for number, layer in enumerate(layers)
        )

    def _rows(self, *, last: bool, folds: Collection[Fold]) -> Rows:
        prompts = self.config.prompts
        dropped = prompts.carry == "replace" and "prompts" in folds
        if not last:
            return Rows(fresh=not dropped)
        reads_prompts = prompts.readout != "cls"
        if "rows" not in folds:
            return Rows(fresh=reads_prompts or not dropped)
        wanted = prompts.count if reads_prompts else 0
        return Rows(carried=max(1, MIN_QUERIES - wanted), fresh=reads_prompts)

    def forward(self, pixels: Tensor, frame_index: Tensor | None = None) -> Tensor:
        """As `VisualEncoder`."""
        if self.normalises:
            pixels = (pixels - self.mean) / self.std
        hidden = self.patch_embedding(pixels).flatten(2).transpose(1, 2) + self.positions[1:]
        hidden = self.pre_layrnorm(torch.cat([self.positions[:1].expand(pixels.shape[0], 1, -1), hidden], dim=1))
        tokens = hidden.shape[1]
        for layer in self.layers:
            hidden = layer(hidden if self.config.prompts.carry == "accumulate" else hidden[:, :tokens], frame_index)
        return read_out(hidden, self.config.prompts, self.post_layernorm)


class FoldedAudioEncoder(nn.Module):
    """`AudioEncoder` after folding."""

    embed_positions: Tensor

    def __init__(self, encoder: AudioEncoder, folds: Collection[Fold]) -> None:
        super().__init__()
        self.config = encoder.config
        self.conv1, self.conv2 = _conv(encoder.conv1), _conv(encoder.conv2)
        self.register_buffer("embed_positions", encoder.embed_positions.clone())
        self.layer_norm = _norm(encoder.layer_norm)
        prepended = encoder.prepended_prompts
        self.prepended = 0 if prepended is None else prepended.shape[0]
        self.prompts = nn.ModuleList(FoldedResidualPrompt(cast(ResidualPrompt, prompt), folds) for prompt in encoder.residual_prompts)
        self.layers = nn.ModuleList(
            FoldedLayer(cast(TransformerLayer, layer), fresh=None if number or prepended is None else prepended[None], front=True, folds=folds)
            for number, layer in enumerate(encoder.layers)
        )

    def forward(self, mel: Tensor, mask: Tensor) -> Tensor:
        """As `AudioEncoder`."""
        valid = mask.repeat_interleave(MEL_FRAMES_PER_FRAME, dim=1)[:, None, :]
        hidden = F.gelu(self.conv1(mel.masked_fill(~valid, 0.0)))
        hidden = F.gelu(self.conv2(hidden)).transpose(1, 2)
        hidden = hidden + self.embed_positions[: hidden.shape[1]]
        bias = score_bias(F.pad(mask.repeat_interleave(TOKENS_PER_FRAME, dim=1), (self.prepended, 0), value=True))
        for number, layer in enumerate(self.layers):
            if self.prompts:
                hidden = self.prompts[number](hidden)
            hidden = layer(hidden, None, bias)
        features: Tensor = self.layer_norm(hidden[:, self.prepended :])
        return features


class FoldedResidualPrompt(nn.Module):
    """h + W_h h + W_p p, as one matrix I + W_h and one constant row a token."""

    constant: Tensor

    def __init__(self, prompt: ResidualPrompt, folds: Collection[Fold]) -> None:
        super().__init__()
        of_hidden, of_prompt = prompt.weight.detach().chunk(2, dim=1)
        self.folded = "sound" in folds
        self.matrix = nn.Linear(of_hidden.shape[1], of_hidden.shape[0], bias=False)
        self.matrix.weight = nn.Parameter(of_hidden + torch.eye(of_hidden.shape[0]) if self.folded else of_hidden.clone())
        self.of_prompt = None if self.folded else nn.Parameter(of_prompt.clone())
        self.register_buffer("constant", prompt.tokens.detach() @ of_prompt.T if self.folded else prompt.tokens.detach().clone())

    def forward(self, hidden: Tensor) -> Tensor:
        """As `ResidualPrompt`."""
        row = self.constant[: hidden.shape[1]]
        moved: Tensor = self.matrix(hidden)
        return moved + row if self.of_prompt is None else hidden + moved + F.linear(row, self.of_prompt)


def _linear(layer: nn.Linear, *, scale: float = 1.0) -> nn.Linear:
    copy = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    copy.weight = nn.Parameter(layer.weight.detach() * scale)
    if layer.bias is not None:
        copy.bias = nn.Parameter(layer.bias.detach() * scale)
    return copy


def _norm(layer: nn.LayerNorm) -> nn.LayerNorm:
    copy = nn.LayerNorm(layer.normalized_shape, eps=layer.eps)
    copy.load_state_dict(layer.state_dict())
    return copy


def _conv(layer: nn.Conv1d) -> nn.Conv1d:
    copy = nn.Conv1d(layer.in_channels, layer.out_channels, 3, stride=layer.stride[0], padding=1)
    copy.load_state_dict(layer.state_dict())
    return copy
