"""DALI's pictures beside PyAV's, by DALI's CPU operators: NVDEC is for tests/gpu. VP8, VP9 and MJPEG, which these decode."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter

from dissonance import machine
from dissonance.bundle import CropSpec
from dissonance.engine.media import dali, segments
from dissonance.engine.media.bitstreams import UnsuitableError
from dissonance.engine.media.crop import crop_face
from dissonance.engine.media.dali import DaliDecoder, DaliReader, DeviceFrame, require_decoder
from dissonance.engine.media.frame import BT601, BT709, Frame
from dissonance.engine.media.probe import probe
from dissonance.engine.media.video import VideoReader
from dissonance.errors import EnvironmentMissingError
from dissonance.machine import Gpu
from tests.engine.media.clips import noise_frames, numbered_frames, read_number, write_clip

pytest.importorskip("nvidia.dali", reason="needs DALI: pip install nvidia-dali-cuda130")
pytestmark = pytest.mark.xdist_group("dali")

VP9 = {"g": "15", "deadline": "realtime", "cpu-used": "8"}
COUNTS = ("origin_s", "frames_decoded", "frames_dropped", "variable_frame_rate", "discontinuities", "decode_errors")


@pytest.fixture(scope="module")
def decoder() -> DaliDecoder:
    return DaliDecoder("cpu")


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_PICTURES", 20)


def clip(path: Path, **options: Any) -> Path:
    return write_clip(path, **{"codec": "libvpx-vp9", "codec_options": VP9, **options})


def soft_frames(count: int, *, width: int, height: int) -> list[np.ndarray]:
    """Pictures without the saturated edges that no two ways of smoothing chroma agree on: like most of a face."""
    x, y = np.linspace(0, 3, width)[None, :, None], np.linspace(0, 3, height)[:, None, None]
    phase = np.array([0.0, 1.0, 2.0])
    return [(128 + 60 * np.sin(2 * x + y + phase + k / 5)).astype(np.uint8) for k in range(count)]


# -------------------------------------------------------------------------------------------------------------- the frames


@pytest.mark.parametrize(
    ("codec", "container", "pixels"), [("libvpx", "webm", "yuv420p"), ("libvpx-vp9", "mkv", "yuv420p"), ("mjpeg", "mov", "yuvj420p")]
)
@pytest.mark.parametrize("count", [1, 40, 61])
def test_every_picture_is_on_its_place_of_the_grid(tmp_path: Path, decoder: DaliDecoder, codec: str, container: str, pixels: str, count: int) -> None:
    path = clip(tmp_path / f"a.{container}", frames=numbered_frames(count), fps=30, codec=codec, pixel_format=pixels, codec_options={"g": "15"})
    theirs, ours = VideoReader(path, probe(path)), DaliReader(path, probe(path), decoder)
    expected = [(k, read_number(frame.grey(96))) for k, frame in theirs]
    assert [(k, read_number(frame.grey(96))) for k, frame in ours] == expected
    assert {name: getattr(ours, name) for name in COUNTS} == {name: getattr(theirs, name) for name in COUNTS}


def test_a_variable_frame_rate(tmp_path: Path, decoder: DaliDecoder) -> None:
    times_s = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.2, 50)).tolist()
    path = clip(tmp_path / "a.mkv", frames=numbered_frames(50), times_s=times_s)
    theirs, ours = VideoReader(path, probe(path)), DaliReader(path, probe(path), decoder)
    assert [(k, read_number(frame.grey(96))) for k, frame in ours] == [(k, read_number(frame.grey(96))) for k, frame in theirs]
    assert {name: getattr(ours, name) for name in COUNTS} == {name: getattr(theirs, name) for name in COUNTS}
    assert ours.variable_frame_rate


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_colour_luma_and_crops_are_pyav_s(tmp_path: Path, decoder: DaliDecoder, turn: int) -> None:
    path = clip(tmp_path / "a.mp4", frames=soft_frames(8, width=320, height=240), rotation_deg=turn, codec_options={**VP9, "crf": "4", "b": "0"})
    box = (80.0, 60.0, 160.0, 140.0)
    for (_, one), (_, other) in zip(DaliReader(path, probe(path), decoder), VideoReader(path, probe(path)), strict=True):
        assert (one.width, one.height, one.aspect) == (other.width, other.height, other.aspect)
        for side in (320, 100, 37):
            assert np.abs(one.grey(side).astype(int) - other.grey(side)).max() <= 2
        assert np.abs(one.rgb_region(3, 5, 77, 200).astype(int) - other.rgb_region(3, 5, 77, 200)).max() <= 3
        crops = [crop_face(frame, box, CropSpec(size_px=64)).astype(int) for frame in (one, other)]
        assert np.abs(crops[0] - crops[1]).max() <= 2


@pytest.mark.parametrize(("space", "full"), [(BT709, False), (BT601, False), (BT601, True), (BT709, True)])
@pytest.mark.parametrize("height", [96, 720])
def test_the_stream_s_own_matrix_and_range_hold(tmp_path: Path, decoder: DaliDecoder, space: int, full: bool, height: int) -> None:
    """Flat colours, whose chroma no smoothing changes; those that BT.601 does not clip."""
    colours = [(200, 60, 60), (60, 180, 60), (60, 60, 190), (180, 140, 120), (20, 20, 20), (235, 235, 235)]
    frames = [np.full((height, 96, 3), colour, np.uint8) for colour in colours]
    path = clip(tmp_path / "a.mkv", frames=frames, colour={"colorspace": space, "color_range": 2 if full else 1})
    for (_, one), (_, other) in zip(DaliReader(path, probe(path), decoder), VideoReader(path, probe(path)), strict=True):
        assert np.abs(one.rgb_region(40, 40, 42, 42).astype(int) - other.rgb_region(40, 40, 42, 42)).max() <= 2
        assert np.abs(one.grey(48).astype(int) - other.grey(48)).max() <= 2


def test_colours_that_bt601_clips_are_not_quite_the_stream_s(tmp_path: Path, decoder: DaliDecoder) -> None:
    """What the README says of them: DALI clips before the matrix can be put right."""
    frames = [np.full((96, 96, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))]
    path = clip(tmp_path / "a.mkv", frames=frames, colour={"colorspace": BT709, "color_range": 1})
    both = zip(DaliReader(path, probe(path), decoder), VideoReader(path, probe(path)), strict=True)
    worst = max(np.abs(one.rgb_region(40, 40, 42, 42).astype(int) - other.rgb_region(40, 40, 42, 42)).max() for (_, one), (_, other) in both)
    assert 2 < worst < 64


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_a_region_is_that_part_of_the_picture_as_displayed(turn: int) -> None:
    stored = np.random.default_rng(turn).integers(0, 256, (30, 50, 3), np.uint8)
    frame = DeviceFrame(torch.from_numpy(stored), sample_aspect=1.5, turn_deg=turn, space=BT601, full=True)
    shown = np.rot90(stored, -turn // 90)
    plain = Frame(av.VideoFrame.from_ndarray(stored, format="rgb24"), sample_aspect=1.5, reformatter=VideoReformatter(), turn_deg=turn)
    assert (frame.width, frame.height, frame.aspect) == (plain.width, plain.height, plain.aspect)
    np.testing.assert_array_equal(frame.rgb_region(0, 0, frame.width, frame.height), shown)
    np.testing.assert_array_equal(frame.rgb_region(4, 7, 23, 29), shown[7:29, 4:23])
    assert frame.grey(20).shape == plain.grey(20).shape
    for outside in ((-1, 0, 5, 5), (0, 0, frame.width + 1, 5), (5, 5, 5, 9)):
        with pytest.raises(ValueError, match="is not inside a picture of"):
            frame.rgb_region(*outside)


# -------------------------------------------------------------------------------------------------- what is left to PyAV


def test_streams_that_are_not_decoded_are_known_before(tmp_path: Path, decoder: DaliDecoder) -> None:
    h264 = write_clip(tmp_path / "a.mp4", frames=numbered_frames(10))
    deep = clip(tmp_path / "b.mkv", frames=numbered_frames(10), pixel_format="yuv444p", codec_options={**VP9, "profile": "1"})
    with pytest.raises(UnsuitableError, match="does not decode h264"):
        DaliReader(h264, probe(h264), decoder)
    with pytest.raises(UnsuitableError, match="does not decode vp9 of yuv444p"):
        DaliReader(deep, probe(deep), decoder)


@pytest.mark.parametrize(("count", "asked"), [(25, 16), (25, 24), (25, 26), (25, 34), (24, 25), (21, 24), (24, 16), (56, 57), (55, 56)])
def test_what_comes_out_is_counted(tmp_path: Path, decoder: DaliDecoder, count: int, asked: int) -> None:
    """A piece that decodes to more or fewer pictures than it has packets, also where the last run is full; the next video is whole again."""
    path = clip(tmp_path / "a.mkv", frames=numbered_frames(count), codec_options={**VP9, "g": "100"})
    data = path.read_bytes()
    with pytest.raises(UnsuitableError, match=r"pictures came out of|failed after"):
        list(decoder.decode(data, asked))
    assert [read_number(picture.numpy()) for picture in decoder.decode(data, count)] == list(range(count))


def test_what_dali_refuses_is_an_error_with_its_reason_and_the_next_video_is_decoded(tmp_path: Path, decoder: DaliDecoder) -> None:
    path = clip(tmp_path / "a.mkv", frames=numbered_frames(10))
    with pytest.raises(UnsuitableError, match=r"it failed after 0 of 5 pictures: \S.*"):
        list(decoder.decode(b"no video at all", 5))
    with pytest.raises(UnsuitableError):
        list(decoder.decode(b"", 5))
    assert len(list(decoder.decode(path.read_bytes(), 10))) == 10


def test_a_gpu_that_is_lost_is_the_worker_s_end_not_the_file_s_fault(decoder: DaliDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_: DaliDecoder, __: int) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(DaliDecoder, "_build", lost)
    monkeypatch.setattr(decoder, "_pipelines", {})
    with pytest.raises(RuntimeError, match="illegal memory access"):
        list(decoder.decode(b"", 5))


def test_pictures_outlive_the_next_run(tmp_path: Path, decoder: DaliDecoder) -> None:
    frames = noise_frames(30, width=96, height=64)
    path = clip(tmp_path / "a.mkv", frames=frames)
    held = [frame for _, frame in DaliReader(path, probe(path), decoder)]
    for frame, (_, again) in zip(held, DaliReader(path, probe(path), decoder), strict=True):
        np.testing.assert_array_equal(frame.rgb_region(0, 0, 96, 64), again.rgb_region(0, 0, 96, 64))


def test_pictures_of_another_size_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: DaliDecoder) -> None:
    path = clip(tmp_path / "a.mkv", frames=numbered_frames(10))

    def larger(_: DaliDecoder, __: bytes, count: int) -> Iterator[torch.Tensor]:
        yield from torch.zeros(count, 64, 128, 3, dtype=torch.uint8)

    monkeypatch.setattr(DaliDecoder, "decode", larger)
    with pytest.raises(UnsuitableError, match=r"pictures of \(64, 128, 3\) in a stream of 96 x 64"):
        list(DaliReader(path, probe(path), decoder))


# ------------------------------------------------------------------------------------------------------- what is not here


def test_without_a_gpu_or_dali_it_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> list[Any]:
        raise FileNotFoundError("no NVIDIA driver: libcuda.so.1 is not on this machine")

    require_decoder("pyav")
    require_decoder("dali-cpu")
    monkeypatch.setattr(machine, "find_gpus", no_driver)
    with pytest.raises(EnvironmentMissingError, match=r"--decoder dali needs an NVIDIA GPU: no NVIDIA driver: .*Use --decoder pyav"):
        require_decoder("dali")
    monkeypatch.setattr(machine, "find_gpus", lambda: [])
    with pytest.raises(EnvironmentMissingError, match="the driver finds no NVIDIA GPU"):
        require_decoder("dali")

    def no_nvdec() -> str:
        raise FileNotFoundError("NVDEC's libnvcuvid.so.1 is not on this machine")

    monkeypatch.setattr(machine, "find_gpus", lambda: [Gpu("NVIDIA L4", "8.9")])
    monkeypatch.setattr(dali, "find_nvdec", no_nvdec)
    with pytest.raises(EnvironmentMissingError, match=r"--decoder dali: NVDEC's libnvcuvid\.so\.1 is not on this machine\. Use --decoder pyav"):
        require_decoder("dali")
    monkeypatch.setattr(dali, "is_installed", lambda _: False)
    with pytest.raises(EnvironmentMissingError, match=r"--decoder dali needs the Python module 'nvidia\.dali'.*dissonance\[gpu\]"):
        require_decoder("dali-cpu")
