"""Checkpoints of the whole network: one safetensors file that also holds the resolved ModelConfig and what it was trained on.

Both are in one metadata entry, `dissonance`, as JSON: safetensors writes several entries in no fixed order, and the same network should give
the same bytes. A bundle's weights.safetensors is such a file too.
"""

import json
import os
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dissonance.config import ModelConfig, parse_config
from dissonance.errors import CheckpointError, ConfigError
from dissonance.model.network import AudioVisualNetwork, build_network
from dissonance.model.tensors import WEIGHTS, load_into, read_tensors, refuse_pickle

METADATA_KEY = "dissonance"
UNTRAINED = "nothing (random weights)"


@dataclass(frozen=True)
class Checkpoint:
    """A network as it was saved, in evaluation mode."""

    network: AudioVisualNetwork
    trained_on: str  # UNTRAINED, "synthetic", or the data set's name


def checkpoint_bytes(network: AudioVisualNetwork, *, trained_on: str) -> bytes:
    """The safetensors file of a network: the same bytes for the same weights."""
    document = {"config": network.config.model_dump(mode="json"), "trained_on": trained_on}
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    data: bytes = save(tensors, {METADATA_KEY: json.dumps(document, sort_keys=True)})
    return data


def save_checkpoint(network: AudioVisualNetwork, path: Path, *, trained_on: str) -> Path:
    """Write a checkpoint: to `path` where it ends in .safetensors, to `path`/model.safetensors otherwise. It is whole or not there.

    Returns the file. Raises CheckpointError where it cannot be written.
    """
    file = path if path.suffix == ".safetensors" else path / WEIGHTS
    staging = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with staging.open("wb") as stream:
            stream.write(checkpoint_bytes(network, trained_on=trained_on))
            stream.flush()
            os.fsync(stream.fileno())
        staging.rename(file)
    except OSError as error:
        raise CheckpointError(f"Cannot write checkpoint '{file}': {error.strerror or error}. Free some space or choose another place.") from error
    finally:
        with suppress(OSError):
            staging.unlink()
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
    except ConfigError as error:
        raise CheckpointError(f"Checkpoint '{file}' was written by another release. {error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"'{file}' is not a checkpoint of this network: its metadata has no '{METADATA_KEY}' entry with config and trained_on. "
            "Give a file that training wrote (a CLIP or Whisper checkpoint is named in a preset's backbone instead)."
        ) from error
    if not isinstance(trained_on, str) or not trained_on:
        raise CheckpointError(f"Checkpoint '{file}': trained_on is {trained_on!r}, not the name of what it was trained on.")
    network = build_network(config, seed=0)
    load_into(network, read_tensors([file]), origin=str(file))
    return Checkpoint(network=network.eval(), trained_on=trained_on)
