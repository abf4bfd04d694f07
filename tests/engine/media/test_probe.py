import io
import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from dissonance.engine.media import probe as probing
from dissonance.engine.media.probe import open_media, probe
from dissonance.errors import MediaError
from tests.engine.media.clips import click, numbered_frames, write_clip


def reason_of(path: Path) -> tuple[str, str]:
    with pytest.raises(MediaError) as caught:
        probe(path)
    return caught.value.reason, caught.value.detail


def many_streams(path: Path, pictures: list[tuple[int, int, bool]], sounds: list[tuple[str, bool]]) -> Path:
    """One picture each of (width, height, default), and one second of silence each of (layout, default)."""
    with av.open(str(path), "w") as output:
        streams = []
        for width, height, default in pictures:
            stream = output.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = Disposition.default if default else 0
            streams.append((stream, av.VideoFrame(width, height, "yuv420p")))
        for layout, default in sounds:
            sound = output.add_stream("flac", rate=48000, layout=layout)
            sound.disposition = Disposition.default if default else 0
            channels = {"mono": 1, "stereo": 2, "5.1": 6}[layout]
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096 * channels), np.int16), format="s16", layout=layout)
            frame.sample_rate = 48000
            streams.append((sound, frame))
        for stream, frame in streams:
            frame.pts = 0
            output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    return path


def test_it_reports_what_was_written(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=numbered_frames(50, width=96, height=64), sound=np.zeros((2, 96000), np.float32), sound_start_s=0.2)
    info = probe(path)
    assert info.video is not None
    assert info.audio is not None
    assert "mp4" in info.container
    assert (info.video.codec, info.video.width, info.video.height, info.video.pixel_format) == ("h264", 96, 64, "yuv420p")
    assert (info.video.fps, info.video.start_s, info.video.duration_s, info.video.rotation_deg, info.video.sample_aspect) == (25, 0, 2, 0, 1)
    assert (info.audio.codec, info.audio.sample_rate_hz, info.audio.channels) == ("aac", 48000, 2)
    assert info.audio.start_s == pytest.approx(0.2 - 1024 / 48000, abs=0.002)  # the coder's first 1024 samples lie before
    assert (info.video_streams, info.audio_streams) == (1, 1)
    assert "\n" not in info.choice


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_rotation_is_the_clockwise_turn_that_displays(tmp_path: Path, turn: int) -> None:
    info = probe(write_clip(tmp_path / "r.mp4", frames=numbered_frames(3), rotation_deg=turn))
    assert info.video is not None
    assert info.video.rotation_deg == turn


def gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("P", (8, 8)).save(buffer, "GIF")
    return buffer.getvalue()


def test_sample_aspect(tmp_path: Path) -> None:
    info = probe(write_clip(tmp_path / "s.mp4", frames=numbered_frames(3), sample_aspect=Fraction(4, 3)))
    assert info.video is not None
    assert info.video.sample_aspect == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("pictures", "sounds", "video", "audio"),
    [
        ([(32, 32, False), (64, 64, False)], [("mono", False), ("stereo", False)], 1, 3),  # the largest, the most channels
        ([(32, 32, True), (64, 64, False)], [("mono", True), ("5.1", False)], 0, 2),  # marked as default
        ([(32, 32, False), (32, 32, False)], [("mono", False), ("mono", False)], 0, 2),  # the first
    ],
)
def test_which_streams_are_chosen(
    tmp_path: Path, pictures: list[tuple[int, int, bool]], sounds: list[tuple[str, bool]], video: int, audio: int
) -> None:
    info = probe(many_streams(tmp_path / "m.mkv", pictures, sounds))
    assert info.video is not None
    assert info.audio is not None
    assert (info.video.index, info.audio.index) == (video, audio)
    assert (info.video_streams, info.audio_streams) == (2, 2)
    assert f"video #{video} of 2" in info.choice


def test_real_file_with_several_streams(shared: Path) -> None:
    info = probe(shared / "media" / "nasa_13013.mp4")
    assert info.video is not None
    assert info.audio is not None
    assert (info.video_streams, info.audio_streams) == (2, 2)
    with av.open(str(shared / "media" / "nasa_13013.mp4")) as container:
        marked = [stream.index for stream in container.streams if stream.disposition & Disposition.default]
    assert {info.video.index, info.audio.index} <= set(marked)


def test_cover_art_is_not_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as output:
        sound = output.add_stream("aac", rate=48000, layout="mono")
        cover = output.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 32
        cover.pix_fmt = "yuvj420p"
        cover.disposition = Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
        picture = av.VideoFrame(32, 32, "yuvj420p")
        picture.pts = 0
        output.mux(cover.encode(picture))
        output.mux(cover.encode(None))
    info = probe(path)
    assert info.video is None
    assert info.audio is not None
    assert info.video_streams == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"This is a text file, not a video.\n" * 50, "no known media format"),
        (np.random.default_rng(1).bytes(100_000), "no known media format"),
        (b"PK\x03\x04" + bytes(5000), "no known media format"),
    ],
    ids=["empty", "text", "noise", "zip"],
)
def test_what_is_no_media_is_corrupt(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    reason, detail = reason_of(path)
    assert reason == "corrupt"
    assert says in detail


def test_a_truncated_mp4_says_so(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=numbered_frames(50), sound=click(2, 1))
    path.write_bytes(path.read_bytes()[:-3000])
    reason, detail = reason_of(path)
    assert reason == "corrupt"
    assert "truncated" in detail


def test_a_codec_without_a_decoder(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=numbered_frames(5))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    assert reason_of(path)[0] == "unsupported_codec"


@pytest.mark.parametrize("kind", ["folder", "dangling", "missing", "pipe", "name"])
def test_what_cannot_be_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a\0b.mp4" if kind == "name" else "a.mp4")
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    assert reason_of(path)[0] == "unreadable"


def test_a_refusal_does_not_depend_on_what_was_refused_before(tmp_path: Path) -> None:
    """FFmpeg's log, which alone tells the format, leaves out lines that it has just written."""
    sdp = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 5004 RTP/AVP 96\r\n"
    found = []
    for number in range(3):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(sdp)
        found.append(reason_of(path))
    assert found == [("refused", "the format 'sdp' is not among those that are read")] * 3


@pytest.mark.parametrize("form", ["hls", "concat", "sdp", "png", "gif", "srt"])
def test_lists_of_files_images_and_scripts_are_refused_by_name(tmp_path: Path, form: str) -> None:
    inner = write_clip(tmp_path / "inner.mp4", frames=numbered_frames(5))
    picture = np.zeros((8, 8, 3), np.uint8)
    content = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{inner}\n#EXT-X-ENDLIST\n".encode(),
        "concat": f"ffconcat version 1.0\nfile '{inner.name}'\n".encode(),
        "sdp": b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 5004 RTP/AVP 96\r\n",
        "png": cv2.imencode(".png", picture)[1].tobytes(),
        "gif": gif(),
        "srt": b"1\n00:00:01,000 --> 00:00:02,000\nHello\n\n",
    }[form]
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    reason, detail = reason_of(path)
    assert reason == "refused"
    assert form in detail


@pytest.mark.parametrize("name", ["a.m3u8", "a.txt", "a.png", "a"])
def test_the_content_decides_and_not_the_name(tmp_path: Path, name: str) -> None:
    made = write_clip(tmp_path / "made.mkv", frames=numbered_frames(5))
    info = probe(made.rename(tmp_path / name))
    assert "matroska" in info.container


@pytest.mark.parametrize("name", ["a.png", "a.txt", "a.m3u8"])
def test_a_telling_name_does_not_make_a_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"This is a text file, not a picture.\n" * 50)
    assert reason_of(path)[0] == "corrupt"


def test_a_second_file_is_not_opened_even_by_a_demuxer_that_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second barrier, behind the list of demuxers."""
    inner = write_clip(tmp_path / "inner.ts", frames=numbered_frames(5))
    path = tmp_path / "a.m3u8"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{inner}\n#EXT-X-ENDLIST\n")
    plain = av.open(str(path), format="hls", options={"protocol_whitelist": "file"})
    assert plain.streams.video[0].width == 96  # FFmpeg would
    plain.close()
    opened = av.open
    monkeypatch.setattr(probing, "DEMUXERS", ("hls",))
    monkeypatch.setattr(av, "open", lambda file, *args, **options: opened(file, *args, format="hls", **options))
    reason, detail = reason_of(path)
    assert reason == "refused"
    assert str(inner) in detail


def test_nothing_is_printed_and_the_log_level_is_as_before(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = av.logging.get_level()
    for content in (b"ffconcat version 1.0\n", gif(), bytes(1000), b"RIFF\x00\x00\x00\x00AVI LIST"):
        path = tmp_path / "a.avi"
        path.write_bytes(content)
        reason_of(path)
    assert av.logging.get_level() == before
    assert capfd.readouterr() == ("", "")


def test_the_file_is_closed(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=numbered_frames(5))

    def open_here() -> int:
        return sum(1 for link in Path("/proc/self/fd").iterdir() if link.is_symlink() and os.path.realpath(link) == str(path.resolve()))

    with open_media(path):
        assert open_here() == 1
    assert open_here() == 0
