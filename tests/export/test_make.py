"""Bundles as they are made: what bundle.json says, what is refused, and the one that ships."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from dissonance.bundle import open_bundle
from dissonance.config import load_preset
from dissonance.errors import BundleError, CheckpointError, EnvironmentMissingError, UsageError
from dissonance.export.folds import FOLDS
from dissonance.export.make import export_bundle
from dissonance.model.checkpoint import load_checkpoint
from dissonance.model.network import count_parameters
from dissonance.training.config import TrainConfig
from dissonance.training.run import load_train_config
from tests.export.conftest import Exported

ROOT = Path(__file__).resolve().parents[2]


def test_bundle_json_says_what_is_inside(exported: Exported) -> None:
    spec, config = exported.bundle.spec, exported.network.config
    assert spec.model == config
    assert (spec.crop.size_px, spec.mel.bins, spec.mel.sample_rate_hz) == (16, 10, 16000)
    assert (spec.trained, spec.trained_on) == (True, "synthetic")
    assert spec.parameters == count_parameters(exported.network)
    assert spec.folds == tuple(sorted(FOLDS))
    assert set(spec.versions) == {"dissonance", "torch", "onnx", "onnxscript", "onnxruntime", "safetensors"}
    assert len(spec.parity) == 1 + 1 + 8 + 3
    assert 0 < max(spec.parity.values()) < 1e-4
    for name, digest in spec.sha256.items():
        assert hashlib.sha256((exported.bundle.path / name).read_bytes()).hexdigest() == digest
    assert sorted(spec.sha256) == sorted(path.name for path in exported.bundle.path.iterdir() if path.name != "bundle.json")


def test_weights_are_the_whole_state_dict_and_a_checkpoint_themselves(exported: Exported) -> None:
    tensors, state = load(exported.bundle.read("weights.safetensors")), exported.network.state_dict()
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], value) for name, value in state.items())
    assert load_checkpoint(exported.bundle.path / "weights.safetensors").network.config == exported.network.config


def test_progress_is_told_in_lines_with_the_parameter_table(exported: Exported) -> None:
    assert any("visual prompts" in line for line in exported.lines)
    assert sum(line.startswith("exporting ") for line in exported.lines) == 4
    costs = [re.fullmatch(r"(\w+)\.onnx: ([\d.]+) million operations .* before folding, ([\d.]+) after", line) for line in exported.lines]
    found = {cost[1]: (float(cost[2]), float(cost[3])) for cost in costs if cost}
    assert set(found) == {"visual", "audio"}
    assert all(after < before for before, after in found.values())


def test_the_demo_bundle_that_ships_is_what_its_documented_run_makes() -> None:
    bundle = open_bundle("demo")
    config = load_train_config(ROOT / "configs" / "train" / "demo.yaml")
    assert TrainConfig.model_validate(bundle.spec.training) == config  # what it does not say has its default
    assert bundle.spec.model == config.model == load_preset("demo")
    assert (bundle.spec.trained, bundle.spec.trained_on) == (True, "synthetic")
    assert bundle.warning == "bundle trained on synthetic clips only: verdicts on real videos mean nothing"
    assert sum(path.stat().st_size for path in bundle.path.rglob("*")) < 10_000_000
    assert max(bundle.spec.parity.values()) < 1e-4
    for case, calibration in bundle.spec.calibration.items():
        assert calibration.false_positive_rate is not None, case
        assert 0 < calibration.likely_real_below <= calibration.likely_fake_from < 1, case


def test_the_wrong_combinations_are_usage_errors(exported: Exported, tmp_path: Path) -> None:
    def export(checkpoint: Path | None, *, random_weights: bool, preset: str | None) -> None:
        export_bundle(checkpoint=checkpoint, random_weights=random_weights, preset=preset, seed=0, out=tmp_path / "bundle", overwrite=False)

    with pytest.raises(UsageError, match="not both"):
        export(exported.checkpoint, random_weights=True, preset="demo")
    with pytest.raises(UsageError, match="either a checkpoint or --random-weights"):
        export(None, random_weights=False, preset="demo")
    with pytest.raises(UsageError, match="Give --preset"):
        export(None, random_weights=True, preset=None)
    with pytest.raises(UsageError, match="is of preset 'tiny' and differs from --preset demo"):
        export(exported.checkpoint, random_weights=False, preset="demo")
    with pytest.raises(CheckpointError, match="no-such"):
        export(tmp_path / "no-such.safetensors", random_weights=False, preset=None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_taken_is_refused_before_the_work(exported: Exported, tmp_path: Path) -> None:
    lines: list[str] = []
    (tmp_path / "mine").mkdir()
    for out, overwrite in ((exported.bundle.path, False), (tmp_path / "mine", True)):
        with pytest.raises(BundleError, match="exists already"):
            export_bundle(
                checkpoint=exported.checkpoint, random_weights=False, preset=None, seed=0, out=out, overwrite=overwrite, progress=lines.append
            )
    assert lines == []


@pytest.mark.parametrize("module", ["torch", "onnxscript", "onnxruntime"])
def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvironmentMissingError, match=rf"'{module}'.*pip install 'dissonance\[export\]'"):
        export_bundle(checkpoint=None, random_weights=True, preset="demo", seed=0, out=tmp_path / "bundle", overwrite=False)


def test_importing_the_front_needs_no_torch() -> None:
    code = "import sys; import dissonance.export.make; sys.exit(any(name in sys.modules for name in ('torch', 'onnx', 'onnxruntime', 'safetensors')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
