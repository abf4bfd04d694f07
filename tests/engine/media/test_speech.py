import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import lfilter

from dissonance.config import SpeechConfig
from dissonance.engine.media.speech import SpeechActivity

RATE = 16_000
FRAME = 640


def flags_of(sound: NDArray[np.float32], config: SpeechConfig | None = None) -> NDArray[np.bool_]:
    activity = SpeechActivity(config or SpeechConfig())
    return np.concatenate([activity.push(sound.astype(np.float32)), activity.finish()])


def voice(duration_s: float, *, pitch_hz: float = 120.0, formants_hz: tuple[float, ...] = (700, 1220, 2600), seed: int = 0) -> NDArray[np.float32]:
    """Glottal pulses with a wandering pitch through three resonances, in 4 syllables a second; rms near 0.1."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(duration_s * RATE)) / RATE
    pitch = pitch_hz * (1 + 0.15 * np.sin(2 * np.pi * 0.7 * time + rng.uniform(0, 6)) + 0.02 * np.sin(2 * np.pi * 5 * time))
    phase = np.cumsum(pitch) / RATE
    sound = np.diff(np.floor(phase), prepend=0.0)
    sound = lfilter([1.0], [1.0, -0.95], sound)  # the glottis' own fall of 12 dB an octave, less the lips' rise
    for formant, width in zip(formants_hz, (90, 110, 170), strict=True):
        radius = np.exp(-np.pi * width / RATE)
        sound = lfilter([1 - radius], [1, -2 * radius * np.cos(2 * np.pi * formant / RATE), radius**2], sound)
    sound = sound * np.clip(1.2 * np.sin(np.pi * 4 * time) ** 2 - 0.2, 0, 1)
    return (0.1 * sound / np.sqrt(np.mean(sound**2))).astype(np.float32)


def silence(duration_s: float) -> NDArray[np.float32]:
    return np.zeros(round(duration_s * RATE), np.float32)


def noise(duration_s: float, rms: float, seed: int = 1) -> NDArray[np.float32]:
    return (rms * np.random.default_rng(seed).standard_normal(round(duration_s * RATE))).astype(np.float32)


def sine(duration_s: float, *frequencies_hz: float, amplitude: float = 0.3) -> NDArray[np.float32]:
    time = np.arange(round(duration_s * RATE)) / RATE
    return np.asarray(sum(amplitude / (n + 1) * np.sin(2 * np.pi * f * time) for n, f in enumerate(frequencies_hz)), np.float32)


@pytest.mark.parametrize(
    "sound",
    [
        silence(6),
        noise(6, 0.1),
        noise(6, 0.002),
        sine(6, 50),
        sine(6, 1000),
        sine(6, 200),
        np.concatenate([silence(2), sine(2, 1000), silence(2)]),
        np.concatenate([silence(2), noise(2, 0.1), silence(2)]),
        np.concatenate([silence(1), *[np.concatenate([sine(0.3, 880), silence(0.3)]) for _ in range(6)], silence(1)]),
        np.concatenate([silence(1), *[np.concatenate([noise(0.01, 0.5, seed), silence(0.4)]) for seed in range(10)]]),
    ],
    ids=["silence", "noise", "faint noise", "hum 50 Hz", "tone 1 kHz", "tone 200 Hz", "a tone begins", "noise begins", "beeps", "claps"],
)
def test_what_is_no_voice(sound: NDArray[np.float32]) -> None:
    assert not flags_of(sound).any()


def test_a_mains_hum_with_harmonics_is_no_voice_once_it_is_steady() -> None:
    hum = sine(8, 100, 200, 300, 400, 500)
    assert not flags_of(hum)[38:].any()
    assert not flags_of(np.concatenate([silence(2), hum]))[50 + 38 :].any()


@pytest.mark.parametrize("pitch_hz", [90.0, 120.0, 220.0, 300.0])
@pytest.mark.parametrize("formants_hz", [(700, 1220, 2600), (300, 870, 2240), (270, 2290, 3010)], ids=["a", "u", "i"])
def test_a_voice_is_heard(pitch_hz: float, formants_hz: tuple[float, float, float]) -> None:
    flags = flags_of(voice(6, pitch_hz=pitch_hz, formants_hz=formants_hz))
    assert flags[5:-5].mean() > 0.9


@pytest.mark.parametrize("snr_db", [None, 15.0])
def test_phrases_and_the_pauses_between_them(snr_db: float | None) -> None:
    sound = np.concatenate([silence(2), voice(2), silence(2), voice(3, pitch_hz=210, seed=1), silence(2)])
    truth = np.repeat([False, True, False, True, False], [50, 50, 50, 75, 50])
    if snr_db is not None:
        sound = sound + noise(11, 0.1 * 10 ** (-snr_db / 20))
    flags = flags_of(sound)
    assert len(flags) == len(truth)
    assert (flags == truth).mean() > 0.92
    assert flags[truth].mean() > 0.95


def test_quiet_and_unclear_voices_go_by_the_configuration() -> None:
    quiet = voice(4) * 0.003  # rms -70 dBFS
    assert not flags_of(quiet).any()
    assert flags_of(quiet, SpeechConfig(min_level_dbfs=-90)).mean() > 0.8
    noisy = voice(4) + noise(4, 0.1 * 10 ** (-12 / 20))
    assert flags_of(noisy).mean() > 0.8
    assert flags_of(noisy, SpeechConfig(min_snr_db=30)).mean() < 0.1


@pytest.mark.parametrize("samples", [0, 1, 639, 640, 641, 5000, 16000 * 3 + 7])
def test_every_video_frame_that_has_begun_gets_a_flag(samples: int) -> None:
    assert len(flags_of(voice(4)[:samples])) == -(-samples // FRAME)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 12_000), min_size=1, max_size=14))
def test_chunking_changes_nothing(sizes: list[int]) -> None:
    sound = np.concatenate([voice(1.5), silence(1), voice(3), silence(1), noise(5, 0.05)])[: sum(sizes)]
    activity = SpeechActivity(SpeechConfig())
    parts = [activity.push(part) for part in np.split(sound, np.cumsum(sizes)[:-1])]
    np.testing.assert_array_equal(np.concatenate([*parts, activity.finish()]), flags_of(sound))


def test_a_voice_that_begins_just_after_a_chunk_changes_nothing() -> None:
    for delay in range(0, 2 * FRAME * 25, 3 * FRAME // 2):
        sound = np.concatenate([np.zeros(RATE + delay, np.float32), voice(1.0), silence(2)])
        activity = SpeechActivity(SpeechConfig())
        parts = [activity.push(sound[begin : begin + 800]) for begin in range(0, len(sound), 800)]
        np.testing.assert_array_equal(np.concatenate([*parts, activity.finish()]), flags_of(sound))


def test_the_look_ahead_is_bounded() -> None:
    activity = SpeechActivity(SpeechConfig())
    given_out = 0
    for taken in range(1, 300):
        given_out += len(activity.push(noise(FRAME / RATE, 0.01)))
        assert taken - given_out <= 2.5 * 25


def test_what_comes_later_than_the_look_ahead_changes_nothing() -> None:
    first = np.concatenate([silence(1), voice(3)])
    a, b = (flags_of(np.concatenate([first, rest])) for rest in (silence(3), noise(3, 0.3)))
    np.testing.assert_array_equal(a[: (4 - 2) * 25], b[: (4 - 2) * 25])
