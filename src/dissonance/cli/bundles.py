"""`export`, `validate`, `build`: from a checkpoint to what scans, whether that gives the checkpoint's numbers, and TensorRT's plans of it."""

import json
import random
import re
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from dissonance import errors
from dissonance.bundle import StaticPrecision, parse_precision
from dissonance.cli.options import JsonOption
from dissonance.cli.scan import scan_config
from dissonance.export.folds import FOLDS, folds_without

if TYPE_CHECKING:  # --help needs none of them
    from rich.console import Console

    from dissonance.export.ranges import Clips
    from dissonance.training.labels import Clip

Layout = Literal["auto", "fakeavceleb", "kodf", "manifest"]
CLIPS_TO_QUANTISE_ON = 16
SEED_TO_QUANTISE_ON = 4100  # of clips that `validate` does not draw

commands = typer.Typer()


@commands.command(epilog="Example: dissonance export --random-weights --preset base -o bundle     dissonance export model.safetensors -o bundle")
def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="The bundle folder to make.")],
    checkpoint: Annotated[
        Path | None,
        typer.Argument(help="A checkpoint (.safetensors), a run's folder, or a bundle that is to have more precisions.", metavar="[CHECKPOINT]"),
    ] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="An untrained network, for throughput work.")] = False,
    preset: Annotated[str | None, typer.Option(help="demo, base, large, or a YAML file; with --random-weights.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle.")] = False,
    no_fold: Annotated[list[str] | None, typer.Option(help=f"A fold to leave out ({', '.join(sorted(FOLDS))}); repeat it.", metavar="FOLD")] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            help="Of the encoders, beside float32; repeat it. int8: for CPUs. fp16, bf16, fp8, int8-qdq: for TensorRT, the last two with 8-bit MLPs."
        ),
    ] = None,
    quantise_on: Annotated[
        Path | None,
        typer.Option(
            help="A labelled data set whose windows fix the scales of fp8 and int8-qdq. Synthetic clips are drawn where none is given; for random "
            "weights noise will do.",
            metavar="DATA",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a checkpoint into a bundle that scans: ONNX graphs, weights, hashes, checked against torch before it is finished."""
    from dissonance.console import printable, stderr, stdout
    from dissonance.export.make import export_bundle

    console = stderr()
    precisions = [parse_precision(name) for name in precision or ()]
    if quantise_on is not None and not set(precisions) & set(get_args(StaticPrecision)):
        raise errors.UsageError(f"--quantise-on is for --precision {' and '.join(get_args(StaticPrecision))}. Add one of them, or leave it out.")
    if quantise_on is not None and random_weights:
        raise errors.UsageError("Random weights are quantised on noise. Leave --quantise-on out.")
    bundle = export_bundle(
        checkpoint=checkpoint,
        random_weights=random_weights,
        preset=preset,
        seed=seed,
        out=out,
        overwrite=overwrite,
        folds=folds_without(no_fold or ()),
        precisions=precisions,
        quantise_on=_to_quantise_on(console, quantise_on),
        progress=lambda line: console.print(line, markup=False),
    )
    if as_json:
        print(json.dumps({"path": str(bundle.path), "id": bundle.id, **bundle.spec.model_dump(mode="json")}))
    else:
        stdout().print(f"bundle {printable(str(bundle.path))} ({bundle.id[:12]})" + (f": {bundle.warning}" if bundle.warning else ""), markup=False)


@commands.command(epilog="Example: dissonance validate demo     On your own labelled clips: dissonance validate bundle data/FakeAVCeleb --most 200")
def validate(
    bundle: Annotated[str, typer.Argument(help="A bundle folder, or the name of one that ships with the package.", metavar="BUNDLE")],
    data: Annotated[Path | None, typer.Argument(help="A labelled data set; synthetic clips are drawn where none is given.", metavar="[DATA]")] = None,
    most: Annotated[int, typer.Option(min=1, help="Clips that are drawn, or taken of the data set.")] = 40,
    seed: Annotated[int, typer.Option(help="Of the clips that are drawn, or of the choice.")] = 9000,
    layout: Annotated[Layout, typer.Option(help="Of the data set.")] = "auto",
    config: Annotated[Path | None, typer.Option(help="A scan config in YAML: how faces and speech are found.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Inference threads; 0: one per core.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare every precision of a bundle that can run here with the network in torch and float32, on real windows.

    Exits with 5 where one is beyond the tolerances that the bundle states.
    """
    from dissonance.bundle import open_bundle
    from dissonance.console import counted, stderr, stdout, validation_table

    errors.require_extra("export", "Validating", "torch", "safetensors", "sklearn")
    from dissonance.export.validate import Labelled
    from dissonance.export.validate import validate as run

    opened, settings = open_bundle(bundle), scan_config(config, detector=None, yunet_model=None, boxes=None, execution={})
    console = stderr()
    with _clips(console, data, most=most, seed=seed, layout=layout) as clips:
        files = [Labelled(clip.path, clip.fake) for clip in clips]
        found = run(opened, counted(console, "comparing clips", len(files), files), scan=settings, threads=threads)
    if as_json:
        print(json.dumps(found))
    else:
        stdout().print(validation_table(found))
    if not found["holds"]:
        too_far = "; ".join(f"{name}: {', '.join(of['beyond'])}" for name, of in found["artefacts"].items() if of["beyond"])
        raise errors.BundleError(
            f"Bundle '{bundle}' is beyond its tolerances ({too_far}). Do not scan with that precision, or export again from the checkpoint."
        )


@contextmanager
def _clips(console: "Console", data: Path | None, *, most: int, seed: int, layout: Layout) -> Iterator[Sequence["Clip"]]:
    """At most so many clips of a labelled data set, or so many that are drawn for as long as this lasts."""
    from dissonance.console import counted
    from dissonance.machine import available_cores
    from dissonance.synth.dataset import generate
    from dissonance.training.datasets import DatasetConfig, open_dataset

    with tempfile.TemporaryDirectory(prefix="dissonance-clips-") as drawn:
        if data is None:
            with closing(generate(Path(drawn) / "clips", count=most, seed=seed, workers=available_cores())) as rows:
                deque(counted(console, "drawing clips", most, rows), maxlen=0)
        clips = open_dataset(DatasetConfig(path=data or Path(drawn) / "clips", layout=layout)).clips
        yield clips if len(clips) <= most else random.Random(seed).sample(clips, most)


@contextmanager
def _to_quantise_on(console: "Console", data: Path | None) -> Iterator["Clips"]:
    """Clips for export, whose names and folders stay out of the bundle."""
    from dissonance.export.ranges import Clips

    with _clips(console, data, most=CLIPS_TO_QUANTISE_ON, seed=SEED_TO_QUANTISE_ON, layout="auto") as clips:
        origin = f"{len(clips)} synthetic clips (seed {SEED_TO_QUANTISE_ON})" if data is None else f"{len(clips)} clips of {data.resolve().name}"
        yield Clips([clip.path for clip in clips], origin, drawn=data is None)


@commands.command(epilog="Example: dissonance build bundle     dissonance build bundle --flavour tensorrt_rtx --targets 8.9 12.0 --precision fp16")
def build(
    arguments: Annotated[list[str] | None, typer.Argument(help="The bundle folder to build plans in.", metavar="BUNDLE")] = None,
    flavour: Annotated[str, typer.Option(help="tensorrt (for the GPU in this machine) or tensorrt_rtx (for RTX GPUs).")] = "tensorrt",
    targets: Annotated[
        list[str] | None,
        typer.Option(help="Compute capabilities to build for, with tensorrt_rtx: no GPU is needed then. One or several.", metavar="CC..."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="Of the encoders (fp16, bf16, fp8, int8-qdq, float32); repeat it. Default: fp16 and bf16, what the bundle has."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file as in configs/build/: batch sizes and options.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Build TensorRT plans of a bundle's graphs, into the bundle; its id changes with that."""
    from dissonance.config import BuildConfig, load_config
    from dissonance.console import plans_table, printable, stderr, stdout
    from dissonance.engine.runtime.tensorrt_library import parse_flavour
    from dissonance.export.tensorrt import build_plans

    # An option takes one value, so that the second of `--targets 8.9 12.0` comes as an argument.
    more_targets = [value for value in arguments or () if targets and re.fullmatch(r"\d+\.\d+", value)]
    bundles = [value for value in arguments or () if value not in more_targets]
    if not bundles:
        raise errors.UsageError("Which bundle? Give its folder (./8.9 for one with such a name).")
    if len(bundles) > 1:
        raise errors.UsageError(f"Unexpected argument '{bundles[1]}'. Give one bundle; compute capabilities follow --targets.")
    console = stderr()
    built, folders = build_plans(
        bundles[0],
        flavour=parse_flavour(flavour),
        targets=[*(targets or ()), *more_targets],
        precisions=[parse_precision(name) for name in precision or ()],
        config=BuildConfig() if config is None else load_config(BuildConfig, config),
        progress=lambda line: console.print(line, markup=False),
    )
    plans = {folder: built.spec.plans[folder] for folder in folders}
    if as_json:
        print(
            json.dumps({"path": str(built.path), "id": built.id, "plans": {folder: plan.model_dump(mode="json") for folder, plan in plans.items()}})
        )
    else:
        stdout().print(plans_table(plans))
        stdout().print(f"bundle {printable(str(built.path))} ({built.id[:12]})", markup=False)
