"""Crops against PIL's own resize of the whole picture, and mouth motion on drawn faces."""

from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from dissonance.bundle import CropSpec
from dissonance.engine.media.crop import crop_face, crop_square
from dissonance.engine.media.frame import Frame
from dissonance.engine.media.mouth import mouth_motion
from tests.engine.media.drawn_faces import backdrop, draw_face


def _frame(picture: NDArray[np.uint8], *, sample_aspect: float = 1.0, pixel_format: str = "rgb24") -> Frame:
    decoded = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixel_format)
    return Frame(decoded, sample_aspect=sample_aspect, reformatter=VideoReformatter())


@given(
    size=st.tuples(st.integers(8, 400), st.integers(8, 300)),
    aspect=st.sampled_from([1.0, 64 / 45, 0.5, 1.8]),
    box=st.tuples(st.floats(-200, 500), st.floats(-200, 400), st.floats(0, 600), st.floats(0, 600)),
    enlargement=st.floats(1, 2),
)
def test_the_square_lies_inside_the_picture_and_is_square_as_displayed(
    size: tuple[int, int], aspect: float, box: tuple[float, float, float, float], enlargement: float
) -> None:
    x, y, w, h = box
    width, height = size
    x0, y0, x1, y1 = crop_square((x, y, x + w, y + h), width=width, height=height, aspect=aspect, enlargement=enlargement)
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    assert (x1 - x0) * aspect == pytest.approx(y1 - y0, rel=1e-6)
    wanted = enlargement * max(w * aspect, h)
    if 2 < wanted <= min(width * aspect, height):  # it fits: full size, and moved no further than the border asks for
        assert y1 - y0 == pytest.approx(wanted, rel=1e-6)
        half_x, half_y = wanted / aspect / 2, wanted / 2
        assert x0 == pytest.approx(min(max(x + w / 2 - half_x, 0), width - 2 * half_x), abs=1e-6)
        assert y0 == pytest.approx(min(max(y + h / 2 - half_y, 0), height - 2 * half_y), abs=1e-6)


PICTURE = np.random.default_rng(3).integers(0, 256, (180, 320, 3), dtype=np.uint8)


@settings(max_examples=60)
@given(
    box=st.tuples(st.floats(-20, 300), st.floats(-20, 170), st.floats(3, 250)),
    size_px=st.sampled_from([8, 64, 224]),
    aspect=st.sampled_from([1.0, 64 / 45]),
    pixel_format=st.sampled_from(["rgb24", "yuv420p"]),
)
def test_a_crop_equals_pil_on_the_whole_picture(box: tuple[float, float, float], size_px: int, aspect: float, pixel_format: str) -> None:
    x, y, side = box
    frame = _frame(PICTURE, sample_aspect=aspect, pixel_format=pixel_format)
    face = (x, y, x + side / aspect, y + side)
    crop = crop_face(frame, face, CropSpec(size_px=size_px))
    square = crop_square(face, width=320, height=180, aspect=aspect, enlargement=1.3)
    whole = _frame(PICTURE, sample_aspect=aspect, pixel_format=pixel_format).rgb()
    expected = np.asarray(Image.fromarray(whole).resize((size_px, size_px), Image.Resampling.BILINEAR, box=square))
    assert crop.shape == (size_px, size_px, 3)
    assert np.abs(crop.astype(int) - expected.astype(int)).max() <= 1


def test_a_crop_converts_only_what_the_filter_reads() -> None:
    asked: list[tuple[int, int, int, int]] = []

    class Watched(Frame):
        def rgb_region(self, *region: Any) -> NDArray[np.uint8]:
            asked.append(region)
            return super().rgb_region(*region)

    frame = Watched(av.VideoFrame.from_ndarray(PICTURE, format="rgb24"), sample_aspect=1.0, reformatter=VideoReformatter())
    crop_face(frame, (100.0, 60.0, 140.0, 100.0), CropSpec(size_px=26))  # the square 94..146, at half size: the filter reads 2 beyond it
    ((x0, y0, x1, y1),) = asked
    assert x0 <= 92
    assert x1 >= 148
    assert x1 - x0 <= 60
    assert y1 - y0 <= 60


def test_a_box_beyond_the_picture_gives_a_crop_of_its_edge() -> None:
    picture = np.zeros((100, 200, 3), np.uint8)
    picture[:, 150:] = (10, 200, 30)
    crop = crop_face(_frame(picture), (400.0, 30.0, 420.0, 50.0), CropSpec(size_px=16))
    assert (crop == (10, 200, 30)).all()


def _crops(*faces: dict[str, float]) -> list[NDArray[np.uint8]]:
    """Crops of a face 120 px high, in a fixed box."""
    return [
        crop_face(
            _frame(draw_face(backdrop(320, 240), (160 + face.get("dx", 0), 120), 120, mouth_open=face.get("mouth", 0))),
            (100.0, 60.0, 220.0, 180.0),
            CropSpec(size_px=64),
        )
        for face in faces
    ]


def test_a_moving_mouth_moves_and_a_moving_head_does_not() -> None:
    still, open_mouth, moved = _crops({}, {"mouth": 1}, {"dx": 3})
    assert mouth_motion(None, still) == 0
    assert mouth_motion(still, still) == 0
    assert mouth_motion(still, open_mouth) > 10
    assert mouth_motion(still, open_mouth) == pytest.approx(mouth_motion(open_mouth, still))
    assert mouth_motion(still, moved) < 1.5  # SpeechConfig.min_mouth_motion


def test_mouth_motion_is_the_difference_of_two_means() -> None:
    before = np.zeros((100, 100, 3), np.uint8)
    after = before.copy()
    after[66:90, 30:70] = 40  # the mouth region exactly
    after[22:56, 25:75] = 15  # the upper face exactly
    assert mouth_motion(before, after) == 25
