"""Checkpoints of the whole network: one safetensors file that also holds the resolved ModelConfig and what it was trained on.

Both are in one metadata entry, `dissonance`, as JSON: safetensors writes several entries in no fixed order, and the same network should give
the same bytes. A bundle's weights.safetensors is such a file too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dissonance.bundle import CalibrationSpec, ModalityCase
from dissonance.config import ModelConfig, parse_config
from dissonance.errors import CheckpointError, ConfigError
from dissonance.model.network import AudioVisualNetwork, build_network
from dissonance.model.tensors import WEIGHTS, load_into, read_tensors, refuse_pickle, write_whole

METADATA_KEY = "dissonance"
_CALIBRATION = TypeAdapter(dict[ModalityCase, CalibrationSpec])
UNTRAINED = "nothing (random weights)"


@dataclass(frozen=True)
class Checkpoint:
    """A network as it was saved, in evaluation mode."""

    network: AudioVisualNetwork
    trained_on: str  # UNTRAINED, "synthetic", or the data set's name
    training: dict[str, Any] | None = None  # the run's whole configuration
    calibration: dict[ModalityCase, CalibrationSpec] | None = None  # of the cases that were calibrated


def checkpoint_bytes(
    network: AudioVisualNetwork,
    *,
    trained_on: str,
    training: Mapping[str, Any] | None = None,
    calibration: Mapping[ModalityCase, CalibrationSpec] | None = None,
) -> bytes:
    """The safetensors file of a network: the same bytes for the same weights."""
    document: dict[str, Any] = {"config": network.config.model_dump(mode="json"), "trained_on": trained_on}
    if training is not None:
        document["training"] = dict(training)
    if calibration is not None:
        document["calibration"] = {case: spec.model_dump(mode="json") for case, spec in calibration.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    data: bytes = save(tensors, {METADATA_KEY: json.dumps(document, sort_keys=True)})
    return data


def save_checkpoint(
    network: AudioVisualNetwork,
    path: Path,
    *,
    trained_on: str,
    training: Mapping[str, Any] | None = None,
    calibration: Mapping[ModalityCase, CalibrationSpec] | None = None,
) -> Path:
    """Write a checkpoint: to `path` where it ends in .safetensors, to `path`/model.safetensors otherwise. It is whole or not there.

    `training` is the configuration of the run that made it. Returns the file. Raises CheckpointError where it cannot be written.
    """
    file = path if path.suffix == ".safetensors" else path / WEIGHTS
    write_whole(file, checkpoint_bytes(network, trained_on=trained_on, training=training, calibration=calibration))
    return file


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that `save_checkpoint` wrote, by its file or its folder. Raises CheckpointError."""
    refuse_pickle(path)
    file = path / WEIGHTS if path.is_dir() else path
    try:
        with safe_open(file, framework="pt") as handle:
            metadata = handle.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot read checkpoint '{file}': {error}. Give a file that training wrote, or its folder.") from error
    try:
        document = json.loads(metadata[METADATA_KEY])
        trained_on = document["trained_on"]
        config = parse_config(ModelConfig, document["config"], origin=f"inside '{file}'")
        training, calibration = document.get("training"), document.get("calibration")
        calibrated = None if calibration is None else _CALIBRATION.validate_python(calibration)
    except ConfigError as error:
        raise CheckpointError(f"Checkpoint '{file}' was written by another release. {error}") from error
    except ValidationError as error:
        raise CheckpointError(f"Checkpoint '{file}' has a calibration that cannot be: {error}. Train or calibrate it again.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"'{file}' is not a checkpoint of this network: its metadata has no '{METADATA_KEY}' entry with config and trained_on. "
            "Give a file that training wrote (a CLIP or Whisper checkpoint is named in a preset's backbone instead)."
        ) from error
    if not isinstance(trained_on, str) or not trained_on:
        raise CheckpointError(f"Checkpoint '{file}': trained_on is {trained_on!r}, not the name of what it was trained on.")
    if training is not None and not isinstance(training, dict):
        raise CheckpointError(f"Checkpoint '{file}': training is {type(training).__name__}, not a configuration.")
    network = build_network(config, seed=0)
    load_into(network, read_tensors([file]), origin=str(file))
    return Checkpoint(network=network.eval(), trained_on=trained_on, training=training, calibration=calibrated)
