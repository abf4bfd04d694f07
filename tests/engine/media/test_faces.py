"""Frames to tracks of crops: what comes out, and what is held back meanwhile."""

import weakref
from collections.abc import Iterator, Sequence
from itertools import pairwise

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from hypothesis import given, settings
from hypothesis import strategies as st

from dissonance.bundle import CropSpec
from dissonance.config import DetectorConfig, ScanConfig, TrackingConfig
from dissonance.engine.media.detect import Detection, Picture
from dissonance.engine.media.faces import DetectedFaces, TrackProgress
from dissonance.engine.media.frame import Frame

CROP = CropSpec(size_px=16)


class _Beacons:
    """A detector for pictures in which a face is a bright square."""

    def detect(self, frame: Picture, *, near: Sequence[tuple[float, float, float, float]] = ()) -> list[Detection]:  # noqa: ARG002
        rows, columns = np.nonzero(frame.grey(4096) > 128)
        return [Detection(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, 1)] if len(rows) else []


def _beacon_frames(shown: Sequence[bool]) -> Iterator[Frame]:
    reformatter = VideoReformatter()
    for bright in shown:
        picture = np.zeros((60, 80, 3), np.uint8)
        picture[20:40, 30:50] = 255 if bright else 0
        yield Frame(av.VideoFrame.from_ndarray(picture, format="rgb24"), sample_aspect=1.0, reformatter=reformatter)


@settings(max_examples=40, deadline=None)
@given(
    runs=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    every=st.integers(1, 15),
    gap=st.integers(1, 30),
    least=st.integers(1, 20),
    smoothing=st.integers(1, 15),
)
def test_what_comes_out_of_the_faces_of_a_video(runs: list[tuple[int, int]], every: int, gap: int, least: int, smoothing: int) -> None:
    """Every track: consecutive frames, from a sighting to a sighting, long enough, over no absence that is longer than allowed."""
    shown = [state for seen, unseen in runs for state in [True] * seen + [False] * unseen]
    scan = ScanConfig(
        detector=DetectorConfig(every_frames=every),
        tracking=TrackingConfig(max_gap_frames=gap, min_track_frames=least, smoothing_frames=smoothing),
    )
    stream = DetectedFaces(_Beacons(), scan=scan, crop=CROP)
    progress: list[TrackProgress] = []
    for k, frame in enumerate(_beacon_frames(shown)):
        progress += stream.push(k, frame)
    progress += stream.finish()
    tracks: dict[int, list[int]] = {}
    ended: set[int] = set()
    for part in progress:
        assert part.track not in ended
        tracks.setdefault(part.track, []).extend(face.frame for face in part.faces)
        assert all((face.crop > 128).mean() > 0.5 for face in part.faces if shown[face.frame])
        ended |= {part.track} if part.ended else set()
    assert ended == set(tracks)
    assert sorted(tracks) == list(range(len(tracks)))
    looked = set(range(0, len(shown), every)) | {len(shown) - 1}
    covered: set[int] = set()
    for frames in tracks.values():
        assert frames == list(range(frames[0], frames[-1] + 1))
        assert shown[frames[0]]
        assert shown[frames[-1]]
        assert len(frames) >= least
        sightings = [k for k in frames if k in looked and shown[k]]
        assert all(b - a <= gap + every for a, b in pairwise(sightings))
        assert covered.isdisjoint(frames)
        covered |= set(frames)


@pytest.mark.parametrize("always", [True, False])
def test_full_frames_held_do_not_grow_with_the_video(always: bool) -> None:
    """A detection interval and half a smoothing window of them, whether the face is there or never comes back."""
    scan = ScanConfig()
    stream = DetectedFaces(_Beacons(), scan=scan, crop=CROP)
    alive: weakref.WeakSet[Frame] = weakref.WeakSet()
    most = 0
    for k, frame in enumerate(_beacon_frames([always or k < 20 for k in range(200)])):
        alive.add(frame)
        stream.push(k, frame)
        del frame
        most = max(most, len(alive))
    assert most <= scan.detector.every_frames + scan.tracking.smoothing_frames // 2 + 2  # the one in hand, and the loop's own
