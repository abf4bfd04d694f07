"""The decode worker, with faults: a word `fault-...` in a file's name says what its decoder does once it has been opened.

hang: says nothing any more. eat: allocates without end. share: the same in shared memory. abort, segv: dies. raise: an error nobody foresaw.
garbage: says what is no message. stutter: stops in the middle of one. announce: announces one of 3 GiB. liar: sends windows that build on others that
never came. contradict: announces a voice that no window has. slow: keeps beating and gets nowhere. late: the same for 9 s, after it had got 5 s
far. exit: leaves. shout: dies with a last word. env: tells its environment as the reason.
socket, write, exec: tries what it may not, and tells what came of it. dali: another fault only where DALI decodes.
decline: leaves the file to another decoder.
"""

import ctypes
import dataclasses
import mmap
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dissonance.engine.media.bitstreams import UnsuitableError
from dissonance.engine.media.clip import ClipSummary, Window
from dissonance.engine.scan import worker
from dissonance.errors import MediaError

_read_clip = worker.read_clip
_channel: list[socket.socket] = []


def _fill(block: Any) -> None:
    np.frombuffer(block, np.uint8)[:] = 1


def _tried(what: str, attempt: Any) -> MediaError:
    try:
        attempt()
    except OSError as error:
        return MediaError("corrupt", f"{what}: {error.strerror}")
    return MediaError("corrupt", f"{what}: done")


def misbehave(path: Path, **options: Any) -> Iterator[Window | ClipSummary]:
    words = [word.removeprefix("fault-") for word in path.name.split(".") if word.startswith("fault-")]
    parts = _read_clip(path, **options)
    if "dali" in words and options["dali"] is None:
        yield from parts
        return
    if "liar" in words:
        yield from (dataclasses.replace(part, track=part.track + 7) if isinstance(part, Window) and part.index else part for part in parts)
        return
    if "contradict" in words:
        window, summary = next(parts), list(parts)[-1]
        assert isinstance(window, Window)
        assert isinstance(summary, ClipSummary)
        yield dataclasses.replace(window, mel=None)
        yield dataclasses.replace(summary, speech_fraction=1.0)
        return
    yield next(parts)
    if "decline" in words:
        raise UnsuitableError("too hard for this decoder")
    held = []
    if "hang" in words:
        threading.Event().wait()
    while "eat" in words:
        held.append(np.ones(1 << 24, np.uint8))
    while "share" in words:
        block = mmap.mmap(-1, 1 << 24)
        _fill(block)
        held.append(block)
    if "abort" in words:
        os.abort()
    if "segv" in words:
        ctypes.string_at(0)
    if "raise" in words:
        raise RuntimeError("\x1b[31mnobody\nforesaw \ud800 this")
    if "garbage" in words:
        worker.send(_channel[0], b"\x80\x04\x95garbage")
    if "stutter" in words:
        _channel[0].sendall((1000).to_bytes(4, "little") + b"a")
        threading.Event().wait()
    if "announce" in words:
        _channel[0].sendall((3 << 30).to_bytes(4, "little") + b"a")
        threading.Event().wait()
    while "slow" in words:
        threading.Event().wait(0.05)
        options["progress"](0.0)
    if "late" in words:
        options["progress"](5.0)
        for _ in range(180):
            threading.Event().wait(0.05)
            options["progress"](0.0)
    if "exit" in words:
        os._exit(7)
    if "shout" in words:
        os.write(2, b"x" * 10_000 + b"last words \x1b[31m\xff")
        os.abort()
    if "env" in words:
        raise MediaError("corrupt", " ".join(sorted(os.environ)))
    if "socket" in words:
        raise _tried("socket", lambda: socket.create_connection(("127.0.0.1", 9)))
    if "write" in words:
        raise _tried("write", lambda: path.with_suffix(".written").write_bytes(b"x"))
    if "exec" in words:
        raise _tried("exec", lambda: subprocess.run([sys.executable, "-c", ""], check=False))
    yield from parts


class Listening(worker.Worker):
    """Knows its channel, to misuse it."""

    def __init__(self, scan: socket.socket) -> None:
        _channel.append(scan)
        super().__init__(scan)


if __name__ == "__main__":
    worker.read_clip = misbehave
    worker.Worker = Listening  # type: ignore[misc]
    worker.HEARTBEAT_S = 0.05
    worker.main(int(sys.argv[1]))
