"""The bundle: what export makes and the engine runs. Reads, verifies and writes it; imports no torch.

A bundle is a folder: `bundle.json`, `weights.safetensors`, `visual.onnx`, `audio.onnx`, `head.onnx`, `head_tail.onnx`, and `plans/` once built.
Hashes are checked on the very bytes that are then loaded (`Bundle.read`), so a file cannot change in between.
"""

import hashlib
import json
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast, get_args

from pydantic import Field, ValidationError, model_validator

from dissonance.config import Fraction01, Frozen, ModelConfig, ProfileConfig
from dissonance.errors import BundleError, OutputError, UsageError
from dissonance.files import replacing, replacing_folder, sync_folder, write_synced

SCHEMA_VERSION = 2
DEMO = "demo"
REQUIRED_FILES = ("weights.safetensors", "visual.onnx", "audio.onnx", "head.onnx", "head_tail.onnx")

ModalityCase = Literal["av", "v", "a"]
Precision = Literal["float32", "fp16", "bf16", "int8", "fp8", "int8-qdq"]
StaticPrecision = Literal["fp8", "int8-qdq"]  # fp16 graphs with products in 8 bits, by scales that were fixed at export
ENCODERS = ("visual.onnx", "audio.onnx")  # the graphs that exist in every precision of a bundle; the head is float32 in all of them


def graph_file(graph: str, precision: Precision) -> str:
    """The file of one graph in one precision: visual.onnx, visual.fp16.onnx; of the head always head.onnx."""
    return graph if precision == "float32" or graph not in ENCODERS else f"{graph.removesuffix('.onnx')}.{precision}.onnx"


def parse_precision(name: str) -> Precision:
    """A precision by its name. Raises UsageError."""
    for known in get_args(Precision):
        if name == known:
            return cast(Precision, known)
    raise UsageError(f"Invalid --precision '{name}'. Supported values are {', '.join(get_args(Precision))}.")


class CropSpec(Frozen):
    """How a face becomes the encoder's input. Training and every decoder follow it to 2 grey levels; DALI but for colours that BT.601 clips."""

    size_px: int
    enlargement: float = 1.3  # of the square around the detected box
    filter: Literal["triangle"] = "triangle"  # antialiased; PIL's BILINEAR resize
    colour_matrix: Literal["stream"] = "stream"  # the stream's own; untagged: BT.709 from 720 rows up, BT.601 below
    colour_range: Literal["stream"] = "stream"  # the stream's own; untagged: limited (full for yuvj)
    border: Literal["clamp"] = "clamp"  # a box is moved inside the picture, and shrunk where it is larger


class MelSpec(Frozen):
    """Whisper's log-mel."""

    sample_rate_hz: Literal[16000] = 16000
    n_fft: Literal[400] = 400
    hop_length: Literal[160] = 160
    bins: int = 80


class AggregationSpec(Frozen):
    """From windows to a file: mean of the top share of a track's window logits, then the maximum over tracks."""

    rule: Literal["top_mean_then_max"] = "top_mean_then_max"
    top_fraction: Annotated[float, Field(gt=0, le=1)] = 0.25


class Tolerance(Frozen):
    """How far the scores of one precision may lie from those of the network in torch and float32, on the same windows; see `export/validate.py`."""

    probability: Annotated[float, Field(gt=0)]  # of any window or file
    auc: Annotated[float, Field(gt=0)]
    batch_mates: Annotated[float, Field(gt=0)] = 1e-5  # of a probability, when other rows of the batch change


TOLERANCES: dict[Precision, Tolerance] = {
    "float32": Tolerance(probability=1e-4, auc=1e-3),
    "fp16": Tolerance(probability=0.01, auc=0.005),
    "bf16": Tolerance(probability=0.02, auc=0.005),
    "int8": Tolerance(probability=0.02, auc=0.005),
    "fp8": Tolerance(probability=0.05, auc=0.005),
    "int8-qdq": Tolerance(probability=0.03, auc=0.005),
}


class CalibrationSpec(Frozen):
    """One modality case: p_fake = sigmoid(scale * logit + bias); two thresholds on p_fake."""

    scale: Annotated[float, Field(gt=0)] = 1.0
    bias: float = 0.0
    likely_real_below: Fraction01 = 0.5
    likely_fake_from: Fraction01 = 0.5
    false_positive_rate: Fraction01 | None = None  # at likely_fake_from; None: never measured

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> Self:
        if self.likely_real_below > self.likely_fake_from:
            raise ValueError(f"likely_real_below {self.likely_real_below} is above likely_fake_from {self.likely_fake_from}")
        return self


class PlanGraph(Frozen):
    """One plan: what it was built from, for which batches, and what TensorRT made of it."""

    graph: str  # the ONNX file
    graph_sha256: str
    batch: Literal["frames", "windows"]
    profile: ProfileConfig
    size_bytes: int
    build_s: float
    layers: int  # that run
    attentions: int  # of the graph
    attentions_fused: int  # into one kernel each
    types: dict[str, int]  # layers by the type of their first output


class PlanSpec(Frozen):
    """A folder of plans, `plans/<gpu>-sm<cc>-<flavour><version>-<precision>`. Whether this machine built them is not for this file to say."""

    flavour: Literal["tensorrt", "tensorrt_rtx"]
    version: str  # of the library
    compute_capability: str
    gpu: str  # its name; "any" of that compute capability
    precision: Precision  # of the encoders
    options: dict[str, Any]  # BuildConfig without profiles
    graphs: dict[str, PlanGraph]  # by the plan's file name


class BundleSpec(Frozen):
    """`bundle.json`."""

    schema_version: Literal[2] = 2
    model: ModelConfig
    crop: CropSpec
    mel: MelSpec = MelSpec()
    aggregation: AggregationSpec = AggregationSpec()
    calibration: dict[ModalityCase, CalibrationSpec] = {"av": CalibrationSpec(), "v": CalibrationSpec(), "a": CalibrationSpec()}
    trained: bool
    trained_on: str  # "nothing (random weights)", "synthetic", or the data set's name
    training: dict[str, Any] | None = None  # the configuration of the run that made it; None for random weights
    folds: tuple[str, ...] = ()  # what was folded in its graphs
    precisions: tuple[Precision, ...] = ("float32",)  # in which it has its encoders
    quantised_on: str | None = None  # what fixed the scales of its fp8 and int8-qdq encoders
    tolerances: dict[Precision, Tolerance] = TOLERANCES  # what `dissonance validate` holds them to
    parameters: dict[str, int] = {}  # by group
    parity: dict[str, float] = {}  # largest differences from torch float32 that were measured when it was made
    versions: dict[str, str] = {}
    plans: dict[str, PlanSpec] = {}  # by folder
    sha256: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = {}

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if set(self.calibration) != set(get_args(ModalityCase)):
            raise ValueError(f"calibration is for {', '.join(sorted(self.calibration)) or 'nothing'}; av, v and a each need one")
        if self.crop.size_px != self.model.visual.image_size:
            raise ValueError(f"crop.size_px {self.crop.size_px} is not the model's image_size {self.model.visual.image_size}")
        if self.mel.bins != self.model.audio.mel_bins:
            raise ValueError(f"mel.bins {self.mel.bins} is not the model's mel_bins {self.model.audio.mel_bins}")
        return self


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. `id` is the SHA-256 of bundle.json, which names every other file's hash."""

    path: Path
    spec: BundleSpec
    id: str
    vouched: bool = False  # whoever opened it knew its id before

    def read(self, name: str) -> bytes:
        """The bytes of one file, checked against bundle.json. Raises BundleError."""
        expected = self.spec.sha256.get(name)
        if expected is None:
            raise BundleError(f"Bundle '{self.path}' does not list '{name}' in bundle.json. Export the bundle again.")
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise BundleError(f"Bundle '{self.path}': cannot read '{name}': {error.strerror or error}. Export the bundle again.") from error
        actual = hashlib.sha256(data).hexdigest()
        if actual != expected:
            raise BundleError(
                f"Bundle '{self.path}': '{name}' was changed: its SHA-256 is {actual}, bundle.json says {expected}. "
                "Export the bundle again, or restore the file from where it came."
            )
        return data

    def verify(self, names: Collection[str] | None = None) -> None:
        """Check these files, or every file that bundle.json names. Raises BundleError at the first that does not hold."""
        for name in self.spec.sha256 if names is None else names:
            self.read(name)

    @property
    def warning(self) -> str | None:
        """What every output made with this bundle must say, or None for a bundle trained on real data."""
        if not self.spec.trained:
            return "UNTRAINED bundle (random weights): scores and labels mean nothing"
        if self.spec.trained_on == "synthetic":
            return "bundle trained on synthetic clips only: verdicts on real videos mean nothing"
        return None

    def warning_of_detector(self, kind: str) -> str | None:
        """What a scan that finds faces by `kind` must say: thresholds were chosen on faces as one detector cuts them."""
        scan = (self.spec.training or {}).get("scan")
        detector = scan.get("detector") if isinstance(scan, dict) else None
        known = detector.get("kind") if isinstance(detector, dict) else None
        if known is None or known == kind:
            return None
        return f"bundle calibrated on faces that '{known}' found; this scan finds them by '{kind}', so its thresholds may lie elsewhere"


def _shipped() -> Path:
    return Path(str(resources.files("dissonance"))) / "bundles"


def list_bundles() -> list[str]:
    """Names of the bundles that ship with the package."""
    return sorted(path.parent.name for path in _shipped().glob("*/bundle.json"))


def is_shipped(bundle: Bundle) -> bool:
    """Whether this is one of the bundles that ship with the package, which are not written to, by whatever path it was opened."""
    return bundle.path.resolve().parent == _shipped().resolve()


def is_bundle(name: str | Path) -> bool:
    """Whether this names a bundle, sound or not: a folder with a bundle.json, or one that ships with the package."""
    return (Path(name) / "bundle.json").is_file() or (not Path(name).exists() and str(name) in list_bundles())


def open_bundle(name: str | Path, *, sha256: str | None = None, only: Collection[str] | None = None) -> Bundle:
    """Open a bundle by folder, or by the name of one that ships with the package, and check every file in it.

    `sha256`: what its bundle.json must have, told by someone who is trusted, which vouches for all of it.
    `only`: the files that this folder holds and that are checked, where it is a part of a bundle (one network behind a server).
    Raises BundleError.
    """
    path = Path(name)
    if str(name) in list_bundles():
        path = _shipped() / str(name)
    elif not path.is_dir():
        raise BundleError(f"No bundle '{name}'. Give a bundle folder, or one that ships with the package: {', '.join(list_bundles()) or '(none)'}.")
    try:
        raw = (path / "bundle.json").read_bytes()
        data = json.loads(raw)
    except OSError as error:
        raise BundleError(f"'{path}' is not a bundle: cannot read bundle.json: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"Bundle '{path}': bundle.json is not JSON: {error}. Export the bundle again.") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"Bundle '{path}' has schema version {version!r}; this release reads {SCHEMA_VERSION}. Export the bundle again with this release."
        )
    try:
        spec = BundleSpec.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BundleError(
            f"Bundle '{path}': bundle.json field '{field}': {first['msg']} (got {first['input']!r:.120}). Export the bundle again."
        ) from error
    missing = [required for required in REQUIRED_FILES if required not in spec.sha256]
    if missing:
        raise BundleError(f"Bundle '{path}': bundle.json does not list {', '.join(missing)}. Export the bundle again.")
    bad = [listed for listed in spec.sha256 if listed != Path(listed).as_posix() or listed.startswith("/") or ".." in Path(listed).parts]
    if bad:
        raise BundleError(f"Bundle '{path}': bundle.json lists '{bad[0]}', which is not a plain path inside the bundle.")
    bundle = Bundle(path=path, spec=spec, id=hashlib.sha256(raw).hexdigest(), vouched=sha256 is not None)
    if sha256 is not None and sha256.lower() != bundle.id:
        raise BundleError(f"Bundle '{path}' is not the one that was asked for: the SHA-256 of bundle.json is {bundle.id}, not {sha256}.")
    bundle.verify(only)
    return bundle


def check_destination(path: Path, *, overwrite: bool) -> None:
    """Raise BundleError unless a bundle may be written to `path`: nothing is there, or a bundle that may be replaced."""
    if path.exists() and not (overwrite and (path / "bundle.json").is_file()):
        remedy = "Choose another folder." if overwrite else "Choose another folder, or pass --overwrite to replace a bundle."
        raise BundleError(f"'{path}' exists already. {remedy}")


def write_bundle(path: Path, spec: BundleSpec, files: dict[str, bytes], *, overwrite: bool = False) -> Bundle:
    """Write a bundle so that it is either whole or not there: a folder beside `path` is filled, synced, then renamed.

    `spec.sha256` is filled in here. Raises BundleError where `path` exists (unless `overwrite` and it is a bundle) or cannot be written.
    """
    check_destination(path, overwrite=overwrite)
    spec = spec.model_copy(update={"sha256": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}})
    try:
        with replacing_folder(path) as staging:
            for name, data in {**files, "bundle.json": _document(spec)}.items():
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                write_synced(staging / name, data)
    except OSError as error:
        raise BundleError(f"Cannot write bundle '{path}': {error.strerror or error}. Free some space or choose another folder.") from error
    return open_bundle(path)


def add_plans(bundle: Bundle, built: dict[str, tuple[PlanSpec, Path]]) -> Bundle:
    """Take folders of plans into a bundle: `built` has each one's name (`plans/...`), what it is, and the folder to move there, synced and whole.

    An interruption at any moment leaves a bundle that opens: bundle.json first forgets plans that will be replaced, then folders are moved, then
    bundle.json names the new ones; it is replaced in one step each time. The bundle's `id` is the hash of bundle.json, so it changes: finish builds
    before long scans, whose resumption is tied to it. Raises OutputError where the bundle cannot be written.
    """
    kept = {folder: plan for folder, plan in bundle.spec.plans.items() if folder not in built}
    hashes = {name: digest for name, digest in bundle.spec.sha256.items() if Path(name).parent.as_posix() not in built}
    try:
        if len(kept) < len(bundle.spec.plans):
            _replace_document(bundle.path, bundle.spec.model_copy(update={"plans": kept, "sha256": hashes}))
        for folder, (plan, ready) in built.items():
            kept[folder] = plan
            for file in sorted(ready.iterdir()):
                with file.open("rb") as stream:
                    hashes[f"{folder}/{file.name}"] = hashlib.file_digest(stream, "sha256").hexdigest()
            target = bundle.path / folder
            if target.exists():
                shutil.rmtree(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            ready.rename(target)
            sync_folder(target.parent)
        _replace_document(bundle.path, bundle.spec.model_copy(update={"plans": kept, "sha256": dict(sorted(hashes.items()))}))
    except OSError as error:
        raise OutputError(f"Cannot write plans into bundle '{bundle.path}': {error.strerror or error}. Free some space, then build again.") from error
    return open_bundle(bundle.path)


def _document(spec: BundleSpec) -> bytes:
    return (json.dumps(spec.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()


def _replace_document(path: Path, spec: BundleSpec) -> None:
    with replacing(path / "bundle.json") as partial:
        partial.write_bytes(_document(spec))
