"""Detections become tracks: one smooth box per track and frame, a fixed number of frames late.

The tracker is told the detections of some frames of the grid, the *sightings*, in order. Between two sightings of a face its box moves linearly.
While a face is unseen its box stays where it was, and nobody knows yet whether these frames are the face's: an update says up to which
frame the face is `seen_until`, and what lies beyond may be scored only when a later update moves that. A face unseen at a sighting more than
`max_gap_frames` after its last one has ended there, and at a cut every track ends. Then boxes are averaged over time by a centred triangular
window, narrowed symmetrically at a track's two ends, so that uniform motion passes unchanged and the first and last boxes exist.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dissonance.config import TrackingConfig
from dissonance.engine.media.boxes import Box
from dissonance.engine.media.detect import Detection


@dataclass(frozen=True)
class TrackUpdate:
    """What became known about one track.

    `boxes` (n, 4) float64 are smoothed boxes of frames `first_frame`, `first_frame` + 1, ...: the next ones after the last update's. Frames up to and
    including `seen_until` are the face's. `key` numbers all tracks, also those that turn out too short. After `ended` no more comes.
    """

    key: int
    first_frame: int
    boxes: NDArray[np.float64]
    seen_until: int
    ended: bool


@dataclass
class _Track:
    key: int
    first: int  # its first frame
    seen_until: int  # its last sighting
    base: int  # the frame of raw[0]
    raw: list[NDArray[np.float64]]  # boxes before smoothing, as far back as smoothing still needs them
    next: int = field(init=False)  # the first frame whose smoothed box has not been handed out

    def __post_init__(self) -> None:
        self.next = self.first

    @property
    def last(self) -> int:
        return self.base + len(self.raw) - 1

    def move_to(self, box: NDArray[np.float64], frame: int) -> None:
        """Raw boxes up to `frame`, in a straight line from the last one."""
        start, steps = self.raw[-1], frame - self.last
        self.raw.extend(start + (box - start) * (step / steps) for step in range(1, steps + 1))

    def smoothed(self, until: int, half: int, *, ended: bool) -> NDArray[np.float64]:
        """The smoothed boxes of frames `next` to `until`, (n, 4); forgets what is no longer needed."""
        boxes = np.empty((max(0, until + 1 - self.next), 4))
        for row, frame in enumerate(range(self.next, until + 1)):
            reach = min(half, frame - self.first, self.last - frame) if ended else min(half, frame - self.first)
            around = np.stack(self.raw[frame - reach - self.base : frame + reach + 1 - self.base])
            weights = reach + 1.0 - np.abs(np.arange(-reach, reach + 1))
            boxes[row] = weights @ around / weights.sum()
        self.next = max(self.next, until + 1)
        spare = min(self.next - half - self.base, len(self.raw) - 1)
        if spare > 0:
            del self.raw[:spare]
            self.base += spare
        return boxes


class Tracker:
    """Several faces of one video. A box is final `delay_frames` after its frame's sighting interval; memory does not depend on the video's length."""

    def __init__(self, config: TrackingConfig) -> None:
        self._config = config
        self._half = config.smoothing_frames // 2
        self._tracks: list[_Track] = []
        self._keys = 0

    @property
    def delay_frames(self) -> int:
        """Frames after a sighting's frame that its smoothed box waits for: half the smoothing window."""
        return self._half

    @property
    def places(self) -> list[Box]:
        """Where the tracks that have not ended were last."""
        return [(float(box[0]), float(box[1]), float(box[2]), float(box[3])) for box in (track.raw[-1] for track in self._tracks)]

    def update(self, frame: int, detections: Sequence[Detection], *, cut: bool = False) -> list[TrackUpdate]:
        """Tell it the faces of a frame, later than all before. `cut`: a new shot began at this very frame, and the frame before it was told too."""
        ended: list[_Track] = []
        if cut:
            ended, self._tracks = self._tracks, []
        largest = sorted(detections, key=lambda d: (-d.area, d.box))[: self._config.max_tracks]
        faces = [np.array(detection.box, np.float64) for detection in largest]
        partner = self._match(faces)
        for track in self._tracks:
            if (chosen := partner.get(track.key)) is not None:
                track.move_to(faces[chosen], frame)
                track.seen_until = frame
            elif frame - track.seen_until > self._config.max_gap_frames:
                ended.append(track)
            else:
                track.move_to(track.raw[-1], frame)
        live = [track for track in self._tracks if track not in ended]
        taken = set(partner.values())
        for index, box in enumerate(faces):
            if index not in taken:
                if len(live) == self._config.max_tracks:  # at most max_tracks are seen, so one of these is not: it has to go
                    gone = min(live, key=lambda track: (track.seen_until, -track.key))
                    live.remove(gone)
                    ended.append(gone)
                live.append(_Track(key=self._keys, first=frame, seen_until=frame, base=frame, raw=[box]))
                self._keys += 1
        self._tracks = live
        updates = [self._end(track) for track in sorted(ended, key=lambda track: track.key)]
        return updates + [self._advance(track, frame - self._half) for track in live]

    def finish(self) -> list[TrackUpdate]:
        """The video is over: every track ends at its last sighting."""
        ended, self._tracks = self._tracks, []
        return [self._end(track) for track in ended]

    def _match(self, faces: list[NDArray[np.float64]]) -> dict[int, int]:
        """Track key -> index of its face: pairs by falling overlap; equal ones by lower key, then lower index."""
        pairs = [
            (-overlap, track.key, index)
            for track in self._tracks
            for index, box in enumerate(faces)
            if (overlap := iou(track.raw[-1], box)) >= self._config.min_iou and overlap > 0
        ]
        partner: dict[int, int] = {}
        taken: set[int] = set()
        for _, key, index in sorted(pairs):
            if key not in partner and index not in taken:
                partner[key] = index
                taken.add(index)
        return partner

    def _advance(self, track: _Track, until: int) -> TrackUpdate:
        first = track.next
        return TrackUpdate(track.key, first, track.smoothed(until, self._half, ended=False), track.seen_until, ended=False)

    def _end(self, track: _Track) -> TrackUpdate:
        first = track.next
        return TrackUpdate(track.key, first, track.smoothed(track.seen_until, self._half, ended=True), track.seen_until, ended=True)


def iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1); 0 where they do not touch."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = float(width * height)
    return shared / (float((a[2] - a[0]) * (a[3] - a[1])) + float((b[2] - b[0]) * (b[3] - b[1])) - shared)
