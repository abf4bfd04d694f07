"""Sound of an unusual length, rate or number of channels; cover art; WAV headers that are not so."""

import io
import wave
from collections.abc import Iterator
from pathlib import Path
from struct import pack

import numpy as np
from numpy.typing import NDArray

from tests.hostile.boxes import box, spliced, walk
from tests.hostile.film import Film, jpeg, written
from tests.hostile.member import Hostile, hostile


def odd_sounds(folder: Path, clip: Path) -> Iterator[Hostile]:
    """Lengths, channels and rates of the sound; cover art; WAV headers."""
    film = Film(clip)
    pictures, sound, rate_hz = film.pictures, film.sound, film.rate_hz
    short, long = sound[: rate_hz // 3], np.tile(sound, 25)
    path = written(folder / "short-sound.mp4", frames=pictures, sound=short, sound_rate_hz=rate_hz)
    yield hostile("sound much shorter than the picture", path, None)
    path = written(folder / "long-sound.mp4", frames=pictures, sound=long, sound_rate_hz=rate_hz)
    yield hostile("sound much longer than the picture", path, None)
    path = written(folder / "8-channels.mp4", frames=pictures, sound=np.tile(sound, (8, 1)), sound_rate_hz=rate_hz)
    yield hostile("8 channels of sound", path, None)
    fast = np.repeat(sound, 192_000 // rate_hz)
    path = written(folder / "192-khz.mkv", frames=pictures, sound=fast, sound_rate_hz=192_000, sound_codec="flac")
    yield hostile("192 kHz sound", path, None)

    cover = jpeg(pictures[20])
    path = written(folder / "cover-m4a.mp4", sound=sound, sound_rate_hz=rate_hz, container="ipod")
    path.write_bytes(_with_cover(path.read_bytes(), cover))
    yield hostile("cover art as the only picture, m4a", path, None, "no_speech")
    path = written(folder / "cover-mp3.mp4", sound=sound, sound_rate_hz=rate_hz, sound_codec="libmp3lame", container="mp3")
    path.write_bytes(_id3(cover) + path.read_bytes())
    yield hostile("cover art as the only picture, mp3", path, None, "no_speech")

    for name, channels, header_rate_hz, reasons in (
        ("65535 channels", 0xFFFF, 16_000, ("corrupt",)),
        ("0 channels", 0, 16_000, ("corrupt",)),
        ("4294967295 Hz", 1, 0xFFFF_FFFF, ("corrupt",)),
        ("0 Hz", 1, 0, ("corrupt",)),
        ("1 Hz", 1, 1, ("corrupt", "no_speech")),
    ):
        path = folder / f"wav-{name.replace(' ', '-')}.mp4"
        path.write_bytes(_wav(sound, channels, header_rate_hz))
        yield hostile(f"WAV of {name}", path, *reasons)


def _with_cover(data: bytes, cover: bytes) -> bytes:
    """An M4A file with iTunes's cover art added at the end of its index."""
    art = box(b"ilst", box(b"covr", box(b"data", pack(">II", 13, 0) + cover)))
    handler = box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    moov = next(item for item in walk(data) if item.path == "moov")
    return spliced(data, moov, moov.end, moov.end, box(b"udta", box(b"meta", bytes(4) + handler + art)))


def _id3(cover: bytes) -> bytes:
    """An ID3v2.3 tag with an attached picture (APIC)."""
    picture = b"\0image/jpeg\0\x03\0" + cover
    frame = b"APIC" + pack(">I", len(picture)) + bytes(2) + picture
    size = len(frame)
    return b"ID3\x03\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + frame


def _wav(sound: NDArray[np.float32], channels: int, rate_hz: int) -> bytes:
    """A WAV file whose header is overwritten with these numbers."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((32767 * np.clip(sound, -1, 1)).astype("<i2").tobytes())
    data = bytearray(out.getvalue())
    data[22:28] = pack("<HI", channels, rate_hz)
    return bytes(data)
