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
from dissonance.config import Decoder, ScanConfig
from dissonance.engine.media.clip import ClipSummary, Window
from dissonance.engine.scan.channel import Inbox, ProtocolError, send
from dissonance.engine.scan.memory import peak_bytes, reset_peak
from dissonance.engine.scan.messages import Crashed, Declined, Failed, Heartbeat, Message, Ready, Task, WindowCheck, decode, encode_task
from dissonance.errors import EnvironmentMissingError

WORKER_MODULE = "dissonance.engine.scan.worker"
# All of the environment that a worker sees: where its interpreter and libraries are, how text is encoded, which GPU it has. No secret has a use.
PASSED_ON = (
    "PYTHONHOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "HOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MPS_PIPE_DIRECTORY",
)  # fmt: skip
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_SOCKET_BUFFER = 1 << 20
_LAST_WORDS_BYTES = 1500
_HASH_S_PER_MIB = 1.0  # a file is hashed at no less than 1 MiB/s
_LATE_S = 5.0  # a wait that ends so much later than asked for was not a wait
_FAREWELL_S, _REAP_S = 1.0, 5.0
MAX_FAILED_STARTS = 5
_MIB = 1 << 20


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    end: socket.socket
    inbox: Inbox
    errors: int  # a descriptor that holds what the worker printed
    check: Callable[[Window], None]  # of its task's windows
    decoder: Decoder
    ready: bool = False
    answered: bool = False  # has said something of its task
    printed_bytes: int = 0  # before its task
    task: Task | None = None
    files: int = 0  # that it was given
    given_s: float = 0.0  # when it was given its task
    heard_s: float = field(default_factory=time.monotonic)
    spent_s: float = 0.0  # on its task, while nobody let it wait
    media_s: float = 0.0  # of its task's file, that it has read
    read_mib: float = 0.0  # and that it has hashed


@dataclass(frozen=True)
class Event:
    """What happened to a task: a message of its worker's, or what ended the worker (`Crashed`).

    peak_memory_mib: the worker's largest resident size since it was given the task; in the task's last event only, and where the system tells.
    """

    task: Task
    message: Message
    peak_memory_mib: int | None = None


class WorkerPool:
    """Up to `count` worker processes at work. Use as a context manager; leaving it ends every worker.

    Inside, Ctrl-C is noted and raised as KeyboardInterrupt by `run` between two events, so that it never cuts a worker's start or a shard's
    writing in half; a second Ctrl-C is raised at once.
    """

    def __init__(self, *, count: int, spec: BundleSpec, scan: ScanConfig) -> None:
        self.count = count
        self._limits = scan.limits
        self._settings = {
            "model": spec.model.model_dump(mode="json"),
            "crop": spec.crop.model_dump(mode="json"),
            "mel": spec.mel.model_dump(mode="json"),
            "scan": scan.model_dump(mode="json"),
        }
        self._windows = WindowCheck(model=spec.model, crop=spec.crop, mel=spec.mel, scan=scan)
        self.confined: frozenset[str] | None = None  # what every worker has given up (see confine.py); None before the first has started
        self._workers: list[_Worker] = []
        self._returned: deque[Task] = deque()  # handed to workers that did not live to see them
        self._failed_starts = 0  # in a row
        self._unreaped: list[subprocess.Popen[bytes]] = []  # killed, but the system cannot let go of them yet (a dead network disk)
        self._listened_s = time.monotonic()  # when the last wait for workers ended
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

    def run(self, next_task: Callable[[], Task | None], *, poll: Callable[[], float], wake: int | None = None) -> Iterator[Event]:
        """Run tasks until `next_task` has none left and all that were handed out are done; yields events as they come.

        A task ends with exactly one of ClipSummary, Failed, Declined and Crashed. `poll` is called before each wait to do other work, and returns how
        many seconds the wait may last; it also ends when the descriptor `wake` becomes readable.
        Raises EnvironmentMissingError where a worker cannot start.
        """
        self._listened_s = time.monotonic()
        while True:
            if self._interrupted:
                raise KeyboardInterrupt
            self._hand_out(next_task)
            busy = [worker for worker in self._workers if worker.task is not None]
            if not busy:
                return
            limit_s = min(poll(), self._limits.stall_timeout_s / 4)
            self._charge(busy)
            started_s = time.monotonic()
            heard = wait([*(worker.end for worker in busy), *([] if wake is None else [wake])], timeout=limit_s)
            self._listened_s = time.monotonic()
            waited_s = self._listened_s - started_s
            stopped_s = max(0.0, waited_s - limit_s - _LATE_S)  # not even this process ran: a suspended machine, or Ctrl-Z
            for worker in busy:
                worker.spent_s += waited_s - stopped_s
                worker.heard_s += stopped_s
                if worker.end in heard:
                    worker.heard_s = self._listened_s
                end = self._overrun(worker)
                if worker.end in heard:
                    yield from self._receive(worker)
                if worker.task is not None and end is not None:
                    if worker.ready:
                        yield self._lose(worker, end)
                    else:
                        self._start_failed(worker, worker.task, "did not start in time")

    def _charge(self, busy: list[_Worker]) -> None:
        """Since the last wait nobody listened. Who has something to say now has waited for us; all others were silent and spent that time on a file.

        No more than _LATE_S of it counts: so long inference may take, but a suspended machine or Ctrl-Z stopped the workers with us.
        """
        waiting = wait([worker.end for worker in busy], timeout=0)
        now_s = time.monotonic()
        for worker in busy:
            deaf_s = now_s - max(self._listened_s, worker.given_s)
            counted_s = 0.0 if worker.end in waiting else min(deaf_s, _LATE_S)
            worker.heard_s += deaf_s - counted_s
            worker.spent_s += counted_s

    def drop(self, task: Task) -> None:
        """Replace the worker that is at work on `task`, whose messages contradict each other; there will be no further event of it."""
        for worker in self._workers:
            if worker.task is not None and worker.task.id == task.id:
                self._end(worker)
                return

    # -------------------------------------------------------------------------------------------------- starting and ending

    def _hand_out(self, next_task: Callable[[], Task | None]) -> None:
        while sum(worker.task is not None for worker in self._workers) < self.count:
            task = self._returned.popleft() if self._returned else next_task()
            if task is None:
                return
            worker = self._idle_or_started(task)
            worker.task, worker.files, worker.answered, worker.check = task, worker.files + 1, False, self._windows.new_file()
            worker.given_s = worker.heard_s = time.monotonic()
            worker.spent_s = worker.media_s = worker.read_mib = 0.0
            worker.printed_bytes = os.fstat(worker.errors).st_size
            reset_peak(worker.process.pid)
            with contextlib.suppress(ConnectionError):  # it died since its last task: seen, and the task given to another, when it is read from
                send(worker.end, encode_task(task))

    def _idle_or_started(self, task: Task) -> _Worker:
        """A worker for a task. Each decoder has its own: what decodes on a GPU is confined less than what PyAV has."""
        idle = [worker for worker in self._workers if worker.task is None and worker.decoder == task.decoder]
        if task.fresh and idle and idle[-1].files:
            self._end(idle.pop())
            return self._start(task.decoder)
        return idle.pop() if idle else self._start(task.decoder)

    def _start(self, decoder: Decoder) -> _Worker:
        ours, theirs = socket.socketpair()
        errors = os.memfd_create("worker", os.MFD_CLOEXEC)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which a child is born with: Ctrl-C is not for the workers
        try:
            with theirs:
                for side in (ours, theirs):
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
                process = subprocess.Popen(
                    # -P: not the folder that the user happens to be in, whose files may be named like modules
                    [sys.executable, "-P", "-m", WORKER_MODULE, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env={name: value for name, value in os.environ.items() if name in PASSED_ON} | _ONE_THREAD,
                    start_new_session=True,  # no terminal
                )
        except OSError as error:
            ours.close()
            os.close(errors)
            raise EnvironmentMissingError(f"Cannot start a decode worker: {error}. Free memory or processes, or give fewer --workers.") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with contextlib.suppress(OSError):
            send(ours, json.dumps(self._settings | {"decoder": decoder}).encode())
        worker = _Worker(process, ours, Inbox(ours, max_bytes=self._windows.max_message_bytes), errors, self._windows.new_file(), decoder)
        self._workers.append(worker)
        return worker

    def _end(self, worker: _Worker) -> tuple[int, str]:
        """End a worker and forget it; returns its exit status, negative for a signal, and the end of what it printed during its task."""
        self._workers.remove(worker)
        worker.end.close()
        worker.task = None
        worker.process.kill()
        try:
            status = worker.process.wait(timeout=_REAP_S)
        except subprocess.TimeoutExpired:
            status = -signal.SIGKILL
            self._unreaped.append(worker.process)
        self._unreaped = [process for process in self._unreaped if process.poll() is None]
        start = max(worker.printed_bytes, os.fstat(worker.errors).st_size - _LAST_WORDS_BYTES)
        words = os.pread(worker.errors, _LAST_WORDS_BYTES, start).decode("utf-8", "backslashreplace").strip()
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
        if self._listened_s - worker.heard_s > limits.stall_timeout_s:
            return Crashed(f"the decoder gave no sign of life for {limits.stall_timeout_s:g} s (limits.stall_timeout_s)", "timeout")
        media_s, read_mib = min(worker.media_s, limits.max_duration_s), min(worker.read_mib, 1024 * limits.max_size_gib)
        allowed_s = limits.timeout_s + limits.timeout_per_media_s * media_s + _HASH_S_PER_MIB * read_mib
        if worker.ready and worker.spent_s > allowed_s:
            rule = "limits.timeout_s, limits.timeout_per_media_s"
            return Crashed(f"took more than {allowed_s:.0f} s for its first {worker.media_s:.0f} s ({rule})", "timeout")
        return None

    def _receive(self, worker: _Worker) -> Iterator[Event]:
        task = worker.task
        assert task is not None
        try:
            data = worker.inbox.read()
            if data is None:
                return
            message = decode(data)
            if isinstance(message, Window):
                worker.check(message)
        except EOFError:
            if (event := self._died(worker, task)) is not None:
                yield event
        except ProtocolError as error:
            yield self._lose(worker, Crashed(f"the decode worker sent what is not a message: {error}"))
        else:
            yield from self._take(worker, task, message)

    def _take(self, worker: _Worker, task: Task, message: Message) -> Iterator[Event]:
        worker.answered |= not isinstance(message, Ready)
        if isinstance(message, Ready):
            worker.ready, self._failed_starts = True, 0
            worker.spent_s = 0.0
            given_up = frozenset(message.confined)
            self.confined = given_up if self.confined is None else self.confined & given_up
        elif isinstance(message, Heartbeat):  # picture and sound are read one after the other: what counts is how far the farther one got
            worker.media_s, worker.read_mib = max(worker.media_s, message.media_s), max(worker.read_mib, message.read_mib)
            yield Event(task, message)
        elif isinstance(message, Crashed):  # its memory may be in any state now
            yield self._lose(worker, message)
        elif isinstance(message, Failed) and message.reason == "out_of_memory":
            rule = f"asked for more than {self._limits.max_memory_mib} MiB of memory (limits.max_memory_mib)"
            yield self._lose(worker, Crashed(f"{rule}: {message.detail}", "out_of_memory"))
        elif isinstance(message, Declined) and task.decoder == "pyav":
            yield self._lose(worker, Crashed("the decode worker declined a file that it was to read with PyAV"))
        elif isinstance(message, ClipSummary | Failed | Declined):
            worker.task = None
            yield Event(task, message, _peak_mib(worker))
        else:
            yield Event(task, message)

    def _died(self, worker: _Worker, task: Task) -> Event | None:
        """What its end means for its task; None where it had not even started, so that another worker will get the task."""
        peak = _peak_mib(worker)
        try:
            worker.process.wait(timeout=_FAREWELL_S)  # its socket closed, so it is ending: let its own exit status be the one reported
            closed = False
        except subprocess.TimeoutExpired:
            closed = True
        ready, answered, files = worker.ready, worker.answered, worker.files
        status, words = self._end(worker)
        how = "closed its channel" if closed else f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with exit status {status}"
        if not ready:
            self._note_failed_start(task, how, words, may_pass=status < 0)
            return None
        if not answered and files > 1:  # it may have died of what it did before
            self._returned.append(task)
            return None
        return Event(task, Crashed(f"the decode worker {how}" + (f"; it printed: {words}" if words else "")), peak)

    def _start_failed(self, worker: _Worker, task: Task, how: str) -> None:
        _, words = self._end(worker)
        self._note_failed_start(task, how, words, may_pass=True)

    def _note_failed_start(self, task: Task, how: str, words: str, *, may_pass: bool) -> None:
        """No fault of the task's, which another worker will get. `may_pass`: the system killed it, short of memory perhaps, or is very busy."""
        self._failed_starts += 1
        if self._failed_starts > (MAX_FAILED_STARTS if may_pass else 0):
            raise EnvironmentMissingError(
                f"A decode worker {how} before it could start; `dissonance doctor` tells more. It printed:\n{words or '(nothing)'}"
            )
        self._returned.append(task)


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _peak_mib(worker: _Worker) -> int | None:
    peak = peak_bytes(worker.process.pid)
    return None if peak is None else round(peak / _MIB)
