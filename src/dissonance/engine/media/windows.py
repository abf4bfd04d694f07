"""A track's frames become windows of T frames, every `hop` frames; the last is anchored to the track's end, and only a shorter track is padded."""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dissonance.config import ModelConfig


@dataclass(frozen=True)
class TrackFrame:
    """One face in one frame of the grid: its smoothed box (4,), crop (S, S, 3) uint8 and mouth motion (grey levels)."""

    frame: int
    box: NDArray[np.float64]
    crop: NDArray[np.uint8]
    mouth_motion: float


@dataclass(frozen=True)
class Span:
    """The pictures of one window; see `clip.Window` for the fields. Its sound is added there."""

    index: int
    first_frame: int
    frames: int
    new_crops: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    mouth_motion: NDArray[np.float32]


class TrackWindows:
    """Windows of one track, as its consecutive frames come. Holds at most T of them."""

    def __init__(self, model: ModelConfig) -> None:
        self._size = model.frames
        self._hop = model.hop
        self._all_crops = model.visual.prompts.per_frame
        self._index = 0
        self._start: int | None = None  # first frame of the window that is being filled
        self._handed_out = 0  # frames before this one came with an earlier window
        self._recent: deque[TrackFrame] = deque(maxlen=model.frames)

    def push(self, face: TrackFrame) -> list[Span]:
        """The window that this frame completes, if any."""
        if self._start is None:
            self._start = self._handed_out = face.frame
        self._recent.append(face)
        if face.frame + 1 < self._start + self._size:
            return []
        span = self._span()
        self._start += self._hop
        return [span]

    def finish(self) -> list[Span]:
        """The track is over: the window anchored to its end, or the only one of a short track. None where a window ended just here."""
        if not self._recent or self._recent[-1].frame < self._handed_out:
            return []
        return [self._span()]

    def _span(self) -> Span:
        """The window of all recent frames."""
        faces = self._recent
        new = [face.crop for face in faces if self._all_crops or face.frame >= self._handed_out]
        self._handed_out = faces[-1].frame + 1
        index, self._index = self._index, self._index + 1
        return Span(
            index=index,
            first_frame=faces[0].frame,
            frames=len(faces),
            new_crops=np.stack(new),
            boxes=np.stack([face.box for face in faces]).astype(np.float32),
            mouth_motion=np.array([face.mouth_motion for face in faces], np.float32),
        )


def window_starts(frames: int, model: ModelConfig) -> list[int]:
    """First frames of the windows of a track of so many frames, by the same rule."""
    starts = list(range(0, max(0, frames - model.frames) + 1, model.hop))
    anchored = max(0, frames - model.frames)
    return starts if starts[-1] == anchored else [*starts, anchored]
