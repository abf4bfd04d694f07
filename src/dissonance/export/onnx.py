"""The four ONNX graphs of a bundle: folded, float32, opset 20, dynamic batch, and nothing in them that tells where they were made.

| graph | inputs | outputs |
| --- | --- | --- |
| visual.onnx | crops (frames, S, S, 3) uint8 RGB; frame_index (frames,) int64 under per_frame | features (frames, Fv) |
| audio.onnx | mel (windows, bins, 4T), mask (windows, T) bool | features (windows, 2T, Fa) |
| head.onnx | visual (windows, T, Fv), audio (windows, 2T, Fa), mask (windows, T) bool | HEAD_OUTPUTS |
| head_tail.onnx | fused (windows, T, H), visual (windows, T, D), audio (windows, T, D), mask (windows, T) bool | LOGITS |

Imports torch and onnx: reached through `dissonance.export.make`, which says what to install where they are missing.
"""

import logging
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from dissonance.errors import BundleError
from dissonance.export.fold import Folded
from dissonance.export.folds import FOLDS, Fold
from dissonance.model.audio import MEL_FRAMES_PER_FRAME, TOKENS_PER_FRAME
from dissonance.model.head import Head, HeadTail
from dissonance.model.network import AudioVisualNetwork

OPSET = 20  # float32 attention stays MatMul-Softmax-MatMul; opset 23's Attention op does not build in float32 with TensorRT
MAX_BYTES = 2**31 - 1  # of one protobuf message

LOGITS = ("logit_visual", "logit_audio", "logit_fused")
HEAD_OUTPUTS = (*LOGITS, "matched", "lag_profile", "lag_valid", "best_lag", "row_match")


class HeadGraph(nn.Module):
    """The head, with the outputs that leave it as a flat tuple in the order of HEAD_OUTPUTS."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, visual: Tensor, audio: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """As `Head`."""
        out = self.head(visual, audio, mask)
        found = out.match
        return (
            out.logit_visual, out.logit_audio, out.logit_fused,
            found.matched, found.lag_profile, found.lag_valid, found.best_lag, found.row_match,
        )  # fmt: skip


class FromCrops(nn.Module):
    """A visual encoder that takes crops as they are cut: a quarter of float32's bytes to move, and one interface in every precision.

    The cast comes first: TensorRT takes bytes as a network's input, and nowhere else. 1/255 stays out of the weights, which fp16 could not hold then.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, crops: Tensor, frame_index: Tensor | None = None) -> Tensor:
        """(frames, S, S, 3) uint8 RGB, and each one's place in its window -> (frames, Fv)."""
        features: Tensor = self.encoder(crops.float().permute(0, 3, 1, 2) / 255.0, frame_index)
        return features


@dataclass(frozen=True)
class Graph:
    """One graph to export: a module, how to make inputs for a batch of a given size, and what they and the outputs are called."""

    name: str  # the file's
    module: nn.Module
    original: nn.Module  # whose numbers it must give: the module before folding
    batch: str  # what its first dimension counts: frames or windows
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    example: Callable[[int, torch.Generator], tuple[Tensor, ...]]


def graphs(network: AudioVisualNetwork, folds: Collection[Fold] = FOLDS) -> list[Graph]:
    """The four graphs of a network. Example masks have a whole window first, then padded ones, and from the fourth one without a valid frame."""
    folded = Folded(network, folds)
    head = HeadGraph(network.head)
    config = network.config
    frames, size = config.frames, config.visual.image_size

    def normal(generator: torch.Generator, *shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def mask(windows: int) -> Tensor:
        lengths = torch.tensor([frames, frames // 2 + 1, 1, 0])[torch.arange(windows) % 4]
        return torch.arange(frames)[None, :] < lengths[:, None]

    def unit(generator: torch.Generator, windows: int) -> Tensor:
        return nn.functional.normalize(normal(generator, windows, frames, config.head.dim), dim=-1) * mask(windows)[:, :, None]

    def visual_example(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        crops = torch.randint(256, (batch, size, size, 3), generator=generator, dtype=torch.uint8)
        return (crops, torch.randint(frames, (batch,), generator=generator)) if network.visual.takes_frame_index else (crops,)

    def audio_example(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        return normal(generator, batch, config.audio.mel_bins, MEL_FRAMES_PER_FRAME * frames), mask(batch)

    def head_example(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        visual = normal(generator, batch, frames, config.visual.feature_size)
        return visual, normal(generator, batch, TOKENS_PER_FRAME * frames, config.audio.hidden_size), mask(batch)

    def tail_example(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        fused = normal(generator, batch, frames, config.head.fused_dim)
        return fused, unit(generator, batch), unit(generator, batch), mask(batch)

    tail: HeadTail = network.head.tail
    crops = ("crops", "frame_index") if network.visual.takes_frame_index else ("crops",)
    return [
        Graph("visual.onnx", FromCrops(folded.visual), FromCrops(network.visual), "frames", crops, ("features",), visual_example),
        Graph("audio.onnx", folded.audio, network.audio, "windows", ("mel", "mask"), ("features",), audio_example),
        Graph("head.onnx", head, head, "windows", ("visual", "audio", "mask"), HEAD_OUTPUTS, head_example),
        Graph("head_tail.onnx", tail, tail, "windows", ("fused", "visual", "audio", "mask"), LOGITS, tail_example),
    ]


def export_graph(graph: Graph) -> bytes:
    """The ONNX file of one graph: the same bytes for the same weights and library versions. Raises BundleError where it is over 2 GB."""
    example = graph.example(2, torch.Generator().manual_seed(0))
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph.module.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=tuple({0: Dim(graph.batch, min=1)} for _ in example),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = program.model_proto
    strip_provenance(model)
    if model.ByteSize() > MAX_BYTES:
        raise BundleError(f"{graph.name} would be {model.ByteSize() / 1e9:.2f} GB; one ONNX file holds at most 2.15 GB. Choose a smaller model.")
    onnx.checker.check_model(model, full_check=False)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def strip_provenance(message: Any) -> None:
    """Remove every doc string and metadata entry of a protobuf message, at any depth.

    The exporter writes stack traces with this machine's paths into them; the engine reads none of it.
    """
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for item in [value] if hasattr(value, "ListFields") else value:
                strip_provenance(item)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about its own insides off the terminal; its errors are exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
