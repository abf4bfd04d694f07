"""A served bundle on this machine: `dissonance serve` in the environment `.venv-serve`, on ports of its own."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import psutil

from dissonance.bundle import open_bundle
from dissonance.config import ServeConfig
from dissonance.export.repository import make_repository

ENVIRONMENT = Path(__file__).resolve().parents[1] / ".venv-serve"
PROGRAM = ENVIRONMENT / "bin" / "dissonance"
START_S = 120.0
DRAIN_S = 20.0
END_S = 90.0
_DIRECT = build_opener(ProxyHandler({}))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def demo_repository(folder: Path, config: ServeConfig) -> Path:
    """The demo bundle's repository for a CPU, one thread a network."""
    return make_repository(open_bundle("demo"), folder / "models", backend="python", config=config.model_copy(update={"threads": 1})).path


class LocalServer:
    """A server as a context manager: ready when it is entered, ended in order when it is left."""

    def __init__(self, repository: Path, *options: str) -> None:
        """`options`: of tritonserver."""
        self.repository, self._options = repository, options
        self._http, self._grpc, self._metrics = free_ports(3)
        self.http, self.grpc = f"http://127.0.0.1:{self._http}", f"grpc://127.0.0.1:{self._grpc}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as this object
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "LocalServer":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None and self._process.poll() is None:
            self.end()

    def start(self) -> None:
        """Start it, on the same ports as before, and wait until it says that it is ready. Raises RuntimeError with its log where it ends first."""
        ports = ("--http", str(self._http), "--grpc", str(self._grpc), "--metrics", str(self._metrics))
        command = [str(PROGRAM), "serve", str(self.repository), *ports, "--drain-s", str(DRAIN_S), "--shared-memory", "--", *self._options]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        end_s = time.monotonic() + START_S
        while not self.is_ready():
            try:
                status = self._process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                if time.monotonic() < end_s:
                    continue
                self.kill()
                status = -signal.SIGKILL
            raise RuntimeError(f"the server ended with status {status} before it was ready:\n{self.log()}")

    def is_ready(self) -> bool:
        """What the server says itself."""
        try:
            with _DIRECT.open(f"{self.http}/v2/health/ready", timeout=10):
                return True
        except (URLError, OSError):
            return False

    def metrics(self) -> dict[str, float]:
        """Prometheus metrics, by name and labels as they are printed."""
        with _DIRECT.open(f"http://127.0.0.1:{self._metrics}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}

    def ask_to_end(self) -> None:
        """SIGTERM."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def end(self) -> int:
        """SIGTERM, and wait; returns the exit status."""
        self.ask_to_end()
        return self.wait()

    def wait(self) -> int:
        """Wait for its end."""
        assert self._process is not None
        return self._process.wait(timeout=END_S)

    def kill(self) -> None:
        """SIGKILL to the server and all that it started."""
        for process in self._tree():
            process.kill()
        self.wait()

    def memory_mib(self) -> float:
        """What the server and all that it started hold, shared pages counted once."""
        return float(sum(process.memory_full_info().pss for process in self._tree())) / (1 << 20)

    def log(self) -> str:
        """All that it printed."""
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")

    def _tree(self) -> list[psutil.Process]:
        assert self._process is not None
        try:
            parent = psutil.Process(self._process.pid)
            return [*parent.children(recursive=True), parent]
        except psutil.NoSuchProcess:
            return []


def environment_is_there() -> bool:
    """Whether `make .venv-serve/.serve` was run."""
    return os.access(PROGRAM, os.X_OK)
