"""The demo bundle with plans that `doubles.FakeTensorRT` runs."""

from pathlib import Path
from typing import Any

from dissonance.bundle import Bundle, PlanGraph, PlanSpec, add_plans, open_bundle, write_bundle
from dissonance.config import ProfileConfig
from dissonance.engine.runtime.own_plans import remember_own_plan
from dissonance.machine import Gpu

DEMO = open_bundle("demo")
GPU = Gpu("NVIDIA H100 80GB HBM3", "9.0")
VERSION = "10.13.3.9"
GRAPHS = {"visual.plan": "visual.onnx", "audio.plan": "audio.onnx", "head.plan": "head.onnx"}


def copy_of_demo(path: Path) -> Bundle:
    return write_bundle(path, DEMO.spec, {name: DEMO.read(name) for name in DEMO.spec.sha256})


def with_plans(bundle: Bundle, folder: str, *, own: bool = True, most: int = 8, data: dict[str, bytes] | None = None, **changes: Any) -> Bundle:
    """A bundle with one folder more of plans: the ONNX files themselves, or `data`; `own`: as if they had been built here."""
    files = {name: bundle.read(graph) for name, graph in GRAPHS.items()} | (data or {})
    graphs = {
        name: PlanGraph(
            graph=graph, graph_sha256=bundle.spec.sha256[graph], batch="frames" if graph == "visual.onnx" else "windows",
            profile=ProfileConfig(min=1, opt=1, max=most), size_bytes=len(files[name]), build_s=1, layers=1, attentions=0,
            attentions_fused=0, types={},
        )
        for name, graph in GRAPHS.items()
    }  # fmt: skip
    spec = PlanSpec(flavour="tensorrt", version=VERSION, compute_capability="9.0", gpu=GPU.name, precision="fp16", options={}, graphs=graphs)
    ready = bundle.path.parent / f"ready-{Path(folder).name}"
    ready.mkdir()
    for name, content in files.items():
        (ready / name).write_bytes(content)
    made = add_plans(bundle, {folder: (spec.model_copy(update=changes), ready)})
    for name in files if own else ():
        remember_own_plan(made.spec.sha256[f"{folder}/{name}"])
    return made
