"""The command line: one thin function a command. Results on stdout, everything else on stderr."""

import json
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.markup import escape

from dissonance import errors
from dissonance.config import ScanConfig, load_config, parse_config

app = typer.Typer(
    name="dissonance",
    help="Finds videos whose picture and sound do not belong together.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
bench_app = typer.Typer(help="Measure speed, as ratios within one run.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

_SHOWN_ROWS = 40
_ARGUMENT_ERROR: Any = typer.BadParameter.__mro__[2]  # click's ClickException; newer releases of typer carry a click of their own

BundleOption = Annotated[str, typer.Option("--bundle", help="A bundle folder, or the name of one that ships with the package.", metavar="NAME|DIR")]
JsonOption = Annotated[bool, typer.Option("--json", help="Results for machines: JSON on stdout.")]


def _scan_config(
    config: Path | None,
    *,
    detector: str | None,
    yunet_model: Path | None,
    boxes: Path | None,
    execution: dict[str, int | None],
) -> ScanConfig:
    """The scan config of a YAML file, with what the command line says laid over it."""
    base = load_config(ScanConfig, config) if config else ScanConfig()
    data = base.model_dump(mode="json")
    for kind, option, file in (("yunet", "--yunet-model", yunet_model), ("boxes", "--boxes", boxes)):
        if file is not None and (detector or kind) != kind:
            raise errors.UsageError(f"{option} '{file}' is for --detector {kind}, not {detector}. Leave one of the two out.")
        detector = kind if file is not None else detector
    chosen = {"kind": detector, "yunet_model": yunet_model and str(yunet_model), "boxes_file": boxes and str(boxes)}
    data["detector"].update({key: value for key, value in chosen.items() if value is not None})
    data["execution"].update({key: value for key, value in execution.items() if value is not None})
    return parse_config(ScanConfig, data, origin="from the command line")


def _tolerated_failures(text: str) -> Callable[[int], Fraction]:
    """What `--max-failures` allows, as a function of the number of inputs."""
    number, percent = text.removesuffix("%"), text.endswith("%")
    try:
        value = Fraction(number) if percent else Fraction(int(number))  # exact: 29 of 100 are 29%
    except (ValueError, ZeroDivisionError):
        value = Fraction(-1)
    if value < 0 or (percent and value > 100):
        raise errors.UsageError(f"Invalid --max-failures '{text}'. Give a number of files such as 10, or a share of all inputs such as 0.5%.")
    return lambda inputs: value / 100 * inputs if percent else value


@app.command(epilog="Example: dissonance scan videos/ -o out     Resume: dissonance scan videos/ -o out --resume")
def scan(
    sources: Annotated[
        list[str],
        typer.Argument(help="Files, folders, quoted globs, or manifests (.csv, .jsonl, .parquet with a 'uri' column).", metavar="SOURCE..."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")],
    bundle: BundleOption = "demo",
    config: Annotated[Path | None, typer.Option(help="A scan config in YAML; configs/scan/default.yaml lists every key.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where inference runs.")] = "auto",
    decoder: Annotated[Literal["auto", "pyav"], typer.Option(help="What decodes video.")] = "auto",
    runtime: Annotated[Literal["auto", "onnxruntime"], typer.Option(help="What runs the network.")] = "auto",
    detector: Annotated[Literal["haar", "yunet", "boxes"] | None, typer.Option(help="What finds faces. [default: haar]")] = None,
    yunet_model: Annotated[Path | None, typer.Option(help="The YuNet ONNX file, for --detector yunet.")] = None,
    boxes: Annotated[Path | None, typer.Option(help="CSV or JSONL of boxes, for --detector boxes.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="As --resume, and try the files again that failed.")] = False,
    workers: Annotated[int | None, typer.Option(min=0, help="Decode processes; 0: one per core.")] = None,
    threads: Annotated[int | None, typer.Option(min=0, help="Inference threads; 0: one per core.")] = None,
    batch_frames: Annotated[int | None, typer.Option(min=1, help="Face crops in a batch.")] = None,
    batch_windows: Annotated[int | None, typer.Option(min=1, help="Windows in a batch.")] = None,
    max_failures: Annotated[
        str, typer.Option(help="Exit with 3 when more files than this failed: a number, or a share of all inputs.", metavar="N|P%")
    ] = "0",
    as_json: JsonOption = False,
) -> None:
    """Score videos: one row per file, with where and why.

    Exit codes: 0 done, 2 usage or config, 3 some files failed, 4 environment, 5 bad bundle, 70 our bug, 130 interrupted (resume with --resume).
    """
    from dissonance.bundle import open_bundle
    from dissonance.console import ScanProgress, files_table, stderr, stdout, summary_lines
    from dissonance.engine.runtime import open_runtime
    from dissonance.engine.scan.pipeline import Scan

    del decoder, runtime  # one of each so far: auto
    tolerated = _tolerated_failures(max_failures)
    execution = {"workers": workers, "threads": threads, "batch_frames": batch_frames, "batch_windows": batch_windows}
    settings = _scan_config(config, detector=detector, yunet_model=yunet_model, boxes=boxes, execution=execution)
    opened = open_bundle(bundle)
    console = stderr()
    if opened.warning:
        console.print(f"[bold yellow]warning:[/] {escape(opened.warning)}")
    loaded = open_runtime(opened, device=device, threads=settings.execution.threads)
    with ScanProgress(console) as progress:
        job = Scan(
            sources,
            out=out,
            bundle=opened,
            runtime=loaded,
            config=settings,
            progress=progress,
            resume=resume or retry_failed,
            retry_failed=retry_failed,
        )
        summary = job.run()
    if as_json:
        with (out / "files.jsonl").open(encoding="utf-8") as lines:
            sys.stdout.writelines(lines)
    else:
        screen = stdout()
        with (out / "files.jsonl").open(encoding="utf-8") as lines:
            screen.print(files_table((json.loads(line) for line in lines), title=opened.warning, most=_SHOWN_ROWS, width=screen.width))
        if summary.inputs > _SHOWN_ROWS:
            screen.print(f"... and {summary.inputs - _SHOWN_ROWS} more")
    for line in summary_lines(summary, str(out)):
        (console if as_json else stdout()).print(line, markup=False)
    if summary.failed > tolerated(summary.inputs):
        raise typer.Exit(errors.EXIT_SOME_FAILED)


@app.command(epilog="Example: dissonance inspect clip.mp4")
def inspect(
    file: Annotated[Path, typer.Argument(help="A video or sound file.", metavar="FILE")],
    bundle: BundleOption = "demo",
    config: Annotated[Path | None, typer.Option(help="A scan config in YAML.")] = None,
    detector: Annotated[Literal["haar", "yunet", "boxes"] | None, typer.Option(help="What finds faces. [default: haar]")] = None,
    yunet_model: Annotated[Path | None, typer.Option(help="The YuNet ONNX file, for --detector yunet.")] = None,
    boxes: Annotated[Path | None, typer.Option(help="CSV or JSONL of boxes, for --detector boxes.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show one file: its streams, tracks, timeline of window scores, and lag."""
    from dissonance.bundle import open_bundle
    from dissonance.console import inspection, stderr, stdout
    from dissonance.engine.runtime import open_runtime
    from dissonance.engine.scan.single import score_file

    settings = _scan_config(config, detector=detector, yunet_model=yunet_model, boxes=boxes, execution={})
    opened = open_bundle(bundle)
    if opened.warning:
        stderr().print(f"[bold yellow]warning:[/] {escape(opened.warning)}")
    try:
        summary, verdict = score_file(file, bundle=opened, runtime=open_runtime(opened), config=settings)
    except errors.MediaError as error:
        raise errors.UnreadableFileError(f"Cannot inspect '{file}': {error.reason}: {error.detail}.") from error
    if as_json:
        print(json.dumps({"file": verdict.file, "tracks": verdict.tracks, "windows": verdict.windows, "streams": asdict(summary.info)}))
    else:
        inspection(stdout(), summary, verdict, warning=opened.warning)


@app.command(epilog="Example: dissonance synth clips --count 20 --seed 1     Sound 3 frames late: dissonance synth late --shift 3")
def synth(
    folder: Annotated[Path, typer.Argument(help="Where the clips go.", metavar="DIR")],
    count: Annotated[int, typer.Option(min=1, help="How many clips.")] = 20,
    seed: Annotated[int, typer.Option(help="Same seed, same clips.")] = 0,
    shift: Annotated[int, typer.Option(help="All clips real, their sound moved so many frames later.")] = 0,
    people: Annotated[int | None, typer.Option(min=1, max=2, help="Faces in each clip; one speaks. [default: mostly 1]")] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds a clip. [default: 4]")] = None,
    size: Annotated[str | None, typer.Option(help="Picture size. [default: 320x240]", metavar="WxH")] = None,
    forgery: Annotated[
        list[str] | None,
        typer.Option(
            help="Kinds to take in turn: none, visual_timing, visual_artefact, audio_timing, audio_artefact, both; repeat it. "
            "[default: all of them, half of the clips real]",
            metavar="KIND",
        ),
    ] = None,
    renderer: Annotated[Literal["relief", "cel"], typer.Option(help="Style of faces and voices.")] = "relief",
    compression: Annotated[
        list[str] | None, typer.Option(help="c18, c23, c28 or c35 (H.264 crf, with AAC to match); repeat it to mix. [default: c23]", metavar="LEVEL")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw; 0: one per core.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier synthetic data set in DIR.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make synthetic talking-head clips, real and forged in timing, picture and sound, in FakeAVCeleb's folder layout with its meta_data.csv."""
    from dissonance.console import clips_table, counted, printable, stderr, stdout
    from dissonance.machine import available_cores
    from dissonance.synth.config import SynthConfig
    from dissonance.synth.dataset import generate

    data: dict[str, Any] = {"shift_frames": shift, "renderer": renderer}
    if forgery:
        data["forgeries"] = forgery
    if compression:
        data["compressions"] = compression
    if people is not None:
        data["two_person_share"] = people - 1
    if duration is not None:
        data["duration_s"] = duration
    if size is not None:
        width, _, height = size.partition("x")
        data.update(width=width, height=height)
    config = parse_config(SynthConfig, data, origin="from the command line")
    clips = generate(folder, count=count, seed=seed, config=config, overwrite=overwrite, workers=workers or available_cores())
    with closing(clips):
        rows = counted(stderr(), "drawing clips", count, clips)
        if as_json:
            for row in rows:
                print(json.dumps({**asdict(row), "file": str(folder / row.file)}))
        else:
            stdout().print(clips_table(rows, most=_SHOWN_ROWS))
    if not as_json:
        stdout().print(f"{count} clips in {printable(str(folder))}, listed in meta_data.csv", markup=False)


@app.command(
    epilog="Example: dissonance evaluate FakeAVCeleb --bundle bundle -o report     A scan: dissonance evaluate out --labels FakeAVCeleb -o report"
)
def evaluate(
    data: Annotated[Path, typer.Argument(help="A labelled data set (folder or manifest), or a scan's folder with --labels.", metavar="DATA|OUT")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the report.", metavar="REPORT_DIR")],
    labels: Annotated[Path | None, typer.Option(help="The labelled data set that was scanned.", metavar="DATA")] = None,
    bundle: Annotated[str | None, typer.Option(help="What scores the clips. [default: demo; of a scan, its own]", metavar="NAME|DIR")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of the clip cache. [default: REPORT_DIR/cache]", metavar="DIR")] = None,
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

    settings = _scan_config(config, detector=None, yunet_model=None, boxes=None, execution={})
    request = Request(data, out, labels, bundle, cache, split, layout, settings, workers, resamples, shuffle_sound)
    with TrainProgress(stderr()) as progress:
        report = run(request, progress=progress)
    if as_json:
        print(json.dumps(report))
    else:
        stdout().print(evaluation_table(report))
        stdout().print(f"{report['scored']} of {report['clips']} clips scored; report: {printable(str(out))}/report.md and report.json", markup=False)


@app.command(epilog="Example: dissonance train configs/train/demo.yaml -o runs/demo     Go on with it: add --resume")
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
    from dissonance.training.metrics import as_json as jsonable
    from dissonance.training.run import load_train_config
    from dissonance.training.run import train as run

    if resume and overwrite:
        raise errors.UsageError("Give --resume or --overwrite, not both.")
    with TrainProgress(stderr()) as progress:
        result = run(load_train_config(config), out, resume=resume, overwrite=overwrite, console=progress)
    if as_json:
        print(json.dumps(jsonable(result)))
    else:
        for line in training_lines(result):
            stdout().print(line, markup=False, highlight=False)


@app.command(epilog="Example: dissonance export --random-weights --preset base -o bundle     dissonance export model.safetensors -o bundle")
def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="The bundle folder to make.")],
    checkpoint: Annotated[Path | None, typer.Argument(help="A checkpoint (.safetensors).", metavar="[CHECKPOINT]")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="An untrained network, for throughput work.")] = False,
    preset: Annotated[str | None, typer.Option(help="demo, base, large, or a YAML file; with --random-weights.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle.")] = False,
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
        progress=lambda line: console.print(line, markup=False),
    )
    if as_json:
        print(json.dumps({"path": str(bundle.path), "id": bundle.id, **bundle.spec.model_dump(mode="json")}))
    else:
        stdout().print(f"bundle {printable(str(bundle.path))} ({bundle.id[:12]})" + (f": {bundle.warning}" if bundle.warning else ""), markup=False)


@bench_app.command("run", epilog="Example: dissonance bench run cpu-decode")
def bench_run(
    rung: Annotated[str, typer.Argument(help="What to measure: cpu-decode, isolation.")],
    save: Annotated[bool, typer.Option("--save", help="Append the results to bench/results/.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure one rung of the ladder in bench/ (in a checkout of the repository)."""
    from dissonance.benchmarks import run_rung, save_rows
    from dissonance.console import bench_table, stdout

    rows = run_rung(rung)
    if save:
        save_rows(rung, rows)
    if as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        stdout().print(bench_table(rung, rows))


@app.command(epilog="Example: dissonance doctor")
def doctor(as_json: JsonOption = False) -> None:
    """Say what is usable on this machine, and why what is not, is not."""
    from dissonance.console import findings_table, stdout
    from dissonance.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([finding.as_row() for finding in findings]))
    else:
        stdout().print(findings_table(findings))


def _report(error: errors.DissonanceError) -> NoReturn:
    from dissonance.console import printable

    text = "\n".join(printable(line) for line in str(error).splitlines())
    print(f"error: {text}", file=sys.stderr)
    sys.exit(error.exit_code)


def main() -> None:
    """Run the command line; every way it can end has its exit code (see `errors`)."""
    try:
        result: Any = app(standalone_mode=False)
    except errors.DissonanceError as error:
        _report(error)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted; what is finished is kept", file=sys.stderr)
        sys.exit(errors.EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.exit(errors.EXIT_OK)  # the reader of our output has seen enough
    except Exception as error:
        if isinstance(error, _ARGUMENT_ERROR):
            error.show()
            sys.exit(errors.EXIT_USAGE)
        traceback.print_exc()
        print("This is a bug in Dissonance, not in your files. Please report it with the lines above.", file=sys.stderr)
        sys.exit(errors.EXIT_BUG)
    sys.exit(result if isinstance(result, int) else errors.EXIT_OK)
