"""One clip as training sees it: everything of it that windows are cut from, so that any start and any shift can be had, and its file in the cache.

A window cut here is the window that a scan gets from `engine.media.clip.read_clip` at the same place, bit for bit: crops are what the decode worker
made, and the log-mel is kept as it is before the one thing that depends on the window, the normalisation by its peak.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dissonance.config import ModelConfig, SpeechConfig
from dissonance.engine.media.clip import MEL_FRAMES
from dissonance.engine.media.log_mel import normalise
from dissonance.engine.media.windows import window_starts
from dissonance.errors import UsageError
from dissonance.mel import SILENCE

FORMAT = 1  # of an entry's file


class Pictures(Protocol):
    """Crops in a row, of which a stretch can be read: an array, or a file's lazily read one."""

    def __getitem__(self, rows: slice, /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Track:
    """A face in consecutive frames of the 25 fps grid.

    number: the scan's number of the track. first_frame, frames: where it lies.
    crops: (frames, S, S, 3) uint8 RGB from row `row` on. boxes: (frames, 4) float32. mouth_motion: (frames,) float32.
    """

    number: int
    first_frame: int
    crops: Pictures
    boxes: NDArray[np.float32]
    mouth_motion: NDArray[np.float32]
    row: int = 0

    @property
    def frames(self) -> int:
        """How many it has."""
        return len(self.mouth_motion)

    @property
    def end_frame(self) -> int:
        """The frame after its last."""
        return self.first_frame + self.frames

    def cut(self, first_frame: int, frames: int) -> NDArray[np.uint8]:
        """The crops of those frames."""
        begin = self.row + first_frame - self.first_frame
        return self.crops[begin : begin + frames]

    def without_start(self, frames: int) -> "Track":
        """The track without its first `frames` frames."""
        boxes, motion = self.boxes[frames:], self.mouth_motion[frames:]
        return replace(self, first_frame=self.first_frame + frames, row=self.row + frames, boxes=boxes, mouth_motion=motion)


@dataclass(frozen=True)
class CachedWindow:
    """A window's inputs, padded to T frames where the whole track is shorter.

    track: index in `CachedClip.tracks`. first_frame: of the picture. lag: how many frames later than in the file the sound comes.
    crops: (T, S, S, 3) uint8. mel: (bins, 4 T) float32. mask: (T,) bool, the valid frames; beyond it all is 0.
    speech: (T,) bool, of the sound that the window has. mouth_motion: (T,) float32.
    """

    track: int
    first_frame: int
    lag: int
    crops: NDArray[np.uint8]
    mel: NDArray[np.float32]
    mask: NDArray[np.bool_]
    speech: NDArray[np.bool_]
    mouth_motion: NDArray[np.float32]


@dataclass(frozen=True)
class CachedClip:
    """All of a clip. log_mel: (4 F, bins) float32, log10, not normalised; speech: (F,) bool; frame 0 is the grid's.

    begin: frames before it are trimmed away, from picture and sound alike.
    """

    tracks: tuple[Track, ...]
    log_mel: NDArray[np.float32]
    speech: NDArray[np.bool_]
    begin: int = 0

    @property
    def sound_frames(self) -> int:
        """Frames of the grid until the sound ends."""
        return len(self.speech)

    def starts(self, track: int, model: ModelConfig) -> list[int]:
        """First frames of the windows that a scan would make of a track."""
        found = self.tracks[track]
        return [found.first_frame + start for start in window_starts(found.frames, model)]

    def sound(self, first_frame: int, frames: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Mel (bins, 4 frames), normalised over these frames, and speech (frames,). Beyond the sound's end there is silence, as in a scan.

        Raises ValueError, a bug of the caller, for frames before the clip's begin.
        """
        if first_frame < self.begin or frames < 1:
            raise ValueError(f"no sound for {frames} frames from frame {first_frame}: the clip begins at {self.begin}")
        raw = _take(self.log_mel, MEL_FRAMES * first_frame, MEL_FRAMES * frames, SILENCE)
        return np.ascontiguousarray(normalise(raw).T), _take(self.speech, first_frame, frames, False)

    def window(self, track: int, first_frame: int, *, frames: int, lag: int = 0) -> CachedWindow:
        """The window of `frames` frames of a track from `first_frame` on, its sound `lag` frames later than in the file.

        Raises ValueError, a bug of the caller, for a place outside the track.
        """
        found = self.tracks[track]
        valid = min(frames, found.frames)
        if not found.first_frame <= first_frame <= found.end_frame - valid:
            raise ValueError(f"no {frames} frames from {first_frame}: track {track} has {found.first_frame} to {found.end_frame - 1}")
        mel, speech = self.sound(first_frame - lag, valid)
        motion = found.mouth_motion[first_frame - found.first_frame :][:valid]
        padding = frames - valid
        return CachedWindow(
            track=track,
            first_frame=first_frame,
            lag=lag,
            crops=np.pad(found.cut(first_frame, valid), ((0, padding), (0, 0), (0, 0), (0, 0))),
            mel=np.pad(mel, ((0, 0), (0, MEL_FRAMES * padding))),
            mask=np.arange(frames) < valid,
            speech=np.pad(speech, (0, padding)),
            mouth_motion=np.pad(motion, (0, padding)),
        )

    def speaks(self, track: int, config: SpeechConfig) -> bool:
        """Whether this mouth moves in enough of its frames in which somebody speaks: a scan's rule for speakers."""
        found = self.tracks[track]
        speech = _take(self.speech, found.first_frame, found.frames, False)
        moving = speech & (found.mouth_motion >= config.min_mouth_motion)
        return bool(speech.any()) and float(moving.sum()) >= config.min_speaking_fraction * float(speech.sum())

    def trimmed(self) -> "CachedClip":
        """The clip from its first speech on: the same stretch is gone from picture and sound. As it is, where nobody speaks.

        Fakes of some data sets begin with a silence that alone tells them (arXiv 2412.00175). Speech flags begin 0.1 s before a voice. Frames keep
        their numbers; tracks that ended before are gone.
        """
        begin = max(self.begin, leading_silence(self.speech))
        tracks = tuple(
            track if track.first_frame >= begin else track.without_start(begin - track.first_frame)
            for track in self.tracks
            if track.end_frame > begin
        )
        return replace(self, begin=begin, tracks=tracks)


def leading_silence(speech: NDArray[np.bool_]) -> int:
    """Frames before the first that has speech; 0 where none has."""
    return int(np.argmax(speech)) if speech.any() else 0


def _take(rows: NDArray[Any], begin: int, count: int, missing: float | bool) -> NDArray[Any]:
    """`count` rows from `begin` on, `missing` beyond the end."""
    found = rows[begin : begin + count]
    short = count - len(found)
    return np.concatenate([found, np.full((short, *rows.shape[1:]), missing, rows.dtype)]) if short else found


# ------------------------------------------------------------------------------------------------------------- its file


def write_entry(path: Path, clip: CachedClip, facts: Mapping[str, object]) -> None:
    """One safetensors file, whose header holds `facts` and a SHA-256 over all the rest. Raises OSError."""
    arrays: dict[str, NDArray[Any]] = {"log_mel": clip.log_mel, "speech": clip.speech}
    for number, track in enumerate(clip.tracks):
        arrays |= {f"crops.{number}": track.cut(track.first_frame, track.frames), f"boxes.{number}": track.boxes}
        arrays[f"mouth_motion.{number}"] = track.mouth_motion
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    places = [[track.number, track.first_frame] for track in clip.tracks]
    document = json.dumps({"format": FORMAT, "tracks": places, "facts": dict(facts)}, sort_keys=True)
    try:
        entry = json.dumps({"document": document, "sha256": _digest(document, arrays)})
        save_file(arrays, path, metadata={"entry": entry})  # one text: safetensors writes several in any order
    except SafetensorError as error:  # a full disk among others
        raise OSError(None, str(error)) from error


def open_entry(path: Path) -> CachedClip:
    """A clip whose crops are read as windows ask for them (the file is mapped into memory). Raises UsageError where it is none; see `check_entry`."""
    try:
        handle: Any = safe_open(path, framework="np")
        document = json.loads(json.loads(handle.metadata()["entry"])["document"])
        tracks = tuple(
            Track(number, first, handle.get_slice(f"crops.{index}"), handle.get_tensor(f"boxes.{index}"), handle.get_tensor(f"mouth_motion.{index}"))
            for index, (number, first) in enumerate(document["tracks"])
        )
        return CachedClip(tracks, handle.get_tensor("log_mel"), handle.get_tensor("speech"))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"Cache entry '{path}' is damaged ({type(error).__name__}: {error}). Build the cache again: it makes such entries anew."
        ) from error


def check_entry(path: Path) -> dict[str, Any] | None:
    """The facts of an entry, every byte of which is as it was written; None where there is none, or a damaged or older one."""
    try:
        handle: Any = safe_open(path, framework="np")
        entry = json.loads(handle.metadata()["entry"])
        arrays = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  # it is no dictionary
        document = json.loads(entry["document"])
        whole = document["format"] == FORMAT and entry["sha256"] == _digest(entry["document"], arrays)
        return dict(document["facts"]) if whole else None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def _digest(document: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(document.encode())
    for name in sorted(arrays):
        digest.update(f"|{name} {arrays[name].dtype} {arrays[name].shape}|".encode())
        digest.update(arrays[name].data)
    return digest.hexdigest()


def frames_of(tracks: Sequence[Track]) -> list[list[int]]:
    """[first frame, frames] of every track: what an index tells of them."""
    return [[track.first_frame, track.frames] for track in tracks]
