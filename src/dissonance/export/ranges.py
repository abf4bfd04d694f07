"""How large the activations get that a graph is to have in 8 bits: measured once, at export, so that no score depends on its batch.

A trained network is shown windows, read as a scan reads them, of the clips that `dissonance export` draws or is given. Random weights are shown
noise, which is quick: how large their activations get on faces means nothing.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import MinMaxCalibrater

from dissonance.bundle import BundleSpec
from dissonance.config import ScanConfig
from dissonance.engine.media.clip import Window
from dissonance.engine.scan.single import read_file
from dissonance.errors import BundleError, MediaError
from dissonance.export.onnx import Graph

FRAMES_APART = 8  # neighbours look alike: every eighth frame of a window is asked, another eighth of the next
MOST_WINDOWS = 64
NOISE_BATCHES, NOISE_BATCH = 4, 2

Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Clips:
    """Files to take windows from, and what they are, for bundle.json; whether they were drawn, not filmed."""

    files: Sequence[Path]
    origin: str
    drawn: bool


@dataclass(frozen=True)
class Samples:
    """What an encoder's fp16 graph is shown, one small batch after the other, and what that is, for bundle.json."""

    origin: str
    feeds: Callable[[Graph], Iterator[Feeds]]


def noise_samples() -> Samples:
    """Noise, in the shapes that the graphs take."""

    def feeds(graph: Graph) -> Iterator[Feeds]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(NOISE_BATCHES):
            example = graph.example(NOISE_BATCH, generator)
            yield dict(zip(graph.inputs, (value.numpy() for value in example), strict=True))

    return Samples("noise", feeds)


def clip_samples(clips: Clips, *, spec: BundleSpec, scan: ScanConfig) -> Samples:
    """Whole windows with sound of these clips, MOST_WINDOWS at most, in equal shares. A file that cannot be read is left out.

    Raises BundleError where no clip has such a window.
    """
    frames: list[tuple[NDArray[np.uint8], NDArray[np.int64]]] = []
    sounds: list[NDArray[np.float32]] = []
    share = -(-MOST_WINDOWS // max(1, len(clips.files)))
    for path in clips.files:
        for number, window in enumerate(whole_windows(path, spec=spec, scan=scan)):
            if number == share or len(sounds) == MOST_WINDOWS:
                break
            index = np.arange(len(sounds) % min(FRAMES_APART, spec.model.frames), spec.model.frames, FRAMES_APART)
            frames.append((window.new_crops[index], index))
            assert window.mel is not None
            sounds.append(window.mel)
    if not sounds:
        raise BundleError(f"Nothing to quantise on: no window of {clips.origin} has both a face and sound. Give such clips with --quantise-on.")

    def feeds(graph: Graph) -> Iterator[Feeds]:
        if graph.name == "visual.onnx":
            for crops, index in frames:
                yield {"crops": crops, "frame_index": index} if "frame_index" in graph.inputs else {"crops": crops}
        else:
            for mel in sounds:
                yield {"mel": mel[None], "mask": np.ones((1, spec.model.frames), np.bool_)}

    return Samples(f"{len(sounds)} windows of {clips.origin}", feeds)


def whole_windows(path: Path, *, spec: BundleSpec, scan: ScanConfig) -> Iterator[Window]:
    """The windows of a file that have T frames of their own, and sound; none where it cannot be read."""
    try:
        for event in read_file(path, spec=spec, config=scan):
            if isinstance(event.message, Window) and is_whole(event.message, spec):
                yield event.message
    except MediaError:
        return


def is_whole(window: Window, spec: BundleSpec) -> bool:
    """Whether a window has T frames of its own, and sound."""
    return window.mel is not None and len(window.new_crops) == spec.model.frames


def largest_inputs(fp16: bytes, feeds: Iterator[Feeds]) -> dict[str, float]:
    """The largest absolute value of what each product of an fp16 graph reads, by tensor, as ONNX Runtime's calibrator finds it.

    Raises BundleError where one is infinite: fp16 cannot hold this network's numbers, so 8 bits cannot either.
    """

    class Reader:
        def get_next(self) -> Feeds | None:
            return next(feeds, None)

    with tempfile.TemporaryDirectory(prefix="dissonance-ranges-") as folder:
        graph = Path(folder) / "graph.onnx"
        graph.write_bytes(fp16)
        calibrator = MinMaxCalibrater(graph, op_types_to_calibrate=["MatMul"], augmented_model_path=f"{folder}/augmented.onnx")
        calibrator.augment_graph()
        calibrator.create_inference_session()
        calibrator.collect_data(Reader())
        found = calibrator.compute_data()
    read = {name for node in onnx.load_from_string(fp16).graph.node if node.op_type == "MatMul" for name in node.input}
    largest = {name: float(np.abs(limits.range_value).max()) for name, limits in found.items() if name in read}
    if beyond := [name for name, value in largest.items() if not np.isfinite(value)]:
        raise BundleError(f"'{beyond[0]}' is beyond what fp16 holds, which fp8 and int8-qdq rest on. Export this network in float32 or bf16.")
    return largest
