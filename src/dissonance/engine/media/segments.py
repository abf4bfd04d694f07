"""A video stream as pieces that decode by themselves: cut at its keyframes, not decoded, each a small file in memory.

For decoders that take whole files from memory (see dali.py): a long video is never held at once. A piece holds every packet that its pictures need.
In an open group of pictures the first ones in order of presentation follow their keyframe in the file and need the piece before it: they are decoded
there, behind a second copy of that keyframe.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av

from dissonance.errors import MediaError

SEGMENT_BYTES, SEGMENT_PICTURES = 4 << 20, 100  # a piece ends at the first keyframe after either
LONGEST_BYTES = 256 << 20  # of a piece
CONTAINER = "matroska"  # holds every codec here, and nothing but order and time of a packet
_MILLISECOND = Fraction(1, 1000)  # Matroska's tick
_TICKS = 40  # between two pictures of a piece
_ENOUGH_BYTES = 256  # of a NAL unit, to know it by
_H264_IDR, _H264_SPS = 5, 7  # nal_unit_type, ITU-T H.264 table 7-1
_HEVC_FIRST_IRAP, _HEVC_LAST_IRAP, _HEVC_SPS = 16, 21, 33  # ITU-T H.265 table 7-1: BLA, IDR and CRA pictures


class UnsuitableError(Exception):
    """Why this stream cannot be cut into such pieces."""


@dataclass(frozen=True)
class Shown:
    """A picture of a piece. Times in ticks of the stream's time base, on the reader's clock; duration 0 where the container has none."""

    pts: int
    duration: int
    here: bool  # False: it is decoded for others' sake, and shown by another piece or never


@dataclass(frozen=True)
class Segment:
    """A file in memory, and the pictures that decoding all of it gives, in order of presentation."""

    data: bytes
    pictures: list[Shown]


def cut_segments(packets: Iterable[Any], stream: Any) -> Iterator[Segment]:
    """The pieces of one stream's packets (None, the flush, is passed over). What comes before the first keyframe is dropped.

    Memory: two pieces. Raises UnsuitableError when it comes to a packet without a presentation time, two with the same, parameter sets that change,
    or a piece beyond LONGEST_BYTES.
    """
    cutter = _Cutter(stream)
    for packet in packets:
        if packet is not None:
            yield from cutter.add(packet)
    yield from cutter.finish()


class _Cutter:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._codec = str(stream.codec_context.name)
        self._length_bytes = _length_bytes(self._codec, bytes(stream.codec_context.extradata or b""))
        self._piece: list[Any] = []  # from its keyframe on, in order of decoding
        self._ahead: list[Any] = []  # a keyframe at which the piece may end, and what follows it and is shown before it
        self._size_bytes = 0
        self._parameters: set[bytes] = set()

    def add(self, packet: Any) -> Iterator[Segment]:
        if packet.pts is None:
            raise UnsuitableError("a packet has no presentation time")
        enters = self._enters(packet)
        if self._ahead and packet.pts > self._ahead[0].pts:
            yield self._end_piece()
        if self._ahead:
            self._ahead.append(packet)
        elif self._piece and enters and (self._size_bytes >= SEGMENT_BYTES or len(self._piece) >= SEGMENT_PICTURES):
            self._ahead = [packet]
        elif self._piece or enters:
            self._piece.append(packet)
        self._size_bytes += packet.size
        if self._size_bytes > LONGEST_BYTES:
            raise UnsuitableError(f"no keyframe within {LONGEST_BYTES >> 20} MiB")

    def finish(self) -> Iterator[Segment]:
        if self._ahead:
            yield self._end_piece()
        if self._piece:
            yield self._segment(self._piece, first=self._piece[0].pts, end=None)

    def _end_piece(self) -> Segment:
        keyframe, leading = self._ahead[0], len(self._ahead) > 1
        segment = self._segment(self._piece + (self._ahead if leading else []), first=self._piece[0].pts, end=keyframe.pts)
        self._piece, self._ahead, self._size_bytes = [keyframe], [], keyframe.size
        return segment

    def _segment(self, packets: list[Any], *, first: int, end: int | None) -> Segment:
        """Without what is shown before `first`, where the piece begins: the last one had it. The picture at `end` is the next one's."""
        packets = [packet for packet in packets if packet.pts >= first]
        order = sorted(range(len(packets)), key=lambda number: packets[number].pts)
        times = [packets[number].pts for number in order]
        if len(set(times)) < len(times):
            raise UnsuitableError("two pictures have the same presentation time")
        shown = [
            Shown(packet.pts, packet.duration or 0, here=not packet.is_discard and (end is None or packet.pts < end))
            for packet in (packets[number] for number in order)
        ]
        places = {number: place for place, number in enumerate(order)}
        return Segment(_as_file(self._stream, [(packet, places[number]) for number, packet in enumerate(packets)]), shown)

    def _enters(self, packet: Any) -> bool:
        """Whether decoding may begin with this packet. A container's flag is not enough: recovery points have it too, and mend only in time."""
        if self._codec not in ("h264", "hevc"):
            return bool(packet.is_keyframe)
        found = False
        for unit in _nal_units(bytes(packet), self._length_bytes):
            kind = unit[0] & 0x1F if self._codec == "h264" else unit[0] >> 1 & 0x3F
            found |= kind == _H264_IDR if self._codec == "h264" else _HEVC_FIRST_IRAP <= kind <= _HEVC_LAST_IRAP
            if kind == (_H264_SPS if self._codec == "h264" else _HEVC_SPS):
                self._parameters.add(unit.rstrip(b"\0"))
                if len(self._parameters) > 1:
                    raise UnsuitableError("its parameter sets change in mid-stream, and with them perhaps the size of its pictures")
        return found and bool(packet.is_keyframe)


def _length_bytes(codec: str, extradata: bytes) -> int:
    """How long the length before each NAL unit is (ISO/IEC 14496-15, 5.3.3.1 and 8.3.3.1), 0 where there are start codes (ITU-T H.264, annex B)."""
    place = {"h264": 4, "hevc": 21}.get(codec)
    return 0 if place is None or len(extradata) <= place or extradata[0] != 1 else (extradata[place] & 3) + 1


def _nal_units(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """The start of each NAL unit of a packet."""
    if not length_bytes:
        start = data.find(b"\0\0\1")
        while start >= 0:
            end = data.find(b"\0\0\1", start + 3)
            unit = data[start + 3 : end if end >= 0 else None][:_ENOUGH_BYTES]
            if unit:
                yield unit
            start = end
        return
    place = 0
    while place + length_bytes < len(data):
        size, place = int.from_bytes(data[place : place + length_bytes], "big"), place + length_bytes
        if size:
            yield data[place : place + min(size, _ENOUGH_BYTES)]
        place += size


def _as_file(stream: Any, packets: list[tuple[Any, int]]) -> bytes:
    """A file of packets in order of decoding, each with its place in the order of presentation: that is its time there."""
    file = io.BytesIO()
    try:
        with av.open(file, "w", format=CONTAINER) as container:
            made = container.add_stream_from_template(stream, opaque=True)
            for number, (packet, place) in enumerate(packets):
                copy = av.Packet(bytes(packet))
                copy.stream, copy.time_base, copy.is_keyframe = made, _MILLISECOND, packet.is_keyframe
                copy.pts, copy.dts, copy.duration = _TICKS * place, _TICKS * (number - len(packets)), _TICKS
                container.mux_one(copy)
    except av.error.MemoryError as error:
        raise MediaError("out_of_memory", "copying its packets") from error
    except (av.error.FFmpegError, ValueError) as error:
        raise UnsuitableError(f"{stream.codec_context.name} cannot be put into a {CONTAINER} file: {error}") from error
    return file.getvalue()
