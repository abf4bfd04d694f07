"""`evaluate`, `train` and `ablate`: what a network learns, and how well."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from dissonance import errors
from dissonance.cli.options import JsonOption
from dissonance.cli.scan import scan_config

commands = typer.Typer()


@commands.command(
    epilog="Example: dissonance evaluate FakeAVCeleb --bundle bundle -o report     A scan: dissonance evaluate out --labels FakeAVCeleb -o report"
)
def evaluate(
    data: Annotated[Path, typer.Argument(help="A labelled data set (folder or manifest), or a scan's folder with --labels.", metavar="DATA|OUT")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the report.", metavar="REPORT_DIR")],
    labels: Annotated[Path | None, typer.Option(help="The labelled data set that was scanned.", metavar="DATA")] = None,
    bundle: Annotated[str | None, typer.Option(help="What scores the clips. \\[default: demo; of a scan, its own]", metavar="NAME|DIR")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of the clip cache. \\[default: REPORT_DIR/cache]", metavar="DIR")] = None,
    split: Annotated[Literal["test", "validation", "train", "all"], typer.Option(help="Which clips.")] = "test",
    layout: Annotated[Literal["auto", "fakeavceleb", "kodf", "manifest"], typer.Option(help="Of the data set.")] = "auto",
    config: Annotated[Path | None, typer.Option(help="A scan config in YAML: how faces and speech are found.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Decode processes; 0: one per core.")] = 0,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples for the intervals.")] = 1000,
    shuffle_sound: Annotated[
        int | None, typer.Option(help="A control: give every picture another clip's sound, drawn with this seed.", metavar="SEED")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a bundle, or a scan, against labels: metrics with intervals, whole and by kind, beside baselines; report.json, report.md and plots."""
    from dissonance.console import TrainProgress, evaluation_table, printable, stderr, stdout

    errors.require_extra("train", "Evaluating", "sklearn", "matplotlib", "safetensors")
    from dissonance.training.report import Request
    from dissonance.training.report import evaluate as run

    settings = scan_config(config, detector=None, yunet_model=None, boxes=None, execution={})
    request = Request(data, out, labels, bundle, cache, split, layout, settings, workers, resamples, shuffle_sound)
    with TrainProgress(stderr()) as progress:
        report = run(request, progress=progress)
    if as_json:
        print(json.dumps(report))
    else:
        stdout().print(evaluation_table(report))
        stdout().print(f"{report['scored']} of {report['clips']} clips scored; report: {printable(str(out))}/report.md and report.json", markup=False)


@commands.command(epilog="Example: dissonance train configs/train/demo.yaml -o runs/demo     Go on with it: add --resume")
def train(
    config: Annotated[Path, typer.Argument(help="The run, in YAML; configs/train/ has examples.", metavar="CONFIG")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder: clips, cache, log, checkpoints.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, exactly where it was.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start the run in --out anew; its clips and its cache are kept.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train prompts, alignment, matching, fusion and heads on labelled or synthetic clips, and calibrate the result."""
    from dissonance.console import TrainProgress, stderr, stdout, training_lines

    errors.require_extra("train", "Training", "torch", "safetensors", "sklearn")
    from dissonance.training.run import load_train_config
    from dissonance.training.run import train as run

    if resume and overwrite:
        raise errors.UsageError("Give --resume or --overwrite, not both.")
    with TrainProgress(stderr()) as progress:
        result = run(load_train_config(config), out, resume=resume, overwrite=overwrite, console=progress)
    if as_json:
        print(json.dumps(result.as_json()))
    else:
        for line in training_lines(result):
            stdout().print(line, markup=False, highlight=False, soft_wrap=True)


@commands.command(epilog="Example: dissonance ablate configs/train/ablations.yaml -o runs/ablations     Go on with it: add --resume")
def ablate(
    config: Annotated[Path, typer.Argument(help="The run that is changed, in YAML; configs/train/ablations.yaml is a small one.", metavar="CONFIG")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for clips, cache, runs and tables.")],
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each row: with the config's seed, the next, and so on.")] = 3,
    row: Annotated[
        list[str] | None, typer.Option(help="A row of the table, all unless given; repeat it. The row default is always among them.", metavar="NAME")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Runs at once, in processes that share the cores; each takes a whole run's memory (demo: 3 GB).", metavar="N")
    ] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the ablations in --out: what is finished is not done again.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure what each part is worth: one run with one part changed a time, over several seeds; ablations.json and ablations.md."""
    from dissonance.console import TrainProgress, ablation_table, printable, stderr, stdout

    errors.require_extra("train", "Training", "torch", "safetensors", "sklearn")
    from dissonance.training.ablations import Request
    from dissonance.training.ablations import ablate as run

    with TrainProgress(stderr()) as progress:
        document = run(Request(config, out, seeds, row or (), resume, jobs), console=progress)
    if as_json:
        print(json.dumps(document))
    else:
        stdout().print(ablation_table(document))
        stdout().print(f"{len(document['runs'])} runs; tables: {printable(str(out))}/ablations.md and ablations.json", markup=False)
