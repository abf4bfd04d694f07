"""Decode workers: processes that each turn one file at a time into windows, so that no file can take the scan down.

The pool hands out tasks, passes on what workers say in the order each says it, and replaces a worker that died, fell silent, took too much time
or memory, or said what is no message. Backpressure is the socket's: a worker whose windows nobody reads waits.
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
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from dissonance.bundle import BundleSpec
from dissonance.config import ScanConfig
from dissonance.engine.media.clip import ClipSummary, Window
from dissonance.engine.scan.channel import Inbox, ProtocolError, send
from dissonance.engine.scan.memory import peak_bytes, reset_peak
from dissonance.engine.scan.messages import Crashed, Failed, Heartbeat, Message, Ready, Task, WindowCheck, decode, encode_task
from dissonance.errors import EnvironmentMissingError

WORKER_MODULE = "dissonance.engine.scan.worker"
# All of the environment that a worker sees: where its interpreter and libraries are, and how text is encoded. No secret has a use there.
PASSED_ON = ("PYTHONHOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "HOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ")
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_SOCKET_BUFFER = 1 << 20
_LAST_WORDS_BYTES = 1500
MAX_FAILED_STARTS = 5
_MIB = 1 << 20


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    end: socket.socket
    inbox: Inbox
    errors: int  # a descriptor that holds what the worker printed
    ready: bool = False
    task: Task | None = None
    files: int = 0  # that it was given
    heard_s: float = field(default_factory=time.monotonic)
    spent_s: float = 0.0  # on its task, while nobody let it wait
    media_s: float = 0.0  # of its task's file, that it has read


@dataclass(frozen=True)
class Event:
    """What happened to a task: a message of its worker's, or what ended the worker (`Crashed`).

    peak_memory_mib: the worker's largest resident size since it was given the task; in the task's last event only, and where the system tells.
    """

    task: Task
    message: Message
    peak_memory_mib: int | None = None


class WorkerPool:
    """`count` worker processes. Use as a context manager; leaving it ends every worker.

    Inside, Ctrl-C is noted and raised as KeyboardInterrupt by `run` between two events, so that it never cuts a worker's start or a shard's
    writing in half; a second Ctrl-C is raised at once.
    """

    def __init__(self, *, count: int, spec: BundleSpec, scan: ScanConfig) -> None:
        self.count = count
        self._limits = scan.limits
        self._settings = json.dumps(
            {
                "model": spec.model.model_dump(mode="json"),
                "crop": spec.crop.model_dump(mode="json"),
                "mel": spec.mel.model_dump(mode="json"),
                "scan": scan.model_dump(mode="json"),
            }
        ).encode()
        self._windows = WindowCheck(model=spec.model, crop=spec.crop, mel=spec.mel, max_duration_s=scan.limits.max_duration_s)
        self.confined: frozenset[str] | None = None  # what every worker has given up (see confine.py); None before the first has started
        self._workers: list[_Worker] = []
        self._returned: deque[Task] = deque()  # handed to workers that did not live to see them
        self._failed_starts = 0  # in a row
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

        A task ends with exactly one of ClipSummary, Failed and Crashed. `poll` is called before each wait to do other work, and returns how many
        seconds the wait may last. Raises EnvironmentMissingError where a worker cannot start.
        """
        while True:
            if self._interrupted:
                raise KeyboardInterrupt
            self._hand_out(next_task)
            busy = [worker for worker in self._workers if worker.task is not None]
            if not busy:
                return
            limit_s = self._poll(busy, poll)
            started_s = time.monotonic()
            heard = wait([worker.end for worker in busy], timeout=min(limit_s, self._limits.stall_timeout_s / 4))
            waited_s = time.monotonic() - started_s
            for worker in busy:
                worker.spent_s += waited_s
                if worker.end in heard and worker.task is not None:
                    yield from self._receive(worker)
                if worker.task is not None and (end := self._overrun(worker)) is not None:
                    yield self._lose(worker, end)

    def _poll(self, busy: list[_Worker], poll: Callable[[], float]) -> float:
        """Do the other work. Meanwhile nobody listens: who has something to say waits for us, everyone else still spends time on his file."""
        waiting = wait([worker.end for worker in busy], timeout=0)
        started_s = time.monotonic()
        limit_s = poll()
        deaf_s = time.monotonic() - started_s
        for worker in busy:
            worker.heard_s += deaf_s
            worker.spent_s += 0.0 if worker.end in waiting else deaf_s
        return limit_s

    def drop(self, task: Task) -> None:
        """Replace the worker that is at work on `task`, whose messages contradict each other; there will be no further event of it."""
        for worker in self._workers:
            if worker.task is not None and worker.task.id == task.id:
                self._end(worker)
                return

    # -------------------------------------------------------------------------------------------------- starting and ending

    def _hand_out(self, next_task: Callable[[], Task | None]) -> None:
        idle = [worker for worker in self._workers if worker.task is None]
        while idle or len(self._workers) < self.count:
            task = self._returned.popleft() if self._returned else next_task()
            if task is None:
                return
            if task.fresh and idle and idle[-1].files:
                self._end(idle.pop())
                worker = self._start()
            else:
                worker = idle.pop() if idle else self._start()
            worker.task, worker.files = task, worker.files + 1
            worker.heard_s, worker.spent_s, worker.media_s = time.monotonic(), 0.0, 0.0
            reset_peak(worker.process.pid)
            with contextlib.suppress(OSError):  # it died since its last task: seen, and the task retried, when it is read from
                send(worker.end, encode_task(task))

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        errors = os.memfd_create("worker", os.MFD_CLOEXEC)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which a child is born with: Ctrl-C is not for the workers
        try:
            with theirs:
                for side in (ours, theirs):
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
                process = subprocess.Popen(
                    [sys.executable, "-m", WORKER_MODULE, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env={name: value for name, value in os.environ.items() if name in PASSED_ON} | _ONE_THREAD,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with contextlib.suppress(OSError):
            send(ours, self._settings)
        worker = _Worker(process, ours, Inbox(ours, max_bytes=self._windows.max_message_bytes), errors)
        self._workers.append(worker)
        return worker

    def _end(self, worker: _Worker) -> tuple[int, str]:
        """End a worker and forget it; returns its exit status, negative for a signal, and the end of what it printed."""
        self._workers.remove(worker)
        worker.end.close()
        worker.task = None
        worker.process.kill()
        status = worker.process.wait()
        size = os.fstat(worker.errors).st_size
        words = os.pread(worker.errors, _LAST_WORDS_BYTES, max(0, size - _LAST_WORDS_BYTES)).decode("utf-8", "backslashreplace").strip()
        os.close(worker.errors)
        return status, words

    def _lose(self, worker: _Worker, end: Crashed) -> Event:
        """The worker must go, and its task with it."""
        task, peak = worker.task, _peak_mib(worker)
        assert task is not None
        self._end(worker)
        return Event(task, end, peak)

    # ------------------------------------------------------------------------------------------------------ one worker's word

    def _overrun(self, worker: _Worker) -> Crashed | None:
        """Whether a worker at work has crossed a limit."""
        limits = self._limits
        if time.monotonic() - worker.heard_s > limits.stall_timeout_s:
            return Crashed(f"the decoder gave no sign of life for {limits.stall_timeout_s:g} s (limits.stall_timeout_s)", "timeout")
        allowed_s = limits.timeout_s + limits.timeout_per_media_s * min(worker.media_s, limits.max_duration_s)
        if worker.spent_s > allowed_s:
            rule = "limits.timeout_s, limits.timeout_per_media_s"
            return Crashed(f"took more than {allowed_s:.0f} s for its first {worker.media_s:.0f} s ({rule})", "timeout")
        return None

    def _receive(self, worker: _Worker) -> Iterator[Event]:
        task = worker.task
        assert task is not None
        worker.heard_s = time.monotonic()
        try:
            data = worker.inbox.read()
            if data is None:
                return
            message = decode(data)
            if isinstance(message, Window):
                self._windows.check(message)
        except EOFError:
            if (event := self._died(worker, task)) is not None:
                yield event
        except ProtocolError as error:
            yield self._lose(worker, Crashed(f"the decode worker sent what is not a message: {error}"))
        else:
            yield from self._take(worker, task, message)

    def _take(self, worker: _Worker, task: Task, message: Message) -> Iterator[Event]:
        if isinstance(message, Ready):
            worker.ready, self._failed_starts = True, 0
            self.confined = frozenset(message.confined) & (self.confined or frozenset(message.confined))
        elif isinstance(message, Heartbeat):
            worker.media_s = message.media_s
            yield Event(task, message)
        elif isinstance(message, Crashed):  # its memory may be in any state now
            yield self._lose(worker, message)
        elif isinstance(message, Failed) and message.reason == "out_of_memory":
            rule = f"asked for more than {self._limits.max_memory_mib} MiB of memory (limits.max_memory_mib)"
            yield self._lose(worker, Crashed(f"{rule}: {message.detail}", "out_of_memory"))
        elif isinstance(message, ClipSummary | Failed):
            worker.task = None
            yield Event(task, message, _peak_mib(worker))
        else:
            yield Event(task, message)

    def _died(self, worker: _Worker, task: Task) -> Event | None:
        """What its end means for its task; None where it had not even started, so that another worker will get the task."""
        peak = _peak_mib(worker)
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(timeout=10)  # its socket closed, so it is ending: let its own exit status be the one reported
        status, words = self._end(worker)
        how = f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with exit status {status}"
        if not worker.ready:
            self._failed_starts += 1
            killed = status < 0  # by the system, short of memory perhaps: that may pass
            if self._failed_starts > (MAX_FAILED_STARTS if killed else 0):
                raise EnvironmentMissingError(
                    f"A decode worker {how} before it could start; `dissonance doctor` tells more. It printed:\n{words or '(nothing)'}"
                ) from None
            self._returned.append(task)
            return None
        return Event(task, Crashed(f"the decode worker {how}" + (f"; it printed: {words}" if words else "")), peak)


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _peak_mib(worker: _Worker) -> int | None:
    peak = peak_bytes(worker.process.pid)
    return None if peak is None else round(peak / _MIB)
