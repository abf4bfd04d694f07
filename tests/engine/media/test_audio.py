import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import resample_poly

from dissonance.engine.media.audio import CHUNK_SAMPLES, SoundReader
from dissonance.engine.media.probe import probe
from dissonance.engine.media.video import VideoReader
from dissonance.errors import MediaError
from tests.engine.media.clips import click, flash_frames, numbered_frames, tone, write_clip

RATE = 16_000


def sound_of(path: Path, *, origin_s: float = 0.0) -> NDArray[np.float32]:
    chunks = list(SoundReader(path, probe(path), origin_s=origin_s))
    assert all(chunk.dtype == np.float32 and chunk.ndim == 1 and len(chunk) <= CHUNK_SAMPLES for chunk in chunks)
    return np.concatenate(chunks)


def onset_s(sound: NDArray[np.float32]) -> float:
    return float(np.flatnonzero(np.abs(sound) > 0.15)[0]) / RATE


def write_pieces(path: Path, pieces: Iterable[tuple[float, NDArray[np.float32]]], *, rate_hz: int = RATE, block: int = 1024) -> Path:
    """Float PCM whose pieces begin at the given times, whatever lies between."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_f32le", rate=rate_hz, layout="mono")
        for start_s, sound in pieces:
            for begin in range(0, len(sound), block):
                frame = av.AudioFrame.from_ndarray(sound[None, begin : begin + block].copy(), format="flt", layout="mono")
                frame.sample_rate, frame.time_base, frame.pts = rate_hz, Fraction(1, rate_hz), round(start_s * rate_hz) + begin
                output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


# ------------------------------------------------------------------------------------------------------------ one clock


@pytest.mark.parametrize(
    ("name", "codec", "rate_hz"),
    [
        ("a.mp4", "aac", 48000),
        ("a.mp4", "aac", 44100),
        ("a.mp4", "aac", 16000),
        ("a.mp4", "libmp3lame", 48000),
        ("a.mkv", "libopus", 48000),
        ("a.mkv", "aac", 44100),
        ("a.mkv", "pcm_s16le", 44100),
        ("a.mkv", "flac", 48000),
        ("a.ts", "aac", 48000),
        ("a.flv", "aac", 44100),
        ("a.avi", "pcm_s16le", 48000),
        ("a.mpg", "mp2", 48000),
    ],
)
def test_a_click_is_heard_when_the_flash_is_seen(tmp_path: Path, name: str, codec: str, rate_hz: int) -> None:
    """Codec delay, edit lists and containers' start offsets, all at once: within a millisecond, the resolution of Matroska's and FLV's clocks."""
    options = {"preset": "medium", "bf": "2"} if name != "a.mpg" else {}
    path = write_clip(
        tmp_path / name,
        frames=flash_frames(50, 25),
        codec="libx264" if name != "a.mpg" else "mpeg2video",
        codec_options=options,
        sound=click(2.0, 1.0, rate_hz=rate_hz),
        sound_rate_hz=rate_hz,
        sound_codec=codec,
    )
    reader = VideoReader(path, probe(path))
    flash = [k for k, frame in reader if frame.grey(96).mean() > 128]
    assert flash == [25]
    assert onset_s(sound_of(path, origin_s=reader.origin_s)) == pytest.approx(1.0, abs=0.001)


def test_pictures_without_presentation_times_are_shown_in_turn(tmp_path: Path) -> None:
    """AVI with reordered MPEG-4 pictures: FFmpeg makes up times that are a frame late."""
    path = write_clip(
        tmp_path / "a.avi", frames=flash_frames(50, 25), codec="mpeg4", codec_options={"bf": "2"}, sound=click(2.0, 1.0), sound_codec="pcm_s16le"
    )
    reader = VideoReader(path, probe(path))
    assert [k for k, frame in reader if frame.grey(96).mean() > 128] == [25]
    assert onset_s(sound_of(path, origin_s=reader.origin_s)) == pytest.approx(1.0, abs=0.001)


def test_a_picture_that_stands_still_while_the_sound_goes_on_is_no_jump(tmp_path: Path) -> None:
    """Half a minute in a format whose clock may jump."""
    times = [k / 25 for k in range(25)] + [30 + k / 25 for k in range(25)]
    path = write_clip(tmp_path / "a.ts", frames=flash_frames(50, 35), times_s=times, sound=click(31.0, 30.4))
    reader = VideoReader(path, probe(path))
    flash = [k for k, frame in reader if frame.grey(96).mean() > 128]
    assert flash == [760]
    assert onset_s(sound_of(path, origin_s=reader.origin_s)) * 25 == pytest.approx(760, abs=0.03)
    assert reader.discontinuities == 0


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_stream_that_starts_late_is_placed_late(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path / name, frames=flash_frames(50, 25), sound=click(2.0, 0.88), sound_start_s=0.12)
    reader = VideoReader(path, probe(path))
    next(iter(reader))
    sound = sound_of(path, origin_s=reader.origin_s)
    assert onset_s(sound) == pytest.approx(1.0, abs=0.001)
    assert not sound[: int(0.09 * RATE)].any()


def test_sound_shifted_before_muxing_reads_three_frames_late(tmp_path: Path) -> None:
    shifted = np.concatenate([np.zeros(round(0.12 * 48000), np.float32), click(2.0, 1.0)])
    path = write_clip(tmp_path / "a.mp4", frames=flash_frames(50, 25), sound=shifted)
    assert onset_s(sound_of(path)) * 25 - 25 == pytest.approx(3.0, abs=0.025)


def test_an_early_start_is_cut(tmp_path: Path) -> None:
    path = write_pieces(tmp_path / "a.mkv", [(0.0, click(2.0, 1.0, rate_hz=RATE))])
    whole, cut = sound_of(path), sound_of(path, origin_s=0.5)
    np.testing.assert_array_equal(cut, whole[RATE // 2 :])


def test_gaps_are_silence_and_overlaps_are_cut(tmp_path: Path) -> None:
    first, second, third = tone(1.0, 300, rate_hz=RATE), tone(1.0, 400, rate_hz=RATE), tone(1.0, 500, rate_hz=RATE)
    path = write_pieces(tmp_path / "a.mkv", [(0.0, first), (1.5, second), (2.25, third)], block=RATE // 2)
    sound = sound_of(path)
    expected = np.concatenate([first, np.zeros(RATE // 2, np.float32), second, third[RATE // 4 :]])
    np.testing.assert_allclose(sound, expected, atol=1e-6)


@pytest.mark.parametrize("rate_hz", [44100, 16000])
def test_rounded_timestamps_make_no_clicks(tmp_path: Path, rate_hz: int) -> None:
    """Matroska rounds to milliseconds: a block of 1024 samples at 44.1 kHz is 23.2 ms."""
    path = write_pieces(tmp_path / "a.mkv", [(0.0, tone(3.0, 440, rate_hz=rate_hz))], rate_hz=rate_hz, block=1000)
    sound = sound_of(path)
    assert len(sound) == 3 * RATE
    np.testing.assert_allclose(sound[200:-200], tone(3.0, 440, rate_hz=RATE)[200:-200], atol=2e-3)


def test_a_gap_of_days_is_closed(tmp_path: Path) -> None:
    path = write_pieces(tmp_path / "a.mkv", [(0.0, tone(1.0, rate_hz=RATE)), (3 * 86400.0, tone(1.0, rate_hz=RATE))])
    reader = SoundReader(path, probe(path), origin_s=0.0)
    assert sum(len(chunk) for chunk in reader) == pytest.approx(2 * RATE, abs=RATE // 25)
    assert reader.discontinuities == 1


def test_a_gap_of_minutes_is_bounded_chunks_of_silence(tmp_path: Path) -> None:
    path = write_pieces(tmp_path / "a.mkv", [(0.0, tone(1.0, rate_hz=RATE)), (121.0, tone(1.0, rate_hz=RATE))])
    sound = sound_of(path)
    assert len(sound) == 122 * RATE
    assert not sound[RATE : 121 * RATE].any()


def test_picture_and_sound_stay_together_where_the_clock_starts_again(tmp_path: Path) -> None:
    """Two recordings cut together: the second one's flash and click keep their places, though the two streams end at different times."""
    parts = [write_clip(tmp_path / f"{n}.ts", frames=flash_frames(500, 450), sound=click(20.0, 18.0), sound_start_s=0.1 * n) for n in range(2)]
    parts.append(write_clip(tmp_path / "2.ts", frames=flash_frames(50, 25), sound=click(2.5, 1.0)))
    path = tmp_path / "all.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    reader = VideoReader(path, probe(path))
    flashes = np.array([k for k, frame in reader if frame.grey(96).mean() > 128]) / 25
    loud = np.flatnonzero(np.abs(sound_of(path, origin_s=reader.origin_s)) > 0.15) / RATE
    clicks = loud[np.flatnonzero(np.diff(loud, prepend=-1) > 0.5)]
    np.testing.assert_allclose(clicks - flashes, [0.0, 0.1, 0.0], atol=0.021)  # half a frame: the second picture need not begin on the grid
    assert reader.discontinuities == 2


# ------------------------------------------------------------------------------------------------------------ resampling


@pytest.mark.parametrize("rate_hz", [8000, 22050, 44100, 48000, 192000])
def test_resampling_moves_nothing(tmp_path: Path, rate_hz: int) -> None:
    rng = np.random.default_rng(0)
    smooth = np.convolve(rng.standard_normal(2 * rate_hz), np.hanning(rate_hz // 1500), "same")
    sound = (0.3 * smooth / np.abs(smooth).max()).astype(np.float32)
    found = sound_of(write_pieces(tmp_path / "a.mkv", [(0.0, sound)], rate_hz=rate_hz))
    ratio = Fraction(RATE, rate_hz)
    expected = resample_poly(sound.astype(np.float64), ratio.numerator, ratio.denominator)
    assert len(found) == 2 * RATE
    assert np.abs(found - expected)[100:-100].max() < 0.01 * np.abs(expected).max()


def test_a_loud_voice_in_the_centre_of_surround_sound_stays(tmp_path: Path) -> None:
    voice = tone(1.0, 440)
    channels = np.zeros((6, len(voice)), np.float32)
    channels[2] = voice  # front centre
    channels[3] = 0.9  # low-frequency effects
    path = write_clip(tmp_path / "a.mkv", sound=channels, sound_codec="flac")
    weight = 1 / (1 + 2 * 0.7071 + 2 * 0.5)
    np.testing.assert_allclose(sound_of(path)[200:-200], weight * tone(1.0, 440, rate_hz=RATE)[200:-200], atol=2e-3)


@pytest.mark.parametrize(
    ("codec", "name"), [("pcm_u8", "a.wav"), ("pcm_s16le", "a.wav"), ("pcm_s24le", "a.wav"), ("pcm_s32le", "a.wav"), ("pcm_f64le", "a.mkv")]
)
def test_every_sample_format_has_the_same_full_scale(tmp_path: Path, codec: str, name: str) -> None:
    path = write_clip(tmp_path / name, sound=np.stack([tone(0.5, 440), tone(0.5, 440)]), sound_codec=codec)
    np.testing.assert_allclose(sound_of(path)[200:-200], tone(0.5, 440, rate_hz=RATE)[200:-200], atol=0.01)


def test_eight_channels_at_192_khz(tmp_path: Path) -> None:
    sound = np.repeat(tone(0.5, 440, rate_hz=192_000)[None], 8, 0)
    path = write_clip(tmp_path / "a.mkv", sound=sound, sound_rate_hz=192_000, sound_codec="pcm_s16le")
    np.testing.assert_allclose(sound_of(path)[100:-100], tone(0.5, 440, rate_hz=RATE)[100:-100], atol=3e-3)


def test_eight_channels_in_planes(tmp_path: Path) -> None:
    """PyAV's own conversion reads past the eighth plane."""
    path = write_clip(tmp_path / "a.mkv", sound=np.repeat(tone(0.5, 440)[None], 8, 0), sound_codec="wavpack")
    with av.open(str(path)) as container:
        assert next(container.decode(audio=0)).format.is_planar
    np.testing.assert_allclose(sound_of(path)[200:-200], tone(0.5, 440, rate_hz=RATE)[200:-200], atol=5e-3)


def test_the_rate_and_the_channels_may_change_in_mid_stream(tmp_path: Path) -> None:
    """Three recordings that follow one another within the rounding of timestamps: one coder's delay later, each."""
    path = tmp_path / "a.ts"
    for start_s, rate_hz, channels in ((0.0, 48000, 1), (1.04, 44100, 2), (2.125, 16000, 1)):
        sound = np.repeat(tone(1.0, 440, rate_hz=rate_hz)[None], channels, 0)
        part = write_clip(tmp_path / "part.ts", sound=sound, sound_rate_hz=rate_hz, sound_start_s=start_s)
        path.write_bytes((path.read_bytes() if path.exists() else b"") + part.read_bytes())
    reader = SoundReader(path, probe(path), origin_s=0.0)
    sound = np.concatenate(list(reader))
    assert reader.resyncs == 0
    for centre_s in (0.5, 1.5, 2.6):
        middle = sound[int(centre_s * RATE) - 3200 : int(centre_s * RATE) + 3200]
        spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
        assert spectrum.argmax() * RATE / len(middle) == pytest.approx(440, abs=3)
        assert np.abs(middle).max() == pytest.approx(0.5, abs=0.05)


# ---------------------------------------------------------------------------------------------------------------- damage


def test_nothing_decodes(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", sound=tone(1.0), sound_codec="flac")
    info = probe(path)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.pos is not None]
    data = bytearray(path.read_bytes())
    for place, size in places:
        data[place + 8 : place + size] = bytes(size - 8)
    path.write_bytes(data)
    with pytest.raises(MediaError) as caught:
        list(SoundReader(path, info, origin_s=0.0))
    assert caught.value.reason == "corrupt"


def test_a_damaged_stretch_is_silence_and_the_rest_keeps_its_place(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", sound=click(3.0, 2.5), sound_codec="flac")
    info = probe(path)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.pos is not None]
    data = bytearray(path.read_bytes())
    for place, size in places[3:10]:
        data[place + 6 : place + size] = b"\xff" * (size - 6)
    path.write_bytes(data)
    reader = SoundReader(path, info, origin_s=0.0)
    sound = np.concatenate(list(reader))
    assert reader.decode_errors > 0
    assert onset_s(sound) == pytest.approx(2.5, abs=0.001)


def test_leaving_early_closes_the_file(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=numbered_frames(25), sound=tone(1.0))
    chunks = iter(SoundReader(path, probe(path), origin_s=0.0))
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert not any(os.path.realpath(link) == str(path.resolve()) for link in Path("/proc/self/fd").iterdir())
