"""`scan` and `inspect`: scores of files."""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from dissonance import errors
from dissonance.bundle import Precision
from dissonance.cli.options import SHOWN_ROWS, BundleHashOption, BundleOption, JsonOption
from dissonance.config import ScanConfig, load_config, parse_config

if TYPE_CHECKING:  # --help needs none of them
    from rich.console import Console

    from dissonance.bundle import Bundle
    from dissonance.engine.runtime.base import Runtime

commands = typer.Typer()


def scan_config(
    config: Path | None,
    *,
    detector: str | None,
    yunet_model: Path | None,
    boxes: Path | None,
    execution: dict[str, int | None],
    decoder: str = "auto",
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
    if decoder != "auto":
        data["decoder"] = decoder
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


@commands.command(epilog="Example: dissonance scan videos/ -o out     Resume: dissonance scan videos/ -o out --resume")
def scan(
    sources: Annotated[
        list[str],
        typer.Argument(help="Files, folders, quoted globs, or manifests (.csv, .jsonl, .parquet with a 'uri' column).", metavar="SOURCE..."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")],
    bundle: BundleOption = "demo",
    bundle_sha256: BundleHashOption = None,
    config: Annotated[Path | None, typer.Option(help="A scan config in YAML; configs/scan/default.yaml lists every key.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where inference runs.")] = "auto",
    server: Annotated[
        list[str] | None,
        typer.Option(
            help="Networks run on this inference server, which serves --bundle (see `repository`); decoding stays here. Repeat it for more servers.",
            metavar="URL",
        ),
    ] = None,
    decoder: Annotated[
        Literal["auto", "pyav", "dali"],
        typer.Option(help="What decodes video; auto: pyav. dali decodes on an NVIDIA GPU, and leaves to pyav what it cannot."),
    ] = "auto",
    runtime: Annotated[
        Literal["auto", "onnxruntime", "torch", "tensorrt"],
        typer.Option(help="What runs the network; auto: onnxruntime. torch reads the bundle's weights, tensorrt the plans that `build` made."),
    ] = "auto",
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="Of the encoders, one that the bundle has. int8 is for CPUs; fp8 and int8-qdq are for TensorRT, and slow elsewhere. "
            "\\[default: float32; for tensorrt the first it has plans in]",
        ),
    ] = None,
    detector: Annotated[Literal["haar", "yunet", "boxes"] | None, typer.Option(help="What finds faces. \\[default: haar]")] = None,
    yunet_model: Annotated[Path | None, typer.Option(help="The YuNet ONNX file, for --detector yunet.")] = None,
    boxes: Annotated[Path | None, typer.Option(help="CSV or JSONL of boxes, for --detector boxes.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="As --resume, and try the files again that failed.")] = False,
    workers: Annotated[int | None, typer.Option(min=0, help="Decode processes; 0: one per core.")] = None,
    threads: Annotated[int | None, typer.Option(min=0, help="Inference threads on a CPU; 0: one per core.")] = None,
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

    tolerated = _tolerated_failures(max_failures)
    execution = {"workers": workers, "threads": threads, "batch_frames": batch_frames, "batch_windows": batch_windows}
    settings = scan_config(config, detector=detector, yunet_model=yunet_model, boxes=boxes, execution=execution, decoder=decoder)
    opened = open_bundle(bundle, sha256=bundle_sha256)
    console = stderr()
    _warn(console, opened, settings)
    with ExitStack() as servers, ScanProgress(console) as progress:
        if server:
            loaded = _on_server(servers, server, opened, given={"--device": device, "--runtime": runtime, "--precision": precision})
        else:
            loaded = open_runtime(opened, name=runtime, device=device, precision=precision, threads=settings.execution.threads)
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
            screen.print(files_table((json.loads(line) for line in lines), title=opened.warning, most=SHOWN_ROWS, width=screen.width))
        if summary.inputs > SHOWN_ROWS:
            screen.print(f"... and {summary.inputs - SHOWN_ROWS} more")
    for line in summary_lines(summary, str(out)):
        (console if as_json else stdout()).print(line, markup=False)
    if summary.failed > tolerated(summary.inputs):
        raise typer.Exit(errors.EXIT_SOME_FAILED)


def _on_server(servers: ExitStack, urls: list[str], bundle: "Bundle", *, given: dict[str, str | None]) -> "Runtime":
    """The runtime behind the URLs, for as long as `servers` is open."""
    from dissonance.engine.serve.client import Server
    from dissonance.engine.serve.runtime import open_served_runtime

    for option, value in given.items():
        if value not in (None, "auto"):
            raise errors.UsageError(f"{option} {value} is the server's to choose: leave it out with --server.")
    return open_served_runtime(servers.enter_context(Server(*urls)), bundle)


@commands.command(epilog="Example: dissonance inspect clip.mp4")
def inspect(
    file: Annotated[Path, typer.Argument(help="A video or sound file.", metavar="FILE")],
    bundle: BundleOption = "demo",
    config: Annotated[Path | None, typer.Option(help="A scan config in YAML.")] = None,
    detector: Annotated[Literal["haar", "yunet", "boxes"] | None, typer.Option(help="What finds faces. \\[default: haar]")] = None,
    yunet_model: Annotated[Path | None, typer.Option(help="The YuNet ONNX file, for --detector yunet.")] = None,
    boxes: Annotated[Path | None, typer.Option(help="CSV or JSONL of boxes, for --detector boxes.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show one file: its streams, tracks, timeline of window scores, and lag."""
    from dissonance.bundle import open_bundle
    from dissonance.console import inspection, stderr, stdout
    from dissonance.engine.runtime import open_runtime
    from dissonance.engine.scan.single import score_file

    settings = scan_config(config, detector=detector, yunet_model=yunet_model, boxes=boxes, execution={})
    opened = open_bundle(bundle)
    _warn(stderr(), opened, settings)
    try:
        summary, verdict = score_file(file, bundle=opened, runtime=open_runtime(opened), config=settings)
    except errors.MediaError as error:
        raise errors.UnreadableFileError(f"Cannot inspect '{file}': {error.reason}: {error.detail}.") from error
    if as_json:
        print(json.dumps({"file": verdict.file, "tracks": verdict.tracks, "windows": verdict.windows, "streams": asdict(summary.info)}))
    else:
        inspection(stdout(), summary, verdict, warning=opened.warning)


def _warn(console: "Console", bundle: "Bundle", settings: ScanConfig) -> None:
    for warning in filter(None, (bundle.warning, bundle.warning_of_detector(settings.detector.kind))):
        console.print(f"[bold yellow]warning:[/] {escape(warning)}")
