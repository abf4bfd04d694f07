"""Ablations: what each row changes and nothing else, runs that share their clips, go on and fail alone, and the arithmetic of the tables."""

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
from sklearn.metrics import roc_auc_score

from dissonance.bundle import BundleSpec, CropSpec, MelSpec
from dissonance.cli import main
from dissonance.config import ModelConfig
from dissonance.engine.runtime.torch_runtime import TorchRuntime
from dissonance.errors import EnvironmentMissingError, OutputError, UsageError
from dissonance.machine import available_cores
from dissonance.model.checkpoint import load_checkpoint
from dissonance.model.network import build_network
from dissonance.training import ablations
from dissonance.training import run as whole_run
from dissonance.training.ablation_report import Run, differences, figures, markdown, table
from dissonance.training.ablations import ROWS, Request, ablate, resolve_rows
from dissonance.training.batches import Sample, SampleLoader
from dissonance.training.cache import ClipCache
from dissonance.training.config import TrainConfig
from dissonance.training.fakeavceleb import read_fakeavceleb
from dissonance.training.judge import halve
from dissonance.training.labels import Clip
from dissonance.training.run import load_train_config
from dissonance.training.sampling import Draw
from dissonance.training.scoring import ClipScore, ClipScorer
from tests.training.tiny import BINS, DRAWS, SIDE, Untold, named, tiny_model, tiny_run

# ----------------------------------------------------------------------------------------------------------------- rows

PLAIN = tiny_run(augment={})  # with augmentation, so that it can be switched off


def flat(document: Any, key: str = "") -> dict[str, Any]:
    """Leaves by dotted key."""
    if not isinstance(document, dict):
        return {key: document}
    return {inner: value for name, part in document.items() for inner, value in flat(part, f"{key}.{name}" if key else name).items()}


def test_each_row_differs_from_the_default_in_the_keys_that_it_names_and_builds() -> None:
    rows, left_out = resolve_rows(PLAIN)
    assert rows["default"] == PLAIN
    assert list(rows) == [name for name in ROWS if name not in left_out]
    before = flat(PLAIN.model_dump(mode="json"))
    for name, config in rows.items():
        after = flat(config.model_dump(mode="json"))
        assert {key: after[key] for key in after if after[key] != before.get(key)} == ROWS[name], name
        assert isinstance(config.model, ModelConfig)
        build_network(config.model, seed=0)
    assert list(left_out) == ["beta_on"]


def test_every_weight_of_the_loss_has_a_row_but_for_the_head_that_is_measured() -> None:
    weights = [
        name for name, field in type(PLAIN.loss).model_fields.items() if field.annotation is float and name not in ("margin", "tau", "tau_min")
    ]
    assert {f"loss.{name}" for name in weights} - {key for changes in ROWS.values() for key in changes} == {"loss.bce_fused"}


OF_MATCH = {"no_alpha", "no_beta", "beta_on", "no_gamma", "no_delta", "no_contrast_windows", "no_contrast_lag", "no_lambda_match"}


@pytest.mark.parametrize(
    ("changes", "idle", "impossible"),
    [
        ({"loss": {"beta": 0.0}}, {"no_beta"}, set()),
        ({"loss": {"beta": 1.0}}, set(), set()),
        ({"loss": {"delta": 0.0}}, {"beta_on", "no_delta", "no_contrast_windows", "no_contrast_lag"}, set()),
        ({"loss": {"lambda_match": 0.0}}, OF_MATCH, set()),
        ({"loss": {"bce_audio": 0.0, "bce_fused": 0.0, "lambda_match": 0.0}}, OF_MATCH | {"no_bce_audio"}, {"no_bce_visual"}),
        ({"fused_from": 0.0}, {"beta_on", "fused_from_start"}, set()),
        ({"batch": {"windows": 4, "mismatches": 0, "apart_frames": 3}}, {"beta_on", "no_mismatches", "no_glimpses"}, set()),
        ({"augment": tiny_run().augment}, {"beta_on", "no_augmentation"}, set()),
        (
            {"model": tiny_model(prompts={"count": 0})},
            {"beta_on", "no_visual_prompts", "carry_replace", "per_frame"},
            {"readout_prompt", "readout_cls_prompt"},
        ),
    ],
)
def test_a_row_that_changes_nothing_or_cannot_be_is_left_out_with_its_reason(changes: dict[str, Any], idle: set[str], impossible: set[str]) -> None:
    rows, left_out = resolve_rows(tiny_run(**{"augment": {}, **changes}))
    assert {name for name, why in left_out.items() if why.startswith("changes nothing here")} == idle
    assert {name for name, why in left_out.items() if why.startswith("is not possible with this configuration: ")} == impossible
    assert set(rows) == set(ROWS) - idle - impossible
    for name, why in left_out.items():
        assert all(key in why for key in ROWS[name])


def test_rows_are_chosen_by_name_and_the_default_is_always_there() -> None:
    assert list(resolve_rows(PLAIN, ["no_gamma", "per_frame"])[0]) == ["default", "per_frame", "no_gamma"]
    assert set(resolve_rows(PLAIN, ["beta_on"])[1]) == {"beta_on"}
    with pytest.raises(UsageError, match=r"Invalid --row 'no_sound'. Supported values are default, carry_replace, .*no_augmentation\."):
        resolve_rows(PLAIN, ["default", "no_sound"])


# -------------------------------------------------------------------------------------------------------------- figures


def scored(count: int = 40) -> list[tuple[Clip, ClipScore]]:
    """Clips of every kind with scores by chance; some are judged by their picture."""
    generator = np.random.default_rng(3)
    kinds = {"none": (False, False), "visual_timing": (True, False), "audio_timing": (False, True), "mouth": (True, False), "voice": (False, True)}
    rows = []
    for number in range(count):
        name, (picture, sound) = list(kinds.items())[number % len(kinds)]
        clip = replace(named(str(number), picture_fake=picture, sound_fake=sound), manipulation=name)
        silent = number % 9 == 8
        logits = {case: float(generator.normal()) for case in (("v",) if silent else ("av", "v", "a"))}
        rows.append((clip, ClipScore("v" if silent else "av", logits, None, None if silent else int(generator.integers(-4, 5)), 1, 1.0)))  # type: ignore[arg-type]
    return rows


def test_figures_are_scikit_learn_s_by_kind_of_forgery() -> None:
    rows = scored()
    found = figures(rows)

    def auc(case: Any, fakes: set[str], reals: set[str]) -> float:
        kept = [
            (clip.manipulation in fakes, score.logits[case]) for clip, score in rows if case in score.logits and clip.manipulation in fakes | reals
        ]
        return float(roc_auc_score(*zip(*kept, strict=True)))

    expected = {
        "auc_fused": auc("av", {"visual_timing", "audio_timing", "mouth", "voice"}, {"none"}),
        "auc_fused_timing": auc("av", {"visual_timing", "audio_timing"}, {"none"}),
        **{f"auc_fused:{name}": auc("av", {name}, {"none"}) for name in ("audio_timing", "mouth", "visual_timing", "voice")},
        "auc_visual_artefacts": auc("v", {"mouth"}, {"none", "audio_timing", "voice"}),
        "auc_audio_artefacts": auc("a", {"voice"}, {"none", "visual_timing", "mouth"}),
        "lag_within_1": np.mean([score.best_lag in (-1, 0, 1) for clip, score in rows if clip.manipulation == "none" and score.best_lag is not None]),
    }
    assert list(found) == list(expected)
    assert found == pytest.approx(expected)
    assert len(set(expected.values())) == len(expected)


def test_a_data_set_without_manipulations_of_timing_has_no_such_figure_and_what_is_not_defined_is_none() -> None:
    rows = [(clip, score) for clip, score in scored() if clip.manipulation in ("none", "mouth")]
    found = figures(rows)
    assert list(found) == ["auc_fused", "auc_fused:mouth", "auc_visual_artefacts", "auc_audio_artefacts", "lag_within_1"]
    assert found["auc_audio_artefacts"] is None
    assert set(figures([]).values()) == {None}


# --------------------------------------------------------------------------------------------------------------- tables

VALUES = {"default": [0.8, 0.7, 0.95], "no_gamma": [0.6, 0.9, None], "no_delta": [0.5]}
RUNS = [
    Run(row, seed, figures={"auc": value, "never": None}, losses={"total": 10.0 * seed + 1}, cost={"steps": 5})
    for row, values in VALUES.items()
    for seed, value in enumerate(values)
]
RUNS.append(Run("no_delta", 1, failed="it diverged"))


def test_tables_have_mean_lowest_and_highest_over_the_seeds() -> None:
    found = table(RUNS, "figures")
    assert list(found) == list(VALUES)
    for row, values in VALUES.items():
        known = np.array([value for value in values if value is not None])
        assert asdict(found[row]["auc"]) == {"mean": pytest.approx(known.mean()), "low": known.min(), "high": known.max(), "seeds": len(known)}  # type: ignore[arg-type]
        assert found[row]["never"] is None
    losses = table(RUNS, "losses")["default"]["total"]
    assert losses is not None
    assert (losses.mean, losses.low, losses.high) == (11.0, 1.0, 21.0)


def test_differences_are_paired_by_seed() -> None:
    found = differences(RUNS, "figures")
    assert list(found) == ["no_gamma", "no_delta"]
    base = np.array(VALUES["default"])
    of_gamma, of_delta = np.array([0.6, 0.9]) - base[:2], np.array([0.5]) - base[:1]
    for row, expected in (("no_gamma", of_gamma), ("no_delta", of_delta)):
        spread = asdict(found[row]["auc"])  # type: ignore[arg-type]
        assert spread == pytest.approx({"mean": expected.mean(), "low": expected.min(), "high": expected.max(), "seeds": len(expected)})
    assert differences(RUNS[3:], "figures")["no_gamma"]["auc"] is None  # nothing to compare with


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


def test_the_shipped_configuration_has_all_rows() -> None:
    base = load_train_config(Path(__file__).resolve().parents[2] / "configs" / "train" / "ablations.yaml")
    rows, left_out = resolve_rows(base)
    assert set(left_out) == {"no_beta"}
    assert set(rows) == set(ROWS) - {"no_beta"}
