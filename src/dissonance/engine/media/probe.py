"""What is in a file: opening it safely, and choosing the streams to read. Nothing is decoded but one picture, for its rotation."""

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import av
import av.error
import av.logging
from av.container import InputContainer
from av.container.core import Flags
from av.format import Flags as FormatFlags
from av.stream import Disposition

from dissonance.config import LimitsConfig
from dissonance.engine.media.frame import upright_turn_deg
from dissonance.errors import MediaError

# Demuxers that read one file and nothing else. Playlists, scripts, image sequences and devices are not among them.
DEMUXERS = (
    "mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf", "ogg", "mxf", "gxf", "dv", "ivf", "nut", "rm", "wtv",
    "h264", "hevc", "obu", "m4v", "yuv4mpegpipe",
    "mp3", "wav", "w64", "aiff", "au", "caf", "amr", "aac", "ac3", "eac3", "flac", "wv", "tta", "ape", "dts",
)  # fmt: skip
READ_BYTES = 1 << 18  # one read of the file
PROBE_BYTES, PROBE_S = 32 << 20, 20  # a stream that has not begun by then is not seen; more only costs where one is missing
PICTURE_PACKETS = 256  # a file's rotation is looked for in at most as many packets, of all streams
MAY_JUMP: Any = FormatFlags.ts_discont.value  # a format whose clock may jump
_MAKE_UP_TIMES: Any = Flags.gen_pts.value
_NOT_ALLOWED = "Format not on whitelist"
# FFmpeg's probing overlooks these without a telling file name; the text says what they are.
_PLAYLISTS = ((b"#EXTM3U", "hls"), (b"ffconcat", "concat"), (b"<MPD", "dash"), (b"<AssetMap", "imf"), (b"<CompositionPlaylist", "imf"))


@dataclass(frozen=True)
class VideoStream:
    """The picture that is read."""

    index: int  # in the container
    codec: str
    width: int  # as stored, before rotation
    height: int
    rotation_deg: int  # clockwise turn that displays it: 0, 90, 180, 270
    pixel_format: str
    sample_aspect: float  # width of a stored pixel over its height; 1.0 where unknown
    fps: float | None  # as the container has it
    start_s: float
    duration_s: float | None


@dataclass(frozen=True)
class AudioStream:
    """The sound that is read."""

    index: int
    codec: str
    sample_rate_hz: int
    channels: int
    start_s: float
    duration_s: float | None


@dataclass(frozen=True)
class MediaInfo:
    """A file's container and the streams chosen from it."""

    container: str  # FFmpeg's name of the demuxer
    duration_s: float | None
    video: VideoStream | None
    audio: AudioStream | None
    video_streams: int  # attached pictures not counted
    audio_streams: int
    choice: str  # why these were chosen, one line


def _refuse_second_file(url: str, *_: object) -> NoReturn:
    raise MediaError("refused", f"it names another file or address ('{url:.200}'), and those are never followed")


@contextlib.contextmanager
def open_media(path: Path) -> Iterator[InputContainer]:
    """Open one file for demuxing, as a file object: neither another file nor a protocol can be reached from it.

    Its content alone decides the demuxer, its name does not. A demuxer that is not in `DEMUXERS` is refused before any of its code runs.
    Raises MediaError: unreadable, refused, corrupt; also for what FFmpeg raises inside the `with` block.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not hang the opening
    except (OSError, ValueError) as error:
        raise MediaError("unreadable", f"cannot open: {getattr(error, 'strerror', None) or error}") from error
    kind = os.fstat(descriptor)
    if not stat.S_ISREG(kind.st_mode):
        os.close(descriptor)
        raise MediaError("unreadable", "it is a directory" if stat.S_ISDIR(kind.st_mode) else "it is not a regular file")
    with open(descriptor, "rb", buffering=0) as file:  # by number: a name would sway the probing
        if kind.st_size == 0:
            raise MediaError("corrupt", "the file is empty")
        try:
            with _demuxer(file) as container:
                yield container
        except av.error.MemoryError as error:
            raise MediaError("out_of_memory", "reading its container") from error
        except av.error.FFmpegError as error:
            raise MediaError("corrupt", f"FFmpeg cannot read it: {error.strerror or error}") from error
        except OSError as error:
            raise MediaError("unreadable", f"reading failed: {error.strerror or error}") from error


def _demuxer(file: Any) -> InputContainer:
    def attempt() -> InputContainer:
        file.seek(0)
        container: InputContainer = av.open(
            file,
            "r",
            options={"format_whitelist": ",".join(DEMUXERS), "probesize": str(PROBE_BYTES), "analyzeduration": str(PROBE_S * av.time_base)},
            buffer_size=READ_BYTES,
            metadata_errors="replace",
            io_open=_refuse_second_file,
        )
        # PyAV has FFmpeg make up missing presentation times (genpts), which puts H.264 in AVI a frame late. The readers do it themselves.
        container.flags &= ~_MAKE_UP_TIMES
        return container

    try:
        return attempt()
    except av.error.FFmpegError as error:
        file.seek(0)
        head = file.read(4096)
        for mark, name in _PLAYLISTS:
            if mark in head:
                raise MediaError("refused", f"'{name}' is a list of other files, and those are never followed") from error
        if isinstance(error, av.error.ArgumentError) and (form := _refused_format(attempt)) is not None:
            raise MediaError("refused", f"the format '{form}' is not among those that are read") from error
        detail = "no known media format in it" if isinstance(error, av.error.InvalidDataError) else f"FFmpeg: {error.strerror or error}"
        if head[4:8] == b"ftyp":
            detail = "an MP4 or MOV file without a readable index ('moov'): truncated, or never finished"
        raise MediaError("corrupt", detail) from error


def _refused_format(attempt: Any) -> str | None:
    """The demuxer that FFmpeg chose and did not run. Only its log tells, so it is listened to for the length of one more attempt."""
    before, skipped = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # or the second file of a format would not be told
    try:
        with av.logging.Capture(local=False) as logs, contextlib.suppress(av.error.FFmpegError):
            attempt().close()
    finally:
        av.logging.set_level(before)
        av.logging.set_skip_repeated(skipped)
    return next((speaker or "unknown" for _, speaker, message in logs if _NOT_ALLOWED in message), None)


def probe(path: Path, *, limits: LimitsConfig | None = None) -> MediaInfo:
    """Read a file's headers, and one picture for its rotation. Raises MediaError: unreadable, corrupt, refused, unsupported_codec."""
    limits = limits or LimitsConfig()
    with open_media(path) as container:
        if len(container.streams) > limits.max_streams:
            raise MediaError("refused", f"it has {len(container.streams)} streams; {limits.max_streams} is the most (limits.max_streams)")
        pictures = [s for s in container.streams.video if not s.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails)]
        sounds = list(container.streams.audio)
        video, audio = _choose(pictures, "video"), _choose(sounds, "audio")
        if video is None and audio is None and (pictures or sounds):
            raise MediaError("corrupt", "its streams are announced, but none of them holds anything")
        if video is not None:
            check_pixels(video.codec_context.width, video.codec_context.height, limits)
        for stream in filter(None, (video, audio)):
            _check_duration(container, stream, limits)
        return MediaInfo(
            container=container.format.name,
            duration_s=None if container.duration is None else container.duration / av.time_base,
            video=None if video is None else _video(container, video),
            audio=None if audio is None else _audio(audio),
            video_streams=len(pictures),
            audio_streams=len(sounds),
            choice=f"{_reason('video', video, pictures)}; {_reason('audio', audio, sounds)}",
        )


def check_pixels(width: int, height: int, limits: LimitsConfig) -> None:
    """Raises MediaError refused for a picture that is larger than the limit."""
    if width * height > limits.max_pixels:
        raise MediaError("refused", f"its picture has {width} x {height} pixels; {limits.max_pixels:,} is the most (limits.max_pixels)")


def check_duration(duration_s: float, limits: LimitsConfig) -> None:
    """Raises MediaError refused for what lasts longer than the limit."""
    if duration_s > limits.max_duration_s:
        raise MediaError("refused", f"it lasts {duration_s:.0f} s or more; {limits.max_duration_s:g} is the most (limits.max_duration_s)")


def _check_duration(container: InputContainer, stream: Any, limits: LimitsConfig) -> None:
    """What the container says, where its clock cannot jump; what is read is checked as it comes."""
    if not container.format.flags & MAY_JUMP:
        check_duration(_seconds(stream.duration, stream) or 0.0, limits)


def _size(stream: Any) -> int:
    """What makes a stream the larger one: pixels or channels. 0: nothing of it was found within the probing."""
    context = stream.codec_context
    if stream.type == "video":
        return int(max(context.width, 0) * max(context.height, 0))
    return int(max(context.channels, 0)) if context.sample_rate > 0 else 0


def _choose(streams: Sequence[Any], kind: str) -> Any | None:
    """FFmpeg's default disposition first, then the largest, then the first; of those that can be decoded and hold something."""
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if streams and not decodable:
        raise MediaError("unsupported_codec", f"no decoder for the {kind} stream #{streams[0].index}{_tag(streams[0])}")
    eligible = [stream for stream in decodable if _size(stream) > 0]
    return max(eligible, key=lambda s: (bool(s.disposition & Disposition.default), _size(s), -s.index), default=None)


def _tag(stream: Any) -> str:
    name = stream.metadata.get("encoder", "") if stream.metadata else ""
    return f" ({name:.60})" if name else ""


def _reason(kind: str, chosen: Any | None, streams: Sequence[Any]) -> str:
    if chosen is None:
        return f"{kind} #{streams[0].index} holds nothing" if streams else f"no {kind}"
    if len(streams) == 1:
        return f"{kind} #{chosen.index}, the only one"
    why = "marked as default" if chosen.disposition & Disposition.default else "the largest" if kind == "video" else "the most channels"
    return f"{kind} #{chosen.index} of {len(streams)}, {why}"


def _seconds(ticks: int | None, stream: Any) -> float | None:
    return None if ticks is None or stream.time_base is None else float(ticks * stream.time_base)


def _video(container: InputContainer, stream: Any) -> VideoStream:
    context = stream.codec_context
    aspect = stream.sample_aspect_ratio
    rate = stream.average_rate or stream.guessed_rate
    return VideoStream(
        index=stream.index,
        codec=context.codec.canonical_name,
        width=context.width,
        height=context.height,
        rotation_deg=_rotation_deg(container, stream),
        pixel_format=context.pix_fmt or "unknown",
        sample_aspect=float(aspect) if aspect else 1.0,
        fps=float(rate) if rate else None,
        start_s=_seconds(stream.start_time, stream) or 0.0,
        duration_s=_seconds(stream.duration, stream),
    )


def _rotation_deg(container: InputContainer, stream: Any) -> int:
    """The display matrix comes with decoded pictures only, so the first one is decoded."""
    stream.codec_context.thread_count = 1
    with contextlib.suppress(IndexError):  # at the end, where a stream appeared in mid-file: see packets.py
        for packet in itertools.islice(container.demux(), PICTURE_PACKETS):
            if packet.stream_index == stream.index:
                with contextlib.suppress(av.error.FFmpegError):
                    for picture in stream.decode(packet):
                        return upright_turn_deg(picture)
    return 0


def _audio(stream: Any) -> AudioStream:
    context = stream.codec_context
    return AudioStream(
        index=stream.index,
        codec=context.codec.canonical_name,
        sample_rate_hz=context.sample_rate,
        channels=context.channels,
        start_s=_seconds(stream.start_time, stream) or 0.0,
        duration_s=_seconds(stream.duration, stream),
    )
