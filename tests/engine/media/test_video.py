import gc
import math
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dissonance.engine.media.frame import Frame
from dissonance.engine.media.probe import probe
from dissonance.engine.media.video import VideoReader
from dissonance.errors import MediaError
from tests.engine.media.clips import noise_frames, numbered_frames, read_number, write_clip


def read(path: Path, *, threads: int = 1) -> tuple[list[int], VideoReader]:
    """The number of the picture on each grid frame, and the reader."""
    reader = VideoReader(path, probe(path), threads=threads)
    numbers = []
    for k, frame in reader:
        assert k == len(numbers)
        numbers.append(read_number(frame.grey(96)))
    return numbers, reader


def on_screen(times_s: Sequence[Fraction], end_s: Fraction) -> list[int]:
    """The definition, by search: at each k, the last picture presented at or before k/25 + 0.02 s, until the last one's display ends."""
    count = max(1, sum(1 for k in range(math.ceil(end_s * 25) + 1) if Fraction(k, 25) + Fraction(1, 50) < end_s))
    return [max(i for i, time in enumerate(times_s) if time - times_s[0] <= Fraction(k, 25) + Fraction(1, 50)) for k in range(count)]


def naive_count(path: Path, index: int) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(container.streams[index]))


# ------------------------------------------------------------------------------------------------------------ the grid


@pytest.mark.parametrize("fps", [25, 24, 30, 50, 60, 10, Fraction(25, 2), Fraction(30000, 1001)])
def test_regular_rates(tmp_path: Path, fps: int | Fraction) -> None:
    count = 61
    numbers, reader = read(write_clip(tmp_path / "a.mp4", frames=numbered_frames(count), fps=fps))
    expected = on_screen([i / Fraction(fps) for i in range(count)], count / Fraction(fps))
    assert numbers == expected
    assert reader.frames_decoded == count
    assert reader.frames_dropped == count - len(set(expected))
    assert not reader.variable_frame_rate
    if fps == 25:
        assert numbers == list(range(count))


@settings(max_examples=15, deadline=None)
@given(gaps_ms=st.lists(st.integers(1, 130), min_size=2, max_size=40))
def test_any_timestamps(tmp_path_factory: pytest.TempPathFactory, gaps_ms: list[int]) -> None:
    times = [Fraction(sum(gaps_ms[:i]), 1000) for i in range(len(gaps_ms) + 1)]
    path = write_clip(tmp_path_factory.mktemp("v") / "a.mkv", frames=numbered_frames(len(times)), times_s=[float(t) for t in times], fps=25)
    numbers, reader = read(path)
    shown = on_screen(times, times[-1] + Fraction(10))
    assert numbers == shown[: len(numbers)]
    assert shown[len(numbers) - 1] == len(times) - 1 or times[-1] * 25 - len(numbers) < 1  # all but what the last picture's length decides
    assert reader.frames_dropped == len(times) - len(set(numbers))


def test_variable_frame_rate_is_seen(tmp_path: Path) -> None:
    times = np.cumsum([0, *([0.04] * 20), *([0.1] * 10), *([0.02] * 15)]).tolist()
    numbers, reader = read(write_clip(tmp_path / "a.mp4", frames=numbered_frames(len(times)), times_s=times))
    assert reader.variable_frame_rate
    assert numbers[:21] == list(range(21))


def test_the_clock_starts_at_the_first_picture(tmp_path: Path) -> None:
    _, reader = read(write_clip(tmp_path / "a.mkv", frames=numbered_frames(10), times_s=[1.5 + k / 25 for k in range(10)]))
    assert reader.origin_s == pytest.approx(1.5)


def test_reordered_pictures_in_every_container(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv", "a.ts", "a.flv", "a.avi"):  # AVI has no presentation times at all
        path = write_clip(tmp_path / name, frames=numbered_frames(60), codec_options={"preset": "medium", "bf": "3"})
        numbers, reader = read(path)
        assert numbers == list(range(60)), name
        assert reader.frames_decoded == naive_count(path, 0) == 60


def test_a_bare_stream_without_timestamps(tmp_path: Path) -> None:
    numbers, _ = read(write_clip(tmp_path / "a.h264", frames=numbered_frames(30), container="h264"))
    assert numbers == list(range(30))


def test_more_threads_change_nothing(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=numbered_frames(80), codec_options={"preset": "medium"})
    assert read(path, threads=4)[0] == read(path)[0] == list(range(80))


def test_the_same_object_where_the_grid_repeats_a_picture(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=numbered_frames(5), fps=5)
    frames = [frame for _, frame in VideoReader(path, probe(path))]
    assert [frame is frames[5 * (k // 5)] for k, frame in enumerate(frames)] == [True] * 25


@pytest.mark.parametrize("name", ["av1_video.mkv", "bt709_full_range.mp4", "h264_10bits.mp4", "h265_10bits.mp4", "h265_video.mp4", "nasa_13013.mp4"])
def test_real_files_give_as_many_frames_as_ffmpeg(shared: Path, name: str) -> None:
    path = shared / "media" / name
    info = probe(path)
    assert info.video is not None
    reader = VideoReader(path, info)
    kept = list(reader)
    shown = len({id(frame) for _, frame in kept})
    assert reader.frames_decoded == naive_count(path, info.video.index) == shown + reader.frames_dropped
    assert info.video.duration_s is None or len(kept) == pytest.approx(25 * info.video.duration_s, abs=1)


# ------------------------------------------------------------------------------------------------------- damaged clocks


def test_a_jump_of_days_is_closed(tmp_path: Path) -> None:
    times = [k / 25 + (3 * 86400 if k >= 20 else 0) for k in range(40)]
    numbers, reader = read(write_clip(tmp_path / "a.mkv", frames=numbered_frames(40), times_s=times))
    assert numbers[:20] == list(range(20))
    assert numbers[-20:] == list(range(20, 40))
    assert len(numbers) <= 41
    assert reader.discontinuities == 1


def test_presentation_times_far_from_the_decoding_times_are_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    made = write_clip(tmp_path / "made.mkv", frames=numbered_frames(40))
    with av.open(str(made)) as source, av.open(str(path), "w", format="nut") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for count, packet in enumerate(source.demux(video=0)):
            if packet.dts is not None:
                packet.stream = stream
                packet.pts += 3 * 86400 * 1000 if count == 20 else 0
                output.mux(packet)
    numbers, _ = read(path)
    assert numbers == list(range(40))


def test_a_clock_that_starts_again_loses_nothing(tmp_path: Path) -> None:
    first = write_clip(tmp_path / "a.ts", frames=numbered_frames(100)).read_bytes()
    path = tmp_path / "b.ts"
    path.write_bytes(first + write_clip(tmp_path / "c.ts", frames=numbered_frames(50, start=100)).read_bytes())
    numbers, reader = read(path)
    assert sorted(set(numbers)) == list(range(150))
    assert len(numbers) == pytest.approx(150, abs=1)
    assert reader.discontinuities == 1
    assert reader.frames_decoded == 150


def test_a_still_picture_of_a_minute_stays_a_minute(tmp_path: Path) -> None:
    times = [*(k / 25 for k in range(10)), *(60 + k / 25 for k in range(10))]
    for name in ("a.mp4", "a.mkv"):
        numbers, reader = read(write_clip(tmp_path / name, frames=numbered_frames(20), times_s=times))
        assert len(numbers) == pytest.approx(60 * 25 + 10, abs=1)
        assert reader.discontinuities == 0


def test_damaged_packets_cost_only_their_pictures(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", frames=noise_frames(50, width=160, height=96), codec="mjpeg", pixel_format="yuvj420p")
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.pos is not None]
    data = bytearray(path.read_bytes())
    for place, size in places[10:20]:
        data[place + 20 : place + size] = bytes(size - 20)
    path.write_bytes(data)
    expected = 0
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            try:
                expected += len(packet.decode())
            except av.error.FFmpegError:
                continue
    reader = VideoReader(path, probe(path))
    grid = len(list(reader))
    assert reader.frames_decoded == expected < 50
    assert reader.decode_errors == 10
    assert grid == 50  # the picture before stays on screen


def test_nothing_decodes(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", frames=noise_frames(10, width=160, height=96), codec="mjpeg", pixel_format="yuvj420p")
    info = probe(path)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.pos is not None]
    data = bytearray(path.read_bytes())
    for place, size in places:
        data[place + 20 : place + size] = bytes(size - 20)
    path.write_bytes(data)
    with pytest.raises(MediaError) as caught:
        list(VideoReader(path, info))
    assert caught.value.reason == "corrupt"


def test_a_truncated_stream_gives_what_there_is(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", frames=numbered_frames(100))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    numbers, reader = read(path)
    assert 40 < reader.frames_decoded < 100
    assert numbers == list(range(reader.frames_decoded))


def test_the_size_may_change_in_mid_stream(tmp_path: Path) -> None:
    first = write_clip(tmp_path / "a.ts", frames=numbered_frames(30, width=96, height=64)).read_bytes()
    path = tmp_path / "c.ts"
    path.write_bytes(first + write_clip(tmp_path / "b.ts", frames=numbered_frames(30, width=128, height=96)).read_bytes())
    sizes = [(frame.width, frame.height, frame.rgb().shape) for _, frame in VideoReader(path, probe(path))]
    assert sizes[0] == (96, 64, (64, 96, 3))
    assert sizes[-1] == (128, 96, (96, 128, 3))


def test_leaving_early_closes_the_file(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=numbered_frames(50))
    frames = iter(VideoReader(path, probe(path)))
    next(frames)
    before = sum(os.path.realpath(link) == str(path.resolve()) for link in Path("/proc/self/fd").iterdir())
    frames.close()  # type: ignore[attr-defined]
    assert before == 1
    assert not any(os.path.realpath(link) == str(path.resolve()) for link in Path("/proc/self/fd").iterdir())


# ---------------------------------------------------------------------------------------------------- pictures: geometry


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_rotation_turns_the_picture_upright(tmp_path: Path, turn: int) -> None:
    upright = np.full((64, 96, 3), 60, np.uint8)
    upright[:24, :32] = (230, 40, 40)  # red, top left
    stored = np.ascontiguousarray(np.rot90(upright, turn // 90))  # counter-clockwise, so a clockwise turn displays it
    path = write_clip(tmp_path / "a.mp4", frames=[stored] * 3, rotation_deg=turn)
    _, frame = next(iter(VideoReader(path, probe(path))))
    assert (frame.width, frame.height) == (96, 64)
    np.testing.assert_allclose(frame.rgb()[8:16, 8:24].mean((0, 1)), (230, 40, 40), atol=8)
    np.testing.assert_allclose(frame.rgb()[40:, 50:].mean((0, 1)), 60, atol=4)
    grey = frame.grey(48)
    assert grey.shape == (32, 48)
    region = Frame(frame._picture, sample_aspect=1.0, reformatter=VideoReformatter()).rgb_region(5, 3, 40, 31)
    np.testing.assert_array_equal(region, frame.rgb()[3:31, 5:40])


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    for turn, aspect, shape in ((0, 2.0, (16, 48)), (90, 0.5, (48, 16))):
        path = write_clip(tmp_path / "a.mp4", frames=numbered_frames(2), sample_aspect=Fraction(2), rotation_deg=turn)
        _, frame = next(iter(VideoReader(path, probe(path))))
        assert frame.aspect == aspect
        assert frame.grey(48).shape == shape


# ------------------------------------------------------------------------------------------------------ pictures: colour

WEIGHTS = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114), "bt2020": (0.2627, 0.0593)}
SPACES = {"bt709": 1, "bt601": 6, "bt2020": 9}  # AVColorSpace


def closed_form(yuv: Sequence[NDArray[Any]], weights: tuple[float, float], *, full: bool, bits: int) -> NDArray[np.float64]:
    """RGB from full-size planes by the definition of Y'CbCr, in double precision."""
    peak, step = 2**bits - 1, 2 ** (bits - 8)
    y, u, v = (plane.astype(np.float64) for plane in yuv)
    luma = y / peak if full else (y - 16 * step) / (219 * step)
    blue, red = ((c - 128 * step) / (peak if full else 224 * step) for c in (u, v))
    kr, kb = weights
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    g = (luma - kr * r - kb * b) / (1 - kr - kb)
    return np.clip(np.stack([r, g, b], -1), 0, 1) * 255


def random_picture(width: int, height: int, form: str, seed: int = 0) -> tuple[av.VideoFrame, list[NDArray[Any]]]:
    """A picture with random planes, and those planes with chroma replicated to full size."""
    rng = np.random.default_rng(seed)
    picture = av.VideoFrame(width, height, form)
    bits = picture.format.components[0].bits
    dtype = np.uint8 if bits == 8 else np.uint16
    planes = []
    for plane in picture.planes[:3]:
        samples = rng.integers(16 << (bits - 8), 235 << (bits - 8), (plane.height, plane.width)).astype(dtype)
        padded = np.zeros((plane.height, plane.line_size // samples.itemsize), dtype)
        padded[:, : plane.width] = samples
        plane.update(padded.tobytes())
        across, down = -(-width // plane.width), -(-height // plane.height)
        planes.append(samples.repeat(down, 0).repeat(across, 1)[:height, :width])
    return picture, planes


def as_frame(picture: av.VideoFrame) -> Frame:
    return Frame(picture, sample_aspect=1.0, reformatter=VideoReformatter())


@pytest.mark.parametrize("matrix", list(WEIGHTS))
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("form", ["yuv420p", "yuv420p10le", "yuv422p", "yuv422p12le", "yuv444p", "yuv444p16le", "yuv411p"])
def test_colours_equal_the_closed_form(form: str, full: bool, matrix: str) -> None:
    picture, planes = random_picture(66, 50, form)
    picture.colorspace, picture.color_range = SPACES[matrix], 2 if full else 1
    bits = picture.format.components[0].bits
    difference = np.abs(as_frame(picture).rgb() - closed_form(planes, WEIGHTS[matrix], full=full, bits=bits))
    assert difference.max() <= 1.0


@pytest.mark.parametrize(("height", "matrix"), [(718, "bt601"), (720, "bt709")])
def test_untagged_pictures_go_by_their_rows(height: int, matrix: str) -> None:
    picture, planes = random_picture(32, height, "yuv420p")
    assert np.abs(as_frame(picture).rgb() - closed_form(planes, WEIGHTS[matrix], full=False, bits=8)).max() <= 1.0


def test_yuvj_is_full_range_without_a_tag() -> None:
    picture, planes = random_picture(32, 32, "yuvj420p")
    picture.color_range = 0
    assert np.abs(as_frame(picture).rgb() - closed_form(planes, WEIGHTS["bt601"], full=True, bits=8)).max() <= 1.0


@pytest.mark.parametrize("form", ["rgb24", "gbrp", "yuyv422", "nv12", "gray", "yuv420p10be"])
def test_other_layouts_equal_swscale(form: str) -> None:
    made = av.VideoFrame.from_ndarray(noise_frames(1, width=64, height=48)[0], format="rgb24").reformat(format=form, dst_colorspace="ITU601")
    made.colorspace, made.color_range = 6, 1
    expected = made.reformat(format="rgb24", src_colorspace="ITU601", interpolation="POINT").to_ndarray()
    frame = as_frame(made)
    assert np.abs(frame.rgb().astype(int) - expected).max() <= 4  # swscale's fast path is that far from the closed form
    np.testing.assert_array_equal(frame.rgb_region(3, 5, 20, 30), frame.rgb()[5:30, 3:20])
    assert frame.grey(32).shape == (24, 32)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_region_equals_the_same_part_of_the_whole(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["yuv420p", "yuv422p", "yuv444p", "yuv410p", "yuv420p10le"]))
    width, height = data.draw(st.integers(9, 60)), data.draw(st.integers(9, 60))
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    picture, _ = random_picture(width, height, form)
    region = as_frame(picture).rgb_region(x0, y0, x1, y1)
    np.testing.assert_array_equal(region, as_frame(picture).rgb()[y0:y1, x0:x1])


def test_a_region_outside_is_a_bug_of_the_caller() -> None:
    picture, _ = random_picture(32, 32, "yuv420p")
    with pytest.raises(ValueError, match="not inside"):
        as_frame(picture).rgb_region(0, 0, 33, 10)


@pytest.mark.parametrize(("space", "name"), [(1, "bt709"), (6, "bt601")])
@pytest.mark.parametrize(("form", "reach"), [("yuv420p", 1), ("yuvj420p", 2)])
def test_a_streams_own_tags_are_honoured(tmp_path: Path, form: str, reach: int, space: int, name: str) -> None:
    picture, planes = random_picture(64, 48, form)
    colour = {"colorspace": space, "color_range": reach}
    path = write_clip(tmp_path / "a.mp4", frames=[picture], codec_options={"qp": "0", "crf": "-1"}, pixel_format=form, colour=colour)
    _, frame = next(iter(VideoReader(path, probe(path))))
    expected = closed_form(planes, WEIGHTS[name], full=reach == 2, bits=8)
    assert np.abs(frame.rgb() - expected).max() <= 1.0  # qp 0 is lossless


def test_grey_is_the_luma_averaged_over_areas() -> None:
    for form, shift in (("yuv420p", 0), ("yuv420p10le", 2)):
        picture, planes = random_picture(128, 96, form)
        luma = (planes[0] >> shift).astype(np.uint8)
        np.testing.assert_array_equal(as_frame(picture).grey(128), luma)
        exact = luma.reshape(24, 4, 32, 4).mean((1, 3))
        assert np.abs(as_frame(picture).grey(32) - exact).max() <= 1.0  # rounded twice
    smooth = cv2.GaussianBlur(noise_frames(1, width=321, height=181)[0], (0, 0), 8)
    picture = av.VideoFrame.from_ndarray(smooth, format="rgb24").reformat(format="yuv444p")
    luma = np.frombuffer(picture.planes[0], np.uint8).reshape(181, -1)[:, :321]
    expected = cv2.resize(luma, (100, 56), interpolation=cv2.INTER_AREA)
    assert np.abs(as_frame(picture).grey(100).astype(int) - expected).max() <= 3


def test_pictures_are_freed_at_once_and_not_when_the_garbage_collector_comes_by(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=numbered_frames(20))
    info = probe(path)
    gc.collect()
    gc.disable()
    try:
        for _, frame in VideoReader(path, info):
            frame.grey(32)
        del frame
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [each for each in gc.garbage if isinstance(each, av.VideoFrame)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == []
