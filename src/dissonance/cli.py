"""The command line: one thin function a command. Results on stdout, everything else on stderr."""

import json
import sys
import traceback
from dataclasses import asdict
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
    chosen = {"kind": detector, "yunet_model": yunet_model and str(yunet_model), "boxes_file": boxes and str(boxes)}
    data["detector"].update({key: value for key, value in chosen.items() if value is not None})
    data["execution"].update({key: value for key, value in execution.items() if value is not None})
    return parse_config(ScanConfig, data, origin="from the command line")


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
    workers: Annotated[int | None, typer.Option(min=0, help="Decode processes; 0: one per core.")] = None,
    threads: Annotated[int | None, typer.Option(min=0, help="Inference threads; 0: one per core.")] = None,
    batch_frames: Annotated[int | None, typer.Option(min=1, help="Face crops in a batch.")] = None,
    batch_windows: Annotated[int | None, typer.Option(min=1, help="Windows in a batch.")] = None,
    max_failures: Annotated[int, typer.Option(min=0, help="Exit with 3 when more files than this failed.")] = 0,
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
    execution = {"workers": workers, "threads": threads, "batch_frames": batch_frames, "batch_windows": batch_windows}
    settings = _scan_config(config, detector=detector, yunet_model=yunet_model, boxes=boxes, execution=execution)
    opened = open_bundle(bundle)
    console = stderr()
    if opened.warning:
        console.print(f"[bold yellow]warning:[/] {escape(opened.warning)}")
    loaded = open_runtime(opened, device=device, threads=settings.execution.threads)
    with ScanProgress(console) as progress:
        job = Scan(sources, out=out, bundle=opened, runtime=loaded, config=settings, resume=resume, progress=progress)
        summary = job.run()
    if as_json:
        with (out / "files.jsonl").open(encoding="utf-8") as lines:
            sys.stdout.writelines(lines)
    else:
        with (out / "files.jsonl").open(encoding="utf-8") as lines:
            stdout().print(files_table((json.loads(line) for line in lines), title=opened.warning, most=_SHOWN_ROWS))
        if summary.inputs > _SHOWN_ROWS:
            stdout().print(f"... and {summary.inputs - _SHOWN_ROWS} more")
    for line in summary_lines(summary, str(out)):
        (console if as_json else stdout()).print(line, markup=False)
    if summary.failed > max_failures:
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
    except Exception:
        traceback.print_exc()
        print("This is a bug in Dissonance, not in your files. Please report it with the lines above.", file=sys.stderr)
        sys.exit(errors.EXIT_BUG)
    sys.exit(result if isinstance(result, int) else errors.EXIT_OK)
