"""A decode worker: `python -m dissonance.engine.scan.worker FD`, started by `workers.WorkerPool`.

It reads its settings from the socket FD, gives up all it does not need (see confine.py), then turns one file after another into windows, and ends
when the socket closes.
"""

import ctypes
import errno
import hashlib
import json
import os
import socket
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2

from dissonance.bundle import CropSpec, MelSpec
from dissonance.config import LimitsConfig, ModelConfig, ScanConfig
from dissonance.engine.media.bitstreams import UnsuitableError
from dissonance.engine.media.clip import ClipSummary, Window, read_clip
from dissonance.engine.media.dali import DaliDecoder
from dissonance.engine.media.detect import make_detector
from dissonance.engine.scan.channel import receive, send
from dissonance.engine.scan.confine import confine, confine_on_gpu
from dissonance.engine.scan.messages import Crashed, Declined, Failed, Heartbeat, Opened, Ready, Task, decode_task, encode
from dissonance.errors import MediaError

HEARTBEAT_S = 5.0
IDLE_MIB = 128  # of the memory limit: what a worker holds when it begins
_HASH_BLOCK = 1 << 20
_MIB, _GIB = 1 << 20, 1 << 30


class Heart:
    """Beats at most every HEARTBEAT_S, from inside the decode loop: a hung decoder does not beat."""

    def __init__(self, scan: socket.socket) -> None:
        self._scan = scan
        self._last_s = time.monotonic()
        self._media_s = self._read_mib = 0.0

    def new_file(self) -> None:
        """What was read so far was another file."""
        self._media_s = self._read_mib = 0.0

    def beat(self, media_s: float = 0.0, *, read_mib: float = 0.0) -> None:
        """Send a heartbeat if one is due, with how far at most the file has been read."""
        self._media_s, self._read_mib = max(self._media_s, media_s), max(self._read_mib, read_mib)
        now_s = time.monotonic()
        if now_s - self._last_s >= HEARTBEAT_S:
            send(self._scan, encode(Heartbeat(self._media_s, self._read_mib)))
            self._last_s = now_s


def hash_file(path: Path, heart: Heart, *, limits: LimitsConfig) -> tuple[Opened, os.stat_result]:
    """SHA-256 and size of a regular file, and its state before. Raises MediaError: unreadable, refused."""
    try:
        _check_kind(os.stat(path), limits)  # before it is opened: opening a device may set it going
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb", buffering=0) as stream:
            status = os.fstat(stream.fileno())
            _check_kind(status, limits)
            digest, size = hashlib.sha256(), 0
            while size < status.st_size and (block := stream.read(_HASH_BLOCK)):  # what is appended meanwhile would never end
                digest.update(block)
                size += len(block)
                heart.beat(read_mib=size / _MIB)
    except OSError as error:
        raise MediaError("unreadable", error.strerror or str(error)) from error
    return Opened(content_hash=digest.hexdigest(), size_bytes=size), status


def _check_kind(status: os.stat_result, limits: LimitsConfig) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise MediaError("unreadable", "is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError("refused", "is not a regular file (pipe, socket or device)")
    if status.st_size > limits.max_size_gib * _GIB:
        raise MediaError("refused", f"is {status.st_size / _GIB:.1f} GiB large; {limits.max_size_gib:g} is the most (limits.max_size_gib)")


def _check_unchanged(path: Path, before: os.stat_result) -> None:
    """Windows of one content under the hash of another must not pass for a result."""
    try:
        after: os.stat_result | None = os.stat(path)
    except OSError:
        after = None
    if after is None or any(getattr(before, name) != getattr(after, name) for name in ("st_dev", "st_ino", "st_size", "st_mtime_ns")):
        raise MediaError("changed", "the file changed while it was read; once it is complete, scan again with --resume")


class Worker:
    """What a worker keeps from file to file."""

    def __init__(self, scan: socket.socket) -> None:
        settings = json.loads(receive(scan))
        self._model = ModelConfig.model_validate(settings["model"])
        self._crop = CropSpec.model_validate(settings["crop"])
        self._mel = MelSpec.model_validate(settings["mel"])
        self._config = ScanConfig.model_validate(settings["scan"])
        self._detector = make_detector(self._config.detector)
        self.on_gpu = settings["decoder"] == "dali"
        self._dali = None if settings["decoder"] == "pyav" else DaliDecoder("gpu" if self.on_gpu else "cpu")
        self._heart = Heart(scan)

    @property
    def limits(self) -> LimitsConfig:
        """What one file may cost."""
        return self._config.limits

    def read(self, task: Task) -> Iterator[Opened | Window | ClipSummary]:
        """All there is to say of one file, its summary last. Raises MediaError, UnsuitableError."""
        path = task.path
        self._heart.new_file()
        if "://" in path and not os.path.exists(path):
            raise MediaError("refused", "this release scans local files only; copy the file here, or mount its storage")
        opened, before = hash_file(Path(path), self._heart, limits=self.limits)
        yield opened
        parts = read_clip(
            Path(path),
            uri=task.uri,
            model=self._model,
            crop=self._crop,
            mel=self._mel,
            scan=self._config,
            detector=self._detector,
            dali=self._dali,
            progress=self._heart.beat,
        )
        for part in parts:
            if isinstance(part, ClipSummary):
                _check_unchanged(Path(path), before)
            yield part


def _windows_of(task: Task, worker: Worker, scan: socket.socket) -> ClipSummary | Failed | Declined | Crashed:
    """Send what there is to say of a file but for its last word, which is returned."""
    try:
        for part in worker.read(task):
            if isinstance(part, ClipSummary):
                return part
            send(scan, encode(part))
        raise AssertionError("a file without a summary")
    except MediaError as error:
        return Failed(reason=error.reason, detail=error.detail)  # type: ignore[arg-type]  # checked by the scan
    except UnsuitableError as error:
        return Declined(str(error))
    except ConnectionError:
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            return Failed(reason="out_of_memory", detail=f"{type(error).__name__}: {error}")
        return Crashed(detail=traceback.format_exc(limit=-3))


def _is_out_of_memory(error: BaseException) -> bool:
    return (
        isinstance(error, MemoryError)
        or getattr(error, "errno", None) == errno.ENOMEM
        or (isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem)
    )


def _give_back() -> Callable[[], object]:
    """Returns to the system what the last file's memory was: glibc keeps it otherwise, and the next file would seem to need as much."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return (lambda: trim(0)) if trim is not None else (lambda: None)


def main(descriptor: int) -> None:
    """Serve tasks until the other end closes the socket."""
    cv2.setNumThreads(1)
    scan = socket.socket(fileno=descriptor)
    worker, trim = Worker(scan), _give_back()
    more_memory_bytes = (worker.limits.max_memory_mib - IDLE_MIB) * _MIB
    send(scan, encode(Ready(tuple(confine_on_gpu() if worker.on_gpu else confine(more_memory_bytes=more_memory_bytes)))))
    while True:
        try:
            task = decode_task(receive(scan))
        except EOFError:
            return
        last = _windows_of(task, worker, scan)
        trim()
        send(scan, encode(last))


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]))
    except (ConnectionError, EOFError):
        sys.exit(1)  # the scan is gone
