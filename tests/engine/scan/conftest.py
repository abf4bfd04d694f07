"""Clips that scans are tried on, drawn once, and scans of them."""

from pathlib import Path

import pytest

from dissonance.synth.config import SynthConfig
from dissonance.synth.dataset import generate
from tests.engine.scan.runs import Rows, by_uri, run_scan


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six talking heads; the last has two people."""
    folder = tmp_path_factory.mktemp("clips")
    made = [folder / row.file for row in generate(folder, count=5, seed=5, config=SynthConfig(duration_s=2.4, two_person_share=0))]
    pair = tmp_path_factory.mktemp("pair")
    return made + [pair / row.file for row in generate(pair, count=1, seed=6, config=SynthConfig(duration_s=2.0, two_person_share=1))]


@pytest.fixture(scope="session")
def reference(clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The rows of a plain scan of the clips."""
    out = tmp_path_factory.mktemp("reference") / "out"
    summary = run_scan(clips, out, workers=1)
    assert (summary.inputs, summary.scored) == (6, 6)
    return by_uri(out)
