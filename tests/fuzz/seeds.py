"""Small real media files, one of every container and codec that PyAV can write: what the media fuzzer damages.

The same bytes in every run: no date, no random identifier, one encoder thread.
"""

import contextlib
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

WIDTH, HEIGHT, PICTURES = 64, 48, 14
SOUND_S = 0.36
CONTAINERS = (
    "mp4", "mov", "3gp", "matroska", "webm", "avi", "mpegts", "mpeg", "vob", "flv", "asf", "ogg", "mxf", "mxf_d10", "gxf", "nut", "dv", "rm", "ivf",
    "wtv", "h264", "hevc", "obu", "m4v", "mpeg1video", "mpeg2video", "yuv4mpegpipe", "mp3", "wav", "w64", "aiff", "au", "caf", "amr", "adts", "ac3",
    "eac3", "flac", "wv", "tta", "ipod", "ismv",
)  # fmt: skip
# (width, height) and pixel format where a codec does not take 64x48 yuv420p.
PICTURE_CODECS: dict[str, tuple[int, int, str]] = {
    **dict.fromkeys(("libx264", "libx265", "libvpx", "libvpx-vp9", "libsvtav1", "mpeg4", "mpeg2video", "mpeg1video", "ffv1"), (64, 48, "yuv420p")),
    **dict.fromkeys(("wmv1", "wmv2", "msmpeg4", "flv", "h263p", "snow", "rv10", "asv1"), (64, 48, "yuv420p")),
    "mjpeg": (64, 48, "yuvj420p"), "prores_ks": (64, 48, "yuv422p10le"), "h261": (176, 144, "yuv420p"), "h263": (128, 96, "yuv420p"),
    "dvvideo": (720, 576, "yuv420p"), "rawvideo": (32, 24, "yuv420p"), "huffyuv": (64, 48, "yuv422p"), "ffvhuff": (64, 48, "yuv420p"),
    "utvideo": (64, 48, "yuv420p"), "png": (64, 48, "rgb24"), "qtrle": (64, 48, "rgb24"), "cinepak": (64, 48, "rgb24"), "svq1": (64, 48, "yuv410p"),
    "vc2": (64, 48, "yuv420p"), "jpeg2000": (64, 48, "yuv420p"), "cfhd": (64, 48, "yuv422p10le"), "v210": (48, 24, "yuv422p10le"),
    "magicyuv": (64, 48, "yuv420p"), "zmbv": (64, 48, "rgb24"),
}  # fmt: skip
_OPTIONS = {
    "libx264": {"preset": "ultrafast", "x264-params": "bframes=2:keyint=8"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=1:keyint=8"}, "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
    "libvpx": {"deadline": "good", "cpu-used": "5"}, "libvpx-vp9": {"deadline": "good", "cpu-used": "5"}, "vc2": {"slice_width": "16"},
}  # fmt: skip
# Rate and channels where a codec does not take 48 kHz stereo.
SOUND_CODECS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("aac", "libmp3lame", "mp2", "libopus", "vorbis", "flac", "ac3", "eac3", "alac", "wmav1", "wmav2", "wavpack"), (48_000, 2)),
    **dict.fromkeys(("tta", "pcm_bluray", "pcm_dvd"), (48_000, 2)),
    **dict.fromkeys(("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_f32le", "pcm_f32be", "pcm_f64le"), (16_000, 2)), "pcm_u8": (16_000, 1),
    "pcm_alaw": (8_000, 1), "pcm_mulaw": (8_000, 1), "adpcm_ms": (16_000, 1), "adpcm_ima_wav": (16_000, 1), "adpcm_swf": (22_050, 1),
    "libopencore_amrnb": (8_000, 1), "real_144": (8_000, 1), "nellymoser": (16_000, 1), "g722": (16_000, 1), "pcm_s32le": (8_000, 6),
}  # fmt: skip
USUAL_PICTURE_CODECS = ("libx264", "libvpx", "mpeg4", "mpeg2video")
USUAL_SOUND_CODECS = ("aac", "libmp3lame", "libopus", "pcm_s16le")
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


@dataclass(frozen=True)
class Seed:
    """One file. `name` is container.picture.sound, with "-" for a stream that is not there."""

    name: str
    data: bytes

    @property
    def container(self) -> str:
        """The muxer that wrote it."""
        return self.name.partition(".")[0]


def make_seeds(*, containers: Iterable[str] = CONTAINERS, thorough: bool = True) -> list[Seed]:
    """All that this build of FFmpeg can write. Each picture codec meets the first sound codec that its container takes, and the reverse.

    Takes half a minute; a second or two with few containers and the usual codecs alone (`thorough` False).
    """
    os.environ.setdefault("SVT_LOG", "0")  # the AV1 encoder is talkative
    seeds: dict[str, bytes] = {}
    for container in containers:
        picture, sound = _first_picture(container), _first_sound(container)
        for codec in PICTURE_CODECS if thorough else USUAL_PICTURE_CODECS:
            _add(seeds, container, (codec, sound), (codec, None))
        for codec in SOUND_CODECS if thorough else USUAL_SOUND_CODECS:
            _add(seeds, container, (picture, codec), (None, codec))
    return [Seed(name, data) for name, data in seeds.items()]


def _add(seeds: dict[str, bytes], container: str, *choices: tuple[str | None, str | None]) -> None:
    """The first of the choices that the container takes."""
    for picture, sound in choices:
        name = f"{container}.{picture or '-'}.{sound or '-'}"
        if name in seeds:
            return
        if (data := write(container, picture, sound)) is not None:
            seeds[name] = data
            return


def _first_picture(container: str) -> str | None:
    return next((codec for codec in ("mpeg4", "libx264", "mpeg2video", "libvpx") if write(container, codec, None)), None)


def _first_sound(container: str) -> str | None:
    return next((codec for codec in ("libmp3lame", "aac", "libopus", "mp2", "wmav2", "pcm_s16le") if write(container, None, codec)), None)


def write(container: str, picture: str | None, sound: str | None) -> bytes | None:
    """One file's bytes, or None where the muxer or an encoder refuses."""
    target = io.BytesIO()
    try:
        with av.open(target, "w", format=container, options={"fflags": "+bitexact", "strict": "-2"}) as output:
            items: list[tuple[Any, Any]] = []
            if picture is not None:
                items.append(_picture_stream(output, picture))
            if sound is not None:
                items.append(_sound_stream(output, sound))
            output.start_encoding()  # a muxer that refuses says so here, before anything is encoded
            packets = [packet for stream, frames in items for frame in (*frames, None) for packet in stream.encode(frame)]
            output.mux(sorted(packets, key=lambda packet: (packet.dts or 0) * packet.time_base))
    except (av.error.FFmpegError, ValueError, OSError, TypeError):
        return None
    return target.getvalue() or None


def _picture_stream(output: Any, codec: str) -> tuple[Any, list[av.VideoFrame]]:
    width, height, pixels = PICTURE_CODECS[codec]
    stream = output.add_stream(codec, rate=25, options={"flags": "+bitexact", "strict": "-2", **_OPTIONS.get(codec, {})})
    stream.width, stream.height, stream.pix_fmt = width, height, pixels
    stream.codec_context.thread_count = 1
    return stream, list(_pictures(width, height, pixels, 2 if width * height > 20_000 else PICTURES))


def _pictures(width: int, height: int, pixels: str, count: int) -> Iterator[av.VideoFrame]:
    """A smooth picture that drifts, with a bright square in it."""
    y, x = np.mgrid[:height, :width]
    for index in range(count):
        picture = np.stack([127 + 80 * np.sin((x + 3 * index) / 9 + k) * np.cos(y / 7) for k in range(3)], -1).astype(np.uint8)
        picture[5 + index % 8 : 25 + index % 8, 20:40] = (220, 180, 140)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
        frame.pts, frame.time_base = index, Fraction(1, 25)
        yield frame


def _sound_stream(output: Any, codec: str) -> tuple[Any, list[av.AudioFrame]]:
    rate, channels = SOUND_CODECS[codec]
    stream = output.add_stream(codec, rate=rate, layout=_LAYOUTS[channels], options={"flags": "+bitexact", "strict": "-2"})
    stream.bit_rate = 64_000  # some encoders refuse without
    stream.codec_context.thread_count = 1
    return stream, list(_sounds(stream, rate, channels))


def _sounds(stream: Any, rate: int, channels: int) -> Iterator[av.AudioFrame]:
    """Syllables: a buzz that comes and goes five times a second."""
    time = np.arange(round(SOUND_S * rate)) / rate
    wave = sum(np.sin(2 * np.pi * 130 * k * time) / k for k in range(1, 12)) * np.clip(np.sin(2 * np.pi * 5 * time), 0, 1) * 0.3
    resampler = av.AudioResampler(format=stream.format.name, layout=_LAYOUTS[channels], rate=rate, frame_size=stream.codec_context.frame_size or 1024)
    block = np.repeat(wave.astype(np.float32), channels)[None]
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="flt", layout=_LAYOUTS[channels])
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    with contextlib.suppress(EOFError):
        yield from resampler.resample(frame)
        yield from resampler.resample(None)
