"""Batching: whatever the batch sizes and however files are interleaved, each frame is encoded once and lands in its place."""

import dataclasses
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dissonance.config import ExecutionConfig, ModelConfig, load_preset
from dissonance.engine.media.clip import Window
from dissonance.engine.runtime.base import FloatArray, HeadOutput
from dissonance.engine.scan.scoring import Scorer, WindowScore

FRAMES, HOP, LAGS = 8, 4, 2


def tiny_model() -> ModelConfig:
    data = load_preset("demo").model_dump()
    data.update(frames=FRAMES, hop=HOP)
    data["head"]["max_lag"] = LAGS
    data["visual"]["hidden_size"] = data["visual"]["heads"] = 1
    data["audio"]["hidden_size"] = data["audio"]["heads"] = 1
    return ModelConfig.model_validate(data)


class Arithmetic:
    """A runtime that can be followed by hand: a frame's feature is its first pixel, a sound's the mel's mean, the head adds up."""

    name = "arithmetic"

    def __init__(self) -> None:
        self.frames: Counter[int] = Counter()
        self.batches: list[int] = []

    def encode_frames(self, crops: NDArray[np.uint8], frame_index: NDArray[np.int64]) -> FloatArray:
        assert len(crops) == len(frame_index)
        self.frames.update(crops[:, 0, 0, 0].tolist())
        self.batches.append(len(crops))
        return crops[:, 0, 0, :1].astype(np.float32)

    def encode_sound(self, mel: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
        return np.broadcast_to(mel.mean(axis=(1, 2))[:, None, None], (len(mel), 2 * mask.shape[1], 1)).astype(np.float32)

    def run_head(self, visual: FloatArray, audio: FloatArray, mask: NDArray[np.bool_]) -> HeadOutput:
        count = len(mask)
        positions = np.arange(1, FRAMES + 1, dtype=np.float32)
        ordered = (visual[:, :, 0] * positions * mask).sum(axis=1)  # tells where each frame is
        return HeadOutput(
            logit_visual=ordered,
            logit_audio=audio[:, 0, 0],
            logit_fused=ordered + audio[:, 0, 0],
            matched=np.where(mask, visual[:, :, 0], 0),
            lag_profile=np.zeros((count, 2 * LAGS + 1), np.float32),
            lag_valid=np.ones((count, 2 * LAGS + 1), bool),
            best_lag=np.full(count, 1, np.int64),
        )


def window(values: list[int], *, new: int, track: int = 0, index: int = 0, first_frame: int = 0, sound: float | None = None) -> Window:
    crops = np.zeros((len(values), 1, 1, 3), np.uint8)
    crops[:, 0, 0, 0] = values
    return Window(
        track=track, index=index, first_frame=first_frame, frames=len(values), start_s=0.0, end_s=1.0, new_crops=crops[len(values) - new :],
        mel=None if sound is None else np.full((2, 4 * FRAMES), sound, np.float32), boxes=np.zeros((len(values), 4), np.float32),
        speech=np.ones(len(values), bool), mouth_motion=np.ones(len(values), np.float32),
    )  # fmt: skip


def track_windows(values: list[int], *, track: int, sound: float) -> list[Window]:
    """A track's windows in steps of HOP, the last one anchored to its end, each bringing only frames not sent before."""
    length = len(values)
    starts = [0] if length <= FRAMES else [*range(0, length - FRAMES, HOP), length - FRAMES]
    sent, windows = 0, []
    for index, start in enumerate(starts):
        part = values[start : start + FRAMES]
        windows.append(window(part, new=start + len(part) - sent, track=track, index=index, first_frame=start, sound=sound))
        sent = start + len(part)
    return windows


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    batch_frames=st.integers(1, 40),
    batch_windows=st.integers(1, 5),
    order=st.randoms(use_true_random=False),
)
def test_every_window_gets_its_own_frames_whatever_the_batches(lengths: list[int], batch_frames: int, batch_windows: int, order: object) -> None:
    numbers = iter(range(1, 256))
    values = [[next(numbers) for _ in range(length)] for length in lengths]
    queues = [[(clip, item) for item in track_windows(part, track=0, sound=float(clip))] for clip, part in enumerate(values)]
    runtime = Arithmetic()
    scorer = Scorer(runtime, model=tiny_model(), execution=ExecutionConfig(batch_frames=batch_frames, batch_windows=batch_windows))
    scores: dict[tuple[int, int], WindowScore] = {}
    while any(queues):
        clip, item = order.choice([queue for queue in queues if queue]).pop(0)  # type: ignore[attr-defined]
        scorer.add(clip, item)
        scores.update({(clip, score.window.index): score for clip, score in scorer.run()})
    scores.update({(clip, score.window.index): score for clip, score in scorer.flush()})
    for clip, part in enumerate(values):
        for item in track_windows(part, track=0, sound=float(clip)):
            expected = part[item.first_frame : item.first_frame + item.frames]
            score = scores.pop((clip, item.index))
            assert score.logit_visual == sum(place * value for place, value in enumerate(expected, start=1))
            assert score.matched is not None
            assert score.matched.tolist() == expected
            assert score.logit_audio == clip
    assert not scores
    assert set(runtime.frames.values()) == {1}, "a frame was encoded twice"
    assert all(size == batch_frames for size in runtime.batches[:-1]), "a batch was run before it was full"


def score_one(item: Window) -> WindowScore:
    scorer = Scorer(Arithmetic(), model=tiny_model(), execution=ExecutionConfig())
    scorer.add(0, item)
    ((_, score),) = scorer.flush()
    return score


def test_a_face_without_sound_has_only_a_visual_logit() -> None:
    score = score_one(window([3, 4], new=2))
    assert score.logit_visual == 3 + 2 * 4
    assert score.logit_audio is score.logit_fused is score.matched is score.lag_profile is score.best_lag is None


def test_sound_without_a_face_has_only_an_audio_logit() -> None:
    score = score_one(window([0] * 4, new=0, track=-1, sound=2.5))
    assert score.logit_audio == 2.5
    assert score.logit_visual is score.logit_fused is score.matched is score.best_lag is None


def test_a_forgotten_clip_leaves_nothing_behind() -> None:
    runtime = Arithmetic()
    scorer = Scorer(runtime, model=tiny_model(), execution=ExecutionConfig())
    scorer.add(0, window([1, 2], new=2, sound=1.0))
    scorer.add(1, window([3], new=1))
    scorer.forget(0)
    assert [clip for clip, _ in scorer.flush()] == [1]
    assert set(runtime.frames) == {3}
    with pytest.raises(StopIteration):
        next(iter(scorer.flush()))


def test_a_still_picture_is_encoded_once_a_window_and_scored_the_same() -> None:
    still, moving = Arithmetic(), Arithmetic()
    scores = []
    for runtime, pictures in ((still, [7] * FRAMES), (moving, [7, 7, *range(20, 18 + FRAMES)])):
        scorer = Scorer(runtime, model=tiny_model(), execution=ExecutionConfig())
        scorer.add(0, window(pictures, new=FRAMES))
        scores += [score.logit_visual for _, score in scorer.flush()]
        assert scores[-1] == sum(position * picture for position, picture in enumerate(pictures, start=1))
    assert still.frames == Counter({7: 1})
    assert moving.frames == Counter({7: 1, **dict.fromkeys(range(20, 18 + FRAMES), 1)})


def test_a_video_of_many_tracks_does_not_fill_the_memory() -> None:
    """A worker's message is 1 MB here; 300 tracks of one window each would be 300 MB if the scorer kept them until the file's end."""
    scorer = Scorer(Arithmetic(), model=tiny_model(), execution=ExecutionConfig(batch_frames=8, batch_windows=1))
    payload = np.zeros(1 << 20, np.uint8)
    payload[: 3 * FRAMES] = np.arange(3 * FRAMES)  # no two crops are the same
    tracemalloc.start()
    try:
        for track in range(300):
            message = payload.copy()
            crops = message[: 3 * FRAMES].reshape(FRAMES, 1, 1, 3)  # a view, as `messages.decode` makes them
            part = window([1] * FRAMES, new=FRAMES, track=track, first_frame=track * 40, sound=1.0)
            boxes = message[-16 * FRAMES :].view(np.float32).reshape(FRAMES, 4)
            scorer.add(0, dataclasses.replace(part, new_crops=crops, speech=message[-FRAMES:].view(np.bool_), boxes=boxes))
            del message, crops, boxes
            assert len(list(scorer.run())) == 1
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 5 * len(payload)
    assert len(scorer._last) < 100
