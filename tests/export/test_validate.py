"""`dissonance validate`: what agrees passes, what was changed is found, and so is a runtime whose rows lean on each other."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from dissonance.bundle import ENCODERS, Bundle, graph_file, open_bundle, write_bundle
from dissonance.config import ScanConfig
from dissonance.engine.media.clip import Window
from dissonance.engine.runtime import open_runtime
from dissonance.engine.runtime.base import FloatArray, HeadOutput, Runtime
from dissonance.engine.scan.single import read_file
from dissonance.errors import BundleError, EnvironmentMissingError
from dissonance.export.quantise import quantised
from dissonance.export.validate import Difference, Labelled, change_with_mates, validate
from dissonance.synth.dataset import generate

DEMO = open_bundle("demo")


def with_int8(folder: Path, *, factor: float = 1.0) -> Bundle:
    """The demo with int8 encoders, the first quantised step sizes of the picture's multiplied by `factor`."""
    files = {name: DEMO.read(name) for name in DEMO.spec.sha256}
    for name in ENCODERS:
        model = onnx.load_from_string(quantised(files[name]))
        steps = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(".steps"))
        if name == "visual.onnx":
            steps.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(steps) * np.float32(factor), steps.name))
        files[graph_file(name, "int8")] = model.SerializeToString()
    return write_bundle(folder, DEMO.spec.model_copy(update={"precisions": ("float32", "int8", "bf16")}), files)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Labelled]:
    folder = tmp_path_factory.mktemp("validate") / "clips"
    return [Labelled(folder / row.file, row.forgery != "none") for row in generate(folder, count=4, seed=31)]


def test_the_demo_agrees_in_every_precision(clips: list[Labelled], tmp_path: Path) -> None:
    bundle = with_int8(tmp_path / "b")
    found = validate(bundle, clips, scan=ScanConfig(), threads=1)
    assert found["holds"]
    assert (found["files"], found["left_out"], found["windows_among_mates"]) == (4, {}, 4)
    assert set(found["artefacts"]) == {"float32", "int8"}
    assert set(found["not_run"]) == {"bf16"}
    for of in found["artefacts"].values():
        assert of["flips"] == 0
        assert of["auc"] == of["auc_of_torch"]
        assert of["batch_mates"] <= 1e-5
    assert found["artefacts"]["float32"]["probabilities"]["largest"] < 1e-4
    assert 1e-5 < found["artefacts"]["int8"]["probabilities"]["largest"] < 0.02


def test_a_changed_artefact_is_beyond_its_tolerance(clips: list[Labelled], tmp_path: Path) -> None:
    found = validate(with_int8(tmp_path / "b", factor=1.5), clips[:2], scan=ScanConfig(), threads=1)
    assert not found["holds"]
    assert "probability" in found["artefacts"]["int8"]["beyond"]
    assert found["artefacts"]["float32"]["holds"]


def test_files_without_a_score_are_counted_and_none_at_all_is_an_error(clips: list[Labelled], tmp_path: Path) -> None:
    (tmp_path / "none.mp4").write_bytes(b"no video")
    broken = Labelled(tmp_path / "none.mp4", False)
    assert sum(validate(DEMO, [broken, clips[0]], scan=ScanConfig(), threads=1)["left_out"].values()) == 1
    with pytest.raises(BundleError, match="no file has a score"):
        validate(DEMO, [broken], scan=ScanConfig(), threads=1)


class Leaning(Runtime):
    """A runtime whose pictures are judged by the batch's mean brightness: what one scale for a whole batch comes down to."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.name, self.precision = runtime.name, runtime.precision

    def encode_frames(self, crops: NDArray[np.uint8], frame_index: NDArray[np.int64]) -> FloatArray:
        return self._runtime.encode_frames(crops, frame_index) * np.float32(1 + crops.mean() / 100)

    def encode_sound(self, mel: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
        return self._runtime.encode_sound(mel, mask)

    def run_head(self, visual: FloatArray, audio: FloatArray, mask: NDArray[np.bool_]) -> HeadOutput:
        return self._runtime.run_head(visual, audio, mask)


def test_rows_that_lean_on_their_mates_are_found(clips: list[Labelled]) -> None:
    events = read_file(clips[0].path, spec=DEMO.spec, config=ScanConfig())
    windows = [event.message for event in events if isinstance(event.message, Window)]
    whole = [window for window in windows if len(window.new_crops) == DEMO.spec.model.frames and window.mel is not None]
    runtime = open_runtime(DEMO, threads=1)
    assert change_with_mates(runtime, whole[:2], DEMO.spec) <= 1e-5
    assert change_with_mates(Leaning(runtime), whole[:2], DEMO.spec) > 1e-5
    assert change_with_mates(Leaning(runtime), whole[:1], DEMO.spec) > 1e-5


def test_differences_are_counted_over_all_calls() -> None:
    difference = Difference()
    difference.add(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    difference.add(np.array([3.0, 0.0]), np.array([0.0, 0.0]))
    assert difference.figures() == pytest.approx({"largest": 3.0, "rms": (13 / 4) ** 0.5, "relative": (13 / 17) ** 0.5})
    difference.add(np.array([np.nan]), np.array([1.0]))
    assert difference.figures()["largest"] == np.inf


def test_a_precision_that_is_not_there_names_the_remedy() -> None:
    with pytest.raises(BundleError, match="--precision int8"):
        open_runtime(DEMO, precision="int8")
    with pytest.raises(EnvironmentMissingError, match="no bf16"):
        open_runtime(DEMO, precision="bf16")


def test_the_command_exits_with_5_beyond_a_tolerance(tmp_path: Path) -> None:
    with_int8(tmp_path / "b", factor=1.5)
    command = [sys.executable, "-m", "dissonance", "validate", str(tmp_path / "b"), "--most", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert "int8: probability" in done.stderr
    assert json.loads(done.stdout)["artefacts"]["int8"]["beyond"]
