"""Steps of `gpu_acceptance` that need the whole project: runtimes, and scans, on this GPU beside torch in float32 on the CPU."""

import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from bench._rows import Row, at_most, measured
from bench._site import Site, failed, missing, skipped

if TYPE_CHECKING:
    from dissonance.bundle import Bundle
    from dissonance.engine.runtime.base import Runtime


def torch_numbers(_site: Site) -> list[Row]:
    """The torch runtime on this GPU beside the same on the CPU in float32, with the weights that ship."""
    if absent := missing("pydantic", "yaml", "safetensors", "numpy"):
        return [skipped("torch runtime: numbers", absent)]
    from dissonance.bundle import Precision, open_bundle
    from dissonance.engine.runtime import open_runtime

    bundle, rows = open_bundle("demo"), []
    limits: dict[Precision, float] = {"float32": 1e-4, "fp16": 5e-3, "bf16": 3e-2}
    for precision, limit in limits.items():
        worst = _runtime_error(open_runtime(bundle, name="torch", device="cuda", precision=precision), bundle)
        rows.append(at_most(f"torch runtime in {precision}: error of features", worst, limit, "relative RMS, CUDA graphs against the CPU in float32"))
    return rows


def tensorrt_numbers(_site: Site) -> list[Row]:
    """Plans of the bundle that ships, built here and now in float32, the precision it has, beside torch on the CPU."""
    name = "TensorRT runtime: numbers"
    if absent := missing("pydantic", "yaml", "safetensors", "numpy", "cuda"):
        return [skipped(name, absent)]
    from dissonance.bundle import open_bundle, write_bundle
    from dissonance.engine.runtime import open_runtime
    from dissonance.engine.runtime.plans import find_libraries
    from dissonance.errors import DissonanceError, EnvironmentMissingError
    from dissonance.export.tensorrt import build_plans

    try:
        libraries = find_libraries()
    except EnvironmentMissingError as error:
        return [skipped(name, str(error))]
    demo, rows = open_bundle("demo"), []
    rows += [skipped(f"{flavour}: numbers", reason) for flavour, reason in libraries.unusable.items()]
    for flavour, version in libraries.versions.items():
        with tempfile.TemporaryDirectory(prefix="dissonance-plans-") as folder, _own_user_folders(Path(folder)):
            copy = write_bundle(Path(folder) / "b", demo.spec, {file: demo.read(file) for file in demo.spec.sha256})
            try:
                built, _ = build_plans(copy.path, flavour=flavour, precisions=["float32"])
                worst = _runtime_error(open_runtime(built, name="tensorrt", precision="float32"), demo)
            except EnvironmentMissingError as error:  # TensorRT-RTX does not build for every GPU
                rows.append(skipped(f"{flavour}: numbers", str(error)))
                continue
            except DissonanceError as error:
                rows.append(failed(f"{flavour}: numbers", error))
                continue
        rows.append(at_most(f"{flavour} in float32: error of features", worst, 1e-4, f"relative RMS, {version} against torch on the CPU"))
    return rows


@contextmanager
def _own_user_folders(folder: Path) -> Iterator[None]:
    """What is built here is remembered and cached for this run only."""
    with patch.dict(os.environ, {"XDG_STATE_HOME": str(folder / "state"), "XDG_CACHE_HOME": str(folder / "cache")}):
        yield


def _runtime_error(runtime: "Runtime", bundle: "Bundle") -> float:
    """The larger relative RMS error of both encoders' features, beside torch in float32 on the CPU."""
    import numpy as np

    from dissonance.engine.runtime import open_runtime

    model, generator = bundle.spec.model, np.random.default_rng(secrets.randbelow(2**31))
    crops = generator.integers(0, 256, (37, model.visual.image_size, model.visual.image_size, 3), np.uint8)
    mel = generator.normal(size=(5, model.audio.mel_bins, 4 * model.frames)).astype(np.float32)
    mask = np.arange(model.frames) < np.array([[model.frames], [11], [1], [30], [model.frames]])
    plain, valid, worst = open_runtime(bundle, name="torch", device="cpu"), np.repeat(mask, 2, axis=1), 0.0
    for _ in range(2):  # the second time graphs are launched that the first has captured
        for call, arguments, rows in (("encode_frames", (crops, np.arange(37)), slice(None)), ("encode_sound", (mel, mask), valid)):
            found, expected = (getattr(each, call)(*arguments)[rows] for each in (runtime, plain))
            worst = max(worst, float(np.linalg.norm(found - expected) / np.linalg.norm(expected)))
    return worst


def scans(site: Site) -> list[Row]:
    """`dissonance scan` of clips that nobody has seen: scores on this GPU beside those of the CPU, and how much video an hour."""
    if absent := missing("av", "cv2", "pyarrow", "pydantic", "yaml", "typer", "rich", "fsspec", "safetensors"):
        return [skipped("scans", absent)]
    from bench._scans import dissonance, table

    count, duration_s = (64, 8) if site.large else (2, 2)
    runs: dict[str, tuple[float, tuple[object, ...]]] = {
        "float32": (1e-4, ("--runtime", "torch", "--device", site.device)),
        "bf16": (0.02, ("--runtime", "torch", "--device", site.device, "--precision", "bf16")),
    }
    rows = []
    if absent := missing("nvidia.dali"):
        rows.append(skipped("scan with DALI", absent))
    elif site.device == "cuda":
        runs["bf16, decoded by DALI"] = (0.05, (*runs["bf16"][1], "--decoder", "dali"))
    with tempfile.TemporaryDirectory(prefix="dissonance-scans-") as folder:
        clips, plain = Path(folder) / "clips", Path(folder) / "plain"
        dissonance("synth", clips, "--count", count, "--duration", duration_s, "--seed", site.seed)
        dissonance("scan", clips, "-o", plain, "--runtime", "torch", "--device", "cpu")
        expected = {str(row["uri"]): row for row in table(plain, "files")}
        for precision, (limit, options) in runs.items():
            out = Path(folder) / precision
            dissonance("scan", clips, "-o", out, *options)
            found = {str(row["uri"]): row for row in table(out, "files")}
            worst = max(_score_error(found[uri], row) for uri, row in expected.items())
            rows.append(at_most(f"scan in {precision}: largest difference of a probability", worst, limit, f"{len(found)} clips, against the CPU's"))
            took_s = json.loads((out / "run.json").read_text())["summary"]["elapsed_s"]
            decoders = ", ".join(sorted({str(row["decoder"]) for row in found.values()}))
            hours = sum(float(row["duration_s"] or 0) for row in found.values()) / took_s
            how = f"in {took_s:.1f} s with all starts; {os.cpu_count()} CPU cores, decoded by {decoders}"
            rows.append(measured(f"scan in {precision}: hours of video an hour", hours, how))
    return rows


def _score_error(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """How far a file's probability is off; infinite where it has another status."""
    if found["status"] != expected["status"]:
        return float("inf")
    if (found["p_fake"] is None) != (expected["p_fake"] is None):
        return float("inf")
    return abs(found["p_fake"] - expected["p_fake"]) if expected["p_fake"] is not None else 0.0
