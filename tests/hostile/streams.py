"""Files that are whole, and whose streams are of an unusual kind: sizes, rates, times, numbers, and none that can be scored."""

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from struct import pack

import av
import numpy as np

from tests.hostile.film import BITEXACT, Film, h264, jpeg, remuxed, written
from tests.hostile.matroska import AUDIO, CONTROL, SUBTITLES, VIDEO, Block, Track, element, matroska, picture_settings, sound_settings
from tests.hostile.member import Hostile, hostile

_DAY_MS, _TEN_HOURS_MS = 86_400_000, (0, 18_000_000, 36_000_000)
_ANY_END = (None, "too_short", "no_face_and_no_sound")  # a film without sound, as much of it as its times leave
_HUGE_PX, _LARGE_PX, _SIDE_PX = 60_000, 16_000, 8192
_LENGTH_2_56 = b"\x01" + b"\xff" * 6 + b"\xfe"  # 2^56 - 2: one more means unknown


def odd_pictures(folder: Path, clip: Path) -> Iterator[Hostile]:
    """Rates and sizes of the picture."""
    film = Film(clip)
    pictures = film.pictures
    still = np.full((1, 1, 3), 128, np.uint8)
    yield hostile("1 fps", written(folder / "1fps.mp4", frames=pictures[:12], fps=1), None)
    yield hostile("240 fps", written(folder / "240fps.mp4", frames=[pictures[k // 5] for k in range(240)], fps=240), None)
    path = written(folder / "1x1.mkv", frames=[still] * 25, codec="ffv1")
    yield hostile("1x1", path, "no_face_and_no_sound")
    path = written(folder / "1x1-h264.mp4", frames=[still] * 25, pixel_format="yuv444p")
    yield hostile("1x1 H.264", path, "no_face_and_no_sound")
    path = written(folder / "2x4000.mkv", frames=[np.full((4000, 2, 3), 128, np.uint8)] * 25)
    yield hostile("2x4000", path, "no_face_and_no_sound")
    path = written(folder / "one-frame.mp4", frames=pictures[:1])
    yield hostile("one frame", path, "too_short")

    path = written(folder / "8192.mp4", frames=[_large()], codec_options={"threads": "1"})
    yield hostile("8192x8192", path, "refused")
    # FFmpeg has a limit of its own, which the larger one is above.
    for side, reasons in ((_LARGE_PX, ("refused",)), (_HUGE_PX, ("refused", "corrupt"))):
        path = folder / f"{side}.mkv"
        path.write_bytes(matroska([Track(VIDEO, "V_MJPEG", picture_settings(side, side))], [Block(1, 40 * k, _jpeg_of(side)) for k in range(3)]))
        yield hostile(f"{side}x{side} in a few hundred bytes", path, *reasons)

    rng = np.random.default_rng(3)
    times_s = np.cumsum(rng.choice([0.008, 0.02, 0.04, 0.1], len(pictures)))
    path = written(folder / "variable.mp4", frames=pictures, times_s=times_s.tolist(), sound=film.sound, sound_rate_hz=film.rate_hz)
    yield hostile("variable frame rate", path, None)


def changing_sizes(folder: Path, clip: Path) -> Iterator[Hostile]:
    """A picture that becomes another size amid the stream."""
    film = Film(clip)
    small = [picture[::2, ::2].copy() for picture in film.pictures]
    streams = {side: h264(folder, frames) for side, frames in {"whole": film.pictures, "half": small, "huge": [_large()]}.items()}
    for name, parts, reasons in (
        ("halves", ("whole", "half", "whole"), (None,)),
        ("becomes 8192x8192", ("whole", "huge"), ("refused",)),
        ("was 8192x8192", ("huge", "whole"), ("refused",)),
    ):
        path = folder / f"raw-{name.replace(' ', '-')}.mp4"
        path.write_bytes(b"".join(streams[part] for part in parts))
        yield hostile(f"size {name}, raw H.264", path, *reasons)
        path = folder / f"ts-{name.replace(' ', '-')}.ts"
        path.write_bytes(b"".join(remuxed(streams[part], "mpegts") for part in parts))
        yield hostile(f"size {name}, MPEG-TS", path, *reasons)


def odd_times(folder: Path, clip: Path) -> Iterator[Hostile]:
    """Clocks that stand, run back, jump, and go on for very long."""
    film = Film(clip)
    count = len(film.blocks)

    def made(name: str, times_ms: Sequence[int], *reasons: str | None) -> Hostile:
        path = folder / f"{name.replace(' ', '-').replace(':', '')}.mkv"
        path.write_bytes(matroska([film.track], film.blocks_at(times_ms)))
        return hostile(name, path, *reasons)

    yield made("0 fps: all times equal", [0] * count, "too_short")
    yield made("all times equal and late", [1_000_000] * count, "too_short")
    yield made("times run backwards", [40 * (count - k) for k in range(count)], None, "too_short")
    yield made("times fall back half way", [40 * (k % (count // 2)) for k in range(count)], None)
    yield made("times jump by 3 days", [40 * k + (3 * _DAY_MS if k >= count // 2 else 0) for k in range(count)], None)
    yield made("times jump back by 3 days", [40 * k + (3 * _DAY_MS if k < count // 2 else 0) for k in range(count)], None)
    yield made("times jump by 3 days at every frame", [k * 3 * _DAY_MS for k in range(count)], *_ANY_END)
    yield made("times begin after 1000 days", [40 * k + 1000 * _DAY_MS for k in range(count)], None)
    yield made("times at the end of 63 bits", [2**62 + 40 * k for k in range(count)], *_ANY_END, "corrupt")

    transport = remuxed(h264(folder, film.pictures), "mpegts")
    path = folder / "twice.ts"
    path.write_bytes(transport * 2)
    yield hostile("MPEG-TS twice over: the clock falls back", path, None)

    half = film.pictures[: count // 2]
    times_s = [k / 25 + (72_000 if k >= len(half) // 2 else 0) for k in range(len(half))]
    yield hostile("MPEG-TS jumps by 20 hours", written(folder / "jump.ts", frames=half, times_s=times_s), None)

    path = folder / "10-hours.mkv"
    path.write_bytes(matroska([film.track], [Block(1, ms, block.data, block.key) for ms, block in zip(_TEN_HOURS_MS, film.blocks, strict=False)]))
    yield hostile("10 hours in three packets, mkv", path, *_ANY_END)


def long_stills(folder: Path, clip: Path) -> Iterator[Hostile]:
    """Few packets, and very many frames on the grid to look at: pictures of a face that stay for 9 minutes, and for 10 hours."""
    pictures = Film(clip).pictures
    path = written(folder / "still.mp4", frames=[pictures[20]] * 2, times_s=[0, 540])
    yield hostile("a face that stays for 9 minutes in two packets", path, None)
    # MP4 says how long each packet lasts, so this is 900,000 frames of a face where that is believed.
    path = written(folder / "10-hours.mp4", frames=pictures[:3], times_s=[ms / 1000 for ms in _TEN_HOURS_MS])
    yield hostile("10 hours in three packets, mp4", path, *_ANY_END, "timeout", "refused")


def odd_containers(folder: Path, clip: Path) -> Iterator[Hostile]:
    """Very many streams, none that can be scored, and Matroska's own traps."""
    film = Film(clip)
    pcm = Track(AUDIO, "A_PCM/INT/LIT", sound_settings(pack(">d", 16_000.0), 1))
    text = Track(SUBTITLES, "S_TEXT/UTF8")

    def made(name: str, data: bytes, *reasons: str | None) -> Hostile:
        path = folder / f"{name.replace(' ', '-').replace(',', '')}.mkv"
        path.write_bytes(data)
        return hostile(name, path, *reasons)

    for streams, reason in ((64, None), (300, "refused")):
        silence = [Block(number, 0, bytes(640)) for number in range(2, min(streams, 127) + 1)]  # a block names its track in one byte
        yield made(f"{streams} streams", matroska([film.track] + [pcm] * (streams - 1), silence + film.blocks), reason)
    yield made("subtitles only", matroska([text], [Block(1, 40 * k, b"words") for k in range(50)]), "corrupt")
    data = matroska([Track(CONTROL, "D_CUSTOM")], [Block(1, 40 * k, b"data") for k in range(50)])
    yield made("data of an unknown kind only", data, "corrupt")
    (folder / "data.ts").write_bytes(_data_only())
    yield hostile("data stream only, MPEG-TS", folder / "data.ts", "corrupt")
    (folder / "srt.mp4").write_text("1\n00:00:00,000 --> 00:00:02,000\nwords\n\n" * 5)
    yield hostile("subtitle text", folder / "srt.mp4", "refused")
    yield made("no tracks", matroska([], []), "corrupt")
    yield made("tracks and nothing in them", matroska([film.track, pcm], []), "corrupt")

    neighbours = element(0x3EB923, b"\x01" * 16) + element(0x3E83BB, "plain.mkv") + element(0x3CB923, b"\x02" * 16) + element(0x3C83AB, "/etc/passwd")
    yield made("segment linked to others", matroska([film.track], film.blocks, info=neighbours), None)
    yield made("segment says 2^56 bytes", matroska([film.track], film.blocks, segment_length=_LENGTH_2_56), None)
    endless = element(0x1F43B675, element(0xE7, 0) + element(0xA3, b"\x81\0\0\x80", length=_LENGTH_2_56))
    yield made("block says 2^56 bytes", matroska([film.track], film.blocks, tail=endless), None)
    greedy = Track(VIDEO, "V_MPEG4/ISO/AVC", element(0x63A2, b"", length=_LENGTH_2_56))
    yield made("codec data say 2^56 bytes", matroska([greedy], film.blocks), "corrupt")
    nested = b""
    for _ in range(2000):
        nested = element(0x3373, nested)  # tags
    yield made("2000 elements in each other", matroska([film.track], film.blocks, tail=element(0x1254C367, nested)), None)


def _large() -> av.VideoFrame:
    """A grey picture of 67 million pixels."""
    return av.VideoFrame.from_ndarray(np.full((_SIDE_PX * 3 // 2, _SIDE_PX), 128, np.uint8), format="yuv420p")


def _jpeg_of(side: int) -> bytes:
    """A small JPEG whose frame header announces a square of this side."""
    data = jpeg(np.full((16, 16, 3), 128, np.uint8))
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + 2 * side.to_bytes(2, "big") + data[at + 4 :]


def _data_only() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mpegts", options=BITEXACT) as output:
        stream = output.add_data_stream()
        for number in range(50):
            packet = av.Packet(b"data" * 10)
            packet.stream, packet.time_base = stream, Fraction(1, 90_000)
            packet.pts = packet.dts = 3600 * number
            output.mux(packet)
    return out.getvalue()
