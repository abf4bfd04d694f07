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

from dissonance.engine.media.bitstreams import Bitstream, UnsuitableError
from dissonance.errors import MediaError

SEGMENT_BYTES, SEGMENT_PICTURES = 4 << 20, 100  # a piece ends at the first keyframe after either
LONGEST_BYTES = 256 << 20  # of a piece
CONTAINER = "matroska"  # holds every codec here, and nothing but order and time of a packet
_MILLISECOND = Fraction(1, 1000)  # Matroska's tick
_TICKS = 40  # between two pictures of a piece


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
    """The pieces of one stream's packets (None, the flush, is passed over). Memory: two pieces.

    Raises UnsuitableError when it comes to what would not surely give FFmpeg's pictures at their times: a stream that does not begin with a keyframe,
    a packet without a presentation time, times that go back, parameters that change, a piece beyond LONGEST_BYTES.
    """
    cutter = _Cutter(stream)
    for packet in packets:
        if packet is not None:
            yield from cutter.add(packet)
    yield from cutter.finish()


class _Cutter:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        context = stream.codec_context
        self._bitstream = Bitstream(context.codec.canonical_name, bytes(context.extradata or b""))
        self._piece: list[Any] = []  # from its keyframe on, in order of decoding
        self._ahead: list[Any] = []  # a keyframe at which the piece may end, and what follows it and is shown before it
        self._size_bytes = 0
        # of the first packet and of the last one with which decoding may begin; the largest so far
        self._first_pts = self._entered_pts = self._latest_pts = 0

    def add(self, packet: Any) -> Iterator[Segment]:
        pts, enters = packet.pts, self._bitstream.enters(packet)
        if pts is None:
            raise UnsuitableError("a packet has no presentation time")
        if not self._piece:
            if not enters:
                raise UnsuitableError("it does not begin with a keyframe")
            self._first_pts, self._latest_pts = pts, pts - 1
        if enters:
            if pts <= self._latest_pts:
                raise UnsuitableError("its times go back")
            self._entered_pts = pts
        elif pts < self._entered_pts:
            if not self._bitstream.may_lead or self._latest_pts > self._entered_pts:
                raise UnsuitableError("its times go back")
            if self._entered_pts == self._first_pts:
                if self._bitstream.is_skipped_at_the_start(packet):
                    return
                raise UnsuitableError("it begins with pictures that are shown before its first keyframe")
        self._latest_pts = max(self._latest_pts, pts)
        if self._ahead and pts > self._ahead[0].pts:
            yield self._end_piece()
        if self._ahead:
            self._ahead.append(packet)
        elif self._piece and enters and (self._size_bytes >= SEGMENT_BYTES or len(self._piece) >= SEGMENT_PICTURES):
            self._ahead = [packet]
        else:
            self._piece.append(packet)
        self._size_bytes += packet.size
        if self._size_bytes > LONGEST_BYTES:
            raise UnsuitableError(f"no keyframe within {LONGEST_BYTES >> 20} MiB")

    def finish(self) -> Iterator[Segment]:
        if self._ahead:
            yield self._end_piece()
        if self._piece:
            yield self._segment(self._piece, end=None)

    def _end_piece(self) -> Segment:
        keyframe, leading = self._ahead[0], len(self._ahead) > 1
        segment = self._segment(self._piece + (self._ahead if leading else []), end=keyframe.pts)
        self._piece, self._ahead, self._size_bytes = [keyframe], [], keyframe.size
        return segment

    def _segment(self, packets: list[Any], *, end: int | None) -> Segment:
        """The picture at `end` is the next piece's."""
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
        raise UnsuitableError(f"{stream.codec_context.codec.canonical_name} cannot be put into a {CONTAINER} file: {error}") from error
    return file.getvalue()
