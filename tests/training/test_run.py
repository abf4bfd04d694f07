"""A run as a user meets it: from a YAML file to a bundle that scans; resumed, refused, and on frozen backbones."""

import fcntl
import io
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import CLIPVisionConfig, CLIPVisionModel, WhisperConfig, WhisperModel

from dissonance import cli as command_line
from dissonance import errors
from dissonance.bundle import CalibrationSpec, open_bundle
from dissonance.config import ModelConfig
from dissonance.console.training import TrainProgress
from dissonance.errors import CheckpointError, ConfigError
from dissonance.model.audio import AudioEncoder
from dissonance.model.backbone import load_clip, load_whisper
from dissonance.model.checkpoint import load_checkpoint, save_checkpoint
from dissonance.model.network import build_network
from dissonance.model.visual import VisualEncoder
from dissonance.training.config import DataConfig, TrainConfig
from dissonance.training.labels import Clip
from dissonance.training.material import trained_on
from dissonance.training.run import load_train_config
from tests.training.tiny import named, tiny_model

Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.xdist_group("run")  # what its tests share is made once
TINY = tiny_model()
STEPS = {
    "batch": {"windows": 4, "mismatches": 1, "apart_frames": 3, "glimpses": 2},
    "optimiser": {"warmup_steps": 2},
    "steps": 8,
    "fused_from": 0.25,
    "validate_every": 3,
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def run() -> Run:
    """The command line in this process: torch is imported once."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = ["dissonance", *map(str, arguments)]
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as ended:
                command_line.main()
        return subprocess.CompletedProcess(words, int(ended.value.code or 0), out.getvalue(), err.getvalue())

    return call


def written(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(document))
    return path


def on_backbones(folder: Path) -> ModelConfig:
    """As the preset `base`: CLIP and Whisper that transformers wrote, frozen."""
    return tiny_model(backbones=(str(folder / "clip"), str(folder / "whisper")))


def write_backbones(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 16, "patch_size": 8}
    CLIPVisionModel(CLIPVisionConfig(**sizes)).save_pretrained(folder / "clip")
    encoder = {
        "d_model": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "num_mel_bins": 10,
        "max_source_positions": 20,
    }
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8, "vocab_size": 8, "max_target_positions": 4}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    WhisperModel(WhisperConfig(**encoder, **decoder, **tokens)).save_pretrained(folder / "whisper")


def synthetic(folder: Path) -> dict[str, Any]:
    """A run on a dozen clips a set, of a preset that is a file."""
    clip = {"width": 160, "height": 120, "duration_s": 1.6, "two_person_share": 0.0}
    written(folder / "tiny.yaml", on_backbones(folder).model_dump(mode="json"))
    return {
        **STEPS,
        "model": str(folder / "tiny.yaml"),
        "data": {"synthetic": {"seed": 0, "train_clips": 12, "validation_clips": 12, "clip": clip}},
    }


@pytest.fixture(scope="module")
def trained(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The run's folder, and what the command said."""
    folder = tmp_path_factory.mktemp("trained")
    write_backbones(folder)
    config = written(folder / "run.yaml", synthetic(folder))
    return folder, run("train", config, "-o", folder / "run", "--json")


# ---------------------------------------------------------------------------------------------------- clips to a verdict


def test_a_run_leaves_its_files_and_says_what_it_came_to(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = trained
    assert done.returncode == 0, done.stderr
    out = folder / "run"
    names = {path.name for path in out.iterdir()} - {"tensorboard", "run.lock"}
    files = {"last", "best", "model"}
    assert names == {"config.json", "clips", "cache", "skipped.jsonl", "log.jsonl", "summary.json"} | {f"{name}.safetensors" for name in files}
    config = TrainConfig.model_validate(json.loads((out / "config.json").read_text()))
    assert config == load_train_config(folder / "run.yaml")
    assert config.model == on_backbones(folder)
    assert "no pretrained backbone" not in done.stderr

    summary = json.loads((out / "summary.json").read_text())
    assert json.loads(done.stdout) == summary
    assert (summary["trained_on"], summary["steps"]) == ("synthetic", 8)
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert sum(summary["clips"].values()) == 24 - len(skipped)
    assert sum(summary["skipped"].values()) == len(skipped)
    for cls in ("train", "selection", "calibration"):
        assert summary["clips"][cls] > 0
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    validations = {line["step"]: line for line in log if line["kind"] == "validation"}
    assert set(validations) == {3, 6, 8}
    best = validations[summary["best_step"]]
    assert best["auc_fused"] == max(line["auc_fused"] for line in validations.values())
    assert summary["figures"] == {name: pytest.approx(best[name]) for name in summary["figures"]}  # the best weights, and again on the same clips


def test_the_checkpoint_has_the_best_weights_the_run_and_its_calibration(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out = trained[0] / "run"
    best, final = load_checkpoint(out / "best.safetensors"), load_checkpoint(out / "model.safetensors")
    weights = best.network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in final.network.state_dict().items())
    config = json.loads((out / "config.json").read_text())
    assert final.training == best.training == config
    assert final.trained_on == best.trained_on == "synthetic"
    summary = json.loads((out / "summary.json").read_text())
    assert final.calibration is not None
    assert {case: spec.model_dump(mode="json") for case, spec in final.calibration.items()} == {
        case: found["spec"] for case, found in summary["calibration"].items()
    }
    assert set(summary["calibration"]) | set(summary["uncalibrated"]) == {"av", "v", "a"}
    assert "av" in summary["calibration"]


def test_its_bundle_scans(trained: tuple[Path, subprocess.CompletedProcess[str]], run: Run, tmp_path: Path) -> None:
    out = trained[0] / "run"
    done = run("export", out, "-o", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    bundle = open_bundle(tmp_path / "bundle")
    assert (bundle.spec.trained, bundle.spec.trained_on, bundle.spec.model) == (True, "synthetic", on_backbones(trained[0]))
    assert bundle.spec.training == json.loads((out / "config.json").read_text())
    calibration = load_checkpoint(out / "model.safetensors").calibration
    assert calibration is not None
    assert bundle.spec.calibration == {case: calibration.get(case, CalibrationSpec()) for case in ("av", "v", "a")}
    exported = load_checkpoint(tmp_path / "bundle" / "weights.safetensors").network.state_dict()
    trained_weights = load_checkpoint(out / "model.safetensors").network.state_dict()
    assert all(torch.equal(value, exported[name]) for name, value in trained_weights.items())

    clips = sorted((out / "clips" / "train" / "RealVideo-RealAudio").rglob("*.mp4"))[:2]
    done = run("scan", *clips, "--bundle", tmp_path / "bundle", "-o", tmp_path / "scan", "--json", "--workers", "1")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["status"], row["trained_on"], row["bundle_id"]) for row in rows] == [("scored", "synthetic", bundle.id)] * 2
    assert all(0 < row["p_fake"] < 1 for row in rows)
    assert "synthetic clips only" in done.stderr


def test_its_backbones_are_those_of_their_checkpoints_and_the_rest_was_trained(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """The bundle has these very weights, see above."""
    folder, _ = trained
    model, network = on_backbones(folder), load_checkpoint(folder / "run" / "model.safetensors").network
    picture, sound = VisualEncoder(model.visual, frames=model.frames), AudioEncoder(model.audio, frames=model.frames)
    load_clip(picture, folder / "clip")
    load_whisper(sound, folder / "whisper")
    for theirs, ours in ((picture, network.visual), (sound, network.audio)):
        for name, value in theirs.state_dict().items():
            if "prompts" not in name:
                assert torch.equal(ours.state_dict()[name], value), name
    start = dict(build_network(model, seed=0).named_parameters())
    trained_names = {name for name in start if name.startswith(("head.", "visual.prompts", "audio.residual_prompts"))}
    assert all(not torch.equal(network.get_parameter(name), start[name]) for name in trained_names)


# ------------------------------------------------------------------------------------------------------- a data set's


def on_dataset(folder: Path, **changes: Any) -> dict[str, Any]:
    """The training clips of the run in `folder` as a data set, from its cache. The seed gives both halves of the validation people both classes."""
    data = {
        "dataset": {"path": str(folder / "run" / "clips" / "train")},
        "split": "identity",
        "validation": 0.4,
        "cache": str(folder / "run" / "cache"),
    }
    return {**STEPS, "seed": 48, "model": TINY.model_dump(mode="json"), "data": {**data, **changes}}


def test_an_interrupted_run_on_a_data_set_ends_as_one_that_was_not(
    trained: tuple[Path, subprocess.CompletedProcess[str]], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the first validation is told."""
    config = written(tmp_path / "run.yaml", on_dataset(trained[0]))
    whole = run("train", config, "-o", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    assert "trained on synthetic: best at step" in whole.stdout
    assert "no pretrained backbone for picture and sound" in whole.stderr
    assert f"dissonance export {tmp_path}/whole/model.safetensors" in " ".join(whole.stdout.split())

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt  # what Ctrl-C does to the main thread

    with monkeypatch.context() as patch:
        patch.setattr(TrainProgress, "validated", interrupted)
        stopped = run("train", config, "-o", tmp_path / "run")
    assert stopped.returncode == errors.EXIT_INTERRUPTED
    assert not (tmp_path / "run" / "model.safetensors").exists()
    resumed = run("train", config, "-o", tmp_path / "run", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "from step 3" in resumed.stderr
    for name in ("model.safetensors", "last.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    again = run("train", config, "-o", tmp_path / "run", "--resume")  # it is done already
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    other = on_dataset(trained[0]) | {"steps": 9}
    refused = run("train", written(tmp_path / "other.yaml", other), "-o", tmp_path / "run", "--resume")
    assert refused.returncode == errors.EXIT_USAGE
    assert "another configuration" in refused.stderr
    anew = run("train", tmp_path / "other.yaml", "-o", tmp_path / "run", "--overwrite")
    assert anew.returncode == 0, anew.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 9


# -------------------------------------------------------------------------------------------------------------- refusals


def test_a_folder_is_not_written_over_unasked(trained: tuple[Path, subprocess.CompletedProcess[str]], run: Run, tmp_path: Path) -> None:
    config = trained[0] / "run.yaml"
    before = (trained[0] / "run" / "model.safetensors").read_bytes()
    for arguments, message in (
        ((trained[0] / "run",), "--resume to go on with it, --overwrite to start it anew"),
        ((trained[0] / "run", "--resume", "--overwrite"), "not both"),
        ((tmp_path / "nowhere", "--resume"), "no run in"),
    ):
        done = run("train", config, "-o", *arguments)
        assert done.returncode == errors.EXIT_USAGE
        assert message in done.stderr
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "mine.txt").write_text("not a run")
    for option in ([], ["--overwrite"], ["--resume"]):
        done = run("train", config, "-o", tmp_path, *option)
        assert done.returncode == errors.EXIT_USAGE
        assert "no training run wrote" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with (trained[0] / "run" / "run.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for option in ("--overwrite", "--resume"):
            done = run("train", config, "-o", trained[0] / "run", option)
            assert done.returncode == errors.EXIT_USAGE
            assert "Another run is at work in" in done.stderr
    assert (trained[0] / "run" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 3}, "stepz: unknown key"),
        ({"optimiser": {"momentum": 0.9}}, "optimiser.momentum: unknown key"),
        ({"steps": 0}, r"steps: .*got 0"),
        ({"batch": {"windows": 5}}, r"batch\.windows: .*got 5"),
        ({"batch": {"glimpse_frames": 9}}, "batch.glimpse_frames 9 is more than the model's 8 frames"),
        ({"batch": {"glimpse_frames": 33}, "model": "demo"}, "batch.glimpse_frames 33 is more than the model's 32 frames"),
        ({"data": {}}, "give either dataset or synthetic"),
        ({"data": {"synthetic": {}, "leave_out": ["wav2lip"]}}, "split and leave_out are for a dataset"),
        ({"data": {"synthetic": {"train_forgeries": ["none"]}}}, "needs 'none' and at least one forgery"),
        ({"data": {"synthetic": {"clip": {"shift_frames": 2}}}}, "clip.shift_frames is 2"),
        ({"model": "huge"}, "Unknown preset 'huge'"),
    ],
)
def test_a_configuration_that_is_wrong_names_the_field(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_train_config(written(tmp_path / "run.yaml", {**synthetic(tmp_path), **change}))


def test_the_command_line_names_the_field_too(run: Run, tmp_path: Path) -> None:
    done = run("train", written(tmp_path / "run.yaml", {**synthetic(tmp_path), "stepz": 3}), "-o", tmp_path / "out")
    assert done.returncode == errors.EXIT_USAGE
    assert "stepz: unknown key" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_data_set_of_one_class_is_refused(trained: tuple[Path, subprocess.CompletedProcess[str]], run: Run, tmp_path: Path) -> None:
    real = sorted((trained[0] / "run" / "clips" / "train" / "RealVideo-RealAudio").rglob("*.mp4"))
    rows = [f"{path},0,0,p{number},{('train', 'validation')[number % 2]}" for number, path in enumerate(real)]
    (tmp_path / "labels.csv").write_text("\n".join(["uri,picture_fake,sound_fake,identity,split", *rows]) + "\n")
    config = on_dataset(trained[0], dataset={"path": str(tmp_path / "labels.csv")}, split="dataset")
    done = run("train", written(tmp_path / "run.yaml", config), "-o", tmp_path / "run")
    assert done.returncode == errors.EXIT_USAGE
    assert "and 0 fake clips" in done.stderr


def test_one_clip_in_two_splits_is_refused(trained: tuple[Path, subprocess.CompletedProcess[str]], run: Run, tmp_path: Path) -> None:
    """The same bytes under another name and another person's."""
    clips = trained[0] / "run" / "clips" / "train"
    real, fake = ((sorted((clips / kind).rglob("*.mp4")))[0] for kind in ("RealVideo-RealAudio", "RealVideo-FakeAudio"))
    rows = []
    for split in ("train", "validation"):
        for number, path in enumerate((real, fake)):
            (tmp_path / f"{split}{number}.mp4").write_bytes(path.read_bytes())
            rows.append(f"{split}{number}.mp4,0,{number},{split}{number},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(["uri,picture_fake,sound_fake,identity,split", *rows]) + "\n")
    config = on_dataset(trained[0], dataset={"path": str(tmp_path / "labels.csv")}, split="dataset")
    done = run("train", written(tmp_path / "run.yaml", config), "-o", tmp_path / "run")
    assert done.returncode == errors.EXIT_USAGE
    assert "the same content" in done.stderr


def test_a_checkpoint_s_calibration_is_checked(tmp_path: Path) -> None:
    network = build_network(TINY, seed=0)
    spec = CalibrationSpec(scale=2.0, bias=-1.0, likely_real_below=0.2, likely_fake_from=0.9, false_positive_rate=0.01)
    saved = save_checkpoint(network, tmp_path / "x.safetensors", trained_on="toys", training={"steps": 3}, calibration={"av": spec})
    loaded = load_checkpoint(saved)
    assert (loaded.training, loaded.calibration) == ({"steps": 3}, {"av": spec})
    plain = load_checkpoint(save_checkpoint(network, tmp_path / "plain.safetensors", trained_on="toys"))
    assert (plain.training, plain.calibration) == (None, None)
    impossible = spec.model_copy(update={"scale": -1.0})
    save_checkpoint(network, saved, trained_on="toys", calibration={"av": impossible})
    with pytest.raises(CheckpointError, match="calibration that cannot be"):
        load_checkpoint(saved)


def test_what_a_bundle_says_that_it_was_trained_on(trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    drawn = [replace(named("drawn"), path=next((trained[0] / "run" / "clips").rglob("*.mp4")))]
    others = [replace(named("other"), path=tmp_path / "other.mp4")]

    def of(path: Path, clips: list[Clip], **more: Any) -> str:
        return trained_on(DataConfig.model_validate({"dataset": {"path": path}, **more}), clips)

    assert trained_on(DataConfig.model_validate({"synthetic": {}, "name": "real people"}), others) == "synthetic"
    assert of(tmp_path / "labels.csv", drawn + others, name="real people") == "synthetic"  # `dissonance synth` made one of them
    assert of(tmp_path / "FakeAVCeleb", others) == "FakeAVCeleb"
    assert of(tmp_path / "labels.csv", others) == "labels"
    assert of(tmp_path / "labels.csv", others, name="my clips") == "my clips"
