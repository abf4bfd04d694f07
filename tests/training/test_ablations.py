"""Runs of ablations: on clips that they share, one after the other or several at once; they go on, fail alone and end together."""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from dissonance import locks
from dissonance.bundle import BundleSpec, CropSpec, MelSpec
from dissonance.cli import main
from dissonance.config import ModelConfig
from dissonance.engine.runtime.torch_runtime import TorchRuntime
from dissonance.errors import EnvironmentMissingError, OutputError, UsageError
from dissonance.machine import available_cores
from dissonance.model.checkpoint import load_checkpoint
from dissonance.training import ablations
from dissonance.training import run as whole_run
from dissonance.training.ablation_report import Run, figures, markdown
from dissonance.training.ablations import Request, ablate
from dissonance.training.batches import Sample, SampleLoader
from dissonance.training.cache import ClipCache
from dissonance.training.config import TrainConfig
from dissonance.training.fakeavceleb import read_fakeavceleb
from dissonance.training.judge import halve
from dissonance.training.run import load_train_config
from dissonance.training.sampling import Draw
from dissonance.training.scoring import ClipScorer
from tests.training.tiny import BINS, DRAWS, SIDE, Untold, tiny_model, tiny_run

pytestmark = pytest.mark.xdist_group("ablations")  # what its tests share is made once

# ----------------------------------------------------------------------------------------------------------------- runs


class Console(Untold):
    """Remembers the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def tell(self, line: str) -> None:
        self.lines.append(line)

    def counted(self, what: str, _total: int, items: Iterable[Any], /) -> Iterator[Any]:
        self.lines.append(what)
        return iter(items)

    def caching(self, *told: object) -> None:
        self.lines.append(str(told[-1]))

    def training(self, *, first_step: int, steps: int) -> None:
        pass


def written(folder: Path, **changes: Any) -> Path:
    """A run in YAML on two dozen small clips, of a preset that is a file. Some of its clips are judged."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_model().model_dump(mode="json")))
    clip = {"width": 160, "height": 120, "duration_s": 1.6, "two_person_share": 0.0, "forgeries": ["none", "visual_artefact", "none", "audio_timing"]}
    settings = tiny_run(steps=6, fused_from=0.5, validate_every=2, checkpoint_every=2, loss={"beta": 0.0}, **changes)
    document = {
        **settings.model_dump(mode="json", exclude_unset=True),
        "model": str(folder / "tiny.yaml"),
        "data": {"synthetic": {"seed": 5, "train_clips": 4, "validation_clips": 12, "clip": clip}},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(document))
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Request, dict[str, Any], Console]:
    """Two rows with two seeds each, and Ctrl-C in the middle of the third run, after which they were gone on with."""
    folder = tmp_path_factory.mktemp("ablations")
    request = Request(written(folder), folder / "out", seeds=2, rows=("no_mismatches", "no_beta"))

    class Stopped(SampleLoader):
        def load(self, draw: Draw) -> Sample:
            if draw.seed == 1 and draw.number == 4 * DRAWS:  # step 5
                raise KeyboardInterrupt
            return super().load(draw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole_run, "SampleLoader", Stopped)
        with pytest.raises(KeyboardInterrupt):
            ablate(request, console=Console())
    assert [(run["row"], run["seed"]) for run in held(request)["runs"]] == [("default", 0), ("no_mismatches", 0)]
    console = Console()
    return request, ablate(replace(request, resume=True), console=console), console


def held(request: Request) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((request.out / "ablations.json").read_text())
    return document


def test_every_row_is_run_with_every_seed_and_the_document_says_it(made: tuple[Request, dict[str, Any], Console]) -> None:
    request, document, console = made
    assert held(request) == document
    assert [(run["row"], run["seed"], run["failed"]) for run in document["runs"]] == [
        (row, seed, None) for row in ("default", "no_mismatches") for seed in (0, 1)
    ]
    assert document["left_out"] == {"no_beta": "changes nothing here (loss.beta = 0.0)"}
    assert "no_beta" in console.lines[0]
    assert document["config"] == load_train_config(request.config).model_dump(mode="json")
    runs = {(run["row"], run["seed"]): run for run in document["runs"]}
    for each in runs.values():
        assert each["cost"]["steps"] == 6
        assert np.isfinite(list(each["losses"].values())).all()
    assert runs["default", 1]["cost"]["seconds"] is None  # it was gone on with
    assert runs["no_mismatches", 1]["cost"]["seconds"] > 0
    assert runs["default", 0]["losses"] != runs["no_mismatches", 0]["losses"]
    text = (request.out / "ablations.md").read_text()
    assert text == markdown(document)
    for part in (document["command"], document["date"], document["machine"], "batch.mismatches = 0", "loss.beta = 0.0", "image_size: 16"):
        assert part in text
    assert document["command"].endswith("--seeds 2 --row no_mismatches --row no_beta")
    mean = np.mean([runs["default", seed]["losses"]["total"] for seed in (0, 1)])
    assert f"{mean:.3f} (" in text


def test_clips_are_drawn_and_cached_once_and_nothing_is_done_twice(made: tuple[Request, dict[str, Any], Console]) -> None:
    request, document, console = made
    assert set(console.lines) & {"drawing train clips", "drawing validation clips", "cached"} == set()
    told = [line for line in console.lines if line.startswith("run ")]
    assert told[0] == "run 3 of 4: default, seed 1"
    assert re.fullmatch(r"run 4 of 4: no_mismatches, seed 1, about \d+ .*min to go", told[1])
    assert len(told) == 2
    for folder in (request.out / "runs").iterdir():
        assert not {"clips", "cache", "last.safetensors", "best.safetensors"} & {path.name for path in folder.iterdir()}
    before = {path: path.stat().st_mtime_ns for path in (request.out / "runs").rglob("*")}
    again = ablate(replace(request, resume=True), console=Console())
    assert again["runs"] == document["runs"]
    assert {path: path.stat().st_mtime_ns for path in (request.out / "runs").rglob("*")} == before


def test_figures_are_of_the_best_weights_on_clips_that_did_not_select_them(made: tuple[Request, dict[str, Any], Console]) -> None:
    request, document, _ = made
    found = next(run for run in document["runs"] if (run["row"], run["seed"]) == ("no_mismatches", 1))
    folder = request.out / "runs" / "no_mismatches-1"
    config = TrainConfig.model_validate(json.loads((folder / "config.json").read_text()))
    assert (config.seed, config.batch.mismatches) == (1, 0)
    summary = json.loads((folder / "summary.json").read_text())
    network = load_checkpoint(folder / "model.safetensors").network
    cache = ClipCache(request.out / "cache", model=tiny_model(), scan=config.scan)
    clips = [replace(clip, identity=f"validation-{clip.identity}") for clip in read_fakeavceleb(request.out / "clips" / "validation").clips]
    entries = cache.build(clips).entries
    selection, held_out = halve([clip for clip in clips if clip.uri in entries], seed=1)
    assert (len(selection), len(held_out)) == (summary["clips"]["selection"], summary["clips"]["calibration"])
    spec = BundleSpec(model=tiny_model(), crop=CropSpec(size_px=SIDE), mel=MelSpec(bins=BINS), trained=True, trained_on="synthetic")
    scorer = ClipScorer(TorchRuntime(network), spec=spec, scan=config.scan)
    rows = [(clip, score) for clip in held_out if (score := scorer.score(cache.open(entries[clip.uri]))) is not None]
    assert found["figures"] == pytest.approx(figures(rows))
    assert found["figures"]["auc_fused"] is not None
    assert found["cost"]["trainable_parameters"] == sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert found["cost"]["best_step"] == summary["best_step"]
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-2])
    assert (last["kind"], last["step"]) == ("train", 6)
    assert found["losses"].items() <= last.items()
    assert set(found["losses"]) == {*config.loss.weights, "total"}


def test_the_command_prints_the_document_or_a_table_of_it(
    made: tuple[Request, dict[str, Any], Console], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    request, document, _ = made
    arguments = ["ablate", request.config, "-o", request.out, "--seeds", 2, "--row", "no_mismatches", "--row", "no_beta", "--resume"]
    printed = []
    for more in (["--json"], []):
        monkeypatch.setattr(sys, "argv", ["dissonance", *map(str, arguments), *more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        printed.append(capsys.readouterr().out)
    assert {**json.loads(printed[0]), "date": document["date"]} == document
    line = next(line for line in printed[1].splitlines() if "no_mismatches" in line)
    for section in ("figures", "figures_against_default"):
        mean = document["tables"][section]["no_mismatches"]["auc_fused"]["mean"]
        assert f"{mean:+.3f}".removeprefix("+" if section == "figures" else "") in line
    assert "auc_fused:" not in printed[1]
    assert "4 runs" in printed[1]


def test_a_row_that_diverges_has_its_reason_and_the_others_go_on(
    made: tuple[Request, dict[str, Any], Console], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sounds that are no numbers, for that row alone, among rows that are added to ablations that were at an end."""
    shutil.copytree(made[0].out, tmp_path / "out")
    request = replace(made[0], out=tmp_path / "out", seeds=1, rows=("no_attended_sound", "no_mismatches", "no_gamma"), resume=True)

    class Broken(SampleLoader):
        def __init__(self, *arguments: Any, model: ModelConfig, **options: Any) -> None:
            super().__init__(*arguments, model=model, **options)
            self.broken = not model.head.attended_sound

        def load(self, draw: Draw) -> Sample:
            sample = super().load(draw)
            return replace(sample, mel=sample.mel * np.nan) if self.broken and draw.number == 2 * DRAWS else sample

    monkeypatch.setattr(whole_run, "SampleLoader", Broken)
    console = Console()
    document = ablate(request, console=console)
    assert [run for run in document["runs"] if run["row"] in ("default", "no_mismatches")] == made[1]["runs"]
    failed = {run["row"]: run["failed"] for run in document["runs"]}
    assert list(failed) == ["default", "no_attended_sound", "no_gamma", "no_mismatches"]
    assert {row for row, why in failed.items() if why is not None} == {"no_attended_sound"}
    assert "at step 3: training has diverged" in failed["no_attended_sound"]
    assert "| seed 0: The loss is nan" in (request.out / "ablations.md").read_text()
    assert set(document["tables"]["figures"]) == {"default", "no_mismatches", "no_gamma"}
    assert any("no_attended_sound, seed 0, could not be trained" in line for line in console.lines)
    monkeypatch.setattr(ablations, "train", None)
    assert ablate(request, console=Console())["runs"] == document["runs"]


# ------------------------------------------------------------------------------------------------------ several at once


def reduced(made: Request, folder: Path, *, without: str) -> Request:
    """A copy of ablations whose runs of one row were never made."""
    shutil.copytree(made.out, folder / "out")
    document = held(made)
    document["runs"] = [run for run in document["runs"] if run["row"] != without]
    (folder / "out" / "ablations.json").write_text(json.dumps(document))
    for seed in range(2):
        shutil.rmtree(folder / "out" / "runs" / f"{without}-{seed}")
    return replace(made, out=folder / "out", resume=True, jobs=2)


@pytest.mark.parametrize("at", ["run 3 of 6: no_gamma", "run 4 of 6: no_mismatches", "run 5 of 6: no_gamma"])
def test_interrupted_at_any_run_the_processes_end(at: str, made: tuple[Request, dict[str, Any], Console], tmp_path: Path) -> None:
    """Before there are any, while one starts, and while one of two is at work."""
    request = replace(reduced(made[0], tmp_path, without="no_mismatches"), rows=("no_mismatches", "no_gamma"))

    class Interrupts(Console):
        def tell(self, line: str) -> None:
            super().tell(line)
            if line.startswith(at):
                raise KeyboardInterrupt

    stopped = Interrupts()
    with pytest.raises(KeyboardInterrupt):
        ablate(request, console=stopped)
    told = [line for line in stopped.lines if line.startswith("run ")]
    assert told[-1].startswith(at)
    assert [line[:10] for line in told] == [f"run {number} of 6" for number in range(3, 3 + len(told))]
    assert multiprocessing.active_children() == []
    assert len(held(request)["runs"]) == (2 if len(told) < 3 else 3)
    assert not list((request.out / "runs").rglob(".*.partial"))


def test_runs_of_several_processes_are_those_of_one_also_after_a_kill(made: tuple[Request, dict[str, Any], Console], tmp_path: Path) -> None:
    request = replace(reduced(made[0], tmp_path, without="no_mismatches"), rows=("no_mismatches", "no_gamma"))
    left = request.out / "runs" / "no_mismatches-0"
    left.mkdir()
    (left / "run.lock").touch()
    (left / ".config.json.7.partial").write_text("{")  # all that a machine that went down had written of this run
    document = ablate(request, console=Console())
    assert document["command"].endswith("--seeds 2 --jobs 2 --row no_mismatches --row no_gamma")
    assert [(run["row"], run["seed"], run["failed"]) for run in document["runs"]] == [
        (row, seed, None) for row in ("default", "no_gamma", "no_mismatches") for seed in (0, 1)
    ]
    alone = {(run["row"], run["seed"]): run for run in made[1]["runs"]}
    for run in document["runs"]:
        if run["row"] == "no_mismatches":
            assert run["losses"] == pytest.approx(alone[run["row"], run["seed"]]["losses"], rel=1e-3)  # with another number of threads
            assert run["cost"]["threads"] == max(1, available_cores() // 2)
    assert not (left / ".config.json.7.partial").exists()


def test_processes_end_with_the_one_that_started_them(made: tuple[Request, dict[str, Any], Console], tmp_path: Path) -> None:
    request = reduced(made[0], tmp_path, without="no_mismatches")
    arguments = ["ablate", request.config, "-o", request.out, "--seeds", "2", "--jobs", "2", "--row", "no_mismatches", "--row", "no_beta", "--resume"]
    with subprocess.Popen([sys.executable, "-m", "dissonance", *map(str, arguments)], stderr=subprocess.PIPE, text=True) as ablating:
        assert ablating.stderr is not None
        assert any(line.startswith("run 4 of 4") for line in ablating.stderr)  # one of two processes has been started
        children = psutil.Process(ablating.pid).children(recursive=True)
        ablating.kill()
    assert children
    assert psutil.wait_procs(children, timeout=120)[1] == []


def killed(_threads: int) -> None:
    """What a process meets where memory runs out."""
    os._exit(9)


def test_a_process_that_is_killed_or_cannot_write_is_an_error_with_its_remedy(
    made: tuple[Request, dict[str, Any], Console], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = reduced(made[0], tmp_path, without="no_mismatches")
    (request.out / "runs" / "no_mismatches-1").touch()
    with pytest.raises(OutputError, match=r"no_mismatches-1.*Choose another folder"):
        ablate(request, console=Console())
    assert multiprocessing.active_children() == []
    assert {(run["row"], run["seed"]) for run in held(request)["runs"]} >= {("default", 0), ("default", 1)}
    (request.out / "runs" / "no_mismatches-1").unlink()
    monkeypatch.setattr(ablations, "_work_with", killed)
    with pytest.raises(EnvironmentMissingError, match=r"was killed.*lower --jobs.*go on with --resume"):
        ablate(request, console=Console())
    assert multiprocessing.active_children() == []


# ------------------------------------------------------------------------------------------------------------- refusals


def test_what_is_in_the_way_is_told(made: tuple[Request, dict[str, Any], Console], tmp_path: Path) -> None:
    request = made[0]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").touch()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "ablations.json").write_text('{"runs": [{"row": "default"}]}')
    (tmp_path / "older").mkdir()
    document = {"config": load_train_config(request.config).model_dump(mode="json"), "runs": [asdict(Run("no_sound", 0))]}
    (tmp_path / "older" / "ablations.json").write_text(json.dumps(document))
    cases: Mapping[str, tuple[Request, str]] = {
        "another's folder": (replace(request, out=tmp_path / "taken"), "holds files, but no ablations.json"),
        "nothing to resume": (replace(request, out=tmp_path / "new", resume=True), "no ablations in .*Leave --resume out"),
        "not told to resume": (request, "holds ablations already. Pass --resume"),
        "another configuration": (replace(request, config=written(tmp_path, seed=1), resume=True), "of another configuration"),
        "damaged": (replace(request, out=tmp_path / "damaged", resume=True), "cannot be read as ablations"),
        "a row of another release": (replace(request, out=tmp_path / "older", resume=True), "holds row 'no_sound'"),
    }
    for wrong, message in cases.values():
        with pytest.raises(UsageError, match=message):
            ablate(wrong, console=Console())
    at_work = pytest.raises(UsageError, match="Another `dissonance ablate` is at work in")
    with locks.held(request.out / "ablations.lock", taken="by this test"), at_work:
        ablate(replace(request, resume=True), console=Console())
