"""Weights on disk: safetensors only. A pickle can run code when it is opened, so none is ever opened."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dissonance.errors import CheckpointError
from dissonance.files import replacing

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def refuse_pickle(path: Path) -> None:
    """Raise CheckpointError where `path` is a pickle, or a folder that holds its weights in nothing else."""
    found = path if path.suffix in PICKLES else None
    if path.is_dir() and not ((path / WEIGHTS).exists() or (path / INDEX).exists()):
        found = next((file for file in sorted(path.iterdir()) if file.suffix in PICKLES), None)
    if found is not None:
        raise CheckpointError(
            f"'{found}' is a pickle, which can run code when it is opened, so it is refused. Convert it to safetensors "
            f"(with transformers: model.save_pretrained(FOLDER, safe_serialization=True)) and give that folder."
        )


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint's folder: model.safetensors, or the shards that its index names. Raises CheckpointError."""
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    index = path / INDEX
    if not index.is_file():
        raise CheckpointError(f"No checkpoint in '{path}': there is neither {WEIGHTS} nor {INDEX}. Complete the download.")
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        shards = [path / name for name in names if isinstance(name, str) and Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"'{index}' is not an index of safetensors shards: {error!r}. Save the checkpoint again.") from error
    if len(shards) != len(names) or not names:
        raise CheckpointError(f"'{index}' names a shard that is not a plain file name beside it. Save the checkpoint again.")
    for shard in shards:
        refuse_pickle(shard)
        if not shard.is_file():
            raise CheckpointError(f"'{index}' names '{shard.name}', which is not there. Complete the download.")
    return shards


def read_tensors(files: Iterable[Path], *, prefixes: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """Tensors of `files` whose names start with the first of `prefixes` that any name has, without that prefix. Nothing else is read.

    Raises CheckpointError.
    """
    try:
        handles: list[Any] = [safe_open(file, framework="pt") for file in files]
        names = {name: handle for handle in handles for name in list(handle.keys())}
        prefix = next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in names)), "")
        return {name.removeprefix(prefix): handle.get_tensor(name) for name, handle in names.items() if name.startswith(prefix)}
    except (OSError, SafetensorError) as error:
        listed = ", ".join(f"'{file}'" for file in files)
        raise CheckpointError(f"Cannot read {listed} as safetensors: {error}. Complete the download, or save the checkpoint again.") from error


def load_into(module: nn.Module, tensors: dict[str, Tensor], *, origin: str, keep: frozenset[str] = frozenset()) -> None:
    """Copy `tensors` into `module` as float32; those that `keep` names stay as they are.

    Raises CheckpointError for a tensor that is missing, unknown, of another shape, or holds NaN or infinity.
    """
    own = {name: value for name, value in module.state_dict().items() if name not in keep}
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unknown:
        words = [f"it {verb} {names[0]} ({len(names)} in all)" for verb, names in (("lacks", missing), ("holds unknown", unknown)) if names]
        raise CheckpointError(f"Checkpoint '{origin}' does not fit the model: {' and '.join(words)}. Give the checkpoint the preset was made for.")
    for name, value in tensors.items():
        if value.shape != own[name].shape:
            raise CheckpointError(
                f"Checkpoint '{origin}' does not fit the model: {name} has shape {tuple(value.shape)}, the model's has {tuple(own[name].shape)}. "
                "Give the checkpoint the preset was made for, or mend the preset."
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"Checkpoint '{origin}' is damaged: {name} holds NaN or infinity. Get or train it again.")
    module.load_state_dict({name: value.to(own[name].dtype) for name, value in tensors.items()}, strict=False)


def write_whole(path: Path, data: bytes) -> None:
    """Write a checkpoint's file: it is whole or not there. Raises CheckpointError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise CheckpointError(f"Cannot write checkpoint '{path}': {error.strerror or error}. Free some space or choose another place.") from error
