"""What one training run is: a YAML file in `configs/train/`, one frozen configuration. `configs/train/demo.yaml` makes the bundle that ships."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dissonance.config import Frozen, ModelConfig, Positive, PossiblePath, ScanConfig
from dissonance.synth.config import Forgery, SynthConfig
from dissonance.training.augment import AugmentConfig
from dissonance.training.datasets import DatasetConfig
from dissonance.training.losses import LossConfig


class SyntheticConfig(Frozen):
    """Clips drawn for the run: no two sets share a person, because each has a seed of its own (`seed`, `seed` + 1)."""

    seed: Annotated[int, Field(ge=0)] = 1_000_000  # nobody draws clips to test on with it by chance
    train_clips: Positive = 2000
    validation_clips: Positive = 600
    train_forgeries: Annotated[tuple[Forgery, ...], Field(min_length=1)] = (  # timing forgeries are made of real clips, while training
        "none", "visual_artefact", "none", "audio_artefact", "none", "both",
    )  # fmt: skip
    clip: SynthConfig = SynthConfig(compressions=("c18", "c23", "c28", "c35"))  # its forgeries are the validation clips'

    @model_validator(mode="after")
    def _both_classes(self) -> Self:
        for name, kinds in (("train_forgeries", self.train_forgeries), ("clip.forgeries", self.clip.forgeries)):
            if "none" not in kinds or set(kinds) == {"none"}:
                raise ValueError(f"{name} ({', '.join(kinds)}) needs 'none' and at least one forgery")
        if self.clip.shift_frames:
            raise ValueError(f"clip.shift_frames is {self.clip.shift_frames}: a clip that is shifted is not in sync, and all would be")
        return self


class DataConfig(Frozen):
    """Which clips: a data set, or synthetic ones. Validation clips are halved by identity: one half selects the weights, the other calibrates."""

    dataset: DatasetConfig | None = None
    synthetic: SyntheticConfig | None = None
    name: str | None = None  # what scans will say that the bundle was trained on; None: the data set's folder or file name
    split: Literal["dataset", "identity"] = "dataset"  # the data set's own, or drawn by identity: `validation` of the people, none to test
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    leave_out: tuple[str, ...] = ()  # manipulations (or category/manipulation) that training does not see
    trim_leading_silence: bool = False  # from picture and sound alike
    cache: PossiblePath | None = None  # folder of the clip cache; None: inside the run's own

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.dataset is None) == (self.synthetic is None):
            raise ValueError("give either dataset or synthetic")
        if self.synthetic is not None and (self.split != "dataset" or self.leave_out):
            raise ValueError("split and leave_out are for a dataset; synthetic clips are drawn as synthetic.train_forgeries says")
        return self


class BatchConfig(Frozen):
    """What a step looks at."""

    windows: Annotated[int, Field(ge=2, multiple_of=2)] = 16  # pictures; half of them real
    mismatches: Annotated[int, Field(ge=0, le=16)] = 2  # sounds of another moment that each real picture is paired with besides its own
    apart_frames: Annotated[int, Field(ge=2)] = 6  # how far that moment is away at least
    # Clips besides, of which the visual head sees a few frames and the audio head a window: encoders that start from nothing need many people to
    # learn what a forgery looks and sounds like, and far fewer to learn what belongs together.
    glimpses: Annotated[int, Field(ge=0, le=1024, multiple_of=2)] = 0
    glimpse_frames: Positive = 2  # at most the model's T


class OptimiserConfig(Frozen):
    """AdamW (Loshchilov and Hutter, ICLR 2019) with a linear warm-up and a cosine decay to 0."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.05  # of matrices; not of norms, biases, prompts, embeddings and temperatures
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    clip_norm: Annotated[float, Field(gt=0)] = 1.0  # of all gradients together


class TrainConfig(Frozen):
    """One run. Relative paths are relative to the folder that the command is run in."""

    model: ModelConfig | str = "demo"  # a preset's name, the path of a .yaml file, or a whole ModelConfig
    data: DataConfig
    scan: ScanConfig = ScanConfig()  # detector, tracking, speech and limits, as a scan has them
    batch: BatchConfig = BatchConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    steps: Positive = 2000
    fused_from: Annotated[float, Field(ge=0, lt=1)] = 0.45  # of the steps: until then the match is learnt alone, and the fused head waits
    validate_every: Positive = 200  # steps, once the fused head learns
    validation_clips: Positive = 200  # at most so many select the weights, the same ones each time
    patience: Annotated[int, Field(ge=1)] | None = None  # stop after so many validations without a better AUC
    checkpoint_every: Positive = 100  # steps
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on a GPU
    recompute: bool = False  # the visual encoder's activations, in the backward pass: most of its memory, for one more forward pass of it
    matching: Literal["torch", "triton"] = "torch"  # triton: the kernel `match_fuse`, which no GPU has run yet; for GPUs only
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _glimpses_fit(self) -> Self:
        if isinstance(self.model, ModelConfig) and self.batch.glimpse_frames > self.model.frames:
            raise ValueError(f"batch.glimpse_frames {self.batch.glimpse_frames} is more than the model's {self.model.frames} frames")
        return self

    @property
    def fused_from_step(self) -> int:
        """The first step in which the fused head learns."""
        return int(self.fused_from * self.steps)
