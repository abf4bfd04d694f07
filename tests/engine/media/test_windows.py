"""Windows over one track: every frame is covered, the last window is anchored, crops come once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dissonance.config import AudioConfig, HeadConfig, ModelConfig, VisualConfig, VisualPromptConfig
from dissonance.engine.media.windows import Span, TrackFrame, TrackWindows, window_starts


def _model(frames: int, hop: int, *, per_frame: bool = False) -> ModelConfig:
    return ModelConfig(
        preset="test",
        frames=frames,
        hop=hop,
        visual=VisualConfig(
            hidden_size=8, layers=1, heads=1, intermediate_size=8, image_size=16, patch_size=8, prompts=VisualPromptConfig(per_frame=per_frame)
        ),
        audio=AudioConfig(hidden_size=8, layers=1, heads=1, intermediate_size=8),
        head=HeadConfig(max_lag=2),
    )


def _run(model: ModelConfig, first: int, count: int) -> list[Span]:
    """Windows of a track whose crop, box and motion in frame k all say k."""
    track = TrackWindows(model)
    spans: list[Span] = []
    for k in range(first, first + count):
        spans += track.push(TrackFrame(k, np.full(4, float(k)), np.full((2, 2, 3), k % 256, np.uint8), float(k)))
    return spans + track.finish()


@given(size=st.integers(4, 12), data=st.data(), first=st.integers(0, 50), count=st.integers(1, 70), per_frame=st.booleans())
def test_windows_cover_a_track(size: int, data: st.DataObject, first: int, count: int, per_frame: bool) -> None:
    hop = data.draw(st.integers(1, size))
    spans = _run(_model(size, hop, per_frame=per_frame), first, count)
    assert [span.index for span in spans] == list(range(len(spans)))
    covered: set[int] = set()
    handed_out: list[int] = []
    for span in spans:
        frames = range(span.first_frame, span.first_frame + span.frames)
        covered.update(frames)
        assert span.frames == min(size, count)  # only a track shorter than a window is padded
        np.testing.assert_array_equal(span.boxes, np.repeat(np.array(frames, np.float32)[:, None], 4, 1))
        np.testing.assert_array_equal(span.mouth_motion, np.array(frames, np.float32))
        new = list(frames)[len(frames) - len(span.new_crops) :]  # the last n of the window's frames
        np.testing.assert_array_equal(span.new_crops, np.stack([np.full((2, 2, 3), k % 256, np.uint8) for k in new]))
        handed_out += new
        if per_frame:
            assert len(new) == span.frames
    assert covered == set(range(first, first + count))
    if not per_frame:
        assert handed_out == list(range(first, first + count))  # every crop once, in order
    regular = [first + start for start in range(0, max(1, count - size + 1), hop)]
    assert [span.first_frame for span in spans[: len(regular)]] == regular
    assert len(spans) - len(regular) == (regular[-1] + size < first + count)
    assert spans[-1].first_frame + spans[-1].frames == first + count
    assert [span.first_frame - first for span in spans] == window_starts(count, _model(size, hop))


def test_an_anchored_window_overlaps_the_one_before() -> None:
    spans = _run(_model(8, 8), 3, 19)
    assert [(span.first_frame, len(span.new_crops)) for span in spans] == [(3, 8), (11, 8), (14, 3)]


def test_no_frames_no_windows() -> None:
    assert TrackWindows(_model(8, 8)).finish() == []
