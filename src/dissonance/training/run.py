"""A training run from its configuration to a calibrated checkpoint: clips, cache, splits, training, calibration.

OUT/config.json          the whole configuration, resolved
OUT/clips/               synthetic clips, where the configuration asks for them
OUT/cache/               the clip cache, unless the configuration names another
OUT/skipped.jsonl        clips that were left out, each with its reason
OUT/log.jsonl            losses and validations; OUT/tensorboard/ beside it where TensorBoard is installed
OUT/last.safetensors     what `--resume` goes on from
OUT/best.safetensors     the weights with the best validation AUC
OUT/model.safetensors    those weights with their calibration: what `dissonance export OUT` takes. Written last
OUT/summary.json         what the run came to
OUT/run.lock             held while a run is at work
"""

import ctypes
import json
import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from dissonance.config import ModelConfig, load_config, load_preset, parse_config
from dissonance.errors import OutputError, UsageError
from dissonance.files import write_text
from dissonance.locks import held
from dissonance.model.backbone import load_backbones
from dissonance.model.checkpoint import load_checkpoint, save_checkpoint
from dissonance.model.network import build_network, parameter_table
from dissonance.training.batches import SampleLoader, fingerprint
from dissonance.training.calibration import Calibration
from dissonance.training.config import TrainConfig
from dissonance.training.judge import ClipJudge, calibrate_cases, halve
from dissonance.training.labels import Clip
from dissonance.training.material import Material, Preparing, prepare_clips, trained_on
from dissonance.training.metrics import as_json
from dissonance.training.scoring import ClipScore
from dissonance.training.splits import of_split
from dissonance.training.trainer import Report, Trainer, choose_device

CHECKPOINT = "model.safetensors"
_CONFIG, _LOCK, _PARTIAL = "config.json", "run.lock", ".*.partial"


class Console(Report, Preparing, Protocol):
    """Is told how a run goes, part by part."""

    def tell(self, line: str) -> None: ...
    def training(self, *, first_step: int, steps: int) -> None: ...


@dataclass(frozen=True)
class RunResult:
    """What a run came to. figures: of the best weights on the validation clips that selected them."""

    checkpoint: Path
    trained_on: str
    steps: int
    best_step: int
    figures: dict[str, float | None]
    calibration: dict[str, Calibration]
    uncalibrated: dict[str, str]  # why, by case
    clips: dict[str, int]
    skipped: dict[str, int]
    held_out: tuple[tuple[Clip, ClipScore], ...]

    def as_json(self) -> dict[str, Any]:
        """As it is written; without the scores."""
        return {name: as_json(value) for name, value in vars(self).items() if name != "held_out"}


def load_train_config(path: Path) -> TrainConfig:
    """Read a run's YAML file and resolve its preset. Raises ConfigError."""
    config = load_config(TrainConfig, path)
    if isinstance(config.model, ModelConfig):
        return config
    return parse_config(TrainConfig, {**config.model_dump(), "model": load_preset(config.model)}, origin=f"'{path}'")


def train(config: TrainConfig, out: Path, *, resume: bool, overwrite: bool, console: Console, material: Material | None = None) -> RunResult:
    """Do a run. `material` is for clips that several runs share; None: its own, inside OUT. Interrupted, a run can be resumed.

    Raises UsageError, ConfigError, CheckpointError, EnvironmentMissingError or OutputError.
    """
    assert isinstance(config.model, ModelConfig)  # resolved
    out = out.resolve()
    choose_device(config.device)
    _make(out, resume=resume)
    with held(out / _LOCK, taken=f"Another run is at work in '{out}'. Wait for it to end, or choose another folder."):
        for partial in out.glob(_PARTIAL):
            partial.unlink()  # of a run that was killed
        _prepare(out, config, resume=resume, overwrite=overwrite)
        _keep_freed_memory()
        return _train(config, out, resume=resume, console=console, material=material or prepare_clips(config, out, console=console))


def _train(config: TrainConfig, out: Path, *, resume: bool, console: Console, material: Material) -> RunResult:
    assert isinstance(config.model, ModelConfig)
    clips, reasons = material.clips, material.reasons()
    _write_lines(out / "skipped.jsonl", [vars(each) for each in material.skipped])
    if reasons:
        console.tell(f"left out: {', '.join(f'{count} {reason}' for reason, count in reasons.items())} (listed in skipped.jsonl)")
    material.check()

    name = trained_on(config.data, of_split(clips, "train"))
    selection, calibration_clips = halve(of_split(clips, "validation"), seed=config.seed)
    counts = {"train": len(of_split(clips, "train")), "selection": len(selection), "calibration": len(calibration_clips)}
    console.tell("clips: " + ", ".join(f"{count} {name}" for name, count in counts.items()))

    network = build_network(config.model, seed=config.seed)
    load_backbones(network)
    scratch = [name for name, part in (("picture", config.model.visual), ("sound", config.model.audio)) if part.backbone is None]
    if scratch:
        console.tell(f"no pretrained backbone for {' and '.join(scratch)}: all of it is trained, from random weights")
    console.tell(parameter_table(network))

    judge = ClipJudge(config, material.open)
    trainer = Trainer(
        config,
        network,
        clips=of_split(clips, "train"),
        loader=SampleLoader(
            material.open,
            model=config.model,
            speech=config.scan.speech,
            batch=config.batch,
            augment=config.augment,
            trim_leading_silence=config.data.trim_leading_silence,
        ),
        validation=lambda network: judge.figures(network, selection[: config.validation_clips]),
        folder=out,
        data=fingerprint(clips, material.entries),
        trained_on=name,
    )
    if resume and trainer.state_file.is_file():
        trainer.resume()
    console.training(first_step=trainer.progress.step, steps=config.steps)
    progress = trainer.run(console)

    network = load_checkpoint(trainer.best_file).network.to(choose_device(config.device))
    held_out = tuple(judge.scores(network, console.counted("calibrating", len(calibration_clips), calibration_clips)))
    calibrated, without = calibrate_cases(held_out)
    for case, why in without.items():
        console.tell(f"not calibrated: {case}: {why}")
    specs = {case: found.spec for case, found in calibrated.items()}
    result = RunResult(
        checkpoint=save_checkpoint(network, out / CHECKPOINT, trained_on=name, training=config.model_dump(mode="json"), calibration=specs),
        trained_on=name,
        steps=progress.step,
        best_step=progress.best_step,
        figures=progress.best_figures,
        calibration={str(case): found for case, found in calibrated.items()},
        uncalibrated={str(case): why for case, why in without.items()},
        clips=counts,
        skipped=reasons,
        held_out=held_out,
    )
    write_text(out / "summary.json", json.dumps(result.as_json(), indent=1) + "\n")
    return result


def _make(out: Path, *, resume: bool) -> None:
    """Make OUT where there is none; see that one that is there is a run's."""
    if not (out / _CONFIG).is_file():
        if out.is_dir() and any(path.name != _LOCK and not path.match(_PARTIAL) for path in out.iterdir()):
            raise UsageError(f"'{out}' holds files that no training run wrote. Choose an empty or a new folder.")
        if resume:
            raise UsageError(f"There is no run in '{out}' to resume. Leave --resume out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot write '{out}': {error.strerror or error}. Choose another folder.") from error


def _prepare(out: Path, config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
    """See that OUT is free or holds this very run."""
    document = json.dumps(config.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
    file = out / _CONFIG
    if file.is_file() and not resume:
        if not overwrite:
            raise UsageError(f"'{out}' holds a run already. Pass --resume to go on with it, --overwrite to start it anew, or choose another folder.")
        for name in ("last.safetensors", "best.safetensors", CHECKPOINT, "log.jsonl", "summary.json", "skipped.jsonl"):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / "tensorboard", ignore_errors=True)
    if resume and file.is_file() and file.read_text(encoding="utf-8") != document:
        raise UsageError(f"The run in '{out}' has another configuration (its config.json). Resume with the same one, or choose another folder.")
    write_text(file, document)


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(as_json(row)) + "\n" for row in rows))


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed: it gives large blocks back to the system, and the next step asks for the same."""
    if platform.libc_ver()[0] == "glibc" and not torch.cuda.is_available():
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
