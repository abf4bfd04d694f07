from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dissonance.bundle import MelSpec
from dissonance.config import SpeechConfig
from dissonance.engine.media.audio import SoundReader
from dissonance.engine.media.probe import probe
from dissonance.engine.media.sound import SoundTrack
from dissonance.errors import MediaError
from tests.engine.media.clips import tone, write_clip
from tests.engine.media.test_speech import flags_of, silence, voice

transformers = pytest.importorskip("transformers")
RATE = 16_000


class Chunks:
    """A reader that counts what was taken from it."""

    def __init__(self, sound: NDArray[np.float32], size: int = 1000) -> None:
        self._sound, self._size = sound, size
        self.taken = 0

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for begin in range(0, len(self._sound), self._size):
            chunk = self._sound[begin : begin + self._size]
            self.taken += len(chunk)
            yield chunk


def track_of(sound: NDArray[np.float32], *, history_frames: int = 1500, size: int = 1000) -> SoundTrack:
    return SoundTrack(Chunks(sound, size), mel=MelSpec(), speech=SpeechConfig(), history_frames=history_frames)


SOUND = np.concatenate([silence(1), voice(3), silence(2), voice(2, seed=2), silence(2)])


def test_a_windows_mel_is_whispers_of_the_continuous_sound() -> None:
    """Cut from the whole sound's raw log-mel, then Whisper's own peak rule on the window alone."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=80)
    raw = transformers.audio_utils.spectrogram(
        SOUND.astype(np.float64),
        transformers.audio_utils.window_function(400, "hann"),
        400,
        160,
        power=2.0,
        mel_filters=extractor.mel_filters,
        log_mel="log10",
    )
    track = track_of(SOUND)
    for first, frames in ((0, 32), (25, 32), (100, 7), (213, 32)):
        window = raw[:, 4 * first : 4 * (first + frames)]
        expected = (np.maximum(window, window.max() - 8) + 4) / 4
        found = track.mel(first, frames)
        assert found.shape == (80, 4 * frames)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_beyond_the_end_is_silence() -> None:
    sound = voice(1.0)
    whole, track = track_of(sound), track_of(sound)
    found, inside = track.mel(15, 32), whole.mel(15, 10)
    raw = np.maximum(np.full((80, 88), -10.0), (inside * 4 - 4).max() - 8)
    np.testing.assert_allclose(found[:, 40:], (raw + 4) / 4, atol=1e-5)
    np.testing.assert_allclose(found[:, :40], inside, atol=1e-6)
    np.testing.assert_array_equal(track_of(sound).mel(100, 8), np.float32(-1.5))
    assert not track.speech(30, 32).any()


def test_speech_is_the_same_as_on_the_whole_sound() -> None:
    track = track_of(SOUND)
    whole = flags_of(SOUND)
    for first in range(0, 224, 32):
        np.testing.assert_array_equal(track.speech(first, 32), whole[first : first + 32])


WHOLE = track_of(SOUND)


@settings(max_examples=15, deadline=None)
@given(size=st.integers(200, 40_000), requests=st.lists(st.tuples(st.integers(0, 240), st.integers(1, 40), st.booleans()), min_size=1, max_size=6))
def test_neither_the_order_of_requests_nor_the_chunks_change_anything(size: int, requests: list[tuple[int, int, bool]]) -> None:
    track = track_of(SOUND, size=size)
    for first, frames, wants_mel in requests:
        if wants_mel:
            np.testing.assert_allclose(track.mel(first, frames), WHOLE.mel(first, frames), atol=1e-6)
        else:
            np.testing.assert_array_equal(track.speech(first, frames), WHOLE.speech(first, frames))


def test_sound_is_read_only_as_far_as_it_is_needed() -> None:
    chunks = Chunks(np.zeros(60 * RATE, np.float32))
    track = SoundTrack(chunks, mel=MelSpec(), speech=SpeechConfig())
    track.mel(0, 32)
    assert chunks.taken <= 3 * RATE
    track.speech(0, 32)
    assert chunks.taken <= 5 * RATE


def test_what_is_older_than_the_history_is_gone() -> None:
    track = track_of(np.tile(SOUND, 5), history_frames=100)
    track.mel(300, 32)
    assert track.mel(232, 32).shape == (80, 128)
    assert track.speech(232, 32).shape == (32,)
    with pytest.raises(ValueError, match="only 100 frames are kept"):
        track.mel(231, 32)
    with pytest.raises(ValueError, match="only 10 frames are kept"):
        track_of(SOUND, history_frames=10).mel(0, 11)


def test_memory_does_not_grow_with_the_sound() -> None:
    track = track_of(np.tile(SOUND, 30), history_frames=64)
    for first in range(0, 7000, 32):
        track.mel(first, 32)
        track.speech(first, 32)
        assert len(track._mel._rows) <= 4 * (64 + 5 * 25)  # the history, what speech looks ahead, and what is pulled at once
        assert len(track._speech._rows) <= 64 + 5 * 25
    assert len(track._activity._levels) < 300


def test_the_summary() -> None:
    summary = track_of(SOUND).finish()
    assert summary.duration_s == len(SOUND) / RATE == 10.0
    assert summary.speech_fraction == pytest.approx(flags_of(SOUND).mean())
    assert summary.speech_fraction == pytest.approx(0.5, abs=0.06)
    late = track_of(SOUND)
    late.mel(100, 32)
    late.speech(90, 32)
    assert late.finish() == summary
    assert track_of(SOUND[:0]).finish().speech_fraction == 0.0


def test_the_whole_sound_holds_what_windows_are_cut_from() -> None:
    """Two minutes, twice what is kept otherwise: normalised by Whisper's peak rule, any stretch of it is what a request there gets."""
    sound = np.tile(SOUND, 12)
    log_mel, speech = track_of(sound).whole()
    assert log_mel.shape == (4 * len(speech), 80)
    assert log_mel.dtype == np.float32
    assert speech.sum() / len(speech) == track_of(sound).finish().speech_fraction
    assert len(speech) / 25 == pytest.approx(120.0)
    for first in (0, 77, len(speech) - 32):
        raw = log_mel[4 * first : 4 * (first + 32)].T
        requested = track_of(sound, history_frames=3000)
        np.testing.assert_array_equal((np.maximum(raw, raw.max() - 8) + 4) / 4, requested.mel(first, 32))
        np.testing.assert_array_equal(speech[first : first + 32], requested.speech(first, 32))


def test_the_whole_sound_is_asked_for_first_or_not_at_all() -> None:
    track = track_of(SOUND)
    track.speech(0, 1)
    with pytest.raises(ValueError, match="comes first"):
        track.whole()


def test_trouble_of_the_reader_comes_through(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", sound=tone(1.0), sound_codec="flac")
    info = probe(path)
    path.write_bytes(b"")
    with pytest.raises(MediaError):
        SoundTrack(SoundReader(path, info, origin_s=0.0), mel=MelSpec(), speech=SpeechConfig()).mel(0, 10)
