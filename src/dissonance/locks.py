"""Folders that one process at a time may work in."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from dissonance.errors import UsageError


@contextlib.contextmanager
def held(lock: Path, *, taken: str) -> Iterator[None]:
    """Hold the file `lock`, made where there is none, for this process alone. Raises UsageError, saying `taken`, where another holds it."""
    with lock.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(taken) from error
        yield
