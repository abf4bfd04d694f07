"""A Triton Inference Server on this machine's CPU, for trials and tests: the one that the package nvidia-pytriton carries, without a container.

`python -m dissonance.engine.serve.local REPOSITORY [an option of tritonserver ...]`, in the environment that `make .venv-serve/.serve` makes. It
listens on the loopback interface only. The process becomes the server, so that signals reach it.
"""

import argparse
import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from dissonance.errors import DissonanceError, EnvironmentMissingError

_LOOPBACK = "127.0.0.1"


def command(repository: Path, *, http: int, grpc: int, metrics: int) -> tuple[list[str], dict[str, str]]:
    """The server's command line and environment. Raises EnvironmentMissingError."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise EnvironmentMissingError(
            "A local server needs the package nvidia-pytriton in an environment of its own. Make that with: make .venv-serve/.serve"
        )
    home = Path(spec.origin).parent / "tritonserver"
    backend = home / "backends" / "python"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise EnvironmentMissingError(f"nvidia-pytriton has no Python backend for Python {version}. Make the environment with another Python.")
    partial = backend / f".stub.{os.getpid()}"
    shutil.copy2(stub, partial)  # where the backend looks for it; renamed, because another server may be starting
    partial.replace(backend / stub.name)
    options = {
        "model-repository": repository,
        "backend-directory": home / "backends",
        "http-address": _LOOPBACK,
        "http-port": http,
        "grpc-address": _LOOPBACK,
        "grpc-port": grpc,
        "metrics-address": _LOOPBACK,
        "metrics-port": metrics,
    }
    libraries = [sysconfig.get_config_var("LIBDIR"), str(home.parents[1] / "nvidia_pytriton.libs"), os.environ.get("LD_LIBRARY_PATH")]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        ),  # whose python3 decode workers are started with
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),  # libpython
    }
    return [str(home / "bin" / "tritonserver"), *(f"--{name}={value}" for name, value in options.items())], environment


def main() -> None:
    """Become the server."""
    parser = argparse.ArgumentParser(prog="python -m dissonance.engine.serve.local", description="A local Triton Inference Server, for trials.")
    parser.add_argument("repository", type=Path, help="what `dissonance repository` wrote")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(f"--{name}", type=int, default=port, help=f"port (default {port})")
    known, more = parser.parse_known_args()
    try:
        line, environment = command(known.repository, http=known.http, grpc=known.grpc, metrics=known.metrics)
        os.execve(line[0], [*line, *more], environment)
    except DissonanceError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
