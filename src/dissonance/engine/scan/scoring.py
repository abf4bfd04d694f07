"""From windows to scores: batches filled across tracks and files, each frame encoded once.

Three queues, each first in first out: frames, sounds, windows whose features are all there. A queue runs when it holds a full batch, and all of
them when `flush` is called. A window's features that an earlier window of its track already has are copied, not computed again.

Batches may be under way while windows are added (`Inference`); they are over, for what is here, in the order in which they were started.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dissonance.config import ExecutionConfig, ModelConfig
from dissonance.engine.media.clip import Window
from dissonance.engine.runtime.base import FloatArray, HeadOutput, Runtime
from dissonance.engine.scan.channel import ProtocolError
from dissonance.engine.scan.inference import Inference
from dissonance.engine.scan.stages import staged

_MOST_LAST = 8192  # of all files together; more than workers times faces that live at the same time
_TRACK_KEPT_FRAMES = 3000  # two minutes: far more than windows of different tracks can come out of order


@dataclass(frozen=True)
class WindowScore:
    """What the network says of one window. Logits are None where the modality is missing."""

    window: Window  # without its pixels and its mel
    logit_visual: float | None
    logit_audio: float | None
    logit_fused: float | None
    matched: FloatArray | None  # (frames,)
    lag_profile: FloatArray | None  # (2 max_lag + 1,), NaN where no pair is valid
    best_lag: int | None


@dataclass(eq=False)
class _Job:
    clip: int
    window: Window
    visual: FloatArray  # (T, Fv)
    audio: FloatArray | None  # (2 T, Fa)
    mask: NDArray[np.bool_]  # (T,)
    waiting: int  # crops (equal ones in a row counted once) and sound not encoded yet
    previous: "_Job | None" = None  # whose last frames are this one's first
    crops: NDArray[np.uint8] | None = field(default=None, repr=False)
    forgotten: bool = False  # nobody waits for its score any more


@dataclass(frozen=True)
class _Batch:
    """A batch under way."""

    jobs: list[_Job]
    result: Future[Any]
    take: Callable[[Any], Iterator[tuple[int, "WindowScore"]]]  # its result


class Scorer:
    """Give it windows with `add`; take scores from `run` (full batches) or `flush` (everything)."""

    def __init__(self, runtime: Runtime, *, model: ModelConfig, execution: ExecutionConfig, inference: Inference | None = None) -> None:
        """`inference`: makes the runtime's calls; without it each is made here, at once."""
        self._runtime = runtime
        self._inference = inference or Inference()
        self._running: deque[_Batch] = deque()
        self._model = model
        self._batch_frames = execution.batch_frames
        self._batch_windows = execution.batch_windows
        self._frames: deque[tuple[_Job, range]] = deque()  # a job and rows of its `crops` that are all the same picture
        self._sounds: deque[tuple[_Job, FloatArray]] = deque()
        self._ready: deque[_Job] = deque()
        self._last: dict[tuple[int, int], _Job] = {}  # the latest window of each clip and track

    def add(self, clip: int, window: Window) -> None:
        """Queue one window of the clip numbered `clip`. Windows of a track come in order, those of different tracks nearly so.

        Raises ProtocolError where it builds on a window that did not come.
        """
        model = self._model
        if (clip, window.track) not in self._last:
            self._forget_tracks(clip, window.first_frame - _TRACK_KEPT_FRAMES)
        mask = np.arange(model.frames) < window.frames
        runs = _runs(window.new_crops, together=not model.visual.prompts.per_frame)
        job = _Job(
            clip=clip,
            window=_slim(window),
            visual=np.zeros((model.frames, model.visual.feature_size), np.float32),
            audio=None,
            mask=mask,
            waiting=len(runs) + (window.mel is not None),
            crops=window.new_crops,
        )
        if 0 < len(window.new_crops) < window.frames:
            job.previous = self._previous(clip, window)
        if len(window.new_crops):
            self._last.pop((clip, window.track), None)
            self._last[clip, window.track] = job  # the latest comes last
            while len(self._last) > _MOST_LAST:
                del self._last[next(iter(self._last))]
        self._frames.extend((job, run) for run in runs)
        if window.mel is not None:
            self._sounds.append((job, window.mel))
        if job.waiting == 0:
            self._ready.append(job)

    def _previous(self, clip: int, window: Window) -> _Job:
        """The window of the same track that had this one's first frames."""
        previous = self._last.get((clip, window.track))
        shared = window.frames - len(window.new_crops)
        if previous is None or not 0 <= window.first_frame - previous.window.first_frame <= previous.window.frames - shared:
            raise ProtocolError(f"window {window.index} of track {window.track} builds on one that did not come")
        return previous

    def forget(self, clip: int) -> None:
        """Drop all that is queued or kept of a clip: it is finished, or has failed."""
        self._last = {key: job for key, job in self._last.items() if key[0] != clip}
        self._frames = deque(item for item in self._frames if item[0].clip != clip)
        self._sounds = deque(item for item in self._sounds if item[0].clip != clip)
        self._ready = deque(job for job in self._ready if job.clip != clip)
        for batch in self._running:
            for job in batch.jobs:
                job.forgotten |= job.clip == clip

    def _forget_tracks(self, clip: int, before: int) -> None:
        """Drop the latest windows of tracks that ended long ago: a video may have thousands of tracks."""
        old = [key for key, job in self._last.items() if key[0] == clip and job.window.first_frame + job.window.frames < before]
        for key in old:
            del self._last[key]

    def run(self, *, partial: bool = False) -> Iterator[tuple[int, WindowScore]]:
        """Start every batch that is full, with `partial` others too while the runtime has time for them; yields (clip, score) of those that are over.

        Waits only while more batches are under way than `Inference` takes: who adds windows then waits for the runtime. Raises what that raised.
        """
        most = self._inference.most
        self._inference.heed()
        yield from self._take(most)
        while self._start(partial=partial and len(self._running) < max(1, most)):
            yield from self._take(most)

    def flush(self) -> Iterator[tuple[int, WindowScore]]:
        """Run everything that is queued, in batches as full as they get, to its end; yields (clip, score). Raises what the runtime raised."""
        yield from self.run(partial=True)
        while self._running:
            yield from self._take(len(self._running) - 1)
            yield from self.run(partial=True)

    def _take(self, most: int) -> Iterator[tuple[int, WindowScore]]:
        """Take the results of batches that are over, the oldest first, and wait for it where more than `most` are under way."""
        while self._running and (len(self._running) > most or self._running[0].result.done()):
            batch = self._running.popleft()
            yield from batch.take(batch.result.result())

    def _start(self, *, partial: bool) -> bool:
        """Start the next batch there is, of what is nearest to its end; False where there is none."""
        for queue, size, start in (
            (self._ready, self._batch_windows, self._run_head),
            (self._sounds, self._batch_windows, self._encode_sounds),
            (self._frames, self._batch_frames, self._encode_frames),
        ):
            if len(queue) >= (1 if partial else size):
                self._running.append(start())
                return True
        return False

    def _encode_frames(self) -> _Batch:
        items = [self._frames.popleft() for _ in range(min(self._batch_frames, len(self._frames)))]
        crops = np.stack([job.crops[run.start] for job, run in items if job.crops is not None])
        index = np.array([job.window.frames - len(job.crops) + run.start for job, run in items if job.crops is not None], np.int64)

        def take(features: FloatArray) -> Iterator[tuple[int, WindowScore]]:
            for (job, run), place, feature in zip(items, index, features, strict=True):
                assert job.crops is not None
                job.visual[place : place + len(run)] = feature
                if run.stop == len(job.crops):
                    if job.previous is not None:
                        shift = job.window.first_frame - job.previous.window.first_frame
                        shared = job.window.frames - len(job.crops)
                        job.visual[:shared] = job.previous.visual[shift : shift + shared]
                        job.previous = None
                    job.crops = None
                self._arrived(job)
            yield from ()

        return _Batch([job for job, _ in items], self._inference.start(staged("encode frames", self._runtime.encode_frames), crops, index), take)

    def _encode_sounds(self) -> _Batch:
        items = [self._sounds.popleft() for _ in range(min(self._batch_windows, len(self._sounds)))]
        mels, masks = np.stack([mel for _, mel in items]), np.stack([job.mask for job, _ in items])

        def take(features: FloatArray) -> Iterator[tuple[int, WindowScore]]:
            for (job, _), feature in zip(items, features, strict=True):
                job.audio = feature.copy()  # a view would keep the whole batch
                self._arrived(job)
            yield from ()

        return _Batch([job for job, _ in items], self._inference.start(staged("encode sound", self._runtime.encode_sound), mels, masks), take)

    def _arrived(self, job: _Job) -> None:
        job.waiting -= 1
        if job.waiting == 0:
            self._ready.append(job)

    def _run_head(self) -> _Batch:
        jobs = [self._ready.popleft() for _ in range(min(self._batch_windows, len(self._ready)))]
        silence = np.zeros((2 * self._model.frames, self._model.audio.hidden_size), np.float32)
        audio = np.stack([silence if job.audio is None else job.audio for job in jobs])
        visual, masks = np.stack([job.visual for job in jobs]), np.stack([job.mask for job in jobs])

        def take(output: HeadOutput) -> Iterator[tuple[int, WindowScore]]:
            for row, job in enumerate(jobs):
                score = _score(job, output, row)
                job.audio = None  # the job may live on as its track's latest window, for its visual features
                if not job.forgotten:
                    yield job.clip, score

        return _Batch(jobs, self._inference.start(staged("match and fuse", self._runtime.run_head), visual, audio, masks), take)


def _runs(crops: NDArray[np.uint8], *, together: bool) -> list[range]:
    """Rows of (n, S, S, 3) that are to be encoded as one: each alone, or `together` with the equal ones that follow it, as in a still picture."""
    starts = [row for row in range(len(crops)) if row == 0 or not together or not np.array_equal(crops[row], crops[row - 1])]
    return [range(start, stop) for start, stop in pairwise([*starts, len(crops)])]


def _slim(window: Window) -> Window:
    """A window without pixels and mel, and with copies of its small arrays: as they came, each is a view that keeps the worker's whole message."""
    return dataclasses.replace(
        window,
        new_crops=np.empty((0, *window.new_crops.shape[1:]), np.uint8),
        mel=None,
        boxes=window.boxes.copy(),
        speech=window.speech.copy(),
        mouth_motion=window.mouth_motion.copy(),
    )


def _score(job: _Job, output: HeadOutput, row: int) -> WindowScore:
    seen, heard = job.window.track >= 0, job.audio is not None
    both = seen and heard
    valid = output.lag_valid[row]
    return WindowScore(
        window=job.window,
        logit_visual=float(output.logit_visual[row]) if seen else None,
        logit_audio=float(output.logit_audio[row]) if heard else None,
        logit_fused=float(output.logit_fused[row]) if both else None,
        matched=output.matched[row, : job.window.frames] if both else None,
        lag_profile=np.where(valid, output.lag_profile[row], np.float32(np.nan)) if both else None,
        best_lag=int(output.best_lag[row]) if both and valid.any() else None,
    )
