"""`export`, `build`: from a checkpoint to what scans."""

import json
import re
from pathlib import Path
from typing import Annotated, get_args

import typer

from dissonance.bundle import Precision, parse_precision
from dissonance.cli.options import JsonOption
from dissonance.errors import UsageError
from dissonance.export.folds import FOLDS, folds_without

commands = typer.Typer()


@commands.command(epilog="Example: dissonance export --random-weights --preset base -o bundle     dissonance export model.safetensors -o bundle")
def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="The bundle folder to make.")],
    checkpoint: Annotated[Path | None, typer.Argument(help="A checkpoint (.safetensors).", metavar="[CHECKPOINT]")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="An untrained network, for throughput work.")] = False,
    preset: Annotated[str | None, typer.Option(help="demo, base, large, or a YAML file; with --random-weights.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle.")] = False,
    no_fold: Annotated[list[str] | None, typer.Option(help=f"A fold to leave out ({', '.join(sorted(FOLDS))}); repeat it.", metavar="FOLD")] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help=f"Of the encoders, beside float32 ({', '.join(sorted(set(get_args(Precision)) - {'float32'}))}); repeat it."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a checkpoint into a bundle that scans: ONNX graphs, weights, hashes, checked against torch before it is finished."""
    from dissonance.console import printable, stderr, stdout
    from dissonance.export.make import export_bundle

    console = stderr()
    bundle = export_bundle(
        checkpoint=checkpoint,
        random_weights=random_weights,
        preset=preset,
        seed=seed,
        out=out,
        overwrite=overwrite,
        folds=folds_without(no_fold or ()),
        precisions=[parse_precision(name) for name in precision or ()],
        progress=lambda line: console.print(line, markup=False),
    )
    if as_json:
        print(json.dumps({"path": str(bundle.path), "id": bundle.id, **bundle.spec.model_dump(mode="json")}))
    else:
        stdout().print(f"bundle {printable(str(bundle.path))} ({bundle.id[:12]})" + (f": {bundle.warning}" if bundle.warning else ""), markup=False)


@commands.command(epilog="Example: dissonance build bundle     dissonance build bundle --flavour tensorrt_rtx --targets 8.9 12.0 --precision fp16")
def build(
    arguments: Annotated[list[str] | None, typer.Argument(help="The bundle folder to build plans in.", metavar="BUNDLE")] = None,
    flavour: Annotated[str, typer.Option(help="tensorrt (for the GPU in this machine) or tensorrt_rtx (for RTX GPUs).")] = "tensorrt",
    targets: Annotated[
        list[str] | None,
        typer.Option(help="Compute capabilities to build for, with tensorrt_rtx: no GPU is needed then. One or several.", metavar="CC..."),
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="Of the encoders (fp16, bf16, float32); repeat it. Default: fp16 and bf16, what the bundle has.")
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
        raise UsageError("Which bundle? Give its folder (./8.9 for one with such a name).")
    if len(bundles) > 1:
        raise UsageError(f"Unexpected argument '{bundles[1]}'. Give one bundle; compute capabilities follow --targets.")
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
