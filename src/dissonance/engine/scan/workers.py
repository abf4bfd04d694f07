"""Decode workers: processes that each turn one file at a time into windows, so that no file can take the scan down.

The pool hands out tasks, passes on what workers say in the order each says it, and replaces a worker that died or fell silent.
Backpressure is the socket's: a worker whose windows nobody reads waits.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from dissonance.bundle import BundleSpec
from dissonance.config import ScanConfig
from dissonance.engine.media.clip import ClipSummary
from dissonance.engine.scan.messages import Crashed, Failed, Message, ProtocolError, Ready, Task, decode, encode_task
from dissonance.errors import EnvironmentMissingError

_SOCKET_BUFFER = 1 << 20


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    ready: bool = False
    task: Task | None = None
    last_heard_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Event:
    """What happened to a task: a message of its worker's, or the worker's own end (`Crashed`, or `Failed` with reason timeout)."""

    task: Task
    message: Message


class WorkerPool:
    """`count` worker processes. Use as a context manager; leaving it ends every worker.

    Inside, Ctrl-C is noted and raised as KeyboardInterrupt by `run` between two events, so that it never cuts a worker's start or a shard's
    writing in half; a second Ctrl-C is raised at once.
    """

    def __init__(self, *, count: int, spec: BundleSpec, scan: ScanConfig) -> None:
        self.count = count
        self._settings = json.dumps(
            {
                "model": spec.model.model_dump(mode="json"),
                "crop": spec.crop.model_dump(mode="json"),
                "mel": spec.mel.model_dump(mode="json"),
                "scan": scan.model_dump(mode="json"),
            }
        ).encode()
        self._stall_timeout_s = scan.limits.stall_timeout_s
        self._workers: list[_Worker] = []
        self._interrupted = False
        self._outer_handler: Any = None

    def __enter__(self) -> "WorkerPool":
        if threading.current_thread() is threading.main_thread():
            self._outer_handler = signal.signal(signal.SIGINT, self._note_interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        for worker in list(self._workers):
            self._end(worker)
        if self._outer_handler is not None:
            signal.signal(signal.SIGINT, self._outer_handler)

    def _note_interrupt(self, *_: object) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def run(self, next_task: Callable[[], Task | None], *, poll: Callable[[], float]) -> Iterator[Event]:
        """Run tasks until `next_task` has none left and all that were handed out are done; yields events as they come.

        `poll` is called before each wait to do other work, and returns how many seconds the wait may last.
        Raises EnvironmentMissingError where a worker cannot start.
        """
        while True:
            if self._interrupted:
                raise KeyboardInterrupt
            self._hand_out(next_task)
            busy = {worker.connection: worker for worker in self._workers if worker.task is not None}
            if not busy:
                return
            started_s = time.monotonic()
            limit_s = poll()
            deaf_s = time.monotonic() - started_s  # nobody was listening meanwhile, so nobody was silent
            for connection in wait(list(busy), timeout=min(limit_s, self._stall_timeout_s / 4)):
                assert isinstance(connection, Connection)
                yield from self._receive(busy.pop(connection))
            for worker in busy.values():
                worker.last_heard_s += deaf_s
                if worker.task is not None and time.monotonic() - worker.last_heard_s > self._stall_timeout_s:
                    self._end(worker)
                    yield Event(worker.task, Failed("timeout", f"the decoder gave no sign of life for {self._stall_timeout_s:g} s"))

    def _hand_out(self, next_task: Callable[[], Task | None]) -> None:
        idle = [worker for worker in self._workers if worker.task is None]
        while idle or len(self._workers) < self.count:
            task = next_task()
            if task is None:
                return
            worker = idle.pop() if idle else self._start()
            worker.task, worker.last_heard_s = task, time.monotonic()
            with contextlib.suppress(OSError):  # it died since its last task: seen, and the task retried, when it is read from
                worker.connection.send_bytes(encode_task(task))

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which a child is born with: Ctrl-C is not for the workers
        with theirs:
            for side in (ours, theirs):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
            process = subprocess.Popen(
                [sys.executable, "-m", "dissonance.engine.scan.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        worker = _Worker(process, Connection(ours.detach()))
        self._workers.append(worker)
        with contextlib.suppress(OSError):
            worker.connection.send_bytes(self._settings)
        return worker

    def _end(self, worker: _Worker) -> int:
        """End a worker and forget it; returns its exit status, negative for a signal."""
        self._workers.remove(worker)
        worker.connection.close()  # an idle worker ends by itself; one that decodes is not asked
        if worker.task is not None and worker.process.poll() is None:
            worker.process.kill()
        return worker.process.wait()

    def _receive(self, worker: _Worker) -> Iterator[Event]:
        task = worker.task
        assert task is not None
        worker.last_heard_s = time.monotonic()
        try:
            message = decode(worker.connection.recv_bytes())
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(timeout=10)  # its socket closed, so it is ending: let its own exit status be the one reported
            status = self._end(worker)
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
            if not worker.ready:
                raise EnvironmentMissingError(
                    f"A decode worker {how} before it could start. What it printed is above; `dissonance doctor` tells more."
                ) from None
            yield Event(task, Crashed(detail=f"the decode worker {how}"))
        except ProtocolError as error:
            self._end(worker)
            yield Event(task, Crashed(detail=f"the decode worker sent what is not a message: {error}"))
        else:
            if isinstance(message, Ready):
                worker.ready = True
                return
            if isinstance(message, ClipSummary | Failed | Crashed):
                worker.task = None
            yield Event(task, message)
