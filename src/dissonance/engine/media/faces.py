"""Frames in, faces out: detection, tracking and cropping of one video, or its given boxes, as the frames come.

Full frames are held between two detections and for half the smoothing window; crops, which are small, until it is known whether they show
the face (`TrackUpdate.seen_until`) and whether its track is long enough to count. Both are bounded by the settings, not by the video's length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dissonance.bundle import CropSpec
from dissonance.config import ScanConfig
from dissonance.engine.media.boxes import Box, GivenTrack
from dissonance.engine.media.crop import crop_face
from dissonance.engine.media.detect import Detection, Detector, Picture
from dissonance.engine.media.mouth import mouth_motion
from dissonance.engine.media.shots import find_cut
from dissonance.engine.media.track import Tracker, TrackUpdate
from dissonance.engine.media.windows import TrackFrame


@dataclass(frozen=True)
class TrackProgress:
    """The next consecutive frames of one track. After `ended` no more comes."""

    track: int
    faces: list[TrackFrame]
    ended: bool


class FaceStream(Protocol):
    """Faces of one video, frame after frame."""

    def push(self, index: int, frame: Picture) -> list[TrackProgress]: ...

    def finish(self) -> list[TrackProgress]: ...


@dataclass
class _Candidate:
    """A track whose latest frames may yet turn out not to be a face."""

    first: int
    track: int | None = None  # its id, once it is long enough
    waiting: list[TrackFrame] = field(default_factory=list)
    last_crop: NDArray[np.uint8] | None = None
    last_cut: tuple[Picture, Box] | None = None  # where last_crop is from

    def add(self, index: int, frame: Picture, box: NDArray[np.float64], spec: CropSpec) -> None:
        corners = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
        still = self.last_crop is not None and self.last_cut is not None and self.last_cut[0] is frame and self.last_cut[1] == corners
        crop = self.last_crop if still and self.last_crop is not None else crop_face(frame, corners, spec)
        self.waiting.append(TrackFrame(index, box, crop, mouth_motion(self.last_crop, crop)))
        self.last_crop, self.last_cut = crop, (frame, corners)


class DetectedFaces:
    """Faces that a detector finds on every n-th frame, on the last one, and on both sides of a cut."""

    def __init__(self, detector: Detector, *, scan: ScanConfig, crop: CropSpec) -> None:
        self._detector = detector
        self._every_frames = scan.detector.every_frames
        self._min_track_frames = scan.tracking.min_track_frames
        self._crop = crop
        self._tracker = Tracker(scan.tracking)
        self._candidates: dict[int, _Candidate] = {}
        self._held: list[Picture] = []
        self._held_from = 0  # the frame of held[0]
        self._sighted = -1  # the last frame that the detector saw
        self._tracks = 0
        self._looked: tuple[Picture, list[Box], list[Detection]] | None = None  # the last picture searched, and what was found

    def push(self, index: int, frame: Picture) -> list[TrackProgress]:
        """Take frame `index` (0, 1, 2, ...); hand out what became certain."""
        self._held.append(frame)
        return self._sight(index) if index % self._every_frames == 0 else []

    def finish(self) -> list[TrackProgress]:
        """The video is over: what is left of every track."""
        last = self._held_from + len(self._held) - 1
        progress = self._sight(last) if last > self._sighted else []
        return progress + self._apply(self._tracker.finish())

    def _sight(self, index: int) -> list[TrackProgress]:
        progress: list[TrackProgress] = []
        cut = None
        if self._sighted >= 0:
            found = find_cut(self._held[self._sighted - self._held_from : index + 1 - self._held_from])
            cut = None if found is None else self._sighted + found
        if cut is not None and cut - 1 > self._sighted:
            progress += self._detect(cut - 1)
        if cut is not None and cut < index:
            progress += self._detect(cut, cut=True)
        progress += self._detect(index, cut=cut == index)
        self._sighted = index
        spent = min(index, index - self._tracker.delay_frames + 1) - self._held_from
        if spent > 0:
            del self._held[:spent]
            self._held_from += spent
        return progress

    def _detect(self, index: int, *, cut: bool = False) -> list[TrackProgress]:
        frame, near = self._held[index - self._held_from], [] if cut else self._tracker.places
        if self._looked is None or self._looked[0] is not frame or self._looked[1] != near:  # a picture that stands is searched once
            self._looked = frame, near, self._detector.detect(frame, near=near)
        found = self._looked[2]
        return self._apply(self._tracker.update(index, found, cut=cut))

    def _apply(self, updates: list[TrackUpdate]) -> list[TrackProgress]:
        progress = []
        for update in updates:
            candidate = self._candidates.setdefault(update.key, _Candidate(first=update.first_frame))
            for index, box in enumerate(update.boxes, start=update.first_frame):
                candidate.add(index, self._held[index - self._held_from], box, self._crop)
            if candidate.track is None and update.seen_until - candidate.first + 1 >= self._min_track_frames:
                candidate.track = self._tracks
                self._tracks += 1
            if candidate.track is not None:
                faces = [face for face in candidate.waiting if face.frame <= update.seen_until]
                candidate.waiting = candidate.waiting[len(faces) :]
                if faces or update.ended:
                    progress.append(TrackProgress(candidate.track, faces, update.ended))
            if update.ended:
                del self._candidates[update.key]
        return progress


class GivenFaces:
    """Faces whose boxes were given: their own track ids, no smoothing, nothing dropped."""

    def __init__(self, tracks: Sequence[GivenTrack], *, origin_s: float, fps: int, crop: CropSpec) -> None:
        self._given = list(tracks)
        self._origin_s = origin_s
        self._fps = fps
        self._crop = crop
        self._open: dict[int, _Candidate] = {}

    def push(self, index: int, frame: Picture) -> list[TrackProgress]:
        """Take frame `index` (0, 1, 2, ...); hand out its faces."""
        progress = []
        for given in self._given:
            box = given.box_at(self._origin_s + index / self._fps)
            if box is not None:
                candidate = self._open.setdefault(given.track, _Candidate(first=index, track=given.track))
                candidate.add(index, frame, np.array(box), self._crop)
                faces, candidate.waiting = candidate.waiting, []
                progress.append(TrackProgress(given.track, faces, ended=False))
            elif self._open.pop(given.track, None) is not None:
                progress.append(TrackProgress(given.track, [], ended=True))
        return progress

    def finish(self) -> list[TrackProgress]:
        """The video is over: every track ends."""
        ended, self._open = list(self._open), {}
        return [TrackProgress(track, [], ended=True) for track in ended]
