"""Imports point one way, and a scan never needs a GPU library or torch (the map is in CONTRIBUTING.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "dissonance"

# A room may import itself and these.
BASE = {"bundle", "config", "errors", "files", "locks", "machine", "mel", "tables"}
ALLOWED = {
    "errors": set(),
    "machine": set(),
    "mel": set(),
    "files": {"errors"},
    "locks": {"errors"},
    "config": {"errors"},
    "tables": {"errors"},
    "bundle": {"config", "errors", "files"},
    "kernels": BASE | {"model"},  # a kernel's reference is the model's own function
    "model": BASE,
    "synth": {"config", "errors", "files"},
    "engine": BASE | {"kernels"},
    "export": BASE | {"model", "engine", "kernels"},
    "training": BASE | {"model", "engine", "kernels", "synth"},
    "doctor": BASE | {"engine"},
    "benchmarks": BASE,
    "console": BASE | {"engine", "doctor", "synth", "training"},
    "cli": None,  # anything
    "__main__": None,
}
EXTRA_PERMISSION = {("engine/runtime/torch_runtime.py", "model")}  # the one place where the engine may know the torch network

HEAVY = {"torch", "triton", "tensorrt", "tensorrt_rtx", "nvidia", "ray", "transformers", "cuda", "pynvml", "nvtx", "onnx", "onnxscript"}
HEAVY_ROOMS = {"model", "export", "training", "kernels"}  # these may import them at the top of a module


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether at the top level of the module) for every import statement."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    room, place = room_of(path), path.relative_to(SOURCE).as_posix()
    allowed = ALLOWED[room]
    for module, _ in imports(path):
        parts = module.split(".")
        if parts[0] != "dissonance" or allowed is None or len(parts) == 1:
            continue
        target = parts[1]
        assert target == room or target in allowed or (place, target) in EXTRA_PERMISSION, f"{place} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_heavy_libraries_stay_in_their_rooms(path: Path) -> None:
    room, place = room_of(path), path.relative_to(SOURCE).as_posix()
    for module, at_top in imports(path):
        if module.split(".")[0] in HEAVY:
            assert room in HEAVY_ROOMS or place.startswith("engine/runtime/") or not at_top, f"{place} imports {module}"


def test_nothing_loads_pickle() -> None:
    for path in FILES:
        names = {module.split(".")[0] for module, _ in imports(path)}
        assert not names & {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}, path


def test_a_scan_imports_no_torch() -> None:
    code = (
        "import sys, dissonance.cli, dissonance.engine.scan.pipeline, dissonance.engine.scan.worker, dissonance.synth; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
