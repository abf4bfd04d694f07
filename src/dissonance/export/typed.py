"""Strongly typed graphs of the folded encoders in fp16 or bf16: what a product reads has 16 bits, the stream between layers has float32.

In 16 bits: weights, inputs and outputs of products and convolutions; softmax; the MLP's activation.
In float32: mel; the residual stream with all that is added to it (positions, fresh prompts, the sound prompts' rows), LayerNorm, features.

Measured: RMS of the features' error over their RMS, torch on a CPU in the type against torch float32, for the demo's weights and for random ones of
preset base (sound prompts' matrices drawn with a deviation of 0.02). `weights` only rounds the weights, and computes in float32.

| | demo visual | demo audio | base visual | base audio |
| --- | --- | --- | --- | --- |
| fp16: weights | 5.3e-4 | 5.0e-4 | 5.0e-4 | 6.1e-4 |
| fp16: 16-bit stream | 9.4e-4 | 9.7e-4 | 1.3e-3 | 1.2e-3 |
| fp16: this | 4.6e-4 | 4.9e-4 | 6.0e-4 | 4.9e-4 |
| bf16: weights | 4.2e-3 | 4.2e-3 | 3.5e-3 | 5.0e-3 |
| bf16: 16-bit stream | 6.7e-3 | 7.8e-3 | 1.0e-2 | 1.0e-2 |
| bf16: this | 4.8e-3 | 3.9e-3 | 4.4e-3 | 4.2e-3 |

So float32 elsewhere would gain nothing, and less of it doubles the error. It costs next to no kernels: TensorRT-RTX 1.7 puts the casts into the
ends of products and into LayerNorm's kernels (base, fp16, sm_89: 139 kernels for frames either way, 78 instead of 73 for sound) and fuses every
attention of both, masked or not. The stream cannot overflow as fp16 would, for which transformers clamps Whisper's. MASKED_SCORE fits both
types, and softmax makes it 0.

A sound prompt is h + W_h h + W_p p here, not (I + W_h) h + W_p p, as it is folded in float32: an identity inside the matrix would pass the
stream through 16 bits in every layer (demo audio in fp16: 7.6e-4). The operations are the same.
"""

import copy
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from dissonance.export.fold import FoldedAudioEncoder, FoldedLayer, FoldedResidualPrompt, FoldedVisualEncoder
from dissonance.export.onnx import FromCrops, Graph, export_graph

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Branch(nn.Module):
    """A product or convolution that leaves the stream, or ends where something is added to it: float32 (or 16 bits) in, float32 out."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module.to(dtype), dtype

    def forward(self, hidden: Tensor) -> Tensor:
        """As the module."""
        out: Tensor = self.module(hidden.to(self.dtype))
        return out.float()


class Norm(nn.Module):
    """LayerNorm computed in float32 and given in 16 bits: what it gives goes into products only."""

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.dtype = norm, dtype

    def forward(self, hidden: Tensor) -> Tensor:
        """As the norm."""
        out: Tensor = self.norm(hidden)
        return out.to(self.dtype)


class SoundPrompt(nn.Module):
    """h + W_h h + W_p p, with the first term in float32."""

    def __init__(self, prompt: FoldedResidualPrompt, dtype: torch.dtype) -> None:
        super().__init__()
        weight = prompt.matrix.weight.data
        prompt.matrix.weight.data = weight - torch.eye(weight.shape[0])
        prompt.matrix = cast(nn.Linear, Branch(prompt.matrix, dtype))
        self.prompt = prompt

    def forward(self, hidden: Tensor) -> Tensor:
        """As `ResidualPrompt`."""
        moved: Tensor = self.prompt(hidden)
        return hidden + moved


class Typed(nn.Module):
    """A folded encoder in 16 bits. What it takes and gives has the types that the float32 graph has."""

    def __init__(self, encoder: FoldedVisualEncoder | FoldedAudioEncoder, dtype: torch.dtype) -> None:
        """The encoder is not changed, and shares no weights with this."""
        super().__init__()
        self.dtype, self.encoder = dtype, copy.deepcopy(encoder)
        encoder = self.encoder
        for layer in encoder.layers:
            _type_layer(cast(FoldedLayer, layer), dtype)
        if isinstance(encoder, FoldedVisualEncoder):
            encoder.patch_embedding = cast(nn.Conv2d, Branch(encoder.patch_embedding, dtype))
            return
        encoder.conv1, encoder.conv2 = encoder.conv1.to(dtype), encoder.conv2.to(dtype)
        for number, module in enumerate(encoder.prompts):
            prompt = cast(FoldedResidualPrompt, module)
            if prompt.folded:
                encoder.prompts[number] = SoundPrompt(prompt, dtype)
            else:
                prompt.matrix = cast(nn.Linear, Branch(prompt.matrix, dtype))

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        """As the encoder: pixels and frame_index, or mel and mask."""
        features: Tensor = (
            self.encoder(first, second) if isinstance(self.encoder, FoldedVisualEncoder) else self.encoder(first.to(self.dtype), second)
        )
        return features


def _type_layer(layer: FoldedLayer, dtype: torch.dtype) -> None:
    layer.layer_norm1, layer.layer_norm2 = (cast(nn.LayerNorm, Norm(norm, dtype)) for norm in (layer.layer_norm1, layer.layer_norm2))
    layer.out, layer.fc2 = (cast(nn.Linear, Branch(product, dtype)) for product in (layer.out, layer.fc2))
    for product in (layer.query, layer.key, layer.value, layer.fc1):
        product.to(dtype)
    if layer.constant:
        for name in ("fresh_query", "fresh_key", "fresh_value"):
            layer.register_buffer(name, getattr(layer, name).to(dtype))


def typed(graph: Graph, precision: Literal["fp16", "bf16"]) -> bytes:
    """The ONNX file of an encoder in this precision."""
    dtype = DTYPES[precision]
    if isinstance(graph.module, FromCrops):
        module: nn.Module = FromCrops(Typed(cast(FoldedVisualEncoder, graph.module.encoder), dtype))
    else:
        module = Typed(cast(FoldedAudioEncoder, graph.module), dtype)
    return export_graph(replace(graph, module=module, original=module))
