"""One stream's packets, on a clock without jumps that all streams of the file share.

Recordings that were cut together, or whose counter was reset, have timestamps that jump by hours or days; taken at their word they would
fill the gap with millions of repeated frames, or throw away everything after a jump back. A jump is closed: what follows continues where
the file had got to. Both readers of a file walk the same packets and decide alike, and the second stream takes over the first one's
correction, so picture and sound keep their places relative to each other (as FFmpeg's command line does for `-copyts` unset).
"""

from collections.abc import Callable, Iterator
from typing import Any

import av
import av.error
from av.container import InputContainer
from av.stream import Discard

from dissonance.engine.media.probe import MAY_JUMP, MediaInfo
from dissonance.errors import MediaError

JUMP_S = 10.0  # in formats whose timestamps may jump (MPEG-TS and PS); FFmpeg's own dts_delta_threshold
STILL_S = 600.0  # in all others: so long may one picture stand, or the sound be away
BACK_S = 1.0  # decoding times never go back; reordered ones do by less than this


class PacketReader:
    """Iterate once over one stream's packets, then a None to flush its decoder. Timestamps are rewritten onto the common clock.

    `alive` is called for every packet that is read, of whatever stream.

    A demuxing error ends the stream, as the end of the file does, and is counted.
    """

    def __init__(self, container: InputContainer, info: MediaInfo, index: int, *, alive: Callable[[], None] = lambda: None) -> None:
        self._alive = alive
        self._container = container
        self._wanted = index
        self.discontinuities = 0
        self.demux_errors = 0
        chosen = [stream.index for stream in (info.video, info.audio) if stream is not None]
        # MP4's tables hold no jumps back, and reading the pictures' bytes for the sound's sake would double the work.
        self._indices = [index] if "mov" in info.container else chosen
        self._limit_s = JUMP_S if container.format.flags & MAY_JUMP else STILL_S
        self._shift_s = dict.fromkeys(self._indices, 0.0)  # added to each stream's times
        self._newest_s = 0.0  # the correction made last, by any stream
        self._reached_s: dict[int, float] = {}  # where each stream has got to
        self._start_s = min((stream.start_s for stream in (info.video, info.audio) if stream is not None), default=0.0)

    def __iter__(self) -> Iterator[Any]:
        container = self._container
        for stream in container.streams:
            if stream.index not in self._indices:
                stream.discard = Discard.all
        try:
            for packet in container.demux([container.streams[i] for i in self._indices]):
                self._alive()
                if packet.size == 0:  # an empty packet would flush the decoder; the real flush follows below
                    continue
                self._place(packet)
                if packet.stream_index == self._wanted:
                    yield packet
        except av.error.MemoryError as error:
            raise MediaError("out_of_memory", "reading its packets") from error
        except av.error.FFmpegError:
            self.demux_errors += 1
        except IndexError:  # after the last packet: PyAV goes to flush a stream that appeared in mid-file, which it does not know
            pass
        yield None

    def _place(self, packet: Any) -> None:
        index, base = packet.stream_index, float(packet.time_base)
        stamp = packet.dts if packet.dts is not None else packet.pts
        if stamp is None:
            return
        time_s = stamp * base
        if self._is_jump(index, time_s + self._shift_s[index]):
            expected_s = self._reached_s.get(index, self._start_s)
            if -BACK_S <= time_s + self._newest_s - expected_s <= self._limit_s:
                self._shift_s[index] = self._newest_s
            else:
                self._newest_s = self._shift_s[index] = max([expected_s, *self._reached_s.values()]) - time_s
            self.discontinuities += index == self._wanted
        if packet.pts is not None and abs((packet.pts - stamp) * base) > STILL_S:  # damage: the decoding times are what the clock follows
            packet.pts = None
        self._reached_s[index] = time_s + self._shift_s[index] + (packet.duration or 0) * base
        if (ticks := round(self._shift_s[index] / base)) != 0:
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts = None if packet.dts is None else packet.dts + ticks

    def _is_jump(self, index: int, time_s: float) -> bool:
        expected_s = self._reached_s.get(index)
        if expected_s is None:
            return abs(time_s - self._start_s) > self._limit_s
        if expected_s - BACK_S <= time_s <= expected_s + self._limit_s:
            return False
        # A stream that was away while the other one went on has not jumped.
        return all(abs(time_s - reached_s) > self._limit_s for other, reached_s in self._reached_s.items() if other != index)
