"""What a decode worker and the scan say to each other, as bytes: a JSON header and the raw arrays it announces.

Never pickle: a worker parses hostile media, and what a taken-over worker could send back must not run in the scan's process. Nor may it upset the
scan's arithmetic or tables: every field is checked against its declared type and to be of a size that rows can hold.
"""

import base64
import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dissonance.bundle import CropSpec, MelSpec
from dissonance.config import Decoder, ModelConfig, ScanConfig
from dissonance.engine.media.clip import MEL_FRAMES, SOUND_ALONE, ClipSummary, Window
from dissonance.engine.scan.channel import ProtocolError

_DTYPES = {"uint8", "float32", "bool"}
_HEADER_BYTES = 4
_LARGEST = 2**62  # of any whole number: what a row's columns hold
_LARGEST_INDEX = 2**31 - 1  # of what the rows keep in 32 bits
_LARGEST_MEL = 100.0  # the log-mel is of the order of 1; what overflows in the network would be no score
_LARGEST_PLACE = 1e6  # of pixels and grey levels
_LONGEST_TEXT = 2000
_HEADROOM_BYTES = 1 << 20  # of a message, beyond its arrays


@dataclass(frozen=True)
class Task:
    """To the worker: one file."""

    id: int
    path: str  # what is opened
    uri: str  # how rows and given boxes name it
    decoder: Decoder = "pyav"  # of the worker that gets it
    fresh: bool = False  # wants a process that has decoded nothing else


@dataclass(frozen=True)
class Ready:
    """The worker has started. `confined` names what it has given up (see confine.py)."""

    confined: tuple[str, ...]


@dataclass(frozen=True)
class Opened:
    """The file's bytes, hashed; None where it cannot be read."""

    content_hash: str | None
    size_bytes: int | None


@dataclass(frozen=True)
class Heartbeat:
    """The decoder is alive, and reads this stretch of the file: so many seconds of its media, or MiB of its bytes while it is hashed."""

    media_s: float = 0.0
    read_mib: float = 0.0


@dataclass(frozen=True)
class Failed:
    """The file cannot be scored: a MediaError's reason and detail."""

    reason: Literal["corrupt", "unsupported_codec", "unreadable", "refused", "changed", "out_of_memory"]
    detail: str


@dataclass(frozen=True)
class Declined:
    """The task's decoder does not decode this file; another may."""

    detail: str


@dataclass(frozen=True)
class Crashed:
    """A file cost its worker: an error nobody foresaw, a death, silence, too much time or memory, or a message that is none."""

    detail: str
    reason: Literal["decoder_crash", "timeout", "out_of_memory"] = "decoder_crash"


Message: TypeAlias = Ready | Opened | Heartbeat | Window | ClipSummary | Failed | Declined | Crashed
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Ready, Opened, Heartbeat, Window, ClipSummary, Failed, Declined, Crashed)}
_ARRAYS = {Window: {"new_crops": "uint8", "mel": "float32", "boxes": "float32", "speech": "bool", "mouth_motion": "float32"}}
_HINTS = {kind: typing.get_type_hints(kind) for kind in _KINDS.values()}


def encode_task(task: Task) -> bytes:
    """A task as bytes; the path survives whatever bytes it is made of."""
    path = base64.b64encode(os.fsencode(task.path)).decode()
    return json.dumps({"id": task.id, "path": path, "uri": task.uri}).encode()


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
    """The inverse of `encode`. Raises ProtocolError for anything `encode` would not have made; texts are cleaned and cut."""
    try:
        end = _HEADER_BYTES + int.from_bytes(data[:_HEADER_BYTES], "little")
        header = json.loads(data[_HEADER_BYTES:end])
        kind = _KINDS[header["kind"]]
        arrays: dict[str, NDArray[Any]] = {}
        for name, (dtype, shape) in header["arrays"].items():
            if _ARRAYS.get(kind, {}).get(name) != dtype:
                raise ProtocolError(f"array {name!r:.80} of {dtype!r:.80}")
            arrays[name], end = _array(data, end, dtype, shape)
        if end != len(data):
            raise ProtocolError(f"{len(data) - end} bytes left over")
        message: Message = _built(kind, header["fields"], arrays)
        return message
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        raise ProtocolError(f"{type(error).__name__}: {error}"[:_LONGEST_TEXT]) from error


def _array(data: bytes, start: int, dtype: str, shape: Any) -> tuple[NDArray[Any], int]:
    if dtype not in _DTYPES or len(shape) > 4 or not all(type(size) is int and 0 <= size <= len(data) for size in shape):
        raise ProtocolError(f"array of {dtype!r:.80} {shape!r:.80}")
    count = math.prod(shape)
    end = start + count * np.dtype(dtype).itemsize
    if end > len(data):
        raise ProtocolError(f"array of {dtype} {shape} in {len(data) - start} bytes")
    if dtype == "bool":  # whatever a byte holds: it becomes 0 or 1
        return np.frombuffer(data, np.uint8, count=count, offset=start).reshape(shape) != 0, end
    array = np.frombuffer(data, dtype=dtype, count=count, offset=start).reshape(shape)
    if dtype == "float32" and not np.isfinite(array).all():
        raise ProtocolError("an array holds what is not a finite number")
    return array, end


def _built(kind: type[Any], fields: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    """A dataclass from its JSON fields, each checked against its annotation."""
    if not isinstance(fields, dict):
        raise ProtocolError(f"{kind.__name__} of {type(fields).__name__}")
    hints = _HINTS.get(kind) or typing.get_type_hints(kind)
    values: dict[str, Any] = {name: _checked(value, hints[name], name) for name, value in fields.items() if name not in arrays}
    return kind(**values, **arrays)


def _checked(value: Any, hint: Any, name: str) -> Any:
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in choices:
            return None
        return _checked(value, next(choice for choice in choices if choice is not types.NoneType), name)
    if origin is Literal and isinstance(value, str) and value in choices:
        return value
    if origin is tuple and isinstance(value, list) and len(value) <= 100:
        return tuple(_checked(item, choices[0], name) for item in value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _built(hint, value, {})
    if hint is str and isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()[:_LONGEST_TEXT]
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and type(value) is int and abs(value) <= _LARGEST:
        return value
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    raise ProtocolError(f"{name!r:.80} is {value!r:.80}")


class WindowCheck:
    """Whether windows are such as the model's preset, the crop and the scan's settings make them."""

    def __init__(self, *, model: ModelConfig, crop: CropSpec, mel: MelSpec, scan: ScanConfig) -> None:
        self._frames = model.frames
        grid_frames = math.ceil(scan.limits.max_duration_s * model.fps) + model.frames
        self._last_frame = min(grid_frames, _LARGEST_INDEX)
        # Each of the faces of one moment gives a window every hop, or where it is short-lived, one for itself.
        tracking, self._max_tracks = scan.tracking, scan.tracking.max_tracks
        self._most_windows = tracking.max_tracks * (grid_frames // min(model.hop, tracking.min_track_frames) + 2)
        self._given_tracks = scan.detector.kind == "boxes"  # numbered, and as many, as somebody liked
        self._crop_shape = (crop.size_px, crop.size_px, 3)
        self._mel_shape = (mel.bins, MEL_FRAMES * model.frames)

    @property
    def max_message_bytes(self) -> int:
        """What no message is longer than."""
        return self._frames * (math.prod(self._crop_shape) + 64) + 4 * math.prod(self._mel_shape) + _HEADROOM_BYTES

    def new_file(self) -> Callable[[Window], None]:
        """The check of one file's windows, to be called with each in turn. Raises ProtocolError that names the field."""
        latest: dict[int, tuple[int, int]] = {}  # index and first frame of each track's last window
        count = 0

        def check(window: Window) -> None:
            nonlocal count
            count += 1
            index, first_frame = latest.get(window.track, (-1, 0))
            wrong = self._wrong(window)
            wrong["index"] = window.index != index + 1
            wrong["first_frame"] = not first_frame <= window.first_frame <= self._last_frame
            if not self._given_tracks:  # numbers are given in turn, and all but the tracks that still live have given a window
                wrong["track"] |= window.track > len(latest) + self._max_tracks
                wrong["number"] = count > self._most_windows
            if named := [name for name, is_wrong in wrong.items() if is_wrong]:
                raise ProtocolError(f"a window whose {' and '.join(named)} cannot be")
            latest[window.track] = window.index, window.first_frame

        return check

    def _wrong(self, window: Window) -> dict[str, bool]:
        face = window.track != SOUND_ALONE
        new = len(window.new_crops) if window.new_crops.ndim else 0
        rows = window.frames if face else 0
        return {
            "track": not SOUND_ALONE <= window.track <= _LARGEST_INDEX,
            "frames": not 1 <= window.frames <= self._frames,
            "new_crops": window.new_crops.shape != (new, *self._crop_shape) or not (1 <= new <= window.frames if face else new == 0),
            "mel": not face if window.mel is None else window.mel.shape != self._mel_shape or _beyond(window.mel, _LARGEST_MEL),
            "boxes": window.boxes.shape != (rows, 4) or _beyond(window.boxes, _LARGEST_PLACE),
            "speech": window.speech.shape != (window.frames,),
            "mouth_motion": window.mouth_motion.shape != (window.frames,) or _beyond(window.mouth_motion, _LARGEST_PLACE),
        }


def _beyond(array: NDArray[np.float32], limit: float) -> bool:
    return bool(array.size) and float(np.abs(array).max()) > limit
