"""The state of a run on disk, from which it goes on exactly: weights, the optimiser's moments and the step, in one safetensors file.

Which clips come, and how they are changed, follows from the seed and the step alone, so nothing else needs keeping.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dissonance.errors import CheckpointError
from dissonance.model.tensors import load_into, read_tensors, refuse_pickle, write_whole

FORMAT = 1
_ENTRY = "dissonance-run"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_state(path: Path, *, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer, facts: dict[str, Any]) -> None:
    """Write the state so that `path` is always whole: the old one or the new one. Raises CheckpointError."""
    tensors: dict[str, Tensor] = {}
    names: dict[Tensor, str] = {parameter: f"{module}.{name}" for module, part in modules.items() for name, parameter in part.named_parameters()}
    for module, part in modules.items():
        tensors |= {f"{module}.{name}": value.detach().cpu().contiguous() for name, value in part.state_dict().items()}
    for parameter, state in optimiser.state.items():
        tensors |= {f"optimiser.{key}.{names[parameter]}": torch.as_tensor(state[key]).detach().cpu().contiguous() for key in _MOMENTS}
    data = save(tensors, {_ENTRY: json.dumps({"format": FORMAT, **facts}, sort_keys=True)})
    write_whole(path, data)


def load_state(path: Path, *, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer) -> None:
    """Put a saved state into modules and an optimiser that are built alike. Raises CheckpointError."""
    tensors = read_tensors([path])
    for module, part in modules.items():
        prefix = f"{module}."
        load_into(part, {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}, origin=str(path))
    for module, part in modules.items():
        for name, parameter in part.named_parameters():
            keys = {key: f"optimiser.{key}.{module}.{name}" for key in _MOMENTS}
            if keys["step"] not in tensors:
                continue  # frozen, or not used yet
            for key, full in keys.items():
                if full not in tensors or (key != "step" and tensors[full].shape != parameter.shape):
                    raise CheckpointError(f"The state '{path}' is damaged: it lacks {full}, or has it in another shape. Start the run anew.")
            found = {key: tensors[full] for key, full in keys.items()}
            optimiser.state[parameter] = {key: value.to(parameter.device) if key != "step" else value for key, value in found.items()}


def read_facts(path: Path) -> dict[str, Any]:
    """What a saved state says of itself. Raises CheckpointError."""
    refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as handle:
            facts = json.loads((handle.metadata() or {})[_ENTRY])
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"'{path}' is not the state of a run ({type(error).__name__}). Give the folder of a run, or start it anew.") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise CheckpointError(f"'{path}' was written by another release. Start the run anew.")
    return facts
