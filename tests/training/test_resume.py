"""A run that was interrupted ends as one that was not, and goes on from nothing else than its own state."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dissonance.errors import CheckpointError, OutputError
from dissonance.model.checkpoint import save_checkpoint
from dissonance.model.network import build_network
from dissonance.training.config import TrainConfig
from tests.training.tiny import (
    RUN,
    Untold,
    another,
    loader_stopped_at,
    log_lines,
    tiny_model,
    trainer_of,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert trainer_of(RUN, folder).run(Untold()).step == RUN.steps
    return folder


@pytest.mark.parametrize("stops", [[4], [11], [21], [5, 9, 12, 13, 18]])
def test_a_run_resumed_anywhere_ends_with_the_bytes_of_one_that_was_not(whole: Path, tmp_path: Path, stops: list[int]) -> None:
    """The state holds weights, temperature, moments and progress, so equal files are equal runs. 12 and 18 are right after a validation."""
    for number, step in enumerate(stops):
        trainer = trainer_of(RUN, tmp_path, kind=loader_stopped_at(step))
        if number:
            trainer.resume()
        with pytest.raises(KeyboardInterrupt):
            trainer.run(Untold())
    trainer = trainer_of(RUN, tmp_path, network=build_network(tiny_model(), seed=99))
    trainer.resume()
    due = [step for step in range(1, stops[-1] + 1) if step % RUN.checkpoint_every == 0 or step in (12, 18)]
    assert trainer.progress.step == due[-1]
    progress = trainer.run(Untold())
    assert progress.step == RUN.steps
    for name in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
    assert log_lines(tmp_path) == log_lines(whole)


def test_the_state_holds_everything_that_moves(whole: Path) -> None:
    tensors = load_file(whole / "last.safetensors")
    start = build_network(tiny_model(), seed=0)
    trained = [f"network.{name}" for name, _ in start.named_parameters()] + ["loss.log_tau"]
    for name in trained:
        assert tensors[f"optimiser.exp_avg.{name}"].shape == tensors[name].shape == tensors[f"optimiser.exp_avg_sq.{name}"].shape
        fused = name.startswith(("network.head.fusion.", "network.head.tail.fused."))
        assert tensors[f"optimiser.step.{name}"] == (RUN.steps - RUN.fused_from_step if fused else RUN.steps)
    assert tensors["loss.log_tau"] != torch.tensor(RUN.loss.tau).log()
    assert len(tensors) == len(start.state_dict()) + 1 + 3 * len(trained)


def test_the_log_has_a_line_every_ten_steps_and_one_a_validation(whole: Path) -> None:
    lines = log_lines(whole)
    assert [(line["step"], line["kind"]) for line in lines] == [
        (10, "train"), (12, "validation"), (18, "validation"), (20, "train"), (22, "train"), (22, "validation"),
    ]  # fmt: skip
    assert lines[0]["bce_fused"] > 0  # from step 8 on
    assert {"total", "contrast_windows", "tau", "learning_rate"} <= set(lines[0])


def test_a_run_that_is_done_has_nothing_left_to_do(whole: Path, tmp_path: Path) -> None:
    for file in whole.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    trainer = trainer_of(RUN, tmp_path, kind=loader_stopped_at(RUN.steps))
    trainer.resume()
    assert trainer.run(Untold()) == trainer.progress
    for name in ("last.safetensors", "best.safetensors", "log.jsonl"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_log_that_was_cut_off_in_a_line_is_gone_on_with(whole: Path, tmp_path: Path) -> None:
    """As a machine leaves it that lost its power."""
    with pytest.raises(KeyboardInterrupt):
        trainer_of(RUN, tmp_path, kind=loader_stopped_at(13)).run(Untold())
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 13, "ki')
    trainer = trainer_of(RUN, tmp_path)
    trainer.resume()
    trainer.run(Untold())
    assert log_lines(tmp_path) == log_lines(whole)


@pytest.mark.parametrize(
    ("config", "data", "message"),
    [
        (another(steps=23), "these clips", "had another configuration"),
        (another(optimiser=RUN.optimiser.model_copy(update={"learning_rate": 1e-3})), "these clips", "had another configuration"),
        (another(model=tiny_model(max_lag=2)), "these clips", "had another configuration"),
        (RUN, "those clips", "had other clips"),
    ],
)
def test_another_run_is_not_gone_on_with(whole: Path, config: TrainConfig, data: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        trainer_of(config, whole, data=data).resume()


def test_where_there_is_no_run_there_is_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run to resume"):
        trainer_of(RUN, tmp_path).resume()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("emptied", "not the state of a run"),
        ("cut", "not the state of a run"),
        ("a checkpoint", "not the state of a run"),
        ("another release", "written by another release"),
        ("no weight", "lacks head.fusion.proj.bias"),
        ("no moment", "lacks optimiser.exp_avg_sq.network.head.fusion.proj.bias"),
        ("a moment of another shape", "optimiser.exp_avg.network.head.fusion.proj.bias"),
        ("not a number", "holds NaN"),
    ],
)
def test_a_damaged_state_is_refused(whole: Path, tmp_path: Path, damage: str, message: str) -> None:
    file = tmp_path / "last.safetensors"
    content = (whole / file.name).read_bytes()
    tensors = load_file(whole / file.name)
    with safe_open(whole / file.name, framework="pt") as handle:
        facts = json.loads(handle.metadata()["dissonance-run"])
    bias = "network.head.fusion.proj.bias"
    if damage in ("emptied", "cut"):
        file.write_bytes(content[: 0 if damage == "emptied" else len(content) // 2])
    elif damage == "a checkpoint":
        save_checkpoint(build_network(tiny_model(), seed=0), file, trained_on="toys")
    else:
        if damage == "another release":
            facts["format"] = 0
        elif damage == "not a number":
            tensors[bias][0] = float("nan")
        elif damage == "a moment of another shape":
            tensors[f"optimiser.exp_avg.{bias}"] = torch.zeros(3)
        else:
            del tensors[bias if damage == "no weight" else f"optimiser.exp_avg_sq.{bias}"]
        save_file(tensors, file, {"dissonance-run": json.dumps(facts)})
    with pytest.raises(CheckpointError, match=message):
        trainer_of(RUN, tmp_path).resume()


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"Cannot write log .*log\.jsonl"):
        trainer_of(RUN, tmp_path).run(Untold())
