"""Pictures and sound into an MP4 file: H.264 yuv420p and AAC mono, the same bytes for the same input on the same machine."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from dissonance.synth.config import FRAMES_PER_SECOND

_SAMPLES_PER_PACKET = 1024
_BT601, _LIMITED_RANGE = 6, 1  # FFmpeg's AVCOL_SPC_SMPTE170M (also its primaries and transfer), AVCOL_RANGE_MPEG


def write_clip(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    samples: NDArray[np.float32],
    *,
    sample_rate_hz: int,
    crf: int = 23,
    audio_bit_rate: int = 64000,
    audio_start_s: float = 0.0,
) -> None:
    """Encode 25 fps pictures, uint8 RGB (height, width, 3) of even size, as they come, and float32 mono `samples` beside them.

    Sample n is presented at `audio_start_s` + n / `sample_rate_hz`, frame k at k / 25 s. Raises OSError where the file cannot be written.
    """
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        sound = _add_sound(container, sample_rate_hz, audio_bit_rate)
        picture: VideoStream | None = None
        sent = 0
        for number, frame in enumerate(frames):
            picture = picture or _add_picture(container, frame.shape[1], frame.shape[0], crf)
            container.mux(picture.encode(_video_frame(frame, number)))
            until = (number + 1) * sample_rate_hz // FRAMES_PER_SECOND
            while sent + _SAMPLES_PER_PACKET <= min(until, len(samples)):
                sent = _send(container, sound, samples, sent, sample_rate_hz, audio_start_s)
        while sent < len(samples):
            sent = _send(container, sound, samples, sent, sample_rate_hz, audio_start_s)
        if picture is not None:
            container.mux(picture.encode(None))
        container.mux(sound.encode(None))


def _add_picture(container: OutputContainer, width: int, height: int, crf: int) -> VideoStream:
    options = {"preset": "veryfast", "crf": str(crf), "threads": "1"}
    if _has_avx512():  # x264's code for that gives now and then other bytes for the same pictures, about one time in sixteen
        options["x264-params"] = "asm=avx2"
    stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    context = stream.codec_context
    context.flags |= 1 << 23  # AV_CODEC_FLAG_BITEXACT
    context.thread_count = 1
    context.time_base = Fraction(1, FRAMES_PER_SECOND)
    context.colorspace = context.color_primaries = context.color_trc = _BT601
    context.color_range = _LIMITED_RANGE
    return stream


def _has_avx512() -> bool:
    """Whether this x86 processor has AVX-512, as far as the system tells (Linux)."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "avx512" in cpuinfo.read_text()


def _add_sound(container: OutputContainer, sample_rate_hz: int, bit_rate: int) -> AudioStream:
    stream = container.add_stream("aac", rate=sample_rate_hz, layout="mono", options={"aac_coder": "fast"})
    stream.bit_rate = bit_rate
    stream.codec_context.flags |= 1 << 23
    return stream


def _video_frame(frame: NDArray[np.uint8], number: int) -> av.VideoFrame:
    planes = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420), dtype=np.uint8)  # BT.601, limited range, as the stream is tagged
    picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
    picture.pts, picture.time_base = number, Fraction(1, FRAMES_PER_SECOND)
    return picture


def _send(container: OutputContainer, stream: AudioStream, samples: NDArray[np.float32], sent: int, sample_rate_hz: int, start_s: float) -> int:
    """Encode the next packet's samples; every frame has its time, or the encoder's delay would shift the sound. Returns the samples sent so far."""
    part = samples[sent : sent + _SAMPLES_PER_PACKET]
    frame = av.AudioFrame.from_ndarray(part[None, :].astype(np.float32), format="fltp", layout="mono")
    frame.sample_rate = sample_rate_hz
    frame.time_base = Fraction(1, sample_rate_hz)
    frame.pts = round(start_s * sample_rate_hz) + sent
    container.mux(stream.encode(frame))
    return sent + len(part)
