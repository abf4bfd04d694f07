"""Ablations: the same run with one thing changed a time, over several seeds, on the same clips.

OUT/ablations.json       every run that is finished, and the tables made of them
OUT/ablations.md         the tables to read
OUT/ablations.lock       held while they are made
OUT/clips/, OUT/cache/   drawn and cached once, for all runs
OUT/runs/<row>-<seed>/   what `dissonance train` leaves of each run, but for the weights that it could go on from
"""

import json
import multiprocessing
import os
import platform
import shlex
import signal
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from dissonance.config import ModelConfig, parse_config
from dissonance.errors import ConfigError, EnvironmentMissingError, OutputError, TrainingDivergedError, UsageError
from dissonance.files import write_text
from dissonance.locks import held
from dissonance.machine import available_cores, describe_machine
from dissonance.model.checkpoint import load_checkpoint
from dissonance.model.network import count_parameters
from dissonance.training.ablation_report import DEFAULT, Run, as_document, figures, markdown
from dissonance.training.augment import AugmentConfig
from dissonance.training.cache import Outcome
from dissonance.training.config import TrainConfig
from dissonance.training.losses import LossConfig, LossTerms
from dissonance.training.material import Material, prepare_clips
from dissonance.training.run import Console, load_train_config, train
from dissonance.training.trainer import choose_device

# What each row lays over the configuration: dotted keys and their values.
ROWS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "carry_replace": {"model.visual.prompts.carry": "replace"},
    "per_frame": {"model.visual.prompts.per_frame": True},  # glimpses train the prompts of the first frames only
    "readout_prompt": {"model.visual.prompts.readout": "prompt"},
    "readout_cls_prompt": {"model.visual.prompts.readout": "cls+prompt"},
    "no_visual_prompts": {"model.visual.prompts.count": 0},
    "audio_prepend": {"model.audio.prompts.form": "prepend"},
    "audio_none": {"model.audio.prompts.form": "none"},
    "no_attended_sound": {"model.head.attended_sound": False},
    "no_bce_visual": {"loss.bce_visual": 0.0},
    "no_bce_audio": {"loss.bce_audio": 0.0},
    "no_alpha": {"loss.alpha": 0.0},
    "no_beta": {"loss.beta": 0.0},
    "beta_on": {"loss.beta": LossConfig().beta},  # where the configuration has it off
    "no_gamma": {"loss.gamma": 0.0},
    "no_contrast_windows": {"loss.contrast_windows": 0.0},
    "no_contrast_lag": {"loss.contrast_lag": 0.0},
    "no_delta": {"loss.delta": 0.0},
    "no_lambda_match": {"loss.lambda_match": 0.0},
    "fused_from_start": {"fused_from": 0.0},
    "no_mismatches": {"batch.mismatches": 0},
    "no_glimpses": {"batch.glimpses": 0},
    "no_augmentation": {f"augment.{name}": value for name, value in AugmentConfig.off().model_dump(mode="json", exclude_unset=True).items()},
}

FILE, LOCK = "ablations.json", "ablations.lock"


@dataclass(frozen=True)
class Request:
    """What is to be run, as the command line says it. rows: names of ROWS, none for all; DEFAULT is always among them. jobs: runs at once."""

    config: Path
    out: Path
    seeds: int = 3
    rows: Sequence[str] = ()
    resume: bool = False
    jobs: int = 1

    @property
    def command(self) -> str:
        """The command line that makes the same."""
        chosen = [part for name in self.rows for part in ("--row", name)]
        jobs = ["--jobs", str(self.jobs)] if self.jobs > 1 else []
        return shlex.join(["dissonance", "ablate", str(self.config), "-o", str(self.out), "--seeds", str(self.seeds), *jobs, *chosen])


def resolve_rows(base: TrainConfig, names: Sequence[str] = ()) -> tuple[dict[str, TrainConfig], dict[str, str]]:
    """The configuration of each row, in the order of ROWS, and why the others of `names` (none: of all) are left out. Raises UsageError."""
    if unknown := [name for name in names if name not in ROWS]:
        raise UsageError(f"Invalid --row '{unknown[0]}'. Supported values are {', '.join(ROWS)}.")
    rows, left_out = {DEFAULT: base}, {}
    for name in ROWS:
        if name == DEFAULT or (names and name not in names):
            continue
        try:
            config = changed(base, ROWS[name])
        except ConfigError as error:
            left_out[name] = f"is not possible with this configuration: {error}"
            continue
        if _effect(config) == _effect(base):
            left_out[name] = f"changes nothing here ({described(ROWS[name])})"
        else:
            rows[name] = config
    return rows, left_out


def changed(base: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """A configuration with other values under some dotted keys. Raises ConfigError where they do not go together."""
    document = base.model_dump(mode="json")
    for key, value in changes.items():
        *path, last = key.split(".")
        place = document
        for name in path:
            place = place[name]
        place[last] = value
    return parse_config(TrainConfig, document, origin=f"with {described(changes)}")


def described(changes: Mapping[str, Any]) -> str:
    """A row's changes in a line."""
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in changes.items())


_LOSS_WEIGHTS = ("bce_visual", "bce_audio", "bce_fused", "lambda_match", "alpha", "beta", "gamma", "delta", "contrast_windows", "contrast_lag")


def _effect(config: TrainConfig) -> dict[str, Any]:
    """All that a run depends on, once: a weight of the loss counts by what it multiplies to, and prompts that are not there have no form."""
    assert isinstance(config.model, ModelConfig)
    document = config.model_dump(mode="json", exclude={"loss": {*_LOSS_WEIGHTS}})
    document["loss_weights"] = config.loss.weights
    if config.model.visual.prompts.count == 0:
        del document["model"]["visual"]["prompts"]
    return document


# ----------------------------------------------------------------------------------------------------------------- runs


def ablate(request: Request, *, console: Console) -> dict[str, Any]:
    """Do every run that OUT does not hold yet, seed by seed, and write the tables after each. Returns what `ablations.json` says.

    All runs have the same clips in the same splits: people are split by the configuration's own seed, also under another seed of a run.

    Raises UsageError, ConfigError, EnvironmentMissingError, and what `run.train` raises; a row that diverges costs its own runs only.
    """
    base = load_train_config(request.config)
    rows, left_out = resolve_rows(base, request.rows)
    for name, why in left_out.items():
        console.tell(f"row {name} is left out: it {why}")
    choose_device(base.device)
    out = request.out.resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot write '{request.out}': {error.strerror or error}. Choose another folder.") from error
    with held(out / LOCK, taken=f"Another `dissonance ablate` is at work in '{out}'. Wait for it to end, or choose another folder."):
        return _ablate(request, base, rows, left_out, out, console)


def _ablate(
    request: Request, base: TrainConfig, rows: Mapping[str, TrainConfig], left_out: Mapping[str, str], out: Path, console: Console
) -> dict[str, Any]:
    book = _Book(request, base, left_out, _finished_runs(out, base, resume=request.resume))
    material = prepare_clips(base, out, console=console)
    if material.skipped:
        console.tell(
            f"left out: {', '.join(f'{count} {reason}' for reason, count in material.reasons().items())} (listed in each run's skipped.jsonl)"
        )
    material.check()
    todo = [(name, seed) for seed in range(base.seed, base.seed + request.seeds) for name in rows if (name, seed) not in book.done]
    before, started_s = len(book.done), time.monotonic()

    def announced() -> Iterator[tuple[str, int, TrainConfig]]:
        for number, (name, seed) in enumerate(todo, 1):
            finished = len(book.done) - before
            left_s = (time.monotonic() - started_s) * (len(todo) - finished) / finished if finished else None
            left = "" if left_s is None else f", {_duration(left_s)} to go"
            console.tell(f"run {before + number} of {before + len(todo)}: {name}, seed {seed}{left}")
            yield name, seed, rows[name]

    with closing(_runs(announced(), material, out / "runs", console, jobs=min(request.jobs, len(todo)))) as runs:
        for run in runs:
            book.add(run)
            if run.failed is not None:
                console.tell(f"{run.row}, seed {run.seed}, could not be trained: {run.failed}")
            for state in ("last.safetensors", "best.safetensors"):  # of 60 runs these would fill a disk; model.safetensors holds the best weights
                (out / "runs" / f"{run.row}-{run.seed}" / state).unlink(missing_ok=True)
    return book.document


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"about {minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"about {minutes} min"


def _finished_runs(out: Path, base: TrainConfig, *, resume: bool) -> list[Run]:
    """The runs that OUT holds. Raises UsageError where it is not free, or holds others."""
    file = out / FILE
    if not file.is_file():
        if any(path.name != LOCK for path in out.iterdir()):
            raise UsageError(f"'{out}' holds files, but no {FILE}. Choose an empty or a new folder.")
        if resume:
            raise UsageError(f"There are no ablations in '{out}' to resume. Leave --resume out.")
        return []
    if not resume:
        raise UsageError(f"'{out}' holds ablations already. Pass --resume to go on with them, or choose another folder.")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        runs, config = [Run(**run) for run in found["runs"]], found["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"'{file}' cannot be read as ablations: {error!r}. Choose another folder.") from error
    if unknown := {run.row for run in runs} - set(ROWS):
        raise UsageError(f"'{file}' holds row '{min(unknown)}', which this release does not have. Choose another folder.")
    if config != base.model_dump(mode="json"):
        raise UsageError(
            f"The ablations in '{out}' are of another configuration (see its {FILE}). Resume with the same one, or choose another folder."
        )
    return runs


class _Book:
    """The finished runs, on disk and here."""

    def __init__(self, request: Request, base: TrainConfig, left_out: Mapping[str, str], runs: Sequence[Run]) -> None:
        self._out = request.out.resolve()
        self._facts = {
            "command": request.command,
            "config_file": str(request.config),
            "machine": _machine(),
            "left_out": left_out,
            "config": base.model_dump(mode="json"),
        }
        self._runs = list(runs)
        self.document: dict[str, Any] = {}  # as it was last written
        self.write()

    @property
    def done(self) -> set[tuple[str, int]]:
        return {(run.row, run.seed) for run in self._runs}

    def add(self, run: Run) -> None:
        self._runs.append(run)
        self.write()

    def write(self) -> None:
        changes = {name: described(row) for name, row in ROWS.items() if any(run.row == name for run in self._runs)}
        facts = {**self._facts, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        self.document = as_document(facts, changes, self._runs)
        write_text(self._out / FILE, json.dumps(self.document, indent=1, allow_nan=False) + "\n")
        write_text(self._out / "ablations.md", markdown(self.document))


def _runs(todo: Iterator[tuple[str, int, TrainConfig]], material: Material, folder: Path, console: Console, *, jobs: int) -> Generator[Run]:
    """Do runs in `folder`, and yield each when it is finished: here, one after the other, or in `jobs` processes that share the cores.

    Closing the iterator ends the processes, and so does the end of this one; what they were at can be gone on with. Raises what a run raises, when
    the others that are finished have been yielded.
    """
    if jobs <= 1:
        for name, seed, row in todo:
            yield _run(name, seed, row, material, folder, _Steps(console))
        return
    others = multiprocessing.active_children()
    threads = max(1, available_cores() // jobs)
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_work_with, initargs=(threads,))
    running: set[Future[Run]] = set()
    whole = False
    try:
        for each in todo:
            running.add(pool.submit(_run, *each, material, folder, _Unseen()))
            if len(running) == jobs:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                yield from _results(finished)
        yield from _results(as_completed(running))
        whole = True
    except BrokenProcessPool as error:
        raise EnvironmentMissingError(
            "A run's process could not start, or was killed. If this happens again: lower --jobs, each takes the memory of a whole run; "
            "then go on with --resume."
        ) from error
    finally:
        if not whole:
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
        pool.shutdown(cancel_futures=True)


def _results(finished: Iterable[Future[Run]]) -> Iterator[Run]:
    """Results first, then the first error."""
    error = None
    for future in finished:
        error = error or future.exception()
        if future.exception() is None:
            yield future.result()
    if error is not None:
        raise error


def _work_with(threads: int) -> None:
    """What a process of the pool begins with: so many threads; its end when it is told, or when the one that started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal, and the first one ends the others
    signal.signal(signal.SIGTERM, _leave)
    Thread(target=_leave_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    torch.set_num_threads(threads)


def _leave(_signal: int, _frame: object) -> None:
    raise SystemExit  # and not at once: files that are half written are removed


def _leave_with(parent: multiprocessing.process.BaseProcess | None) -> None:
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(name: str, seed: int, row: TrainConfig, material: Material, runs: Path, console: Console) -> Run:
    """Train, and measure the best weights on validation clips that did not select them. One that was interrupted is gone on with."""
    config, folder = row.model_copy(update={"seed": seed}), runs / f"{name}-{seed}"
    resume = (folder / "config.json").is_file()
    started_s = time.monotonic()
    try:
        result = train(config, folder, resume=resume, overwrite=False, console=console, material=material)
        seconds = time.monotonic() - started_s
        network = load_checkpoint(result.checkpoint).network
    except (TrainingDivergedError, FloatingPointError) as error:
        return Run(name, seed, failed=str(error))
    cost = {
        "seconds": None if resume else seconds,  # a part of them would say nothing
        "threads": torch.get_num_threads(),
        "steps": result.steps,
        "best_step": result.best_step,
        "trainable_parameters": count_parameters(network)["trainable"],
    }
    return Run(name, seed, figures=figures(result.held_out), losses=_last_losses(folder / "log.jsonl"), cost=cost)


def _last_losses(log: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    last = [line for line in lines if line["kind"] == "train"][-1]
    return {field.name: last[field.name] for field in fields(LossTerms)}


class _Unseen:
    """Shows nothing: of runs that are at work at once, each is told when it begins."""

    def tell(self, line: str) -> None:
        pass

    def caching(self, done: int, total: int, uri: str, outcome: Outcome) -> None:
        pass

    def counted(self, _what: str, _total: int, items: Iterable[Any], /) -> Iterator[Any]:
        return iter(items)

    def training(self, *, first_step: int, steps: int) -> None:
        pass

    def step(self, step: int, *, loss: float) -> None:
        pass

    def validated(self, step: int, figures: dict[str, float | None], *, best: bool) -> None:
        pass


class _Steps(_Unseen):
    """Shows a run's steps, without what every run on the same clips says again."""

    def __init__(self, console: Console) -> None:
        self.training, self.step, self.validated = console.training, console.step, console.validated  # type: ignore[method-assign]


def _machine() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{describe_machine()}, {gpu}, Python {platform.python_version()}, torch {torch.__version__}"
