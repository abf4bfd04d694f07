"""Does every artefact of a bundle that can run here give the scores of the network in torch and float32? Asked on real files.

Each file is decoded once, as a scan does it, and each of its windows goes through the network as it was trained (weights.safetensors, nothing folded)
and through every artefact. Compared are features (of valid frames), logits, and the probabilities of windows and files; over all files the AUC, where
there are labels of both classes, and how many verdicts flip at the bundle's thresholds. Beside that, whether a window's probabilities change with its
batch mates: scored alone, among other windows, and among hostile ones, whose pixels are noise at full contrast and whose numbers are a thousand times
too large. The bundle's `tolerances` say how much of each is allowed.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from dissonance.bundle import Bundle, BundleSpec, ModalityCase, Precision, Tolerance
from dissonance.config import ScanConfig
from dissonance.engine.media.clip import Window
from dissonance.engine.runtime import open_runtime
from dissonance.engine.runtime.base import FloatArray, HeadOutput, Runtime
from dissonance.engine.runtime.torch_runtime import TorchRuntime
from dissonance.engine.scan.single import FileScore, read_file
from dissonance.engine.scan.verdict import FileVerdict, VerdictBuilder, probability
from dissonance.errors import BundleError, EnvironmentMissingError, MediaError
from dissonance.export.ranges import is_whole
from dissonance.model.audio import TOKENS_PER_FRAME
from dissonance.model.checkpoint import load_checkpoint

Output = TypeVar("Output")

WINDOWS_AMONG_MATES = 4
HOSTILE_FACTOR = 1000.0
PROBABILITIES = ("p_fake", "p_visual", "p_audio")


@dataclass(frozen=True)
class Labelled:
    """A file, and what it is where that is known."""

    path: Path
    fake: bool | None = None


@dataclass
class Difference:
    """Largest and root mean square difference of so many numbers, and the root mean square of what they should be."""

    largest: float = 0.0
    count: int = 0
    squares: float = 0.0
    wanted_squares: float = 0.0

    def add(self, found: NDArray[Any], wanted: NDArray[Any]) -> None:
        """More numbers. What is not a number differs by infinity."""
        if found.size == 0:
            return
        difference = np.abs(found.astype(np.float64) - wanted)
        self.largest = max(self.largest, float(np.nan_to_num(difference, nan=np.inf).max()))
        self.count += difference.size
        self.squares += float(np.square(difference).sum())
        self.wanted_squares += float(np.square(wanted.astype(np.float64)).sum())

    def figures(self) -> dict[str, float]:
        """largest, rms; relative: rms / rms of what they should be."""
        relative = (self.squares / self.wanted_squares) ** 0.5 if self.wanted_squares else 0.0
        return {"largest": self.largest, "rms": (self.squares / max(1, self.count)) ** 0.5, "relative": relative}


class Reference(Runtime):
    """The network in torch; what it gives is kept until every artefact has been compared with it."""

    def __init__(self, bundle: Bundle) -> None:
        self._runtime = TorchRuntime(load_checkpoint(bundle.path / "weights.safetensors").network)
        self.name, self.precision = self._runtime.name, self._runtime.precision
        self.readers: list[deque[Any]] = []

    def encode_frames(self, crops: NDArray[np.uint8], frame_index: NDArray[np.int64]) -> FloatArray:
        return self._told(self._runtime.encode_frames(crops, frame_index))

    def encode_sound(self, mel: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
        return self._told(self._runtime.encode_sound(mel, mask))

    def run_head(self, visual: FloatArray, audio: FloatArray, mask: NDArray[np.bool_]) -> HeadOutput:
        return self._told(self._runtime.run_head(visual, audio, mask))

    def begin(self) -> None:
        """A new file: what a failed one left behind is forgotten."""
        for reader in self.readers:
            reader.clear()

    def _told(self, output: Output) -> Output:
        for reader in self.readers:
            reader.append(output)
        return output


class Compared(Runtime):
    """A runtime whose every output is compared with the reference's, which was given the same windows before it and so made the same calls."""

    def __init__(self, runtime: Runtime, reference: Reference) -> None:
        self._runtime = runtime
        self._expected: deque[Any] = deque()
        reference.readers.append(self._expected)
        self.name, self.precision = runtime.name, runtime.precision
        self.differences = {name: Difference() for name in ("visual_features", "audio_features", "logits")}

    def encode_frames(self, crops: NDArray[np.uint8], frame_index: NDArray[np.int64]) -> FloatArray:
        found = self._runtime.encode_frames(crops, frame_index)
        self.differences["visual_features"].add(found, self._expected.popleft())
        return found

    def encode_sound(self, mel: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
        found = self._runtime.encode_sound(mel, mask)
        valid = np.repeat(mask, TOKENS_PER_FRAME, axis=1)
        self.differences["audio_features"].add(found[valid], self._expected.popleft()[valid])
        return found

    def run_head(self, visual: FloatArray, audio: FloatArray, mask: NDArray[np.bool_]) -> HeadOutput:
        found, expected = self._runtime.run_head(visual, audio, mask), self._expected.popleft()
        for name in ("logit_visual", "logit_audio", "logit_fused"):
            self.differences["logits"].add(getattr(found, name), getattr(expected, name))
        return found


@dataclass
class Artefact:
    """One precision under test and what was found of it."""

    precision: Precision
    plain: Runtime
    runtime: Compared
    tolerance: Tolerance
    probabilities: Difference = field(default_factory=Difference)
    p_fake: list[float] = field(default_factory=list)
    flips: int = 0
    batch_mates: float = 0.0


def validate(bundle: Bundle, files: Iterable[Labelled], *, scan: ScanConfig, threads: int = 0) -> dict[str, Any]:
    """Everything that was found, as JSON; `holds` says whether every artefact is within its tolerance.

    A file that abstains or cannot be read is counted under `left_out`. Raises BundleError where no file has a score.
    """
    reference = Reference(bundle)
    artefacts, not_run = _artefacts(bundle, reference, threads)
    labels: list[bool | None] = []
    expected: list[float] = []
    left_out: dict[str, int] = {}
    among_mates: list[Window] = []
    windows = 0
    for file in files:
        try:
            verdicts = _verdicts(file.path, bundle, reference, [artefact.runtime for artefact in artefacts], scan, among_mates)
            reason = cast(str | None, verdicts[0].file["reason"])
        except MediaError as error:
            reason = error.reason
        if reason is not None:
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        labels.append(file.fake)
        wanted, found = verdicts[0], verdicts[1:]
        expected.append(float(cast(float, wanted.file["p_fake"])))
        windows += len(wanted.windows)
        for artefact, verdict in zip(artefacts, found, strict=True):
            artefact.p_fake.append(float(cast(float, verdict.file["p_fake"])))
            artefact.flips += verdict.file["label"] != wanted.file["label"]
            for row, wanted_row in zip([verdict.file, *verdict.windows], [wanted.file, *wanted.windows], strict=True):
                asked = [name for name in PROBABILITIES if wanted_row[name] is not None]
                artefact.probabilities.add(np.array([row[name] for name in asked]), np.array([wanted_row[name] for name in asked]))
    if not expected:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "no files"
        raise BundleError(f"Nothing to validate '{bundle.path}' on: no file has a score ({counts}). Give clips with a face and a voice.")
    if among_mates:
        for artefact in artefacts:
            artefact.batch_mates = change_with_mates(artefact.plain, among_mates, bundle.spec)
    found_of = {artefact.precision: _found(artefact, labels, expected) for artefact in artefacts}
    return {
        "bundle": str(bundle.path),
        "bundle_id": bundle.id,
        "reference": "torch, float32, nothing folded",
        "files": len(expected),
        "windows": windows,
        "windows_among_mates": len(among_mates),
        "left_out": dict(sorted(left_out.items())),
        "artefacts": found_of,
        "not_run": not_run,
        "holds": all(found["holds"] for found in found_of.values()),
    }


def _artefacts(bundle: Bundle, reference: Reference, threads: int) -> tuple[list[Artefact], dict[str, str]]:
    """What can run here, and why the rest cannot."""
    artefacts, not_run = list[Artefact](), dict.fromkeys(bundle.spec.plans, "this release runs no TensorRT plan")
    for precision in bundle.spec.precisions:
        try:
            runtime = open_runtime(bundle, precision=precision, threads=threads)
        except EnvironmentMissingError as error:
            not_run[precision] = str(error)
            continue
        artefacts.append(Artefact(precision, runtime, Compared(runtime, reference), bundle.spec.tolerances[precision]))
    return artefacts, not_run


def _verdicts(
    path: Path, bundle: Bundle, reference: Reference, others: Sequence[Compared], scan: ScanConfig, among_mates: list[Window]
) -> list[FileVerdict]:
    """The verdict of each runtime, the reference's first; the first whole windows of picture and sound are kept in `among_mates`."""
    reference.begin()
    scores = [
        FileScore(VerdictBuilder(uri=str(path), bundle=bundle, scan=scan, runtime=runtime.name), bundle=bundle, runtime=runtime, config=scan)
        for runtime in (reference, *others)
    ]
    for event in read_file(path, spec=bundle.spec, config=scan):
        message = event.message
        if isinstance(message, Window) and is_whole(message, bundle.spec):
            among_mates += [message] if len(among_mates) < WINDOWS_AMONG_MATES else []
        for score in scores:
            score.take(event)
    return [score.verdict()[1] for score in scores]


def change_with_mates(runtime: Runtime, windows: Sequence[Window], spec: BundleSpec) -> float:
    """The largest change of a window's probability between being scored alone and in a batch, whatever else that batch holds.

    `windows` are whole: T new crops and their mel.
    """
    random = np.random.default_rng(0)
    crops = [window.new_crops for window in windows]
    mels = [window.mel for window in windows if window.mel is not None]
    noise = [np.where(random.random(picture.shape) < 0.5, 0, 255).astype(np.uint8) for picture in crops]
    loud = [(HOSTILE_FACTOR * random.standard_normal(mel.shape)).astype(np.float32) for mel in mels]
    largest = 0.0
    for number, (picture, mel) in enumerate(zip(crops, mels, strict=True)):
        alone = _probabilities(runtime, [picture], [mel], spec, at=0)
        others = [row for row in range(len(crops)) if row != number]
        batches = [
            ([crops[row] for row in others] + [picture], [mels[row] for row in others] + [mel], 1.0),
            ([noise[row] for row in others] + [picture], [loud[row] for row in others] + [mel], HOSTILE_FACTOR),
        ]
        for pictures, sounds, factor in batches if others else [([noise[0], picture], [loud[0], mel], HOSTILE_FACTOR)]:
            among = _probabilities(runtime, pictures, sounds, spec, at=len(pictures) - 1, factor=factor)
            largest = max(largest, float(np.nan_to_num(np.abs(among - alone), nan=np.inf).max()))
    return largest


def _probabilities(
    runtime: Runtime, crops: Sequence[NDArray[np.uint8]], mels: Sequence[FloatArray], spec: BundleSpec, *, at: int, factor: float = 1.0
) -> NDArray[np.float64]:
    """(3,) of the window `at`: av, v, a; features of the other windows are multiplied by `factor` before the head."""
    frames = spec.model.frames
    mask = np.ones((len(crops), frames), np.bool_)
    visual = runtime.encode_frames(np.concatenate(crops), np.tile(np.arange(frames), len(crops))).reshape(len(crops), frames, -1)
    audio = runtime.encode_sound(np.stack(mels), mask)
    factors = np.where(np.arange(len(crops)) == at, 1.0, factor).astype(np.float32)[:, None, None]
    output = runtime.run_head(visual * factors, audio * factors, mask)
    logits: dict[ModalityCase, float] = {"av": output.logit_fused[at], "v": output.logit_visual[at], "a": output.logit_audio[at]}
    return np.array([probability(float(logits[case]), spec.calibration[case]) for case in get_args(ModalityCase)])


def _found(artefact: Artefact, labels: Sequence[bool | None], expected: Sequence[float]) -> dict[str, Any]:
    """The figures of one artefact, what they may be at most, and whether they are."""
    known = [number for number, label in enumerate(labels) if label is not None]
    classes = [bool(labels[number]) for number in known]
    auc = auc_of_torch = None
    if 0 < sum(classes) < len(classes):
        auc = float(roc_auc_score(classes, [artefact.p_fake[number] for number in known]))
        auc_of_torch = float(roc_auc_score(classes, [expected[number] for number in known]))
    auc_difference = None if auc is None or auc_of_torch is None else abs(auc - auc_of_torch)
    tolerance = artefact.tolerance
    asked = [
        ("probability", artefact.probabilities.largest, tolerance.probability),
        ("auc", auc_difference, tolerance.auc),
        ("batch_mates", artefact.batch_mates, tolerance.batch_mates),
    ]
    return {
        "runtime": artefact.runtime.name,
        **{name: difference.figures() for name, difference in artefact.runtime.differences.items()},
        "probabilities": artefact.probabilities.figures(),
        "auc": auc,
        "auc_of_torch": auc_of_torch,
        "auc_difference": auc_difference,
        "flips": artefact.flips,
        "flip_rate": artefact.flips / len(expected),
        "batch_mates": artefact.batch_mates,
        "tolerance": tolerance.model_dump(),
        "beyond": [name for name, value, most in asked if value is not None and not value <= most],
        "holds": all(value is None or value <= most for _, value, most in asked),
    }
