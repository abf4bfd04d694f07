"""Rung `encoders`: what folding and int8 are worth on a CPU, against transformers in the same run and with the same output.

`base` geometry (CLIP ViT-B/16, Whisper-base) with random weights and prompts. The peer is transformers' own layers in eager float32, in which the
prompts take part as the paper has them; its sound encoder gets the window alone, as ours does, not 30 s. For a whole window it is followed by the
network's own head in torch, for transformers has none. Both sides use all cores; nobody's idle threads spin. Rounds of the variants alternate and the
median ratio counts, because a shared machine's speed drifts.
"""

import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from transformers import CLIPVisionConfig, CLIPVisionModel, WhisperConfig, WhisperModel

from bench._peers import clip_features, whisper_features
from bench._rows import Row, at_least, at_most, measured, tell
from dissonance.bundle import Precision
from dissonance.config import ModelConfig, load_preset
from dissonance.engine.runtime import open_runtime
from dissonance.engine.runtime.base import FloatArray, Runtime
from dissonance.export.make import export_bundle
from dissonance.machine import available_cores
from dissonance.model.audio import ResidualPrompt
from dissonance.model.backbone import load_backbones
from dissonance.model.checkpoint import save_checkpoint
from dissonance.model.network import build_network

ROUNDS = 5
PRECISIONS: tuple[Precision, ...] = ("float32", "int8")
LIMITS = {"float32": 1.25, "int8": 3.0}
PEER = "transformers"
PARTS = ("visual", "audio", "whole window")

Call = Callable[[], FloatArray]


def run() -> list[Row]:
    """Measure everything; about eight minutes on two cores."""
    torch.set_num_threads(available_cores())
    with tempfile.TemporaryDirectory(prefix="dissonance-bench-") as name:
        folder = Path(name)
        peer = Peer(folder)
        checkpoint = save_checkpoint(peer.network, folder / "checkpoint", trained_on="nothing")
        bundle = export_bundle(
            checkpoint=checkpoint,
            random_weights=False,
            preset=None,
            seed=0,
            out=folder / "bundle",
            overwrite=False,
            precisions=PRECISIONS,
            progress=tell,
        )
        variants = {PEER: peer.calls()}
        for precision in PRECISIONS:
            variants[precision] = engine_calls(open_runtime(bundle, precision=precision), peer.network.config)
        rows = [product_ratio(peer.network.config), *equality(variants)]
        for part in PARTS:
            rows += ratios(part, {name: calls[part] for name, calls in variants.items()})
        return rows


class Peer:
    """transformers' encoders and the network that took their weights over."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        base = load_preset("base")
        visual, audio = base.visual, base.audio
        clip = CLIPVisionConfig(
            hidden_size=visual.hidden_size,
            num_hidden_layers=visual.layers,
            num_attention_heads=visual.heads,
            intermediate_size=visual.intermediate_size,
            image_size=visual.image_size,
            patch_size=visual.patch_size,
        )
        whisper = WhisperConfig(
            d_model=audio.hidden_size,
            encoder_layers=audio.layers,
            encoder_attention_heads=audio.heads,
            encoder_ffn_dim=audio.intermediate_size,
            num_mel_bins=audio.mel_bins,
            decoder_layers=1,
            decoder_attention_heads=audio.heads,
        )
        self._clip, self._whisper = CLIPVisionModel(clip), WhisperModel(whisper)
        for model, name in ((self._clip, "clip"), (self._whisper, "whisper")):
            model.save_pretrained(folder / name)
            model.train(False).set_attn_implementation("eager")
        config = base.model_copy(
            update={
                "visual": visual.model_copy(update={"backbone": str(folder / "clip")}),
                "audio": audio.model_copy(update={"backbone": str(folder / "whisper")}),
            }
        )
        self.network = build_network(config, seed=0).eval()
        load_backbones(self.network)
        self._residual = cast(list[ResidualPrompt], list(self.network.audio.residual_prompts))
        with torch.no_grad():
            for prompt in self._residual:  # they start without any effect
                prompt.weight.normal_(std=0.02)
                prompt.tokens.normal_()

    @torch.inference_mode()
    def _visual(self, crops: NDArray[np.uint8]) -> torch.Tensor:
        encoder = self.network.visual
        assert encoder.prompts is not None
        pixels = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255.0
        prompts = encoder.prompts.expand(len(pixels), -1, -1, -1)
        return clip_features(self._clip, (pixels - encoder.mean) / encoder.std, prompts)

    @torch.inference_mode()
    def _audio(self, mel: FloatArray) -> torch.Tensor:
        return whisper_features(self._whisper.encoder, torch.from_numpy(mel), residual=self._residual)

    @torch.inference_mode()
    def _window(self, crops: NDArray[np.uint8], mel: FloatArray) -> torch.Tensor:
        found = self.network.head(self._visual(crops)[None], self._audio(mel), torch.ones(1, len(crops), dtype=torch.bool))
        return torch.stack([found.logit_visual, found.logit_audio, found.logit_fused])

    def calls(self) -> dict[str, Call]:
        """Every part, by name."""
        crops, mel = window(self.network.config)
        return dict(
            zip(PARTS, (lambda: self._visual(crops).numpy(), lambda: self._audio(mel).numpy(), lambda: self._window(crops, mel).numpy()), strict=True)
        )


def engine_calls(runtime: Runtime, config: ModelConfig) -> dict[str, Call]:
    """Every part of a bundle's runtime, by name."""
    crops, mel = window(config)
    index, mask = np.arange(len(crops)), np.ones((1, len(crops)), np.bool_)

    def whole() -> FloatArray:
        found = runtime.run_head(runtime.encode_frames(crops, index)[None], runtime.encode_sound(mel, mask), mask)
        return np.stack([found.logit_visual, found.logit_audio, found.logit_fused])

    return {"visual": lambda: runtime.encode_frames(crops, index), "audio": lambda: runtime.encode_sound(mel, mask), "whole window": whole}


def window(config: ModelConfig) -> tuple[NDArray[np.uint8], FloatArray]:
    """crops (T, S, S, 3) uint8 and mel (1, bins, 4T) float32 of a window, always the same."""
    generator = np.random.default_rng(1)
    side = config.visual.image_size
    crops = generator.integers(0, 256, (config.frames, side, side, 3), dtype=np.uint8)
    return crops, generator.standard_normal((1, config.audio.mel_bins, 4 * config.frames), dtype=np.float32)


def product_ratio(config: ModelConfig) -> Row:
    """What the first product of the picture encoder's MLPs takes in float32 over what it takes in 8 bits: int8 can gain no more than that."""
    visual = config.visual
    rows, matrix = 32 * 197, np.random.default_rng(2).standard_normal((visual.hidden_size, visual.intermediate_size), dtype=np.float32)
    tensors = [
        numpy_helper.from_array(matrix, "matrix"),
        numpy_helper.from_array((matrix * 20).astype(np.int8), "bytes"),
        *(
            numpy_helper.from_array(np.array(value), name)
            for name, value in (("one", np.float32(1)), ("middle", np.uint8(128)), ("zero", np.int8(0)))
        ),
    ]
    nodes = {
        "float32": helper.make_node("MatMul", ["x", "matrix"], ["y"]),
        "int8": helper.make_node("MatMulIntegerToFloat", ["x", "bytes", "one", "one", "middle", "zero"], ["y"], domain="com.microsoft"),
    }
    options = onnxruntime.SessionOptions()  # as `engine.runtime.onnx_runtime` has them
    options.intra_op_num_threads = available_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    seconds: dict[str, list[float]] = {name: [] for name in nodes}
    calls: dict[str, Callable[[], object]] = {}
    for name, node in nodes.items():
        kind, values = (TensorProto.FLOAT, np.float32) if name == "float32" else (TensorProto.UINT8, np.uint8)
        given, wanted = helper.make_tensor_value_info("x", kind, [rows, len(matrix)]), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        used = [tensor for tensor in tensors if tensor.name in node.input]
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(helper.make_graph([node], name, [given], [wanted], used), opset_imports=opsets, ir_version=10)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        calls[name] = functools.partial(session.run, None, {"x": np.random.default_rng(3).integers(0, 256, (rows, len(matrix))).astype(values)})
    for _ in range(3 * ROUNDS):
        time_each(calls, seconds)
    each = [whole / bytes_ for whole, bytes_ in zip(seconds["float32"], seconds["int8"], strict=True)]
    how = f"{rows} x {len(matrix)} by {matrix.shape[1]} columns in ONNX Runtime, median of {len(each)}, from {min(each):.2f} to {max(each):.2f}"
    return measured("one product of an MLP: float32 / int8, wall time", statistics.median(each), how)


def time_each(calls: Mapping[str, Callable[[], object]], seconds: dict[str, list[float]]) -> None:
    """One round, in the other order than the one before."""
    order = list(calls.items())
    for name, call in order if len(seconds[order[0][0]]) % 2 == 0 else reversed(order):
        started_s = time.perf_counter()
        call()
        seconds[name].append(time.perf_counter() - started_s)


def equality(variants: dict[str, dict[str, Call]]) -> list[Row]:
    """How far each variant's output is from the peer's: the root mean square of the difference over that of the output."""
    rows = []
    for part in PARTS[:2]:
        wanted = variants[PEER][part]()
        for precision in PRECISIONS:
            difference = variants[precision][part]() - wanted
            relative = float(np.sqrt(np.square(difference).mean() / np.square(wanted).mean()))
            what, how = f"{part} features: {precision} - {PEER}, relative RMS", f"largest difference {np.abs(difference).max():.2g}"
            rows.append(at_most(what, relative, 1e-4, how) if precision == "float32" else measured(what, relative, how))
    wanted = variants[PEER][PARTS[2]]()
    for precision in PRECISIONS:
        largest = float(np.abs(variants[precision][PARTS[2]]() - wanted).max())
        rows.append(measured(f"logits of a window: {precision} - {PEER}, largest difference", largest, "three logits"))
    return rows


def ratios(part: str, calls: dict[str, Call]) -> list[Row]:
    """Peer's wall time over each precision's."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(ROUNDS):
        time_each(calls, seconds)
        tell(f"{part}, round {turn + 1}: " + ", ".join(f"{name} {times[-1]:.3f} s" for name, times in seconds.items()))
    rows = []
    for name in PRECISIONS:
        each = [peer / ours for peer, ours in zip(seconds[PEER], seconds[name], strict=True)]
        medians = f"{statistics.median(seconds[PEER]):.3f} s, {statistics.median(seconds[name]):.3f} s"
        how = f"{available_cores()} cores, median of {ROUNDS}, from {min(each):.2f} to {max(each):.2f}; medians {medians}"
        what = f"{part}: {PEER} / {name}, wall time"
        rows.append(at_least(what, statistics.median(each), LIMITS[name], how) if part == "visual" else measured(what, statistics.median(each), how))
    return rows


if __name__ == "__main__":
    for row in run():
        print(json.dumps(row))
