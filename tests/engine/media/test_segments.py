"""Pieces of a stream decode, each by itself, to what FFmpeg decodes the whole stream to."""

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dissonance.engine.media import segments
from dissonance.engine.media.bitstreams import UnsuitableError, length_bytes, nal_units
from dissonance.engine.media.packets import PacketReader
from dissonance.engine.media.probe import open_media, probe
from dissonance.engine.media.segments import Segment, cut_segments
from tests.engine.media.clips import noise_frames, numbered_frames, write_clip

COUNT = 100
X264 = "keyint=15:min-keyint=15:bframes=3:scenecut=0"
X265 = X264 + ":log-level=none"
# codec, container, its options: groups of 15 pictures or fewer
STREAMS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264": ("libx264", "mp4", {"x264-params": X264}),
    "h264 in a transport stream": ("libx264", "ts", {"x264-params": X264}),
    "h264, open groups": ("libx264", "mp4", {"x264-params": X264 + ":open-gop=1"}),
    "h264 in a flash video": ("libx264", "flv", {"x264-params": X264}),
    "hevc": ("libx265", "mkv", {"x265-params": X265 + ":open-gop=0"}),
    "hevc, open groups": ("libx265", "mp4", {"x265-params": X265 + ":open-gop=1"}),
    "vp8": ("libvpx", "webm", {"g": "15", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    "vp9": ("libvpx-vp9", "webm", {"g": "15", "auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "realtime"}),
    "mjpeg": ("mjpeg", "mov", {}),
}


def pieces(path: Path) -> list[Segment]:
    info = probe(path)
    assert info.video is not None
    with open_media(path) as container:
        return list(cut_segments(PacketReader(container, info, info.video.index), container.streams[info.video.index]))


def pictures(source: Any) -> list[tuple[int | None, bytes]]:
    with av.open(source) as container:
        return [(frame.pts, frame.to_ndarray().tobytes()) for frame in container.decode(video=0)]


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_PICTURES", 20)


@pytest.mark.parametrize("name", STREAMS)
def test_pieces_give_the_pictures_of_the_whole(tmp_path: Path, name: str) -> None:
    codec, container, options = STREAMS[name]
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = tmp_path / f"a.{container}"
    write_clip(path, frames=noise_frames(COUNT, width=96, height=64), codec=codec, codec_options=options, pixel_format=pixel_format)
    whole, found, cut = pictures(str(path)), [], pieces(path)
    for piece in cut:
        decoded = pictures(io.BytesIO(piece.data))
        assert len(decoded) == len(piece.pictures)
        found += [(shown.pts, picture) for shown, (_, picture) in zip(piece.pictures, decoded, strict=True) if shown.here]
    assert len(found) == COUNT
    assert found == whole
    if name == "h264, open groups":  # recovery points, of which no decoder says when they have recovered
        assert len(cut) == 1
    else:
        assert 3 <= len(cut) <= 5


def test_leading_pictures_of_an_open_group_are_decoded_with_the_group_before(tmp_path: Path) -> None:
    codec, container, options = STREAMS["hevc, open groups"]
    path = write_clip(tmp_path / f"a.{container}", frames=noise_frames(COUNT, width=96, height=64), codec=codec, codec_options=options)
    cut = pieces(path)
    lent = [[shown.pts for shown in piece.pictures if not shown.here] for piece in cut]
    assert lent[0]
    assert not lent[-1]
    assert all(pts in ([], [following.pictures[0].pts]) for pts, following in zip(lent, cut[1:], strict=False))


def test_pictures_that_the_container_discards_are_not_shown(tmp_path: Path) -> None:
    """An edit list that begins in the middle of a group: the pictures before are needed, and not shown."""
    path = write_clip(tmp_path / "a.mp4", frames=numbered_frames(40), codec_options={"g": "40", "bf": "0"})
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 4 + 4 + 4  # version, flags and the number of entries
    media_time = int.from_bytes(data[place + 4 : place + 8], "big")
    tick = round(pieces(path)[0].pictures[1].duration)
    data[place + 4 : place + 8] = (media_time + 10 * tick).to_bytes(4, "big")
    path.write_bytes(data)
    whole = pictures(str(path))
    (piece,) = pieces(path)
    assert len(whole) == 30
    assert len(piece.pictures) == 40
    assert [shown.pts for shown in piece.pictures if shown.here] == [pts for pts, _ in whole]


def test_a_stream_without_presentation_times_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.avi", frames=numbered_frames(30), codec_options={"bf": "2"})
    with pytest.raises(UnsuitableError, match="no presentation time"):
        pieces(path)


def test_pictures_that_change_their_size_are_refused(tmp_path: Path) -> None:
    parts = [
        write_clip(tmp_path / f"{width}.ts", frames=noise_frames(30, width=width, height=64), codec_options={"g": "10"}).read_bytes()
        for width in (96, 128)
    ]
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(parts))
    with pytest.raises(UnsuitableError, match="the size of its pictures, or what they are coded by, changes in mid-stream"):
        pieces(path)


def test_a_piece_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=noise_frames(60, width=96, height=64), codec_options={"g": "1000"})
    assert len(pieces(path)) == 1
    monkeypatch.setattr(segments, "LONGEST_BYTES", path.stat().st_size // 2)
    with pytest.raises(UnsuitableError, match="no keyframe within 0 MiB"):
        pieces(path)


def test_a_stream_that_does_not_begin_with_a_keyframe_is_refused(tmp_path: Path) -> None:
    """A broadcast that was cut somewhere; one whose keyframes are all recovery points; an HEVC stream whose first pictures need no other."""
    for options in ("", ":open-gop=1"):
        path = write_clip(tmp_path / "a.ts", frames=noise_frames(60, width=96, height=64), codec_options={"x264-params": X264 + options})
        data = path.read_bytes()
        (tmp_path / "b.ts").write_bytes(data[: 2 * 188] + data[len(data) // 3 // 188 * 188 :])
        with pytest.raises(UnsuitableError, match="does not begin with a keyframe"):
            pieces(tmp_path / "b.ts")
    options = {"x265-params": X265 + ":open-gop=0:radl=2"}
    path = write_clip(tmp_path / "a.mkv", frames=noise_frames(60, width=96, height=64), codec="libx265", codec_options=options)
    with pytest.raises(UnsuitableError, match="begins with pictures that are shown before its first keyframe"):
        pieces(_from_second_keyframe(path, tmp_path / "b.mkv"))


def test_skipped_leading_pictures_at_the_start_are_those_that_ffmpeg_skips(tmp_path: Path) -> None:
    codec, container, options = STREAMS["hevc, open groups"]
    path = write_clip(tmp_path / f"a.{container}", frames=noise_frames(COUNT, width=96, height=64), codec=codec, codec_options=options)
    late = _from_second_keyframe(path, tmp_path / "b.mkv")
    assert [shown.pts for piece in pieces(late) for shown in piece.pictures if shown.here] == [pts for pts, _ in pictures(str(late))]


def _from_second_keyframe(path: Path, target: Path) -> Path:
    with av.open(str(path)) as given, av.open(str(target), "w") as made:
        stream, keyframes = made.add_stream_from_template(given.streams.video[0], opaque=True), 0
        for packet in given.demux():
            keyframes += packet.is_keyframe
            if packet.dts is not None and keyframes > 1:
                packet.stream = stream
                made.mux(packet)
    return target


@pytest.mark.parametrize("back_s", [0.06, 0.22, 0.6])
def test_times_that_go_back_are_refused(tmp_path: Path, back_s: float) -> None:
    """By less than what counts as a jump of the clock."""
    frames = noise_frames(36, width=96, height=64)
    parts = []
    for number, start_s in enumerate((0.0, 36 / 25 - back_s)):
        times_s = [start_s + k / 25 for k in range(36)]
        path = write_clip(tmp_path / f"{number}.ts", frames=frames, times_s=times_s, codec_options={"x264-params": X264})
        parts.append(path.read_bytes())
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(parts))
    with pytest.raises(UnsuitableError, match="its times go back"):
        pieces(path)


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9", "mjpeg"])
def test_a_size_that_changes_is_seen_in_the_packets(tmp_path: Path, codec: str) -> None:
    """Joined as WebRTC recordings are: one stream, whose packets alone say that their pictures are smaller now."""
    pixel_format, options = ("yuvj420p", {}) if codec == "mjpeg" else ("yuv420p", {"g": "15"})
    parts = [
        write_clip(tmp_path / f"{width}.mkv", frames=numbered_frames(20, width=width), codec=codec, codec_options=options, pixel_format=pixel_format)
        for width in (96, 64)
    ]
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as made:
        stream = None
        for number, part in enumerate(parts):
            with av.open(str(part)) as given:
                stream = stream or made.add_stream_from_template(given.streams.video[0], opaque=True)
                for packet in given.demux():
                    if packet.dts is not None:
                        packet.stream, packet.pts, packet.dts = stream, packet.pts + 800 * number, packet.dts + 800 * number
                        made.mux(packet)
    assert len(pictures(str(path))) == 40
    with pytest.raises(UnsuitableError, match="the size of its pictures"):
        pieces(path)
    assert len(pieces(parts[0])) == 1


@pytest.mark.parametrize("name", ["vp8", "vp9"])
def test_a_container_that_flags_every_packet_as_a_keyframe_is_not_believed(tmp_path: Path, name: str) -> None:
    codec, container, options = STREAMS[name]
    path = write_clip(tmp_path / f"a.{container}", frames=noise_frames(60, width=96, height=64), codec=codec, codec_options={**options, "g": "1000"})
    with av.open(str(path)) as given, av.open(str(tmp_path / "b.mkv"), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0], opaque=True)
        for packet in given.demux():
            if packet.dts is not None:
                packet.stream, packet.is_keyframe = stream, True
                made.mux(packet)
    (piece,) = pieces(tmp_path / "b.mkv")
    assert len(piece.pictures) == len(pieces(path)[0].pictures)


def test_parameters_that_come_beside_the_packets_are_seen(tmp_path: Path) -> None:
    """A second sequence header in a Flash video."""
    parts = [
        write_clip(tmp_path / f"{number}.flv", frames=noise_frames(30, width=96, height=64), codec_options={"x264-params": f"{X264}:ref={number}"})
        for number in (1, 3)
    ]
    header = 13  # of the file, and the size of the tag before the first
    path = tmp_path / "a.flv"
    path.write_bytes(parts[0].read_bytes() + parts[1].read_bytes()[header:])
    with pytest.raises(UnsuitableError, match=r"parameters change in mid-stream|times go back"):
        pieces(path)


@given(st.binary(max_size=2000))
def test_any_bytes_are_searched_for_nal_units(data: bytes) -> None:
    for length in (0, 1, 2, 4):
        assert all(unit and unit in data for unit in nal_units(data, length))
    assert length_bytes("hevc" if len(data) % 2 else "h264", data) in range(5)


def test_a_damaged_file_is_cut_or_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.ts", frames=noise_frames(60, width=96, height=64), codec_options={"x264-params": X264})
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(30):
        damaged = bytearray(data)
        for place in generator.integers(1000, len(data), 20):
            damaged[place] = generator.integers(256)
        (tmp_path / "b.ts").write_bytes(damaged)
        try:
            cut = pieces(tmp_path / "b.ts")
        except UnsuitableError:
            continue
        for piece in cut:
            with av.open(io.BytesIO(piece.data)) as container:
                assert sum(packet.size > 0 for packet in container.demux()) == len(piece.pictures)
