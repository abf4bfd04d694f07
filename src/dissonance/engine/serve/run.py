"""Runs NVIDIA Triton Inference Server on a repository, and ends it in an order that loses no request that it accepted.

By itself the server stops taking calls for all models at once when it gets SIGTERM, also those that its models make of each other: whoever was in
the middle of a window or a video gets an error (and release 2.51 a segmentation fault). Here the models that call others go first.
"""

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

from dissonance.engine.serve.interface import AUDIO, HEAD, VIDEO, VISUAL, WINDOWS
from dissonance.errors import EnvironmentMissingError

_STAGES = ((VIDEO, WINDOWS), (VISUAL, AUDIO, HEAD))  # who calls before who is called
_HEADER = "dissonance-key"
_POLL_S = 0.1
_CALL_S = 5.0
_STOP_S = 10  # for connections that clients keep open, once nothing is under way
_KILL_S = 5.0
LEAST_RUN_S = 10.0
_DIRECT = build_opener(ProxyHandler({}))  # a proxy has no way to this machine's own server


class _StopAskedFor(Exception):  # noqa: N818
    """SIGTERM or Ctrl-C."""


def find_server() -> tuple[str, list[str], dict[str, str]]:
    """The server's program, options it needs here, and its environment: of nvidia-pytriton's, or of the one on the PATH, as in NVIDIA's image.

    Raises EnvironmentMissingError.
    """
    bin_folder = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([bin_folder, os.environ.get("PATH", os.defpath)])}  # whose python3 decode workers run with
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        program = shutil.which("tritonserver") or shutil.which("/opt/tritonserver/bin/tritonserver")
        if program is None:
            raise EnvironmentMissingError(
                "There is no tritonserver here. Use NVIDIA's image (deploy/Dockerfile), or for trials on a CPU `make serve`."
            )
        return program, [], environment
    home = Path(spec.origin).parent / "tritonserver"
    backend = home / "backends" / "python"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise EnvironmentMissingError(f"nvidia-pytriton has no Python backend for Python {version}. Make its environment with another Python.")
    partial = backend / f".stub.{os.getpid()}"
    shutil.copy2(stub, partial)  # where the backend looks for it; renamed, because another server may be starting
    partial.replace(backend / stub.name)
    libraries = [sysconfig.get_config_var("LIBDIR"), str(home.parents[1] / "nvidia_pytriton.libs"), os.environ.get("LD_LIBRARY_PATH")]
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))  # libpython
    return str(home / "bin" / "tritonserver"), [f"--backend-directory={home / 'backends'}"], environment


def serve(
    repository: Path,
    *,
    address: str,
    http: int,
    grpc: int,
    metrics: int,
    drain_s: float,
    shared_memory: bool,
    options: Sequence[str],
    tell: Callable[[str], None],
) -> int:
    """Run the server until it ends, or SIGTERM or Ctrl-C ends it; returns its exit status, negative for a signal.

    A server that a signal ended is started again: releases before 25.05 can crash when a gRPC client goes away in the middle of a request (issues
    7368 and 8034 of the server's project). One that ran for less than LEAST_RUN_S is not.
    address: that it listens on. drain_s: how long requests under way may take at the end. shared_memory: clients on this machine may hand inputs
    over in memory that they can take back, which ends the server. options: more of tritonserver's. tell: is told of a second start.
    Raises EnvironmentMissingError.
    """
    program, needed, environment = find_server()
    key = secrets.token_urlsafe()  # which no client has
    kept = "model-repository,trace,logging" + ("" if shared_memory else ",shared-memory")
    command = [
        program,
        *needed,
        f"--model-repository={repository}",
        *(f"--{name}-address={address}" for name in ("http", "grpc", "metrics")),
        *(f"--{name}-port={port}" for name, port in (("http", http), ("grpc", grpc), ("metrics", metrics))),
        "--model-control-mode=explicit",
        "--load-model=*",
        f"--http-restricted-api={kept}:{_HEADER}={key}",
        f"--grpc-restricted-protocol={kept}:{_HEADER}={key}",
        f"--exit-timeout-secs={_STOP_S}",
        *options,
    ]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    process: subprocess.Popen[bytes] | None = None
    try:
        while True:
            started_s = time.monotonic()
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)  # Ctrl-C is for this process alone
            status = process.wait()
            if status >= 0 or time.monotonic() - started_s < LEAST_RUN_S:
                return status
            tell(f"tritonserver was ended by signal {-status} and is started again")
    except _StopAskedFor:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        return 0 if process is None else _end(process, f"http://{'127.0.0.1' if address == '0.0.0.0' else address}:{http}", key, drain_s)


def _stop(*_: object) -> None:
    raise _StopAskedFor


def _end(process: "subprocess.Popen[bytes]", url: str, key: str, drain_s: float) -> int:
    end_s = time.monotonic() + drain_s
    for models in _STAGES:
        for model in models:
            _ask(f"{url}/v2/repository/models/{model}/unload", key, end_s)
        while process.poll() is None and time.monotonic() < end_s:
            found = _ask(f"{url}/v2/repository/index", key, end_s)
            if found is not None and not any(each["name"] in models and each.get("state") in ("READY", "UNLOADING") for each in found):
                break
            time.sleep(_POLL_S)
    process.terminate()
    try:
        process.wait(timeout=_STOP_S + _KILL_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return 0  # asked to end, and ended


def _ask(url: str, key: str, end_s: float) -> Any:
    """POST without a body; what JSON comes back, None where none does. Waits until `end_s` at most, for one call no longer than _CALL_S."""
    timeout_s = min(_CALL_S, max(_POLL_S, end_s - time.monotonic()))
    request = Request(url, method="POST", headers={_HEADER: key})
    with contextlib.suppress(URLError, HTTPException, OSError, ValueError), _DIRECT.open(request, timeout=timeout_s) as answer:
        data = answer.read()
        return json.loads(data) if data else None
    return None
