"""`repository` and `serve`: a bundle behind NVIDIA Triton Inference Server."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from dissonance import errors
from dissonance.bundle import Precision
from dissonance.cli.options import BundleHashOption, JsonOption

commands = typer.Typer()


@commands.command(
    epilog="Example: dissonance repository demo -o models --backend python     Before a server starts: dissonance repository models --verify"
)
def repository(
    bundle: Annotated[
        str, typer.Argument(help="A bundle folder, or the name of one that ships with the package; with --verify a repository.", metavar="BUNDLE|DIR")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The model repository to make.")] = None,
    backend: Annotated[
        Literal["tensorrt", "onnxruntime", "python"],
        typer.Option(
            help="tensorrt: plans, on a GPU. onnxruntime: Triton's backend of that name. python: ONNX Runtime in the Python backend, on a CPU."
        ),
    ] = "python",
    precision: Annotated[Precision | None, typer.Option(help="Of the encoders. \\[default: float32; of plans the first there are]")] = None,
    plans: Annotated[str | None, typer.Option(help="The folder of plans, where the bundle has several that would do.", metavar="NAME")] = None,
    instances: Annotated[int | None, typer.Option(min=1, help="Of each network.")] = None,
    max_batch: Annotated[int | None, typer.Option(min=1, help="Crops, or windows, in one batch.")] = None,
    max_queue_delay_us: Annotated[int | None, typer.Option(min=0, help="So long a batch waits to become fuller, in microseconds.")] = None,
    allow_folder: Annotated[
        list[Path] | None, typer.Option(help="A folder whose files clients may name, as the server sees it; repeat it. Default: only uploads.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file; configs/serve/default.yaml lists every key.")] = None,
    bundle_sha256: BundleHashOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a repository.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check a repository's files instead of making one.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a bundle as a model repository for NVIDIA Triton Inference Server, or check one."""
    from dissonance.bundle import open_bundle
    from dissonance.config import ServeConfig, load_config, parse_config
    from dissonance.console import printable, stderr, stdout
    from dissonance.export.repository import make_repository, verify_repository

    if verify:
        if out is not None:
            raise errors.UsageError("--verify checks a repository and writes none: leave --out out.")
        found = verify_repository(Path(bundle))
    else:
        if out is None:
            raise errors.UsageError("Where to? Give --out a folder, or --verify to check a repository.")
        data = (load_config(ServeConfig, config) if config else ServeConfig()).model_dump(mode="json")
        given = {"instances": instances, "max_batch": max_batch, "max_queue_delay_us": max_queue_delay_us}
        data.update({key: value for key, value in given.items() if value is not None})
        if allow_folder:
            data["allowed_folders"] = [str(folder) for folder in allow_folder]
        opened = open_bundle(bundle, sha256=bundle_sha256)
        if opened.warning:
            stderr().print(f"warning: {opened.warning}", markup=False)
        found = make_repository(
            opened,
            out,
            backend=backend,
            config=parse_config(ServeConfig, data, origin="from the command line"),
            precision=precision,
            plans=plans,
            overwrite=overwrite,
        )
    if as_json:
        print(json.dumps({"path": str(found.path), "bundle_id": found.bundle_id, "backend": found.backend, "models": found.models}))
    else:
        state = "holds what was written" if verify else "written"
        needs = f", plans of TensorRT {found.tensorrt}" if found.tensorrt else ""
        stdout().print(f"{printable(str(found.path))} {state}: {', '.join(found.models)} (backend {found.backend}{needs})", markup=False)
        if not verify:
            stdout().print(f"Start a server with: dissonance serve {printable(str(found.path))}", markup=False)


@commands.command(
    epilog="Example: dissonance serve models     In a container: dissonance serve models --address 0.0.0.0 -- --log-verbose=1",
    context_settings={"ignore_unknown_options": True},
)
def serve(
    repository: Annotated[Path, typer.Argument(help="What `repository` wrote; it is verified first.", metavar="DIR")],
    options: Annotated[list[str] | None, typer.Argument(help="More options of tritonserver, after --.", metavar="[-- OPTION...]")] = None,
    address: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    http: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 8000,
    grpc: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 8001,
    metrics: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 8002,
    shared_memory: Annotated[
        bool,
        typer.Option(
            "--shared-memory", help="Clients on this machine may send inputs in shared memory; one that takes it back early ends the server."
        ),
    ] = False,
    drain_s: Annotated[float, typer.Option("--drain-s", min=0, help="After SIGTERM or Ctrl-C, so long requests under way may take.")] = 30.0,
) -> None:
    """Run NVIDIA Triton Inference Server on a model repository, and end it without losing a request that it accepted."""
    from dissonance.console import stderr
    from dissonance.engine.serve.run import serve as run
    from dissonance.export.repository import verify_repository

    found = verify_repository(repository)
    console = stderr()
    status = run(
        found.path,
        address=address,
        http=http,
        grpc=grpc,
        metrics=metrics,
        drain_s=drain_s,
        shared_memory=shared_memory,
        options=options or (),
        tell=lambda line: console.print(line, markup=False),
    )
    if status:
        raise errors.EnvironmentMissingError(f"tritonserver ended with status {status}; its log above says why.")
