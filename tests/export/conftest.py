"""One tiny bundle, exported once for all the tests that only look at it."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from dissonance.bundle import ENCODERS, Bundle, graph_file, open_bundle, write_bundle
from dissonance.export.make import export_bundle
from dissonance.export.onnx import graphs
from dissonance.export.typed import typed
from dissonance.model.checkpoint import load_checkpoint, save_checkpoint
from dissonance.model.network import AudioVisualNetwork
from tests.model.tiny import tiny_network


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One test process for this folder: what is exported once for all its tests takes long."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.xdist_group("export"))


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


@pytest.fixture(scope="session")
def half_demo(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo bundle that ships, with its encoders in fp16 and bf16 too."""
    demo = open_bundle("demo")
    files = {name: demo.read(name) for name in demo.spec.sha256}
    for graph in graphs(load_checkpoint(demo.path / "weights.safetensors").network):
        for precision in ("fp16", "bf16") if graph.name in ENCODERS else ():
            files[graph_file(graph.name, precision)] = typed(graph, precision)
    spec = demo.spec.model_copy(update={"precisions": ("float32", "bf16", "fp16")})
    return write_bundle(tmp_path_factory.mktemp("half") / "bundle", spec, files)


@pytest.fixture
def bundle(half_demo: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """`half_demo`, to be written to; what a build remembers of its plans stays in the test's folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return open_bundle(shutil.copytree(half_demo.path, tmp_path / "bundle"))
