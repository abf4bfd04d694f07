"""One tiny bundle, exported once for all the tests that only look at it."""

from pathlib import Path
from typing import NamedTuple

import pytest

from dissonance.bundle import Bundle
from dissonance.export.make import export_bundle
from dissonance.model.checkpoint import load_checkpoint, save_checkpoint
from dissonance.model.network import AudioVisualNetwork
from tests.model.tiny import tiny_network


class Exported(NamedTuple):
    network: AudioVisualNetwork
    checkpoint: Path
    bundle: Bundle
    lines: list[str]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """`tiny_network` with two prompts a layer and a frame, trained on "synthetic", so every weight in it is away from zero."""
    folder = tmp_path_factory.mktemp("exported")
    network = tiny_network(layers=2, prompts={"count": 2, "per_frame": True, "readout": "cls+prompt"})
    checkpoint = save_checkpoint(network, folder / "checkpoint", trained_on="synthetic")
    lines: list[str] = []
    bundle = export_bundle(
        checkpoint=checkpoint, random_weights=False, preset=None, seed=0, out=folder / "bundle", overwrite=False, progress=lines.append
    )
    return Exported(load_checkpoint(checkpoint).network, checkpoint, bundle, lines)
