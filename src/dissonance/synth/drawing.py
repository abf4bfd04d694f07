"""Clips drawn into files, one after the other or in several processes at once: the same files, in the same order."""

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import cv2

from dissonance.errors import EnvironmentMissingError
from dissonance.synth.clip import render_clip
from dissonance.synth.config import RATES, SynthConfig
from dissonance.synth.mux import write_clip
from dissonance.synth.plan import ClipPlan

AHEAD = 2  # clips a process, at most, that are handed out before the first of them is passed on
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Failure = tuple[int | None, str]  # an OSError's number and text; or None and a traceback: our bug


def draw_clip(path: Path, plan: ClipPlan, config: SynthConfig) -> None:
    """Draw one clip into a file, which is there once it is whole. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    clip = render_clip(plan, config)
    try:
        write_clip(partial, clip.frames, clip.samples, sample_rate_hz=config.sample_rate_hz, **RATES[plan.compression]._asdict())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def draw_clips(plans: Iterable[ClipPlan], place: Callable[[ClipPlan], Path], config: SynthConfig, *, workers: int) -> Generator[ClipPlan, None, None]:
    """Draw each plan's clip into the file `place` names, and yield the plans in their order, each once its file is there.

    `workers` over 1 is the number of processes that draw; closing the iterator ends them. Raises OSError, and EnvironmentMissingError where a
    process cannot start or is killed.
    """
    if workers > 1:
        yield from _Painters(place, config, workers).run(iter(plans))
        return
    for plan in plans:
        draw_clip(place(plan), plan, config)
        yield plan


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


# ------------------------------------------------------------------------------------------------------ in several processes


@dataclass(eq=False)
class _Clip:
    """A clip that was handed out."""

    plan: ClipPlan
    path: Path
    drawn: bool = False
    failure: Failure | None = None


@dataclass(eq=False)
class _Painter:
    """A process that draws one clip at a time."""

    process: BaseProcess
    end: "Connection[tuple[Path, ClipPlan], Failure | None]"
    clip: _Clip | None = None


class _Painters:
    def __init__(self, place: Callable[[ClipPlan], Path], config: SynthConfig, count: int) -> None:
        self._place = place
        self._config = config
        self._count = count
        self._painters: list[_Painter] = []
        self._handed_out: deque[_Clip] = deque()  # and not passed on yet, in order

    def run(self, plans: Iterator[ClipPlan]) -> Iterator[ClipPlan]:
        try:
            self._start()
            while True:
                self._hand_out(plans)
                if not self._handed_out:
                    return
                if self._handed_out[0].drawn:
                    clip = self._handed_out.popleft()
                    if clip.failure is not None:
                        raise _error(clip.failure)
                    yield clip.plan
                else:
                    self._receive()
        finally:
            self._end()

    def _start(self) -> None:
        """Start all processes: with one thread each, and deaf to Ctrl-C, which is for this process to act on."""
        context = multiprocessing.get_context("spawn")
        resource_tracker.ensure_running()  # Python's own, which lets Ctrl-C through again as it starts
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which a child is born with
        environment = {name: os.environ.get(name) for name in _ONE_THREAD}
        os.environ.update(_ONE_THREAD)  # a child's libraries read it as they are loaded, before any of our code runs there
        try:
            for _ in range(self._count):
                ours, theirs = context.Pipe()
                with theirs:
                    process = context.Process(target=_paint, args=(theirs, self._config), daemon=True)
                    process.start()
                self._painters.append(_Painter(process, ours))
        except OSError as error:
            raise EnvironmentMissingError(
                f"Cannot start a process to draw clips: {error}. Free memory or processes, or give fewer workers."
            ) from error
        finally:
            for name, value in environment.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _hand_out(self, plans: Iterator[ClipPlan]) -> None:
        for painter in self._painters:
            if painter.clip is None and len(self._handed_out) < AHEAD * self._count:
                plan = next(plans, None)
                if plan is None:
                    return
                painter.clip = _Clip(plan, self._place(plan))
                self._handed_out.append(painter.clip)
                with contextlib.suppress(ConnectionError):  # it died: seen when it is listened to
                    painter.end.send((painter.clip.path, plan))

    def _receive(self) -> None:
        ready = wait([painter.end for painter in self._painters if painter.clip is not None])
        for painter in self._painters:
            if painter.clip is None or painter.end not in ready:
                continue
            try:
                painter.clip.failure = painter.end.recv()
            except (EOFError, ConnectionError) as error:
                painter.process.join()
                raise EnvironmentMissingError(
                    f"A process that drew '{painter.clip.path.name}' ended with status {painter.process.exitcode} (negative: killed by that signal; "
                    "-9 is often a lack of memory). Free some memory, or give fewer workers."
                ) from error
            painter.clip.drawn, painter.clip = True, None

    def _end(self) -> None:
        for painter in self._painters:
            painter.process.kill()
        for painter in self._painters:
            painter.process.join()
            painter.end.close()
        for clip in self._handed_out:
            with contextlib.suppress(OSError):
                _partial(clip.path).unlink(missing_ok=True)


def _error(failure: Failure) -> Exception:
    number, text = failure
    return RuntimeError(f"a process that draws clips failed:\n{text}") if number is None else OSError(number, text)


def _paint(end: "Connection[Failure | None, tuple[Path, ClipPlan]]", config: SynthConfig) -> None:
    """What a process does: draws what it is sent, until nobody is there to send."""
    cv2.setNumThreads(1)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            path, plan = end.recv()
            failure: Failure | None = None
            try:
                draw_clip(path, plan, config)
            except OSError as error:
                failure = (error.errno or 0, error.strerror or str(error))
            except Exception:
                failure = (None, traceback.format_exc())
            end.send(failure)
