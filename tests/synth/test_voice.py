"""The voice has the pitch, the level and the vowels it was asked for; measured from the samples."""

import numpy as np
import pytest

from dissonance.synth.articulation import Utterance, speak
from dissonance.synth.identity import identity
from dissonance.synth.voice import synthesise

RATE = 16000


def utter(number: int, *, sample_rate_hz: int = RATE, seconds: int = 4) -> tuple[Utterance, np.ndarray]:
    utterance = speak(np.random.default_rng(number), identity(1, number).voice, start_s=-1.0, end_s=seconds + 1.0)
    sound = synthesise(
        utterance,
        np.random.default_rng(0),
        start_s=0.0,
        samples=seconds * sample_rate_hz,
        sample_rate_hz=sample_rate_hz,
        level_dbfs=-20.0,
        noise_dbfs=-70.0,
    )
    return utterance, sound


@pytest.mark.parametrize("number", [0, 1, 5, 6])
def test_pitch_by_autocorrelation(number: int) -> None:
    utterance, sound = utter(number)
    ratios = []
    for frame in range(2, 98):
        at = frame * 640
        if utterance.at_frames(utterance.voiced, 100)[frame] < 0.45:
            continue
        part = sound[at - 400 : at + 400] * np.hanning(800)
        correlation = np.correlate(part, part, "full")[799:]
        lags = np.arange(RATE // 320, RATE // 60)
        period = lags[np.argmax(correlation[lags] / (800 - lags))]
        ratios.append(RATE / period / utterance.at_frames(utterance.f0_hz, 100)[frame])
    assert len(ratios) > 10
    assert np.median(ratios) == pytest.approx(1.0, abs=0.03)
    assert np.mean(np.abs(np.array(ratios) - 1) < 0.08) > 0.8  # the rest are octave errors of the autocorrelation


@pytest.mark.parametrize("sample_rate_hz", [16000, 44100, 48000])
def test_level_is_what_was_asked_for(sample_rate_hz: int) -> None:
    _, sound = utter(0, sample_rate_hz=sample_rate_hz)
    assert sound.dtype == np.float32
    assert len(sound) == 4 * sample_rate_hz
    assert 20 * np.log10(np.sqrt(np.mean(sound.astype(np.float64) ** 2))) == pytest.approx(-20.0, abs=0.3)


def test_a_part_of_an_utterance_is_the_same_sound_wherever_it_is_cut() -> None:
    utterance, sound = utter(3)
    begin, length = 128 * 100, 16000
    part = synthesise(
        utterance, np.random.default_rng(9), start_s=begin / RATE, samples=length, sample_rate_hz=RATE, level_dbfs=-20.0, noise_dbfs=-90.0
    )
    whole = sound[begin : begin + length]
    assert np.corrcoef(part, whole)[0, 1] > 0.9  # breath and fricatives are other noise


def test_long_utterances_have_no_seams() -> None:
    """Short-time frames are filtered in blocks of 1,024 (8.192 s): across a block's edge the sound goes on as within one."""
    utterance, sound = utter(2, seconds=17)
    edge = 1024 * 128
    part = synthesise(
        utterance, np.random.default_rng(9), start_s=(edge - 8000) / RATE, samples=16000, sample_rate_hz=RATE, level_dbfs=-20.0, noise_dbfs=-90.0
    )
    whole = sound[edge - 8000 : edge + 8000]
    windows = [slice(at, at + 800) for at in range(6000, 10000, 800)]
    agreement = [np.corrcoef(part[where], whole[where])[0, 1] for where in windows if utterance_is_voiced(utterance, edge - 8000, where)]
    assert agreement
    assert min(agreement) > 0.9


def utterance_is_voiced(utterance: Utterance, first: int, where: slice) -> bool:
    middle = (first + (where.start + where.stop) / 2) / RATE
    return float(utterance.voiced[round((middle - utterance.start_s) * 1000)]) > 0.4


def test_lips_are_shut_in_pauses_and_open_for_vowels() -> None:
    utterance, sound = utter(4, seconds=12)
    frames = 300
    openness = utterance.at_frames(utterance.openness, frames)
    loudness = np.array([np.sqrt(np.mean(sound[max(0, k * 640 - 160) : k * 640 + 160] ** 2)) for k in range(frames)])
    loud, quiet = loudness > np.quantile(loudness, 0.8), loudness < 10 ** (-60 / 20)
    assert quiet.sum() > 10
    assert openness[loud].mean() > 0.5
    assert openness[quiet].mean() < 0.15
