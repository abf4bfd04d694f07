"""Files that are whole or not there, and on disk, whatever happens meanwhile."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from dissonance.errors import OutputError


def sync_folder(folder: Path) -> None:
    """Put on disk what was renamed into a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and put it on disk, in place: for folders that are renamed as a whole afterwards."""
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, of this process alone, that becomes `path` at the end, synced, or disappears where the block fails."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole file at once: it is whole or not there. Raises OutputError."""
    try:
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"Cannot write '{path}': {error.strerror or error}. Free some space, or choose another folder.") from error
