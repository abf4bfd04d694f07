"""A Matroska file written by hand (RFC 9559), which lets it say what no muxer would: any time, any number of tracks, any length."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

VIDEO, AUDIO, SUBTITLES, CONTROL = 1, 2, 0x11, 0x20
UNKNOWN_LENGTH = b"\x01" + b"\xff" * 7


@dataclass(frozen=True)
class Track:
    """codec: Matroska's codec id. settings: its elements beside number, UID, type and codec."""

    kind: int
    codec: str
    settings: bytes = b""


@dataclass(frozen=True)
class Block:
    """One packet of track number `track` (from 1 on), shown at `time_ms`."""

    track: int
    time_ms: int
    data: bytes
    key: bool = True


def element(identifier: int, body: bytes | int | str, *, length: bytes | None = None) -> bytes:
    """An EBML element; `length` replaces the eight bytes that say how long its body is."""
    if isinstance(body, int):
        body = body.to_bytes(max(1, (body.bit_length() + 7) // 8), "big")
    elif isinstance(body, str):
        body = body.encode()
    return identifier.to_bytes((identifier.bit_length() + 7) // 8, "big") + (length or (1 << 56 | len(body)).to_bytes(8, "big")) + body


def picture_settings(width: int, height: int, private: bytes = b"") -> bytes:
    """What a video track says of itself, `private` for its decoder."""
    return (element(0x63A2, private) if private else b"") + element(0xE0, element(0xB0, width) + element(0xBA, height))


def sound_settings(rate_hz: bytes, channels: int, bits: int = 16, private: bytes = b"") -> bytes:
    """What an audio track says of itself; the rate is a big-endian double."""
    return (element(0x63A2, private) if private else b"") + element(0xE1, element(0xB5, rate_hz) + element(0x9F, channels) + element(0x6264, bits))


def matroska(
    tracks: Sequence[Track], blocks: Iterable[Block], *, info: bytes = b"", segment_length: bytes = UNKNOWN_LENGTH, tail: bytes = b""
) -> bytes:
    """The file: every block is in a cluster of its own, so times are free. `info` is added to the segment's; `tail` ends the segment."""
    header = element(0x1A45DFA3, element(0x4282, "matroska") + element(0x4287, 4) + element(0x4285, 2))
    entries = b"".join(
        element(0xAE, element(0xD7, number) + element(0x73C5, number) + element(0x83, track.kind) + element(0x86, track.codec) + track.settings)
        for number, track in enumerate(tracks, start=1)
    )
    clusters = b"".join(element(0x1F43B675, element(0xE7, block.time_ms) + element(0xA3, _simple(block))) for block in blocks)
    body = element(0x1549A966, element(0x2AD7B1, 1_000_000) + info) + element(0x1654AE6B, entries) + clusters + tail
    return header + element(0x18538067, body, length=segment_length)


def _simple(block: Block) -> bytes:
    return (0x4000 | block.track).to_bytes(2, "big") + bytes(2) + (b"\x80" if block.key else b"\x00") + block.data
