"""A film taken to pieces, and pieces put into files: encoders and containers, each with the same bytes out for the same bytes in."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from tests.engine.media.clips import write_clip
from tests.hostile.matroska import VIDEO, Block, Track, picture_settings

BITEXACT = {"fflags": "+bitexact"}


class Film:
    """A film in pieces: its pictures (height, width, 3) and sound (samples,), and both as they are in the file."""

    def __init__(self, clip: Path) -> None:
        with av.open(str(clip)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            self.height, self.width, self.rate_hz = video.height, video.width, audio.rate
            self.track = Track(VIDEO, "V_MPEG4/ISO/AVC", picture_settings(self.width, self.height, bytes(video.codec_context.extradata or b"")))
            self.blocks = [
                Block(1, round(1000 * packet.pts * packet.time_base), bytes(packet), packet.is_keyframe)
                for packet in container.demux(video)
                if packet.size and packet.pts is not None and packet.time_base is not None
            ]
        with av.open(str(clip)) as container:
            self.pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        with av.open(str(clip)) as container:
            to_float = av.AudioResampler(format="flt", layout="mono")
            self.sound: NDArray[np.float32] = np.concatenate(
                [part.to_ndarray()[0] for frame in container.decode(audio=0) for part in to_float.resample(frame)]
            )

    def blocks_at(self, times_ms: Sequence[int]) -> list[Block]:
        """The pictures' packets at other times. In storage order: pictures that are stored before earlier ones keep doing so."""
        order = sorted(range(len(self.blocks)), key=lambda index: self.blocks[index].time_ms)
        shown = dict(zip(order, times_ms, strict=True))
        return [Block(1, shown[index], block.data, block.key) for index, block in enumerate(self.blocks)]


def written(path: Path, **options: Any) -> Path:
    """A clip written by `tests.engine.media.clips.write_clip`, with nothing in it that changes from run to run."""
    return write_clip(path, **{"container_options": BITEXACT, **options})


def h264(folder: Path, frames: Sequence[Any]) -> bytes:
    """A raw H.264 stream, parameter sets included."""
    path = written(folder / "stream.h264", frames=frames, container="h264", codec_options={"threads": "1"})
    data = path.read_bytes()
    path.unlink()
    return data


def remuxed(stream: bytes, container: str) -> bytes:
    """A raw H.264 stream in a container, 25 pictures a second."""
    out = io.BytesIO()
    with av.open(io.BytesIO(stream), format="h264") as source, av.open(out, "w", format=container, options=BITEXACT) as output:
        video = output.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet.stream, packet.time_base = video, Fraction(1, 25)
            packet.pts = packet.dts = number
            output.mux(packet)
    return out.getvalue()


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    """A picture (height, width, 3) as a JPEG file."""
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj420p")
    frame.pts = 0
    return b"".join(bytes(packet) for packet in (*encoder.encode(frame), *encoder.encode(None)))
