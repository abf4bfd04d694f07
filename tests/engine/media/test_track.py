"""The tracker against closed forms (straight lines, numpy's interpolation and convolution) and properties over random faces."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dissonance.config import TrackingConfig
from dissonance.engine.media.detect import Detection
from dissonance.engine.media.track import Tracker, TrackUpdate, iou


def _face(x: float, y: float = 50.0, side: float = 40.0) -> Detection:
    return Detection(x - side / 2, y - side / 2, x + side / 2, y + side / 2, 1.0)


class _Record:
    """All updates of a run, checked as they come; boxes of each track by key."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.boxes: dict[int, list[NDArray[np.float64]]] = {}
        self.first: dict[int, int] = {}
        self.seen: dict[int, int] = {}
        self.ended: set[int] = set()

    def take(self, updates: list[TrackUpdate]) -> None:
        assert len({update.key for update in updates}) == len(updates)
        for update in updates:
            assert update.key not in self.ended
            boxes = self.boxes.setdefault(update.key, [])
            assert self.first.setdefault(update.key, update.first_frame) + len(boxes) == update.first_frame  # one box a frame, none left out
            boxes.extend(update.boxes)
            assert update.seen_until >= self.seen.get(update.key, 0)
            self.seen[update.key] = update.seen_until
            if update.ended:
                self.ended.add(update.key)
                assert self.first[update.key] + len(boxes) - 1 >= update.seen_until

    def track(self, key: int) -> NDArray[np.float64]:
        """(frames, 4): its boxes from its first frame to its last sighting."""
        return np.stack(self.boxes[key][: self.seen[key] - self.first[key] + 1])


def _run(config: TrackingConfig, sightings: dict[int, list[Detection]], *, cuts: frozenset[int] = frozenset()) -> _Record:
    record = _Record(Tracker(config))
    for frame, faces in sightings.items():
        record.take(record.tracker.update(frame, faces, cut=frame in cuts))
    record.take(record.tracker.finish())
    assert record.ended == set(record.boxes)
    return record


def test_uniform_motion_passes_unchanged() -> None:
    record = _run(TrackingConfig(), {frame: [_face(100 + 0.8 * frame, 60 - 0.5 * frame)] for frame in (0, 12, 24, 36, 40)})
    frames = np.arange(41)
    expected = np.stack([80 + 0.8 * frames, 40 - 0.5 * frames, 120 + 0.8 * frames, 80 - 0.5 * frames], axis=1)
    assert record.boxes.keys() == {0}
    np.testing.assert_allclose(record.track(0), expected, atol=1e-9)


@given(steps=st.lists(st.floats(-8, 8), min_size=4, max_size=8), width=st.integers(1, 15), every=st.integers(1, 14))
def test_smoothing_is_a_triangular_mean_of_the_straight_lines(steps: list[float], width: int, every: int) -> None:
    places = np.concatenate([[100.0], 100 + np.cumsum(steps)])
    sightings = np.arange(len(places)) * every
    record = _run(TrackingConfig(smoothing_frames=width), {int(frame): [_face(x)] for frame, x in zip(sightings, places, strict=True)})
    raw = np.interp(np.arange(sightings[-1] + 1), sightings, places)
    half = width // 2
    kernel = np.convolve(np.ones(half + 1), np.ones(half + 1)) / (half + 1) ** 2  # a triangle is two boxes
    smooth = np.convolve(raw, kernel, mode="valid")
    centre = record.track(0)[:, [0, 2]].mean(axis=1)
    assert len(centre) == len(raw)
    np.testing.assert_allclose(centre[half : len(raw) - half] if len(smooth) else [], smooth[: max(0, len(raw) - 2 * half)], atol=1e-9)
    np.testing.assert_allclose(centre[[0, -1]], raw[[0, -1]], atol=1e-9)  # narrowed at the ends: they are as detected


@given(
    faces=st.lists(st.lists(st.tuples(st.floats(0, 300), st.floats(0, 200), st.floats(10, 120)), max_size=5), min_size=1, max_size=12),
    gaps=st.lists(st.integers(1, 20), min_size=12, max_size=12),
    cuts=st.sets(st.integers(1, 11)),
    config=st.builds(
        TrackingConfig,
        max_gap_frames=st.integers(1, 40),
        smoothing_frames=st.integers(1, 21),
        max_tracks=st.integers(1, 4),
        min_iou=st.floats(0, 0.7),
    ),
)
def test_every_frame_of_a_track_has_one_box(
    faces: list[list[tuple[float, float, float]]], gaps: list[int], cuts: set[int], config: TrackingConfig
) -> None:
    tracker = Tracker(config)
    record = _Record(tracker)
    frame = 0
    shown: dict[int, list[Detection]] = {}
    for index, (here, gap) in enumerate(zip(faces, gaps, strict=False)):
        frame += 1 if index in cuts else gap
        shown[frame] = [_face(*face) for face in here]
        updates = tracker.update(frame, shown[frame], cut=index in cuts)
        record.take(updates)
        live = [update for update in updates if not update.ended]
        assert len(live) <= config.max_tracks
        assert all(
            update.first_frame + len(update.boxes) == max(frame - config.smoothing_frames // 2 + 1, record.first[update.key]) for update in live
        )
        seen = [update for update in live if update.seen_until == frame]
        assert len(seen) == min(len(here), config.max_tracks)  # each face is in a track of its own
        assert all(update.seen_until == record.seen[update.key] for update in updates)
        assert not any(update.first_frame < frame and not update.ended and update.seen_until < frame for update in updates if index in cuts)
    record.take(tracker.finish())
    assert record.ended == set(record.boxes)
    corners = np.array([detection.box for here in shown.values() for detection in here]).reshape(-1, 4)
    for key in record.boxes:
        boxes = record.track(key)
        assert len(boxes) == record.seen[key] - record.first[key] + 1
        assert record.first[key] in shown  # a track starts and ends where a face was seen
        assert record.seen[key] in shown
        assert (boxes >= corners.min(axis=0) - 1e-6).all()  # means of what was seen lie within it
        assert (boxes <= corners.max(axis=0) + 1e-6).all()


def test_a_face_missed_twice_is_bridged_and_its_box_waits() -> None:
    record = _run(TrackingConfig(smoothing_frames=1), {0: [_face(100)], 12: [_face(100)], 24: [], 36: [], 48: [_face(112)], 60: [_face(112)]})
    assert record.boxes.keys() == {0}
    centre = record.track(0)[:, [0, 2]].mean(axis=1)
    np.testing.assert_allclose(centre, np.interp(np.arange(61), [0, 36, 48, 60], [100, 100, 112, 112]))


def test_a_face_that_stays_away_ends_at_its_last_sighting() -> None:
    record = _run(TrackingConfig(), {0: [_face(100)], 12: [_face(100)], 24: [], 36: [], 48: [], 60: [_face(100)]})
    assert {key: (record.first[key], record.seen[key]) for key in record.boxes} == {0: (0, 12), 1: (60, 60)}


def test_seen_until_waits_while_a_face_is_unseen() -> None:
    tracker = Tracker(TrackingConfig(smoothing_frames=1))
    tracker.update(0, [_face(100)])
    (missed,) = tracker.update(12, [])
    assert (missed.first_frame, len(missed.boxes), missed.seen_until, missed.ended) == (1, 12, 0, False)
    (back,) = tracker.update(24, [_face(100)])
    assert (back.first_frame, len(back.boxes), back.seen_until) == (13, 12, 24)


def test_a_cut_ends_every_track_at_the_frame_before() -> None:
    faces = [_face(100), _face(200)]
    record = _run(TrackingConfig(), {0: faces, 7: faces, 8: faces, 12: faces}, cuts=frozenset({8}))
    assert {key: (record.first[key], record.seen[key]) for key in record.boxes} == {0: (0, 7), 1: (0, 7), 2: (8, 12), 3: (8, 12)}


def test_faces_that_pass_each_other_keep_their_tracks() -> None:
    record = _run(TrackingConfig(), {frame: [_face(100 + frame, 50), _face(160 - frame, 75)] for frame in range(0, 61, 4)})
    assert record.boxes.keys() == {0, 1}
    np.testing.assert_allclose(record.track(0)[:, 0], 80 + np.arange(61.0), atol=1e-9)


def test_matching_takes_the_largest_overlap_first_and_the_order_given_does_not_matter() -> None:
    near, far = _face(103), _face(90)
    for order in itertools.permutations([near, far]):
        record = _run(TrackingConfig(smoothing_frames=1), {0: [_face(100)], 1: list(order)})
        np.testing.assert_allclose(record.track(0)[1], near.box)


def test_the_largest_faces_are_kept() -> None:
    faces = [_face(100, side=30), _face(300, side=60), _face(500, side=45)]
    record = _run(TrackingConfig(max_tracks=2, smoothing_frames=1), {0: faces, 12: faces})
    assert sorted(float(record.track(key)[0, 2] - record.track(key)[0, 0]) for key in record.boxes) == [45, 60]


def test_iou_of_known_boxes() -> None:
    unit = np.array([0.0, 0.0, 2.0, 2.0])
    assert iou(unit, unit) == 1
    assert iou(unit, unit + 1) == pytest.approx(1 / 7)
    assert iou(unit, unit + 2) == 0
    assert iou(unit, np.array([0.5, 0.5, 1.5, 1.5])) == 0.25
