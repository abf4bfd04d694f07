"""`export`: from a checkpoint to what scans."""

import json
from pathlib import Path
from typing import Annotated, get_args

import typer

from dissonance.bundle import Precision, parse_precision
from dissonance.cli.options import JsonOption
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
