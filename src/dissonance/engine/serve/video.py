"""What the video endpoint does with one video: a decode worker reads it, the networks score its windows, the rows are a scan's."""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from urllib.parse import unquote, urlsplit

from dissonance.bundle import Bundle
from dissonance.config import ServeConfig
from dissonance.engine.media.clip import ClipSummary
from dissonance.engine.runtime.base import Runtime
from dissonance.engine.scan.messages import Crashed, Declined, Failed, Task
from dissonance.engine.scan.pipeline import MAX_TRIES
from dissonance.engine.scan.scoring import WindowScore
from dissonance.engine.scan.single import FileScore
from dissonance.engine.scan.sources import Input
from dissonance.engine.scan.verdict import FileVerdict, VerdictBuilder
from dissonance.engine.scan.workers import WorkerPool
from dissonance.errors import MediaError

_POLL_S = 0.25
_MIB = 1 << 20


class Stopped(Exception):  # noqa: N818  # said to the client, or to nobody
    """The video is not read on: its time is up, or nobody waits for its verdict any more."""


class VideoService:
    """Scores one video at a time, with a decode worker that lives from video to video. Use as a context manager."""

    def __init__(self, bundle: Bundle, runtime: Runtime, config: ServeConfig) -> None:
        self._bundle, self._runtime, self._config = bundle, runtime, config
        self._ids = itertools.count()
        self._pool = WorkerPool(count=1, spec=bundle.spec, scan=config.scan)

    def __enter__(self) -> "VideoService":
        """Start the worker. Raises EnvironmentMissingError where it cannot."""
        self._pool.__enter__()
        tasks = iter([Task(next(self._ids), "", "start", self._config.scan.decoder)])  # no file is called so: it fails as soon as the worker is ready
        for _ in self._pool.run(lambda: next(tasks, None), poll=lambda: _POLL_S):
            pass
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.__exit__()

    def score(
        self, path: str, uri: str, *, on_score: Callable[[WindowScore], None] | None = None, gone: Callable[[], bool] = lambda: False
    ) -> FileVerdict:
        """The rows of one file. `on_score` gets each window's score as it comes, again from the first where the file is read a second time.

        Raises MediaError where it cannot be read, Stopped once `gone` or its time is up.
        """
        started_s = time.monotonic()

        def poll() -> float:
            if gone():
                raise Stopped("nobody waits for this video any more")
            if time.monotonic() - started_s > self._config.video_timeout_s:
                raise Stopped(f"the video took longer than {self._config.video_timeout_s:g} s (video_timeout_s)")
            return _POLL_S

        scan = self._config.scan
        builder = VerdictBuilder(uri=uri, bundle=self._bundle, scan=scan, runtime=self._runtime.name, decoder=scan.decoder)
        task, tries = Task(next(self._ids), path, uri, scan.decoder), 0
        while True:
            score = FileScore(builder, bundle=self._bundle, runtime=self._runtime, config=scan, started_s=started_s)
            last = self._read(task, score, poll, on_score)
            if isinstance(last, ClipSummary):
                return score.verdict()[1]
            if isinstance(last, Failed):
                raise MediaError(last.reason, last.detail)
            lost = isinstance(last, Crashed)
            tries += lost
            if isinstance(last, Crashed) and tries >= MAX_TRIES:
                raise MediaError(last.reason, last.detail)
            cause = f"{last.reason}: {last.detail}" if isinstance(last, Crashed) else f"{task.decoder}: {last.detail}"
            builder = builder.anew(fallback_cause=cause)
            task = Task(next(self._ids), path, uri, fresh=lost)

    def _read(
        self, task: Task, score: FileScore, poll: Callable[[], float], on_score: Callable[[WindowScore], None] | None
    ) -> ClipSummary | Failed | Declined | Crashed:
        """Read and score to the task's last message, which is returned."""
        tasks = iter([task])
        last: ClipSummary | Failed | Declined | Crashed | None = None
        try:
            for event in self._pool.run(lambda: next(tasks, None), poll=poll):
                for scored in score.take(event):
                    if on_score is not None:
                        on_score(scored)
                if isinstance(event.message, ClipSummary | Failed | Declined | Crashed):
                    last = event.message
        except BaseException:
            self._pool.drop(task)
            raise
        if isinstance(last, ClipSummary):
            for scored in score.flush():
                if on_score is not None:
                    on_score(scored)
        assert last is not None
        return last


@contextmanager
def as_file(video: bytes, config: ServeConfig) -> Iterator[str]:
    """An upload as a file for as long as the block lasts. Raises MediaError: refused."""
    if not video:
        raise MediaError("refused", "'video' is empty: send the bytes of a video file")
    if len(video) > config.max_upload_mib * _MIB:
        raise MediaError("refused", f"'video' has {len(video) / _MIB:.1f} MiB; {config.max_upload_mib} is the most (max_upload_mib)")
    with NamedTemporaryFile(prefix="dissonance-upload-") as file:
        file.write(video)
        file.flush()
        yield file.name


def allowed_path(uri: str, config: ServeConfig) -> tuple[str, str]:
    """The file that a client names, links resolved, and its uri as a scan's rows have it. Raises MediaError: refused."""
    parts = urlsplit(uri) if "://" in uri else None
    if parts is not None and (parts.scheme != "file" or parts.netloc not in ("", "localhost")):
        raise MediaError("refused", f"'{uri:.200}' is of a scheme that this server does not read. Send the video's bytes, or a file:// URI")
    if not config.allowed_folders:
        raise MediaError("refused", "this server reads no files of its own (allowed_folders is empty). Send the video's bytes")
    named = unquote(parts.path) if parts is not None else uri
    if "\0" in named or not Path(named).is_absolute():
        raise MediaError("refused", f"{uri!r:.200} is not an absolute path")
    path = os.path.realpath(named)
    if not any(Path(path).is_relative_to(os.path.realpath(folder)) for folder in config.allowed_folders):
        raise MediaError("refused", f"'{uri:.200}' is not in a folder whose files this server may read (allowed_folders)")
    return path, Input.of(named).uri
