"""The loop, against a plain one and torch's schedulers; what it learns, what it keeps, and when it ends."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.checkpoint import checkpoint

from dissonance.errors import EnvironmentMissingError, TrainingDivergedError, UsageError
from dissonance.model.checkpoint import load_checkpoint
from dissonance.model.network import AudioVisualNetwork, build_network
from dissonance.training.batches import Names, Sample, SampleLoader, batches
from dissonance.training.config import TrainConfig
from dissonance.training.losses import MultiTaskLoss
from dissonance.training.sampling import BalancedSampler, Draw
from dissonance.training.step import cost
from dissonance.training.trainer import Progress, choose_device, make_optimiser
from tests.training.tiny import DRAWS, RUN, Untold, another, loader_of, loader_stopped_at, log_lines, tiny_model, tiny_run, toy_set, trainer_of

# ------------------------------------------------------------------------------------------------------------ the steps


@pytest.mark.parametrize("recompute", [False, True])
def test_the_loop_is_a_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recompute: bool) -> None:
    """Gradients of one step only, clipped together, AdamW, the rate of each step, the fused head from its step on; `recompute` changes no number."""
    recomputing = Mock(side_effect=checkpoint)
    monkeypatch.setattr("dissonance.model.visual.checkpoint", recomputing)
    clip_norm = 0.5  # below what the first steps have
    settings = RUN.optimiser.model_copy(update={"clip_norm": clip_norm})
    config = another(optimiser=settings, steps=10, recompute=recompute)
    trainer = trainer_of(config, tmp_path)
    trainer.run(Untold())
    assert recomputing.called == recompute

    assert not isinstance(config.model, str)
    network, loss = build_network(config.model, seed=0), MultiTaskLoss(config.loss, max_lag=3)
    optimiser = make_optimiser(network, loss, config)
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    labels, clips = toy_set(8)
    names = Names([label.uri for label in labels]), Names([label.identity for label in labels])
    loader, sampler = loader_of(clips.__getitem__, config=config), BalancedSampler(labels, seed=0)
    stream = batches(sampler, loader, config=config.batch, first_step=0, clips=names[0], identities=names[1])
    norms = []
    for step in range(10):
        for parameter in parameters:
            parameter.grad = None
        for group in optimiser.param_groups:
            group["lr"] = trainer.learning_rate(step)
        cost(network, loss, next(stream), fused=step >= 4, precision=torch.float32, seed=step).total.backward()  # type: ignore[no-untyped-call]
        norms.append(nn.utils.clip_grad_norm_(parameters, clip_norm).item())
        optimiser.step()
    stream.close()
    assert max(norms) > clip_norm
    found = load_file(tmp_path / "last.safetensors")
    for name, value in network.state_dict().items():
        assert torch.equal(found[f"network.{name}"], value), name
    assert torch.equal(found["loss.log_tau"], loss.log_tau)


def torch_schedule(optimiser: torch.optim.Optimizer, *, warmup: int, steps: int) -> SequentialLR:
    """Torch's own: from rate / warmup linearly to the rate at the last step of the warm-up, then a cosine to 0."""
    rising = LinearLR(optimiser, start_factor=1 / warmup, total_iters=max(1, warmup - 1))
    return SequentialLR(optimiser, [rising, CosineAnnealingLR(optimiser, T_max=steps - warmup)], milestones=[warmup])


@pytest.fixture
def rates() -> Iterator[list[list[float]]]:
    """The rates of every group, at each step that an optimiser takes."""
    taken: list[list[float]] = []
    handle = register_optimizer_step_pre_hook(lambda optimiser, *_: taken.append([group["lr"] for group in optimiser.param_groups]))
    yield taken
    handle.remove()


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("warmup", [1, 2, 5])
def test_the_schedule_is_torch_s(tmp_path: Path, rates: list[list[float]], warmup: int) -> None:
    settings = RUN.optimiser.model_copy(update={"warmup_steps": warmup})
    trainer = trainer_of(another(optimiser=settings, steps=15), tmp_path)
    trainer.run(Untold())
    theirs = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
    schedule = torch_schedule(theirs, warmup=warmup, steps=15)
    expected = []
    for _ in range(15):
        expected.append(theirs.param_groups[0]["lr"])
        schedule.step()
    assert len(rates) == 15
    assert [found[0] for found in rates] == pytest.approx(expected, rel=1e-6)
    assert [found[1] for found in rates] == [found[0] for found in rates]
    logged = [(line["step"], line["learning_rate"]) for line in log_lines(tmp_path) if line["kind"] == "train"]
    assert logged == [(step, rates[step - 1][0]) for step in (10, 15)]


def test_without_a_warm_up_the_first_step_has_the_whole_rate(tmp_path: Path) -> None:
    settings = RUN.optimiser.model_copy(update={"warmup_steps": 0})
    trainer = trainer_of(another(optimiser=settings), tmp_path)
    assert trainer.learning_rate(0) == settings.learning_rate
    assert trainer.learning_rate(RUN.steps // 2) == pytest.approx(settings.learning_rate / 2)
    longer = RUN.optimiser.model_copy(update={"warmup_steps": 30})  # than the run
    assert trainer_of(another(optimiser=longer), tmp_path).learning_rate(21) == pytest.approx(longer.learning_rate * 22 / 30)


@pytest.mark.parametrize("form", ["residual", "prepend"])
def test_matrices_decay_and_nothing_else_does(form: str) -> None:
    """By the modules that hold them: weights of linear and convolutional layers, but for the patch embedding."""
    config = another(model=tiny_model(prompts={"count": 2}, audio_prompts={"form": form}))
    assert not isinstance(config.model, str)
    network, loss = build_network(config.model, seed=0), MultiTaskLoss(config.loss, max_lag=3)
    decayed, kept = make_optimiser(network, loss, config).param_groups
    matrices = {
        id(module.weight)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and name != "visual.patch_embedding"
    }
    assert {id(parameter) for parameter in decayed["params"]} == matrices
    assert {id(parameter) for parameter in kept["params"]} == {id(each) for each in [*network.parameters(), *loss.parameters()]} - matrices
    assert (decayed["weight_decay"], kept["weight_decay"]) == (config.optimiser.weight_decay, 0.0)
    assert decayed["betas"] == config.optimiser.betas


def test_a_temperature_that_is_not_learnt_stays() -> None:
    config = another(loss=RUN.loss.model_copy(update={"learn_tau": False}))
    assert not isinstance(config.model, str)
    network, loss = build_network(config.model, seed=0), MultiTaskLoss(config.loss, max_lag=3)
    kept = make_optimiser(network, loss, config).param_groups[1]["params"]
    assert all(parameter is not loss.log_tau for parameter in kept)


def test_a_frozen_backbone_does_not_move_while_prompts_and_heads_do(tmp_path: Path) -> None:
    config = another(model=tiny_model(backbones=("some CLIP", "some Whisper")), steps=8)
    trainer_of(config, tmp_path).run(Untold())
    assert not isinstance(config.model, str)
    before, after = build_network(config.model, seed=0).state_dict(), load_file(tmp_path / "last.safetensors")
    moved = {name for name, value in before.items() if not torch.equal(after[f"network.{name}"], value)}
    trained = {name for name in before if name.startswith(("head.", "visual.prompts", "audio.residual_prompts"))}
    assert moved == trained
    assert {name.split("network.")[1] for name in after if name.startswith("optimiser.step.network.")} == trained


def test_picture_and_sound_that_belong_together_are_learnt(tmp_path: Path) -> None:
    """Each frame's brightness is its sound's level: a picture finds its own sound among others and at its own lag, on clips it never saw."""
    settings = {"warmup_steps": 5, "learning_rate": 3e-3}
    config = tiny_run(steps=50, fused_from=0.99, optimiser=settings, batch={"windows": 8, "mismatches": 1}, loss={"beta": 0.0})
    assert not isinstance(config.model, str)
    labels, clips = toy_set(8, seed=5)
    names = Names([label.uri for label in labels]), Names([label.identity for label in labels])
    many = config.batch.model_copy(update={"windows": 16})
    loader = loader_of(clips.__getitem__, config=config)
    stream = batches(BalancedSampler(labels, seed=9), loader, config=many, first_step=0, clips=names[0], identities=names[1])
    unseen = next(stream)
    stream.close()

    @torch.inference_mode()
    def terms(network: AudioVisualNetwork) -> dict[str, float]:
        return cost(network, MultiTaskLoss(config.loss, max_lag=3), unseen, fused=False, precision=torch.float32, seed=0).as_floats()

    network = build_network(config.model, seed=0)
    before = terms(network)
    trainer_of(config, tmp_path, clips=24, network=network).run(Untold())
    after = terms(network)
    assert after["contrast_windows"] < 0.7 * before["contrast_windows"]
    assert after["contrast_lag"] < 0.7 * before["contrast_lag"]


def test_a_loss_that_is_no_number_is_told_before_anything_is_kept_of_it(tmp_path: Path) -> None:
    """Between two lines of the log as well: what is on disk can be gone on from."""

    class Broken(SampleLoader):
        def load(self, draw: Draw) -> Sample:
            sample = super().load(draw)
            return replace(sample, mel=sample.mel * np.nan) if draw.number == 2 * DRAWS else sample

    with pytest.raises(TrainingDivergedError, match=r"at step 3: training has diverged.*optimiser\.learning_rate \(0\.003\)"):
        trainer_of(another(checkpoint_every=1), tmp_path, kind=Broken).run(Untold())
    again = trainer_of(another(checkpoint_every=1), tmp_path)
    again.resume()
    assert again.progress.step == 2


# ----------------------------------------------------------------------------------------------------------- validation


class Scripted:
    """Validations whose figures are given, in turn; and what a run told of them."""

    def __init__(self, *aucs: float | None) -> None:
        self.aucs = list(aucs)
        self.told: list[tuple[int, float | None, bool]] = []

    def __call__(self, _: AudioVisualNetwork, /) -> dict[str, float | None]:
        return {"auc_fused": self.aucs.pop(0)}

    def step(self, step: int, *, loss: float) -> None:
        pass

    def validated(self, step: int, figures: Mapping[str, float | None], *, best: bool) -> None:
        self.told.append((step, figures["auc_fused"], best))


def validating(**changes: Any) -> TrainConfig:
    return another(steps=14, fused_from=0.0, validate_every=2, **changes)


def test_a_run_ends_when_patience_does_and_keeps_the_best_weights(tmp_path: Path) -> None:
    """0.7 at step 4 is the best; 0.7 again is no better, and None is not either."""
    script = Scripted(0.6, 0.7, 0.5, 0.7, None, 0.9)
    best: list[dict[str, torch.Tensor]] = []

    def validation(network: AudioVisualNetwork) -> dict[str, float | None]:
        best.append({name: value.clone() for name, value in network.state_dict().items()})
        return script(network)

    config = validating(patience=3)
    progress = trainer_of(config, tmp_path, validation=validation).run(script)
    assert progress == Progress(step=10, best_figures={"auc_fused": 0.7}, best_step=4, validations_since_best=3)
    assert script.told == [(2, 0.6, True), (4, 0.7, True), (6, 0.5, False), (8, 0.7, False), (10, None, False)]
    kept = load_checkpoint(tmp_path / "best.safetensors")
    assert all(torch.equal(value, best[1][name]) for name, value in kept.network.state_dict().items())
    assert kept.trained_on == "toys"
    assert kept.training == config.model_dump(mode="json")
    again = trainer_of(config, tmp_path, validation=script)
    again.resume()
    assert again.run(script).step == 10  # its patience is still at an end


def test_the_kernel_is_refused_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="matching 'triton' is for GPUs"):
        trainer_of(validating(matching="triton", device="cpu"), tmp_path, validation=Scripted())


def test_without_patience_a_run_goes_to_its_end(tmp_path: Path) -> None:
    script = Scripted(None, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1)
    progress = trainer_of(validating(), tmp_path, validation=script).run(script)
    assert (progress.step, progress.best_step, progress.best_figures) == (14, 4, {"auc_fused": 0.9})
    assert [best for _, _, best in script.told] == [True, True, False, False, False, False, False]


def test_patience_is_counted_on_through_a_resume(tmp_path: Path) -> None:
    config = validating(patience=3)
    script = Scripted(0.9, 0.1, 0.1, 0.1, 0.95)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(config, tmp_path, validation=script, kind=loader_stopped_at(6)).run(script)
    trainer = trainer_of(config, tmp_path, validation=script)
    trainer.resume()
    assert trainer.run(script).step == 8


def test_nothing_is_validated_before_the_fused_head_learns_but_the_end_always_is(tmp_path: Path) -> None:
    script = Scripted(0.5, 0.5)
    trainer_of(another(steps=13, fused_from=0.75, validate_every=3), tmp_path, validation=script).run(script)
    assert [step for step, _, _ in script.told] == [12, 13]
    script = Scripted(0.5)
    trainer_of(another(steps=5, fused_from=0.99, validate_every=2), tmp_path, validation=script).run(script)
    assert [step for step, _, _ in script.told] == [5]


def test_a_gpu_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(EnvironmentMissingError, match="no GPU"):
        choose_device("cuda")
