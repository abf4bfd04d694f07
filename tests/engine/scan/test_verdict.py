"""Verdicts: aggregation, calibration and labels against closed forms; abstaining instead of inventing."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dissonance.bundle import Bundle, BundleSpec, CalibrationSpec, CropSpec
from dissonance.config import ScanConfig, load_preset
from dissonance.engine.media.clip import ClipSummary, Window
from dissonance.engine.media.probe import AudioStream, MediaInfo, VideoStream
from dissonance.engine.scan.scoring import WindowScore
from dissonance.engine.scan.verdict import FileVerdict, VerdictBuilder, best_lag, label_of, probability, top_mean

CALIBRATION = {
    "av": CalibrationSpec(scale=2, bias=0.5, likely_real_below=0.3, likely_fake_from=0.8),
    "v": CalibrationSpec(),
    "a": CalibrationSpec(bias=-1),
}


def bundle() -> Bundle:
    spec = BundleSpec(model=load_preset("demo"), crop=CropSpec(size_px=64), calibration=CALIBRATION, trained=True, trained_on="test data")  # type: ignore[arg-type]
    return Bundle(Path("nowhere"), spec, hashlib.sha256(b"").hexdigest())


def score(
    *, track: int = 0, index: int = 0, fused: float | None = None, visual: float | None = None, audio: float | None = None, speech: bool = True,
    moving: bool = True, matched: float = 0.5, lag: int = 0,
) -> WindowScore:  # fmt: skip
    frames = 4
    window = Window(
        track=track, index=index, first_frame=4 * index, frames=frames, start_s=index * 0.16, end_s=(index + 1) * 0.16,
        new_crops=np.zeros((0, 1, 1, 3), np.uint8), mel=None, boxes=np.tile(np.float32([1, 2, 3, 4]), (frames if track >= 0 else 0, 1)),
        speech=np.full(frames, speech), mouth_motion=np.full(frames if track >= 0 else 0, 9.0 if moving else 0.0, np.float32),
    )  # fmt: skip
    profile = np.zeros(17, np.float32)
    profile[lag + 8] = 1
    profile[0] = np.nan
    if fused is None:
        return WindowScore(window, visual, audio, None, None, None, None)
    return WindowScore(window, visual, audio, fused, np.full(frames, matched, np.float32), profile, lag)


def summary(*, picture: bool = True, speech_fraction: float | None = 0.8, duration_s: float = 4.0, picture_error: str | None = None) -> ClipSummary:
    video = VideoStream(0, "h264", 64, 48, 0, "yuv420p", 1.0, 25.0, 0.0, duration_s) if picture else None
    audio = AudioStream(1, "aac", 16000, 1, 0.0, duration_s) if speech_fraction is not None else None
    info = MediaInfo("mp4", duration_s, video, audio, int(picture), int(audio is not None), "the only ones")
    return ClipSummary(
        info=info, origin_s=0.0, duration_s=duration_s, frames=100, frames_decoded=100, frames_dropped=0, variable_frame_rate=False,
        speech_fraction=speech_fraction, speech=bool(speech_fraction), faces=1, decode_errors=0, picture_error=picture_error, sound_error=None,
    )  # fmt: skip


def judge(*scores: WindowScore, **kwargs: Any) -> FileVerdict:
    builder = VerdictBuilder(uri="x", bundle=bundle(), scan=ScanConfig(), runtime="r")
    for item in scores:
        builder.add(item)
    return builder.scored(summary(**kwargs), elapsed_s=0.0)


@given(st.floats(-700, 700), st.floats(0.01, 10), st.floats(-5, 5))
def test_probability_is_the_calibrated_sigmoid(logit: float, scale: float, bias: float) -> None:
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-(np.float64(scale) * logit + bias)))
    assert probability(logit, CalibrationSpec(scale=scale, bias=bias)) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=40), st.floats(0.01, 1))
def test_top_mean_is_the_mean_of_the_largest_quarter(logits: list[float], fraction: float) -> None:
    count = max(1, int(np.ceil(fraction * len(logits))))
    assert top_mean(logits, fraction) == pytest.approx(np.sort(logits)[-count:].mean(), abs=1e-9)


def test_labels_by_two_thresholds() -> None:
    assert [label_of(p, CALIBRATION["av"]) for p in (0.0, 0.29, 0.3, 0.79, 0.8, 1.0)] == [
        "likely_real", "likely_real", "uncertain", "uncertain", "likely_fake", "likely_fake",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("profile", "lag"),
    [
        ([0, 0, 5, 0, 0], 0),
        ([0, 0, 0, 0, 5], 2),
        ([1, 1, 1, 1, 1], 0),
        ([1, 2, 0, 2, 1], 1),
        ([np.nan] * 5, None),
        ([np.nan, 3, np.nan, np.nan, 9], 2),
    ],
)
def test_best_lag_ties_go_to_the_smallest(profile: list[float], lag: int | None) -> None:
    assert best_lag(np.array(profile, float)) == lag


def test_a_file_is_its_worst_speaking_track() -> None:
    quiet_and_odd = [score(track=0, index=number, fused=9.0, visual=0.0, audio=0.0, moving=False) for number in range(4)]
    speaker = [score(track=1, index=number, fused=value, visual=-1.0, audio=0.2, lag=3) for number, value in enumerate([-2.0, 0.25, -2.0, -2.0])]
    verdict = judge(*quiet_and_odd, *speaker)
    row = verdict.file
    assert row["p_fake"] == pytest.approx(1 / (1 + np.exp(-(2 * 0.25 + 0.5))))  # top quarter of four windows: the largest; bundle calibration
    assert (row["status"], row["label"], row["modalities"], row["offscreen_voice"]) == ("scored", "uncertain", "av", False)
    assert row["best_lag_frames"] == 3
    assert row["match_similarity"] == pytest.approx(0.5)
    assert row["p_visual"] == pytest.approx(0.5)  # the largest over all tracks
    assert row["p_audio"] == pytest.approx(1 / (1 + np.exp(-(0.2 - 1))))
    assert (row["tracks"], row["windows"], len(verdict.tracks), len(verdict.windows)) == (2, 8, 2, 8)
    assert [track["speaker"] for track in verdict.tracks] == [False, True]
    assert [verdict.windows[0][key] for key in ("x0", "y0", "x1", "y1")] == [1, 2, 3, 4]


def test_of_two_speakers_the_more_suspicious_one_decides() -> None:
    row = judge(score(track=0, fused=-3.0, visual=0.0, audio=0.0, lag=1), score(track=1, fused=2.0, visual=0.0, audio=0.0, lag=5)).file
    assert row["p_fake"] == pytest.approx(1 / (1 + np.exp(-(2 * 2.0 + 0.5))))
    assert row["best_lag_frames"] == 5


def test_a_voice_while_no_mouth_moves_is_flagged_and_scored_over_all_tracks() -> None:
    row = judge(score(fused=1.0, visual=0.0, audio=0.0, moving=False)).file
    assert row["offscreen_voice"] is True
    assert row["p_fake"] == pytest.approx(1 / (1 + np.exp(-2.5)))


def test_a_face_without_a_voice_is_scored_by_the_visual_head_alone() -> None:
    for fraction in (None, 0.01):
        audio = None if fraction is None else 5.0
        row = judge(score(fused=None if fraction is None else 7.0, visual=1.0, audio=audio, speech=False), speech_fraction=fraction).file
        assert row["modalities"] == "v"
        assert row["p_fake"] == row["p_visual"] == pytest.approx(1 / (1 + np.exp(-1)))
        assert row["p_audio"] is row["match_similarity"] is row["best_lag_frames"] is None


def test_a_voice_without_a_face_is_scored_by_the_audio_head_alone() -> None:
    verdict = judge(score(track=-1, audio=2.0))
    row = verdict.file
    assert (row["modalities"], row["tracks"], row["p_visual"], row["offscreen_voice"]) == ("a", 0, None, None)
    assert row["p_fake"] == row["p_audio"] == pytest.approx(1 / (1 + np.exp(-1)))
    assert verdict.windows[0]["x0"] is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"speech_fraction": None}, "no_face_and_no_sound"),
        ({"speech_fraction": 0.0}, "no_face"),
        ({"speech_fraction": 0.0, "picture": False}, "no_speech"),
        ({"duration_s": 0.2}, "too_short"),
    ],
)
def test_it_abstains_rather_than_invent_a_score(given: dict[str, Any], reason: str) -> None:
    verdict = judge(**given)
    assert (verdict.file["status"], verdict.file["reason"]) == ("abstained", reason)
    assert verdict.file["detail"]
    assert all(verdict.file[name] is None for name in ("label", "p_fake", "p_visual", "p_audio", "match_similarity", "best_lag_frames"))
    assert verdict.tracks == verdict.windows == []


def test_a_picture_that_does_not_decode_is_a_failure_and_not_a_picture_without_a_face() -> None:
    row = judge(speech_fraction=0.0, picture_error="corrupt: no picture decodes").file
    assert (row["status"], row["reason"], row["detail"]) == ("failed", "corrupt", "corrupt: no picture decodes")


def test_a_failed_file_drops_what_was_scored_of_it() -> None:
    builder = VerdictBuilder(uri="x", bundle=bundle(), scan=ScanConfig(), runtime="r")
    builder.add(score(fused=1.0, visual=1.0, audio=1.0))
    verdict = builder.without_score(reason="corrupt", detail="d", elapsed_s=1.0)
    assert (verdict.file["status"], verdict.file["reason"], verdict.file["p_fake"]) == ("failed", "corrupt", None)
    assert verdict.windows == []
