"""Small test clips, written with PyAV: every property under test is set explicitly here, so a test knows what is in its file."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

TICKS = 90_000  # of a second: the time base that picture timestamps are given in


def numbered_frames(count: int, *, width: int = 96, height: int = 64, start: int = 0) -> list[NDArray[np.uint8]]:
    """Grey pictures that carry their number as 8 vertical bars (bit 0 leftmost), readable after any codec. (height, width, 3)"""
    bars = np.arange(width) * 8 // width
    return [
        np.repeat(np.where((number >> bars) & 1, 220, 30).astype(np.uint8)[None, :, None], height, 0).repeat(3, 2)
        for number in range(start, start + count)
    ]


def read_number(picture: NDArray[np.uint8]) -> int:
    """The number in a picture of `numbered_frames`; takes (height, width, 3) or grey (height, width)."""
    row = picture.reshape(*picture.shape[:2], -1).mean(axis=(0, 2))
    width = row.size
    return sum(1 << bit for bit in range(8) if row[(bit * width) // 8 + 1 : ((bit + 1) * width) // 8 - 1].mean() > 125)


def flash_frames(count: int, flash_at: int, *, width: int = 96, height: int = 64) -> list[NDArray[np.uint8]]:
    """Dark pictures, but for one bright one."""
    return [np.full((height, width, 3), 235 if index == flash_at else 20, np.uint8) for index in range(count)]


def noise_frames(count: int, *, width: int, height: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Smooth random colour pictures that drift, so that a codec has motion and detail to code."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 40, width // 8 + 40, 3), dtype=np.uint8)
    texture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    return [np.ascontiguousarray(texture[(3 * i) % 300 : (3 * i) % 300 + height, (5 * i) % 300 : (5 * i) % 300 + width]) for i in range(count)]


def click(duration_s: float, at_s: float, *, rate_hz: int = 48_000) -> NDArray[np.float32]:
    """Silence with one 2 ms burst (3 kHz, hard onset) that begins at `at_s`. (samples,)"""
    sound = np.zeros(round(duration_s * rate_hz), np.float32)
    start, length = round(at_s * rate_hz), round(0.002 * rate_hz)
    sound[start : start + length] = 0.9 * np.sin(2 * np.pi * 3000 * np.arange(length) / rate_hz + np.pi / 2)
    return sound


def tone(duration_s: float, frequency_hz: float = 1000.0, *, rate_hz: int = 48_000, amplitude: float = 0.5) -> NDArray[np.float32]:
    """A sine. (samples,)"""
    return (amplitude * np.sin(2 * np.pi * frequency_hz * np.arange(round(duration_s * rate_hz)) / rate_hz)).astype(np.float32)


def write_clip(
    path: Path,
    *,
    frames: Sequence[NDArray[np.uint8] | av.VideoFrame] = (),
    fps: int | Fraction = 25,
    times_s: Sequence[float] | None = None,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    codec_options: dict[str, str] | None = None,
    rotation_deg: int = 0,
    sample_aspect: Fraction | None = None,
    colour: dict[str, int] | None = None,
    sound: NDArray[np.float32] | None = None,
    sound_rate_hz: int = 48_000,
    sound_codec: str = "aac",
    sound_start_s: float = 0.0,
    container: str | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write one clip and return its path.

    `frames`: RGB pictures (height, width, 3), or VideoFrames as they are; shown at `times_s`, or at `fps` from 0 on.
    `rotation_deg`: clockwise turn that displays the picture. `colour`: color_range, colorspace... set on the encoder and its frames.
    `sound`: (samples,) or (channels, samples), its first sample at `sound_start_s`.
    """
    with av.open(str(path), "w", format=container, options=container_options or {}) as output:
        streams: list[tuple[Any, Iterable[av.VideoFrame] | Iterable[av.AudioFrame]]] = []
        if len(frames):
            video = output.add_stream(
                codec,
                rate=Fraction(fps),
                options={"crf": "12", "preset": "ultrafast", **(codec_options or {})} if codec == "libx264" else (codec_options or {}),
            )
            first = frames[0]
            video.height, video.width = (first.height, first.width) if isinstance(first, av.VideoFrame) else first.shape[:2]
            video.pix_fmt = pixel_format
            video.codec_context.time_base = Fraction(1, TICKS) if times_s is not None else 1 / Fraction(fps)
            for name, value in (colour or {}).items():
                setattr(video.codec_context, name, value)
            if sample_aspect is not None:
                video.codec_context.sample_aspect_ratio = sample_aspect
            if rotation_deg:
                video.set_display_rotation(-rotation_deg)
            streams.append(
                (video, _pictures(frames, times_s if times_s is not None else [float(k / Fraction(fps)) for k in range(len(frames))], colour or {}))
            )
        if sound is not None:
            channels = np.atleast_2d(sound)
            audio = output.add_stream(sound_codec, rate=sound_rate_hz, layout=LAYOUTS[len(channels)])
            streams.append((audio, _sounds(channels, sound_rate_hz, sound_start_s, audio.format.name)))
        packets = [packet for stream, items in streams for item in (*items, None) for packet in stream.encode(item)]
        output.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))  # interleaved as a recorder does
    return path


LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def _pictures(frames: Sequence[NDArray[np.uint8] | av.VideoFrame], times_s: Sequence[float], colour: dict[str, int]) -> Iterable[av.VideoFrame]:
    for picture, time_s in zip(frames, times_s, strict=True):
        frame = picture if isinstance(picture, av.VideoFrame) else av.VideoFrame.from_ndarray(picture, format="rgb24")
        for name, value in colour.items():
            setattr(frame, name, value)
        frame.pts, frame.time_base = round(time_s * TICKS), Fraction(1, TICKS)
        yield frame


def _sounds(channels: NDArray[np.float32], rate_hz: int, start_s: float, sample_format: str, *, block: int = 1024) -> Iterable[av.AudioFrame]:
    resampler = av.AudioResampler(format=sample_format, layout=LAYOUTS[len(channels)], rate=rate_hz)
    for start in range(0, channels.shape[1], block):
        part = channels[:, start : start + block].T.reshape(1, -1).copy()
        frame = av.AudioFrame.from_ndarray(part, format="flt", layout=LAYOUTS[len(channels)])
        frame.sample_rate, frame.time_base, frame.pts = rate_hz, Fraction(1, rate_hz), round(start_s * rate_hz) + start
        yield from resampler.resample(frame)
