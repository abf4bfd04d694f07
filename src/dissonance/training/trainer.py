"""The training loop: steps, schedule, validation, early stopping, checkpoints that a run goes on from exactly.

What a run does follows from its configuration, its clips and the number of the step; the state on disk holds weights, moments and that number.
On one machine with one number of threads a run that was interrupted ends with the very bytes of one that was not.
"""

import json
import math
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from dissonance.errors import CheckpointError, EnvironmentMissingError, OutputError, TrainingDivergedError, UsageError, require_extra
from dissonance.files import write_text
from dissonance.model.checkpoint import save_checkpoint
from dissonance.model.network import AudioVisualNetwork
from dissonance.training.batches import Batch, Names, SampleLoader, batches
from dissonance.training.config import TrainConfig
from dissonance.training.labels import Clip
from dissonance.training.losses import LossTerms, MultiTaskLoss
from dissonance.training.sampling import BalancedSampler
from dissonance.training.state import load_state, read_facts, save_state
from dissonance.training.step import cost

LOG_EVERY = 10  # steps


@dataclass
class Progress:
    """Where a run is. `best_figures` are those of the best validation so far, {} before the first."""

    step: int = 0
    best_figures: dict[str, float | None] = field(default_factory=dict)
    best_step: int = 0
    validations_since_best: int = 0


class Validation(Protocol):
    """Judges the network as it is: figures by name, `auc_fused` among them (None where it is not defined)."""

    def __call__(self, network: AudioVisualNetwork, /) -> dict[str, float | None]: ...


class Report(Protocol):
    """Is told how the run goes."""

    def step(self, step: int, *, loss: float) -> None: ...
    def validated(self, step: int, figures: dict[str, float | None], *, best: bool) -> None: ...


class RunLog:
    """`log.jsonl`: one line every LOG_EVERY steps and one a validation; and TensorBoard's events beside it, where that is installed."""

    def __init__(self, folder: Path, *, from_step: int) -> None:
        """Lines of steps that a resumed run will do again are dropped."""
        self._path = folder / "log.jsonl"
        try:
            written = self._path.read_text(encoding="utf-8").splitlines(keepends=True) if self._path.exists() else []
            whole = [line for line in written if line.endswith("\n")]  # a machine that went down may have left half a line
            write_text(self._path, "".join(line for line in whole if json.loads(line)["step"] <= from_step))
            self._stream = self._path.open("a", encoding="utf-8", buffering=1)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"Cannot write log '{self._path}': {error}. Remove the file, or free some space.") from error
        self._board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)

    def write(self, step: int, kind: str, values: dict[str, float | None]) -> None:
        """One line. Raises OutputError."""
        try:
            self._stream.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        except OSError as error:
            raise OutputError(f"Cannot write log '{self._path}': {error.strerror or error}. Free some space, then --resume.") from error
        if self._board is not None:
            for name, value in values.items():
                if value is not None:
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Everything is on disk."""
        self._stream.close()
        if self._board is not None:
            self._board.close()


class Trainer:
    """One run on clips that are cached already."""

    def __init__(
        self,
        config: TrainConfig,
        network: AudioVisualNetwork,
        *,
        clips: Sequence[Clip],
        loader: SampleLoader,
        validation: Validation,
        folder: Path,
        data: str,
        trained_on: str,
    ) -> None:
        """`clips` are those to train on; `data` a fingerprint of all that is trained and judged on. Raises EnvironmentMissingError, UsageError."""
        self._config = config
        self._device = choose_device(config.device)
        self._precision = (
            torch.bfloat16 if config.precision == "bfloat16" or (config.precision == "auto" and self._device.type == "cuda") else torch.float32
        )
        if config.matching == "triton":
            if self._device.type == "cpu":
                raise UsageError("matching 'triton' is for GPUs, and this run is on the CPU. Set matching: torch.")
            require_extra("gpu", "matching 'triton'", "triton")
        self._network = network.to(self._device)
        network.visual.recompute = config.recompute
        self._loss = MultiTaskLoss(config.loss, max_lag=network.config.head.max_lag).to(self._device)
        self._optimiser = make_optimiser(network, self._loss, config)
        self._sampler = BalancedSampler(clips, seed=config.seed)
        self._loader = loader
        self._names = Names([clip.uri for clip in clips]), Names([clip.identity for clip in clips])
        self._validation = validation
        self._folder = folder
        self._facts: dict[str, Any] = {"data": data, "config": config.model_dump(mode="json"), "trained_on": trained_on}
        self._trained_on = trained_on
        self.progress = Progress()

    @property
    def state_file(self) -> Path:
        """What the run goes on from."""
        return self._folder / "last.safetensors"

    @property
    def best_file(self) -> Path:
        """The weights with the best validation AUC so far."""
        return self._folder / "best.safetensors"

    def resume(self) -> None:
        """Go on from the state in the folder. Raises CheckpointError where there is none, or where it is of another configuration or other clips."""
        if not self.state_file.is_file():
            raise CheckpointError(f"There is no run to resume in '{self._folder}': it has no {self.state_file.name}. Leave --resume out.")
        facts = read_facts(self.state_file)
        for key, what in (("config", "another configuration"), ("data", "other clips, or other content of them")):
            if facts.get(key) != self._facts[key]:
                raise CheckpointError(f"The run in '{self._folder}' had {what}. Resume with the same, or choose another folder.")
        load_state(self.state_file, modules=self._modules(), optimiser=self._optimiser)
        self.progress = Progress(**facts["progress"])

    def run(self, report: Report) -> Progress:
        """Train to the end of the steps, or of the patience. The network then has the last weights; `best_file` holds the best.

        Raises CheckpointError where a file cannot be written, TrainingDivergedError where the loss is no number any more.
        """
        log = RunLog(self._folder, from_step=self.progress.step)
        try:
            with closing(self._batches()) as stream:
                since, started_s = self.progress.step, time.monotonic()
                while not self._finished():
                    terms = self._step(next(stream))
                    self.progress.step = step = self.progress.step + 1
                    if step % LOG_EVERY == 0 or step == self._config.steps:
                        found = terms.as_floats()
                        rate = (step - since) / (time.monotonic() - started_s)
                        facts = {"learning_rate": self.learning_rate(step - 1), "tau": self._loss.tau.item(), "steps_per_s": rate}
                        log.write(step, "train", {**found, **facts})
                        report.step(step, loss=found["total"])
                    self._settle(step, log, report)
        finally:
            log.close()
        return self.progress

    def _settle(self, step: int, log: RunLog, report: Report) -> None:
        """What is due after a step: a validation, a checkpoint."""
        last = step == self._config.steps
        judged = last or (step > self._config.fused_from_step and step % self._config.validate_every == 0)
        if judged:
            figures = self._validation(self._network)
            best = self._note(figures)
            log.write(step, "validation", figures)
            report.validated(step, figures, best=best)
            if best:
                save_checkpoint(self._network, self.best_file, trained_on=self._trained_on, training=self._facts["config"])
        if judged or step % self._config.checkpoint_every == 0:
            facts = {**self._facts, "progress": asdict(self.progress)}
            save_state(self.state_file, modules=self._modules(), optimiser=self._optimiser, facts=facts)

    def _note(self, figures: dict[str, float | None]) -> bool:
        """Whether these weights are the best so far, by the fused head's AUC."""
        progress, auc = self.progress, figures.get("auc_fused")
        best_auc = progress.best_figures.get("auc_fused")
        best = best_auc is None or (auc is not None and auc > best_auc)
        if best:
            progress.best_figures, progress.best_step, progress.validations_since_best = figures, progress.step, 0
        else:
            progress.validations_since_best += 1
        return best

    def _finished(self) -> bool:
        patience = self._config.patience
        return self.progress.step >= self._config.steps or (patience is not None and self.progress.validations_since_best >= patience)

    def _step(self, batch: Batch) -> LossTerms:
        self._network.train()
        step = self.progress.step
        for group in self._optimiser.param_groups:
            group["lr"] = self.learning_rate(step)
        terms = cost(
            self._network,
            self._loss,
            batch.to(self._device),
            fused=step >= self._config.fused_from_step,
            precision=self._precision,
            seed=self._config.seed * 1_000_003 + step,
            kernel=self._config.matching == "triton",
        )
        self._optimiser.zero_grad(set_to_none=True)
        terms.total.backward()  # type: ignore[no-untyped-call]
        settings = self._config.optimiser
        norm = nn.utils.clip_grad_norm_([parameter for group in self._optimiser.param_groups for parameter in group["params"]], settings.clip_norm)
        if not torch.isfinite(norm + terms.total.detach()):  # here, so that weights that are saved and judged are numbers
            raise TrainingDivergedError(
                f"The loss is {terms.total.item()} and its gradient {norm.item()} at step {step + 1}: training has diverged. Lower "
                f"optimiser.learning_rate ({settings.learning_rate}) or optimiser.clip_norm ({settings.clip_norm}), or use precision float32."
            )
        self._optimiser.step()
        return terms

    def learning_rate(self, step: int) -> float:
        """Of a step, counted from 0: linear up over the warm-up, then half a cosine down to 0."""
        settings = self._config.optimiser
        if step < settings.warmup_steps:
            return settings.learning_rate * (step + 1) / settings.warmup_steps
        done = (step - settings.warmup_steps) / max(1, self._config.steps - settings.warmup_steps)
        return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))

    def _batches(self) -> Generator[Batch]:
        clips, identities = self._names
        return batches(
            self._sampler,
            self._loader,
            config=self._config.batch,
            first_step=self.progress.step,
            clips=clips,
            identities=identities,
        )

    def _modules(self) -> dict[str, nn.Module]:
        return {"network": self._network, "loss": self._loss}


def choose_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one. Raises EnvironmentMissingError."""
    if name == "cuda" and not torch.cuda.is_available():
        raise EnvironmentMissingError("device 'cuda': PyTorch finds no GPU here. Use device: cpu, or see `dissonance doctor`.")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def make_optimiser(network: AudioVisualNetwork, loss: MultiTaskLoss, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over what trains; matrices decay, everything of one dimension, prompts, embeddings and the temperature do not."""
    settings = config.optimiser
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in [*network.named_parameters(), *loss.named_parameters()]:
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or "prompts" in name or "embedding" in name
            (kept if plain else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)
