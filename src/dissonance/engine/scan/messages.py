"""What a decode worker and the scan say to each other, as bytes: a JSON header and the raw arrays it announces.

Never pickle: a worker parses hostile media, and what a taken-over worker could send back must not run in the scan's process.
"""

import base64
import dataclasses
import json
import os
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dissonance.engine.media.clip import ClipSummary, Window
from dissonance.engine.media.probe import AudioStream, MediaInfo, VideoStream

_DTYPES = {"uint8", "float32", "bool"}
_HEADER_BYTES = 4


@dataclass(frozen=True)
class Task:
    """To the worker: one file."""

    id: int
    path: str  # what is opened
    uri: str  # how rows and given boxes name it


@dataclass(frozen=True)
class Ready:
    """The worker has started."""


@dataclass(frozen=True)
class Opened:
    """The file's bytes, hashed; None where it cannot be read."""

    content_hash: str | None
    size_bytes: int | None


@dataclass(frozen=True)
class Heartbeat:
    """The decoder is alive; nothing else to say."""


@dataclass(frozen=True)
class Failed:
    """The file cannot be scored: a MediaError's reason and detail."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Crashed:
    """An error nobody foresaw, in the worker's own code or a library."""

    detail: str


Message: TypeAlias = Ready | Opened | Heartbeat | Window | ClipSummary | Failed | Crashed
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Ready, Opened, Heartbeat, Window, ClipSummary, Failed, Crashed)}


class ProtocolError(Exception):
    """A worker said something that is not a message."""


def encode_task(task: Task) -> bytes:
    """A task as bytes; the path survives whatever bytes it is made of."""
    return json.dumps({"id": task.id, "path": base64.b64encode(os.fsencode(task.path)).decode(), "uri": task.uri}).encode()


def decode_task(data: bytes) -> Task:
    """The inverse of `encode_task`."""
    fields = json.loads(data)
    return Task(id=fields["id"], path=os.fsdecode(base64.b64decode(fields["path"])), uri=fields["uri"])


def encode(message: Message) -> bytes:
    """A message as bytes: header length, JSON header, then each array's bytes in the header's order."""
    fields: dict[str, Any] = {}
    arrays: dict[str, list[Any]] = {}
    payload: list[bytes] = []
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        if isinstance(value, np.ndarray):
            arrays[field.name] = [value.dtype.name, list(value.shape)]
            payload.append(np.ascontiguousarray(value).tobytes())
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields[field.name] = dataclasses.asdict(value)
        else:
            fields[field.name] = value
    header = json.dumps({"kind": type(message).__name__, "fields": fields, "arrays": arrays}).encode()
    return b"".join([len(header).to_bytes(_HEADER_BYTES, "little"), header, *payload])


def decode(data: bytes) -> Message:
    """The inverse of `encode`. Raises ProtocolError for anything `encode` would not have made."""
    try:
        end = _HEADER_BYTES + int.from_bytes(data[:_HEADER_BYTES], "little")
        header = json.loads(data[_HEADER_BYTES:end])
        kind = _KINDS[header["kind"]]
        fields: dict[str, Any] = dict(header["fields"])
        for name, (dtype, shape) in header["arrays"].items():
            fields[name], end = _array(data, end, dtype, shape)
        if end != len(data):
            raise ProtocolError(f"{len(data) - end} bytes left over")
        if kind is ClipSummary:
            fields["info"] = _media_info(fields["info"])
        message: Message = kind(**fields)
        return message
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"{type(error).__name__}: {error}") from error


def _array(data: bytes, start: int, dtype: str, shape: list[int]) -> tuple[NDArray[Any], int]:
    if dtype not in _DTYPES or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ProtocolError(f"array of {dtype} {shape}")
    count = int(np.prod(shape, dtype=object)) if shape else 1
    end = start + count * np.dtype(dtype).itemsize
    if end > len(data):
        raise ProtocolError(f"array of {dtype} {shape} in {len(data) - start} bytes")
    return np.frombuffer(data, dtype=dtype, count=count, offset=start).reshape(shape), end


def _media_info(fields: dict[str, Any]) -> MediaInfo:
    video, audio = fields.pop("video"), fields.pop("audio")
    return MediaInfo(**fields, video=VideoStream(**video) if video else None, audio=AudioStream(**audio) if audio else None)
