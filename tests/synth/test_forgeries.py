"""What may and what may not give a forgery away, kind by kind. Judged by scipy's and scikit-learn's statistics and by FFmpeg's decoder."""

from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from scipy import signal, stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dissonance.config import SpeechConfig
from dissonance.engine.media.speech import SpeechActivity
from dissonance.synth import RATES, ClipTruth, Compression, Forgery, Renderer, SynthConfig, describe, plan_clip, render_clip, write_clip
from dissonance.synth.randomness import Stream, stream
from tests.synth.decoded import Decoded, decode, lag_profile

RATE = 16000


def make(
    folder: Path,
    index: int,
    forgery: Forgery,
    *,
    seed: int,
    compression: Compression = "c23",
    renderer: Renderer = "relief",
    duration_s: float = 2,
    drawn: bool = True,
) -> tuple[Decoded, ClipTruth]:
    """One clip with this forgery, written and read back; the same index is the same clip but for the forgery. Not `drawn`: only its sound."""
    width, height = (320, 240) if drawn else (96, 96)
    config = SynthConfig(width=width, height=height, two_person_share=0, renderer=renderer, forgeries=(forgery,), duration_s=duration_s)
    clip = render_clip(plan_clip(seed, index, config), config)
    path = folder / "clip.mp4"
    frames = clip.frames if drawn else [np.zeros((96, 96, 3), dtype=np.uint8)]
    write_clip(path, frames, clip.samples, sample_rate_hz=RATE, **RATES[compression]._asdict())
    return decode(path), clip.truth


# ------------------------------------------------------------------------------------------------------ timing: nothing but the match tells


def packet_sizes(path: Path, kind: str) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.array([packet.size for packet in container.demux(container.streams.get({kind: 0})) if packet.size])


def first_above(values: np.ndarray, threshold: float) -> int:
    above = np.flatnonzero(values > threshold)
    return int(above[0]) if len(above) else len(values)


def picture_features(truth: ClipTruth) -> dict[str, float]:
    """How the mouth and the head move, and whether they move together."""
    mouth, height = truth.openness[0], truth.mouths[0, :, 1] / np.ptp(truth.boxes[0, :, [0, 2]])
    speed, nod = np.diff(mouth), signal.detrend(height)
    slow = np.convolve(mouth, np.hanning(15)[1:-1], mode="same")
    return {
        "mouth, mean": mouth.mean(),
        "mouth, deviation": mouth.std(),
        "mouth, speed": np.abs(speed).mean(),
        "mouth, rhythm": np.corrcoef(mouth[:-4], mouth[4:])[0, 1],
        "mouth, shut": np.mean(mouth < 0.05),
        "mouth, first opening": first_above(mouth, 0.3),
        "mouth, last opening": first_above(mouth[::-1], 0.3),
        "head, movement": np.abs(np.diff(height)).mean(),
        "head and mouth together": np.corrcoef(nod, slow)[0, 1],
    }


def sound_features(sound: np.ndarray) -> dict[str, float]:
    """How loud it is, when, and of what colour."""
    spectrum = np.abs(signal.stft(sound, RATE, nperseg=512)[2])
    loudness = 20 * np.log10(np.sqrt((spectrum**2).sum(axis=0)) + 1e-7)
    high = spectrum[64:].sum(axis=0) / (spectrum.sum(axis=0) + 1e-9)
    threshold = loudness.max() - 25
    return {
        "loudness, mean": loudness.mean(),
        "loudness, deviation": loudness.std(),
        "loudness, rhythm": np.corrcoef(loudness[:-10], loudness[10:])[0, 1],
        "silence": np.mean(loudness < threshold),
        "silence before": first_above(loudness, threshold),
        "silence after": first_above(loudness[::-1], threshold),
        "room": np.percentile(loudness, 2),
        "treble": high.mean(),
        "treble, deviation": high.std(),
        "peak": np.abs(sound).max(),
    }


@pytest.fixture(scope="module")
def marginals(tmp_path_factory: pytest.TempPathFactory) -> dict[Forgery, dict[str, np.ndarray]]:
    """Features of real clips and timing forgeries of the same people, (clips,) each."""
    path = tmp_path_factory.mktemp("marginals") / "clip.mp4"
    config = SynthConfig(width=96, height=96, two_person_share=0, duration_s=1.6, forgeries=("none", "visual_timing", "audio_timing"))
    found: dict[Forgery, list[dict[str, float]]] = {}
    for index in range(15 * 5):
        plan = plan_clip(5, index, config)
        clip = render_clip(plan, config)
        values = picture_features(clip.truth) | sound_features(clip.samples)
        if len(found.setdefault(plan.forgery, [])) < 10:
            write_clip(path, clip.frames, clip.samples, sample_rate_hz=RATE)
            video, audio = packet_sizes(path, "video"), packet_sizes(path, "audio")
            values |= {"codec, first picture": video[0], "codec, pictures": video[1:].sum(), "codec, picture deviation": video[1:].std()}
            values |= {"codec, sound": audio.sum(), "codec, sound deviation": audio.std(), "codec, packets": len(video) * 1000 + len(audio)}
        found[plan.forgery].append(values)
    return {kind: {name: np.array([clip[name] for clip in clips if name in clip]) for name in clips[0]} for kind, clips in found.items()}


@pytest.mark.parametrize("forgery", ["visual_timing", "audio_timing"])
def test_timing_forgeries_look_and_sound_like_real_clips(marginals: dict[Forgery, dict[str, np.ndarray]], forgery: Forgery) -> None:
    """Kolmogorov and Smirnov's test finds no feature of one stream alone that differs; Bonferroni's level of 5 % over all features."""
    real, forged = marginals["none"], marginals[forgery]
    assert len(real["mouth, mean"]) == len(forged["mouth, mean"]) == 25
    p_values = {name: float(stats.ks_2samp(real[name], forged[name], method="asymp").pvalue) for name in real}
    assert min(p_values.values()) > 0.05 / len(p_values), min(p_values, key=lambda name: p_values[name])


def test_each_stream_of_a_timing_forgery_is_bit_for_bit_a_real_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real clip in which the borrowed speech is the person's own has the forgery's picture, and the other forgery's sound."""
    config = SynthConfig(width=160, height=120, two_person_share=0, duration_s=1.2, forgeries=("none",))
    plan = plan_clip(7, 1, config)
    picture, sound = (render_clip(replace(plan, forgery=kind, donor_kind="moment"), config) for kind in ("visual_timing", "audio_timing"))
    retimed = list(picture.frames)

    def borrowed(seed: int, purpose: Stream, number: int) -> np.random.Generator:
        return stream(seed, Stream.DONOR_UTTERANCE if purpose is Stream.UTTERANCE else purpose, number)

    monkeypatch.setattr("dissonance.synth.clip.stream", borrowed)
    real = render_clip(plan, config)
    np.testing.assert_array_equal(sound.samples, real.samples)
    np.testing.assert_array_equal(retimed, list(real.frames))


def test_voices_that_are_lent_are_also_heard_in_real_clips() -> None:
    config = SynthConfig()
    plans = [plan_clip(1, index, config) for index in range(8 * 5 * len(config.forgeries))]
    real, lent = ({plan.identity for plan in plans if plan.forgery == "none"}, {plan.donor for plan in plans if plan.donor_kind == "speaker"})
    assert len(lent) > 10
    assert lent <= real
    assert {plan.companion for plan in plans} - {None} <= real


# ------------------------------------------------------------------------------------------------------------ artefacts: in sync, and visible


@pytest.mark.parametrize("renderer", ["relief", "cel"])
def test_a_picture_artefact_stays_in_the_lower_face_and_leaves_the_sound(renderer: Renderer) -> None:
    config = SynthConfig(two_person_share=0, duration_s=1, renderer=renderer, forgeries=("none",))
    plan = plan_clip(7, 1, config)
    genuine, forged = render_clip(plan, config), render_clip(replace(plan, forgery="visual_artefact"), config)
    np.testing.assert_array_equal(forged.samples, genuine.samples)
    changes = np.array([np.abs(a.astype(int) - b).mean(axis=2) for a, b in zip(genuine.frames, forged.frames, strict=True)])
    for change, (x0, y0, x1, y1), (x, y) in zip(changes, genuine.truth.boxes[0], genuine.truth.mouths[0], strict=True):
        eyes = round(y0 + 0.45 * (y1 - y0))
        assert change[:eyes].max() == 0
        assert change[:, : round(x0)].max() == change[:, round(x1) :].max() == 0
        assert change[round(y) - 5 : round(y) + 10, round(x) - 12 : round(x) + 12].mean() > 5
    assert np.abs(np.diff(changes.max(axis=(1, 2)))).max() > 0, "it trembles"


def test_a_sound_artefact_leaves_the_picture_and_the_level() -> None:
    config = SynthConfig(two_person_share=0, duration_s=1, forgeries=("none",))
    plan = plan_clip(7, 1, config)
    genuine, forged = render_clip(plan, config), render_clip(replace(plan, forgery="audio_artefact"), config)
    for a, b in zip(genuine.frames, forged.frames, strict=True):
        np.testing.assert_array_equal(a, b)
    assert forged.samples.shape == genuine.samples.shape
    assert np.std(forged.samples) == pytest.approx(np.std(genuine.samples), rel=0.02)
    assert abs(np.corrcoef(forged.samples, genuine.samples)[0, 1]) < 0.5, "the waveform is another"


@pytest.mark.parametrize("renderer", ["relief", "cel"])
@pytest.mark.parametrize("forgery", ["none", "audio_artefact"])
def test_a_scan_takes_every_voice_for_one(forgery: Forgery, renderer: Renderer) -> None:
    """Or forged voices would be told by their being scored without sound."""
    config = SynthConfig(width=96, height=96, two_person_share=0, duration_s=2.4, renderer=renderer, forgeries=(forgery,))
    for index in range(5):
        activity = SpeechActivity(SpeechConfig())
        flags = [activity.push(render_clip(plan_clip(31, index, config), config).samples), activity.finish()]
        assert np.concatenate(flags).mean() > 0.4


def test_both_is_the_one_artefact_and_the_other() -> None:
    config = SynthConfig(width=160, height=120, two_person_share=0, duration_s=0.4, forgeries=("none",))
    plan = plan_clip(7, 1, config)
    both, picture, sound = (render_clip(replace(plan, forgery=kind), config) for kind in ("both", "visual_artefact", "audio_artefact"))
    np.testing.assert_array_equal(both.samples, sound.samples)
    for a, b in zip(both.frames, picture.frames, strict=True):
        np.testing.assert_array_equal(a, b)


def hole(decoded: Decoded, truth: ClipTruth) -> np.ndarray:
    """How much darker the mouth is than the skin around it, one value a frame: the patch's own colour and flicker cancel out."""
    skin = []
    for image, (x, y), (x0, _, x1, _) in zip(decoded.rgb, truth.mouths[0], truth.boxes[0], strict=True):
        unit = (x1 - x0) / 2
        skin.append(np.median(image[round(y - 0.2 * unit) : round(y + 0.4 * unit), round(x - 0.5 * unit) : round(x + 0.5 * unit)].mean(axis=2)))
    return decoded.darkness(truth.mouths[0], truth.boxes[0]) + np.array(skin)


@pytest.mark.parametrize("renderer", ["relief", "cel"])
def test_artefacts_stay_in_sync(tmp_path: Path, renderer: Renderer) -> None:
    """The same clip with both artefacts moves its mouth and raises its voice at the same frames, so the match is as good as a real clip's."""
    moves, speaks, matches = [], [], []
    for index in range(3):
        (real, truth), (forged, _) = (make(tmp_path, index, kind, seed=2, renderer=renderer, duration_s=2) for kind in ("none", "both"))
        real_mouth, forged_mouth = hole(real, truth), hole(forged, truth)
        moves.append(lag_profile(real_mouth, forged_mouth, 6))
        speaks.append(lag_profile(real.loudness(), forged.loudness(), 6))
        matches.append([lag_profile(real_mouth, real.loudness(), 6), lag_profile(forged_mouth, forged.loudness(), 6)])
    assert {int(profile.argmax()) - 6 for profile in moves + speaks} == {0}
    assert np.max(moves, axis=1).mean() > 0.7
    assert np.max(speaks, axis=1).min() > 0.97
    real_match, forged_match = np.mean(matches, axis=0)
    assert real_match.argmax() == forged_match.argmax() == 6
    assert real_match.max() > 0.55
    assert forged_match.max() == pytest.approx(real_match.max(), abs=0.1)  # the patch trembles, which one frame's darkness shows


def patch_features(decoded: Decoded, truth: ClipTruth) -> np.ndarray:
    """Detail and flicker of the skin above the mouth beside those of the upper face."""
    rows = []
    for image, (x0, _, x1, _), (x, y) in zip(decoded.rgb, truth.boxes[0], truth.mouths[0], strict=True):
        unit = (x1 - x0) / 2
        detail = cv2.absdiff(image, cv2.GaussianBlur(image, (0, 0), 1.5))
        columns = slice(round(x - 0.5 * unit), round(x + 0.5 * unit))
        lower, upper = ((slice(round(y - top * unit), round(y - bottom * unit)), columns) for top, bottom in ((0.25, 0.12), (0.75, 0.45)))
        rows.append([*(image[lower].mean(axis=(0, 1)) - image[upper].mean(axis=(0, 1))), np.log(detail[lower].mean() / detail[upper].mean())])
    values = np.array(rows)
    flicker = np.log(np.abs(np.diff(values, axis=0)).mean(axis=0))
    return np.array([values[:, 3].mean(), flicker[:3].mean(), flicker[3]])


def spectrum_features(sound: np.ndarray) -> np.ndarray:
    """How much fine structure a short-time spectrum has over its smooth envelope, across frequency and across time, in three bands."""
    decibels = 20 * np.log10(np.abs(signal.stft(sound, RATE, nperseg=640, noverlap=480)[2]) + 1e-6)
    rough = [np.abs(np.diff(decibels, n=2, axis=axis)) for axis in (0, 1)]
    return np.array([part[low:high].mean() for part in rough for low, high in ((4, 40), (40, 120), (120, 300))])


@pytest.mark.parametrize("renderer", ["relief", "cel"])
@pytest.mark.parametrize("forgery", ["visual_artefact", "audio_artefact"])
def test_a_simple_detector_finds_artefacts_of_strangers(tmp_path: Path, forgery: Forgery, renderer: Renderer) -> None:
    """Logistic regression on a few hand-made features of the compressed file; fitted on one split's people, judged on the others'."""
    picture = forgery == "visual_artefact"
    features, labels, trained = [], [], []
    for index in range(25):  # one clip a person
        for kind in ("none", forgery):
            decoded, truth = make(
                tmp_path, index, kind, seed=8, compression="c28", renderer=renderer, duration_s=0.4 if picture else 1.2, drawn=picture
            )
            features.append(patch_features(decoded, truth) if picture else spectrum_features(decoded.sound))
            labels.append(kind == forgery)
            trained.append(describe(plan_clip(8, index, SynthConfig(forgeries=(kind,)))).split == "train")
    x, y, fit = np.array(features), np.array(labels), np.array(trained)
    assert (fit.sum(), (~fit).sum()) == (30, 20)
    detector = make_pipeline(StandardScaler(), LogisticRegression()).fit(x[fit], y[fit])
    assert roc_auc_score(y[~fit], detector.decision_function(x[~fit])) > 0.8
