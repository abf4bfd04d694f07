"""Pictures of one file on the 25 fps grid."""

import math
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Generic, TypeVar

import av
from av.video.reformatter import VideoReformatter

from dissonance.config import LimitsConfig
from dissonance.engine.media.frame import Frame
from dissonance.engine.media.packets import PacketReader
from dissonance.engine.media.probe import MediaInfo, check_pixels, open_media
from dissonance.errors import MediaError

__all__ = ["FPS", "Frame", "GridReader", "VideoReader"]

Shown = TypeVar("Shown")
FPS = 25
_MAX_DISTINCT = 256  # spacings of timestamps that are told apart
_MAX_DELAY = 64  # packets that a decoder holds back at most
_MAX_LAST_S = 10  # a container's word for how long the last frame stays is believed up to here


class GridReader(Generic[Shown]):
    """The chosen video stream on the grid, whatever decodes it: iterate once over (k, frame), every k from 0 on, in order.

    Grid frame k is what is on screen in the middle of its interval: the last source frame presented at or before origin_s + k/25 + 0.02 s.
    The same object comes again where the grid repeats a frame. A frame whose time is not after its predecessor's is never shown.
    Raises MediaError: corrupt where nothing decodes, refused beyond `limits`, out_of_memory; ValueError where `info` has no video.
    """

    def __init__(self, path: Path, info: MediaInfo, *, limits: LimitsConfig | None = None, alive: Callable[[], None] = lambda: None) -> None:
        if info.video is None:
            raise ValueError("this file has no video stream")
        self._path, self._info, self._video = path, info, info.video
        self._limits, self._alive = limits or LimitsConfig(), alive
        self.origin_s = 0.0  # presentation time of the first frame, on the file's clock; known after the first frame
        self.frames_decoded = 0  # every frame that the decoder returned
        self.frames_dropped = 0  # those that the grid never shows
        self.decode_errors = 0  # packets that did not decode, and 1 where the container itself broke off
        self.discontinuities = 0  # jumps of the clock that were closed (see packets.py)
        self.variable_frame_rate = False

    @abstractmethod
    def _decoded(self) -> Iterator[tuple[Any, Fraction]]:
        """Every frame of the stream, something with a `pts` and a `duration` (either may be None), and the time base of these."""

    @abstractmethod
    def _frame(self, picture: Any) -> Shown:
        """What is given out of such a frame."""

    def __iter__(self) -> Iterator[tuple[int, Shown]]:
        current = None
        start = 0  # current's first grid frame
        for picture, following in self._spans():
            if current is not None and following > start:
                frame = self._frame(current)
                for k in range(start, following):
                    yield k, frame
                start = following
            elif current is not None:
                self.frames_dropped += 1
            current = picture
        if current is not None:
            self.frames_dropped += 1

    def _spans(self) -> Iterator[tuple[Any, int]]:
        """Each source frame with the grid frame it starts at; at the end None with the number of grid frames."""
        origin: int | None = None
        last = 0
        spacings: Counter[int] = Counter()
        base = Fraction(1)
        duration = 0
        for picture, base in self._decoded():
            average = spacings.total() and round((last - (origin or 0)) / spacings.total())
            nominal = average or round(1 / (Fraction(self._video.fps or FPS) * base)) or 1
            pts = picture.pts if picture.pts is not None else last + (duration or nominal) if origin is not None else 0
            duration = picture.duration or 0
            if origin is None:
                origin = last = pts
                self.origin_s = float(pts * base)
            else:
                if pts < last:  # the screen has moved on
                    self.frames_dropped += 1
                    continue
                if pts - last in spacings or len(spacings) < _MAX_DISTINCT:
                    spacings[pts - last] += 1
                last = pts
            yield picture, _grid_frame(pts - origin, base)
        if origin is None:
            raise MediaError("corrupt", f"no picture of the video stream decodes ({self.decode_errors} packets failed)")
        if not duration:
            duration = round((last - origin) / spacings.total()) if spacings else round(1 / (Fraction(self._video.fps or FPS) * base))
        self.variable_frame_rate = _is_variable(spacings)
        end = last - origin + min(duration, math.floor(_MAX_LAST_S / base))
        yield None, max(_grid_frame(end, base), 1)


class VideoReader(GridReader[Frame]):
    """`GridReader` by PyAV. Packets that do not decode are skipped and counted, as FFmpeg does. Memory: the decoder's own frames and one more."""

    def __init__(
        self, path: Path, info: MediaInfo, *, threads: int = 1, limits: LimitsConfig | None = None, alive: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(path, info, limits=limits, alive=alive)
        self._threads, self._reformatter = threads, VideoReformatter()

    def _frame(self, picture: av.VideoFrame) -> Frame:
        return Frame(picture, sample_aspect=self._video.sample_aspect, reformatter=self._reformatter, turn_deg=self._video.rotation_deg)

    def _decoded(self) -> Iterator[tuple[av.VideoFrame, Fraction]]:
        """Every frame of the stream, flush included, with the time base of its pts."""
        with open_media(self._path) as container:
            stream: Any = container.streams[self._video.index]
            stream.codec_context.thread_count = self._threads
            if self._threads > 1:
                stream.codec_context.thread_type = "AUTO"
            packets = PacketReader(container, self._info, self._video.index, alive=self._alive)
            # AVI has no presentation times, only an order: pictures are shown in turn at the times of their packets.
            in_turn: deque[int] | None = deque(maxlen=_MAX_DELAY) if self._info.container == "avi" else None
            for packet in packets:
                if in_turn is not None and packet is not None and packet.dts is not None:
                    in_turn.append(packet.dts)
                try:
                    pictures = stream.decode(packet)
                except av.error.MemoryError as error:
                    raise MediaError("out_of_memory", "decoding its picture") from error
                except av.error.FFmpegError:
                    self.decode_errors += 1
                    if in_turn:
                        in_turn.pop()
                    continue
                finally:
                    self.discontinuities = packets.discontinuities
                    if packet is None:
                        self.decode_errors += packets.demux_errors
                for picture in pictures:
                    check_pixels(picture.width, picture.height, self._limits)  # a picture may grow in mid-stream
                    self.frames_decoded += 1
                    if in_turn is not None:
                        picture.pts = in_turn.popleft() if in_turn else None
                    yield picture, stream.time_base


def _grid_frame(ticks: int, base: Fraction) -> int:
    """First grid frame at which a source frame, `ticks` of `base` seconds after the origin, is on screen: least k with k/25 + 1/50 >= time."""
    halves = 2 * FPS * ticks * base.numerator - base.denominator  # (25 time - 1/2) in units of 1 / (2 denominator), all in whole numbers
    return -(-halves // (2 * base.denominator))


def _is_variable(spacings: Counter[int]) -> bool:
    """Whether more than one spacing in a hundred differs from the usual one by more than the rounding of timestamps does."""
    if not spacings:
        return False
    usual = spacings.most_common(1)[0][0]
    odd = sum(count for spacing, count in spacings.items() if abs(spacing - usual) > max(1.5, usual / 50))
    return odd > 0.01 * spacings.total()
