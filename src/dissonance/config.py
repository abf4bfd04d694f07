"""Configuration: one frozen pydantic model for every YAML file, unknown keys refused.

`configs/models/*.yaml` are `ModelConfig`s (the presets, shipped with the package), `configs/scan/*.yaml` are `ScanConfig`s.
A configuration is read once and passed in; nothing reads a global.
"""

import hashlib
import json
import os
import reprlib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dissonance.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
Fraction01 = Annotated[float, Field(ge=0.0, le=1.0)]


def _possible(path: Path) -> Path:
    if b"\0" in os.fsencode(path):  # which itself refuses what no file can be called, with a ValueError
        raise ValueError("a path holds no zero byte")
    return path


PossiblePath = Annotated[Path, AfterValidator(_possible)]


class Frozen(BaseModel):
    """The base of every configuration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


# --------------------------------------------------------------------------------------------------------------- model


class VisualPromptConfig(Frozen):
    """Sequential visual prompts."""

    count: Annotated[int, Field(ge=0, le=64)] = 1  # k learned tokens a layer
    carry: Literal["accumulate", "replace"] = "accumulate"  # earlier layers' prompts stay, or are replaced (VPT-Deep)
    per_frame: bool = False  # one prompt set per frame index of the window
    readout: Literal["cls", "prompt", "cls+prompt"] = "cls"

    @model_validator(mode="after")
    def _prompt_readout_needs_prompts(self) -> Self:
        if self.count == 0 and self.readout != "cls":
            raise ValueError(f"readout '{self.readout}' needs prompts: set count to 1 or more, or readout to 'cls'")
        return self


class VisualConfig(Frozen):
    """A CLIP ViT. Names follow Hugging Face's CLIPVisionConfig."""

    hidden_size: Positive
    layers: Positive
    heads: Positive
    intermediate_size: Positive
    image_size: Positive = 224
    patch_size: Positive = 16
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    backbone: str | None = None  # Hugging Face model id or folder; None: trained from scratch
    prompts: VisualPromptConfig = VisualPromptConfig()

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        return self

    @property
    def feature_size(self) -> int:
        """Width of one frame's feature, as the readout makes it."""
        return self.hidden_size * (2 if self.prompts.readout == "cls+prompt" else 1)


class AudioPromptConfig(Frozen):
    """Short-time audio prompts."""

    form: Literal["residual", "prepend", "none"] = "residual"
    count: Annotated[int, Field(ge=1, le=64)] = 4  # tokens in front, for `prepend` only


class AudioConfig(Frozen):
    """A Whisper encoder. Names follow Hugging Face's WhisperConfig."""

    hidden_size: Positive
    layers: Positive
    heads: Positive
    intermediate_size: Positive
    mel_bins: Positive = 80
    max_positions: Positive = 1500
    backbone: str | None = None
    prompts: AudioPromptConfig = AudioPromptConfig()

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        return self


class HeadConfig(Frozen):
    """Alignment, matching, fusion and the three heads."""

    dim: Positive = 256  # D
    fused_dim: Positive = 256  # H
    temporal_heads: Positive = 4
    temporal_intermediate_size: Positive = 512
    tau: Annotated[float, Field(gt=0)] = 0.07
    max_lag: Annotated[int, Field(ge=0)] = 8
    attended_sound: bool = True  # False drops u from the fused feature (ablation)

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        for name in ("dim", "fused_dim"):
            if getattr(self, name) % self.temporal_heads:
                raise ValueError(f"{name} {getattr(self, name)} is not a multiple of temporal_heads {self.temporal_heads}")
        return self

    @property
    def fused_input_size(self) -> int:
        """Width of f_i = [v ; a ; u ; v*a ; m ; pi]."""
        return (4 if self.attended_sound else 3) * self.dim + 2


class ModelConfig(Frozen):
    """A preset: everything that fixes the network's shape."""

    preset: str
    frames: Annotated[int, Field(ge=4)] = 32  # T
    hop: Positive = 32
    fps: Literal[25] = 25
    visual: VisualConfig
    audio: AudioConfig
    head: HeadConfig = HeadConfig()

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        if self.hop > self.frames:
            raise ValueError(f"hop {self.hop} is longer than the window of {self.frames} frames: frames between windows would never be scored")
        if 2 * self.frames > self.audio.max_positions:
            raise ValueError(
                f"a window of {self.frames} frames has {2 * self.frames} audio tokens, more than audio.max_positions {self.audio.max_positions}"
            )
        if self.head.max_lag >= self.frames:
            raise ValueError(f"head.max_lag {self.head.max_lag} must be below the window's {self.frames} frames")
        return self


# ---------------------------------------------------------------------------------------------------------------- scan


# What decodes video. dali: an NVIDIA GPU, and PyAV what that does not. dali-cpu: the same with DALI's CPU operators (VP8, VP9, MJPEG), for trials.
Decoder = Literal["pyav", "dali", "dali-cpu"]


class DetectorConfig(Frozen):
    """Where faces are."""

    kind: Literal["haar", "yunet", "boxes"] = "haar"
    every_frames: Annotated[int, Field(ge=1, le=250)] = 12  # detect on every n-th frame of the 25 fps grid
    max_side_px: Annotated[int, Field(ge=64, le=4096)] = 400  # the picture is shrunk to this for detection
    min_face_fraction: Fraction01 = 0.1  # smallest face, of the picture's shorter side
    score_threshold: Fraction01 = 0.6  # yunet
    yunet_model: PossiblePath | None = None
    boxes_file: PossiblePath | None = None

    @model_validator(mode="after")
    def _files_named(self) -> Self:
        if self.kind == "yunet" and self.yunet_model is None:
            raise ValueError("detector 'yunet' needs yunet_model: the path of a YuNet ONNX file")
        if self.kind == "boxes" and self.boxes_file is None:
            raise ValueError("detector 'boxes' needs boxes_file: a CSV or JSONL file of boxes")
        return self


class TrackingConfig(Frozen):
    """How detections become tracks."""

    min_iou: Fraction01 = 0.3
    max_gap_frames: Annotated[int, Field(ge=1)] = 25  # a face unseen for longer ends its track
    min_track_frames: Annotated[int, Field(ge=1)] = 10  # shorter tracks are dropped
    smoothing_frames: Annotated[int, Field(ge=1)] = 9  # width of the box's smoothing in time
    max_tracks: Annotated[int, Field(ge=1, le=64)] = 8  # at the same moment; the largest are kept


class SpeechConfig(Frozen):
    """When sound counts as a voice."""

    min_level_dbfs: Annotated[float, Field(le=0)] = -55.0
    min_snr_db: Annotated[float, Field(ge=0)] = 9.0
    min_fraction: Fraction01 = 0.05  # below this share of speech-active frames a file has no speech
    min_mouth_motion: Annotated[float, Field(ge=0)] = 1.5  # grey levels a frame; above it a mouth moves
    min_speaking_fraction: Fraction01 = 0.2  # share of speech-active frames in which the mouth of a speaker moves


class LimitsConfig(Frozen):
    """What one file may cost. A file that would cost more fails, and its row names the limit; a file within them is scored as under any others."""

    min_frames: Annotated[int, Field(ge=1)] = 10  # shorter clips abstain with too_short
    max_size_gib: Annotated[float, Field(gt=0)] = 128.0
    max_duration_s: Annotated[float, Field(ge=1)] = 43_200.0  # 12 hours
    max_pixels: Annotated[int, Field(ge=1)] = 40_000_000  # of one picture; 8K has 33 million
    max_streams: Annotated[int, Field(ge=1, le=1000)] = 128
    max_memory_mib: Annotated[int, Field(ge=512)] = 3072  # of a decode worker; idle it has about 120
    stall_timeout_s: Annotated[float, Field(ge=15)] = 300.0  # a decoder silent for longer is killed; a live one is heard every 5 s
    timeout_s: Annotated[float, Field(gt=0)] = 1800.0  # so long may a file take, waiting for inference not counted ...
    timeout_per_media_s: Annotated[float, Field(ge=0)] = 10.0  # ... and so much longer for each second of it that was read


class ExecutionConfig(Frozen):
    """How the work is laid out. Nothing here changes a score."""

    workers: Annotated[int, Field(ge=0, le=512)] = 0  # decode processes; 0: one per CPU core
    threads: Annotated[int, Field(ge=0, le=512)] = 0  # of the inference runtime; 0: one per CPU core
    batch_frames: Annotated[int, Field(ge=1, le=4096)] = 32
    batch_windows: Annotated[int, Field(ge=1, le=4096)] = 16
    shard_files: Annotated[int, Field(ge=1)] = 256  # files a shard holds at most
    shard_interval_s: Annotated[float, Field(gt=0)] = 30.0  # and how long one stays open at most


class ScanConfig(Frozen):
    """Everything a scan can be told besides its bundle."""

    extensions: tuple[str, ...] = (
        ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".flv", ".3gp", ".wmv", ".ogv",
    )  # fmt: skip
    decoder: Decoder = "pyav"
    detector: DetectorConfig = DetectorConfig()
    tracking: TrackingConfig = TrackingConfig()
    speech: SpeechConfig = SpeechConfig()
    limits: LimitsConfig = LimitsConfig()
    execution: ExecutionConfig = ExecutionConfig()

    def fingerprint(self) -> str:
        """SHA-256 of all that can change a score: a scan resumes only under the same one."""
        data = self.model_dump(mode="json", include={"detector": True, "tracking": True, "speech": True, "limits": {"min_frames"}})
        if self.decoder != "pyav":
            data["decoder"] = self.decoder  # its colours are not quite PyAV's
        for key in ("yunet_model", "boxes_file"):
            if (path := getattr(self.detector, key)) is not None:
                data["detector"][key] = hashlib.sha256(_read_bytes(path, f"detector.{key}")).hexdigest()
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


# --------------------------------------------------------------------------------------------------------------- build


class ProfileConfig(Frozen):
    """Batch sizes of a TensorRT plan: it takes `min` to `max`, and is made fastest for `opt`."""

    min: Annotated[int, Field(ge=1, le=65_536)]
    opt: Annotated[int, Field(ge=1, le=65_536)]
    max: Annotated[int, Field(ge=1, le=65_536)]

    @model_validator(mode="after")
    def _sizes_in_order(self) -> Self:
        for lower, upper in (("min", "opt"), ("opt", "max")):
            if getattr(self, lower) > getattr(self, upper):
                raise ValueError(f"{lower} {getattr(self, lower)} is above {upper} {getattr(self, upper)}")
        return self


class BuildConfig(Frozen):
    """How TensorRT plans are built."""

    frames: ProfileConfig = ProfileConfig(min=1, opt=32, max=256)  # of the visual encoder
    windows: ProfileConfig = ProfileConfig(min=1, opt=16, max=64)  # of the audio encoder and the heads
    optimization_level: Annotated[int, Field(ge=0, le=5)] = 3
    workspace_mib: Annotated[int, Field(ge=16)] | None = None  # None: all there is
    timing_cache: bool = True  # flavour tensorrt only
    version_compatible: bool = False
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"  # flavour tensorrt only
    refit: bool = False
    timeout_s: Annotated[float, Field(gt=0)] = 3600.0  # for one plan


# --------------------------------------------------------------------------------------------------------------- serve


class ServeConfig(Frozen):
    """How a bundle is served behind NVIDIA Triton Inference Server."""

    instances: Annotated[int, Field(ge=1, le=64)] = 1  # of each network
    threads: Annotated[int, Field(ge=0, le=512)] = 0  # of each instance on a CPU; 0: one per core
    max_batch: Annotated[int, Field(ge=1, le=4096)] = 256  # crops of the visual encoder, windows of the audio encoder and the heads
    max_queue_delay_us: Annotated[int, Field(ge=0, le=1_000_000)] = 2000  # so long a batch waits to become fuller
    max_queue: Annotated[int, Field(ge=1)] = 256  # requests that wait for one network; more are rejected
    queue_timeout_s: Annotated[float, Field(gt=0)] = 10.0  # so long a request waits for one network at most
    videos: Annotated[int, Field(ge=1, le=256)] = 2  # read at the same time, each by a decode worker of its own
    max_queued_videos: Annotated[int, Field(ge=1)] = 16  # more are rejected
    video_timeout_s: Annotated[float, Field(gt=0)] = 600.0  # one video, from the moment at which it is taken up
    max_upload_mib: Annotated[int, Field(ge=1, le=2000)] = 256
    allowed_folders: tuple[PossiblePath, ...] = ()  # whose files a client may name; none: only uploads
    scan: ScanConfig = ScanConfig()


# ------------------------------------------------------------------------------------------------------------- reading

ConfigT = TypeVar("ConfigT", bound=Frozen)
_SHORT = reprlib.Repr()  # YAML aliases of aliases: a few lines are a value whose whole text would fill the memory
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 120, 120, 120


def _read_bytes(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"Cannot read {what} '{path}': {error.strerror or error}. Give the path of a readable file.") from error


def parse_config(kind: type[ConfigT], data: Any, *, origin: str) -> ConfigT:
    """Check `data` against `kind`; every wrong field is named with its value. Raises ConfigError."""
    if not isinstance(data, dict):
        raise ConfigError(f"Invalid config {origin}: the top level is {type(data).__name__}, not a mapping of keys to values.")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        lines = []
        for item in error.errors(include_url=False):
            field = ".".join(str(part) for part in item["loc"]) or "(top level)"
            if item["type"] == "extra_forbidden":
                lines.append(f"  {field}: unknown key; remove it or mend its spelling")
            else:
                lines.append(f"  {field}: {item['msg']} (got {_SHORT.repr(item['input']):.120})")
        raise ConfigError(f"Invalid config {origin}:\n" + "\n".join(lines)) from error


def load_config(kind: type[ConfigT], path: Path) -> ConfigT:
    """Read one YAML file. Raises ConfigError that names the file, the field, its value and the remedy."""
    try:
        data = yaml.safe_load(_read_bytes(path, "config"))
    except (yaml.YAMLError, AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError) as error:  # PyYAML lets all these out
        raise ConfigError(f"Invalid config {path}: not YAML: {error}") from error
    return parse_config(kind, {} if data is None else data, origin=str(path))


def _configs_folder() -> Path:
    """The shipped configs: inside the package when installed, at the repository's root in a checkout."""
    packaged = Path(str(resources.files("dissonance"))) / "configs"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "configs"


def list_presets() -> list[str]:
    """Names of the model presets that ship with the project."""
    return sorted(path.stem for path in (_configs_folder() / "models").glob("*.yaml"))


def load_preset(name: str) -> ModelConfig:
    """A model preset by name, or by the path of a YAML file. Raises ConfigError."""
    if name in list_presets():
        return load_config(ModelConfig, _configs_folder() / "models" / f"{name}.yaml")
    if Path(name).suffix in (".yaml", ".yml"):
        return load_config(ModelConfig, Path(name))
    raise ConfigError(f"Unknown preset '{name}'. Known presets: {', '.join(list_presets())}; or give a .yaml file.")
