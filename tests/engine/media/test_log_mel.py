from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dissonance.engine.media.log_mel import LogMelStream, normalise
from dissonance.mel import mel_filters

transformers = pytest.importorskip("transformers")


def sound_of(samples: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / 16000
    return (0.3 * np.sin(2 * np.pi * (200 + 900 * time) * time) + 0.01 * rng.standard_normal(samples)).astype(np.float32)


def whisper(sound: NDArray[np.float32], bins: int) -> NDArray[Any]:
    """(bins, frames) of Whisper's own extractor on the whole sound, no padding to 30 s."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins)
    return extractor._np_extract_fbank_features(sound[None], "cpu")[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("bins", [80, 128])
def test_the_filter_bank_is_whispers(bins: int) -> None:
    expected = transformers.audio_utils.mel_filter_bank(201, bins, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(mel_filters(bins), expected.T, atol=1e-7)


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("samples", [401, 640, 16000, 16159, 16001, 48123])
def test_a_whole_sound_equals_whispers_extractor(samples: int, bins: int) -> None:
    sound = sound_of(samples)
    stream = LogMelStream(bins)
    found = np.concatenate([stream.push(sound), stream.finish()])
    expected = whisper(sound, bins)
    assert found.shape == (samples // 160, bins)
    np.testing.assert_allclose(normalise(found).T, expected, atol=1e-4)


@pytest.mark.parametrize("samples", [0, 1, 159, 160, 200, 201, 399])
def test_sounds_shorter_than_a_window_give_finite_frames(samples: int) -> None:
    stream = LogMelStream(80)
    found = np.concatenate([stream.push(sound_of(samples)), stream.finish()])
    assert found.shape == (samples // 160, 80)
    assert np.isfinite(found).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=12))
def test_chunking_changes_nothing(sizes: list[int]) -> None:
    sound = sound_of(sum(sizes), seed=3)
    whole = LogMelStream(80)
    expected = np.concatenate([whole.push(sound), whole.finish()])
    stream = LogMelStream(80)
    parts = [stream.push(part) for part in np.split(sound, np.cumsum(sizes)[:-1])]
    np.testing.assert_allclose(np.concatenate([*parts, stream.finish()]), expected, rtol=0, atol=1e-6)


def test_frames_come_as_soon_as_their_sound_is_there() -> None:
    stream = LogMelStream(80)
    given_out = 0
    for taken in range(100, 16001, 100):
        given_out += len(stream.push(sound_of(100)))
        assert given_out == max(0, (taken - 200) // 160 + 1) if taken > 200 else given_out == 0


def test_silence_is_the_floor() -> None:
    stream = LogMelStream(80)
    found = np.concatenate([stream.push(np.zeros(1600, np.float32)), stream.finish()])
    np.testing.assert_array_equal(found, -10.0)
    np.testing.assert_array_equal(normalise(found), -1.5)
