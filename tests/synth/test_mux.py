"""Files are what they are said to be; FFmpeg (through PyAV) is the judge."""

from pathlib import Path

import av
import numpy as np
import pytest

from dissonance.synth import write_clip

ONSET_FRAME = 12  # 0.48 s


def flash_and_tone(sample_rate_hz: int) -> tuple[list[np.ndarray], np.ndarray]:
    """One second: black and silent, then white and a 1 kHz tone from frame 12 on."""
    frames = [np.full((64, 96, 3), 235 if k >= ONSET_FRAME else 16, dtype=np.uint8) for k in range(25)]
    times = np.arange(sample_rate_hz) / sample_rate_hz
    tone = np.where(times >= ONSET_FRAME / 25, 0.5 * np.sin(2 * np.pi * 1000 * times), 0.0)
    return frames, tone.astype(np.float32)


def sound_onset_s(path: Path) -> float:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        frames = [(float(frame.pts * frame.time_base), frame.to_ndarray()[0]) for frame in container.decode(stream)]
        rate = stream.rate
    for start, samples in frames:
        loud = np.flatnonzero(np.abs(samples) > 0.2)
        if len(loud):
            return start + int(loud[0]) / rate
    raise AssertionError("no onset")


def picture_onset_s(path: Path) -> float:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if frame.to_ndarray(format="gray").mean() > 128:
                return float(frame.pts * frame.time_base)
    raise AssertionError("no onset")


@pytest.mark.parametrize("sample_rate_hz", [16000, 44100, 48000])
@pytest.mark.parametrize("audio_start_s", [0.0, 0.12])
def test_sound_and_picture_start_when_they_should(tmp_path: Path, sample_rate_hz: int, audio_start_s: float) -> None:
    frames, tone = flash_and_tone(sample_rate_hz)
    path = tmp_path / "clip.mp4"
    write_clip(path, frames, tone, sample_rate_hz=sample_rate_hz, audio_start_s=audio_start_s)
    assert picture_onset_s(path) == pytest.approx(ONSET_FRAME / 25, abs=1e-6)
    # 3 ms: AAC spreads an onset over its short block. The encoder's delay, left in, would be 21 to 64 ms.
    assert sound_onset_s(path) == pytest.approx(ONSET_FRAME / 25 + audio_start_s, abs=0.003)


def test_streams_are_h264_yuv420p_and_aac_mono(tmp_path: Path) -> None:
    frames, tone = flash_and_tone(48000)
    path = tmp_path / "clip.mp4"
    write_clip(path, frames, tone, sample_rate_hz=48000)
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt, video.width, video.height) == ("h264", "yuv420p", 96, 64)
        assert (audio.codec_context.name, audio.codec_context.layout.name, audio.rate) == ("aac", "mono", 48000)
        assert video.average_rate == 25
        assert float(video.duration * video.time_base) == pytest.approx(1.0, abs=1e-3)
        assert "creation_time" not in container.metadata
        assert sum(1 for _ in container.decode(video=0)) == 25


def test_colours_survive(tmp_path: Path) -> None:
    colours = [(200, 60, 40), (40, 180, 90), (50, 80, 210), (224, 180, 150)]
    path = tmp_path / "clip.mp4"
    frames = [np.full((64, 96, 3), colour, dtype=np.uint8) for colour in colours]
    write_clip(path, frames, np.zeros(2560, np.float32), sample_rate_hz=16000, crf=1)
    with av.open(str(path)) as container:
        decoded = [frame.to_ndarray(format="rgb24")[32, 48] for frame in container.decode(video=0)]
    np.testing.assert_allclose(np.array(decoded), np.array(colours), atol=4)  # chroma and luma are rounded to 8 bits twice
