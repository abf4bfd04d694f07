"""The project's own checkpoints: what is saved comes back, and nothing else gets in."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save_file

from dissonance.errors import CheckpointError
from dissonance.model.checkpoint import UNTRAINED, checkpoint_bytes, load_checkpoint, save_checkpoint
from tests.model.tiny import FRAMES, tiny_network

FORMS = {"prompts": {"count": 2, "per_frame": True, "readout": "cls+prompt"}, "audio_prompts": {"form": "prepend"}}


@pytest.mark.parametrize("name", ["folder", "file.safetensors"])
@torch.inference_mode()
def test_what_is_saved_comes_back(tmp_path: Path, name: str) -> None:
    network = tiny_network(**FORMS)
    written = save_checkpoint(network, tmp_path / name, trained_on="synthetic")
    assert written.suffix == ".safetensors"
    loaded = load_checkpoint(tmp_path / name)
    assert loaded.trained_on == "synthetic"
    assert loaded.network.config == network.config
    inputs = torch.rand(2, FRAMES, 3, 16, 16), torch.randn(2, 10, 4 * FRAMES), torch.ones(2, FRAMES, dtype=torch.bool)
    assert torch.equal(loaded.network(*inputs).logit_fused, network(*inputs).logit_fused)
    assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_the_same_network_gives_the_same_bytes_readable_by_safetensors_alone(tmp_path: Path) -> None:
    data = checkpoint_bytes(tiny_network(), trained_on=UNTRAINED)
    assert data == checkpoint_bytes(tiny_network(), trained_on=UNTRAINED)
    (tmp_path / "x.safetensors").write_bytes(data)
    with safe_open(tmp_path / "x.safetensors", framework="np") as handle:
        document = json.loads(handle.metadata()["dissonance"])
    assert document["trained_on"] == UNTRAINED
    assert document["config"]["preset"] == "tiny"


def test_a_checkpoint_that_was_damaged_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = save_checkpoint(tiny_network(), tmp_path / "x.safetensors", trained_on="synthetic")
    tensors = load(file.read_bytes())
    with safe_open(file, framework="pt") as handle:
        metadata = handle.metadata()
    name = "head.fusion.proj.bias"
    for change, message in (
        ({name: torch.full((12,), float("nan"))}, f"{name} holds NaN"),
        ({name: torch.zeros(5)}, rf"{name} has shape \(5,\), the model's has \(12,\)"),
        ({"extra": torch.zeros(1)}, "unknown extra"),
    ):
        save_file(tensors | change, file, metadata)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(file)
    for broken, message in (
        (None, "not a checkpoint of this network"),
        ({"dissonance": "{"}, "not a checkpoint of this network"),
        ({"dissonance": json.dumps({"config": {"preset": "x", "wings": 2}, "trained_on": "synthetic"})}, "wings: unknown key"),
        ({"dissonance": json.dumps({**json.loads(metadata["dissonance"]), "trained_on": None})}, "trained_on is None"),
    ):
        save_file(tensors, file, broken)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(file)


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.ckpt"])
def test_a_pickle_is_refused(tmp_path: Path, name: str) -> None:
    torch.save({}, tmp_path / name)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(CheckpointError, match="is a pickle"):
            load_checkpoint(path)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors"])
def test_what_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "x.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        load_checkpoint(file)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(CheckpointError, match="Cannot write checkpoint"):
        save_checkpoint(tiny_network(), tmp_path / "taken" / "inside", trained_on="synthetic")


def test_a_disk_that_fills_up_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_checkpoint(tiny_network(), tmp_path / "x.safetensors", trained_on="synthetic")
    assert list(tmp_path.iterdir()) == []
