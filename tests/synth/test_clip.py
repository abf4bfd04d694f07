"""What is drawn and said belongs together, or does not, as the plan says. Judged on decoded files, by cv2's and YuNet's detectors."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from dissonance.synth import ClipTruth, Renderer, SynthConfig, plan_clip, render_clip, write_clip
from tests.synth.decoded import Decoded, decode, lag_profile

MAX_LAG = 8
CLIPS = 4


def make(folder: Path, index: int, config: SynthConfig, *, seed: int = 2) -> tuple[Decoded, ClipTruth]:
    clip = render_clip(plan_clip(seed, index, config), config)
    path = folder / f"{index}.mp4"
    write_clip(path, clip.frames, clip.samples, sample_rate_hz=config.sample_rate_hz)
    return decode(path), clip.truth


def measured_profiles(folder: Path, **options: object) -> np.ndarray:
    """Lag profiles between darkness in the mouth and loudness, (clips, 2 * MAX_LAG + 1)."""
    config = SynthConfig(width=240, height=180, two_person_share=0, duration_s=4, **options)  # type: ignore[arg-type]
    profiles = []
    for index in range(CLIPS):
        decoded, truth = make(folder, index, config)
        profiles.append(lag_profile(decoded.darkness(truth.mouths[0], truth.boxes[0]), decoded.loudness(), MAX_LAG))
    return np.array(profiles)


@pytest.mark.parametrize("shift", [0, 5, -4])
def test_sound_follows_the_mouth_by_the_promised_lag(tmp_path: Path, shift: int) -> None:
    profiles = measured_profiles(tmp_path, forgeries=("none",), shift_frames=shift)
    assert np.all(np.abs(profiles.argmax(axis=1) - MAX_LAG - shift) <= 1)
    assert profiles.mean(axis=0).argmax() - MAX_LAG == shift
    assert profiles.mean(axis=0).max() > 0.55


@pytest.mark.parametrize("forgery", ["visual_timing", "audio_timing"])
def test_timing_forgeries_match_at_no_lag(tmp_path: Path, forgery: str) -> None:
    profiles = measured_profiles(tmp_path, forgeries=(forgery,))
    assert profiles.mean(axis=0).max() < 0.25


def test_a_timing_forgery_changes_one_stream_only() -> None:
    config = SynthConfig(two_person_share=0, duration_s=1)
    real = replace(plan_clip(7, 1, config), forgery="none", donor_kind="none")
    genuine = render_clip(real, config)
    other_picture = render_clip(replace(real, forgery="visual_timing", donor_kind="moment"), config)
    other_sound = render_clip(replace(real, forgery="audio_timing", donor_kind="moment"), config)
    np.testing.assert_array_equal(other_picture.samples, genuine.samples)
    assert not np.array_equal(other_sound.samples, genuine.samples)
    differing = np.zeros((config.height, config.width), dtype=bool)
    for as_it_was, retimed, untouched in zip(genuine.frames, other_picture.frames, other_sound.frames, strict=True):
        np.testing.assert_array_equal(untouched, as_it_was)
        differing |= (retimed != as_it_was).any(axis=2)
    x0, y0, x1, _ = genuine.truth.boxes[0, :, :].mean(axis=0)
    assert differing[int(y0) :, int(x0) : int(x1)].any()
    assert not differing[:, : int(2 * x0 - x1)].any(), "the room stays"
    assert not differing[:, int(2 * x1 - x0) :].any()


def test_a_shift_moves_the_sound_and_leaves_the_picture() -> None:
    config = SynthConfig(two_person_share=0, duration_s=2, forgeries=("none",))
    at_zero = render_clip(plan_clip(3, 0, config), config)
    late = render_clip(plan_clip(3, 0, config.model_copy(update={"shift_frames": 6})), config)
    for a, b in zip(at_zero.frames, late.frames, strict=True):
        np.testing.assert_array_equal(a, b)
    lags = range(5 * 640 - 40, 7 * 640 + 40)
    agreement = [float(np.dot(at_zero.samples[8000:16000], late.samples[8000 + lag : 16000 + lag])) for lag in lags]
    assert lags[int(np.argmax(agreement))] == 6 * 640


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0.0, width) * max(0.0, height)
    return float(common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common))


@pytest.mark.parametrize("renderer", ["relief", "cel"])
def test_haar_finds_the_faces(tmp_path: Path, renderer: Renderer) -> None:
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    config = SynthConfig(two_person_share=0.25, duration_s=0.24, renderer=renderer)
    found = []
    for index in range(14):
        decoded, truth = make(tmp_path, 7 * index, config, seed=11)
        for frame in (0, 5):
            grey = cv2.cvtColor(decoded.rgb[frame], cv2.COLOR_RGB2GRAY)
            seen = [np.array([x, y, x + w, y + h]) for x, y, w, h in cascade.detectMultiScale(grey, 1.1, 4, minSize=(20, 20))]
            found += [any(overlap(box, other) > 0.4 for other in seen) for box in truth.boxes[:, frame]]
    assert len(found) >= 28
    assert np.mean(found) >= 0.95


def test_yunet_finds_both_people(tmp_path: Path, shared: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(shared / "models" / "yunet_n_dynamic.onnx"), options)
    names = [output.name for output in session.get_outputs()]
    config = SynthConfig(two_person_share=1, duration_s=1)
    both = []
    for index in range(5):
        decoded, truth = make(tmp_path, index, config, seed=11)
        assert truth.boxes.shape == (2, 25, 4)
        for frame in range(0, 25, 8):
            pixels = np.zeros((256, 320, 3), np.float32)  # a multiple of 32
            pixels[:240] = decoded.rgb[frame][..., ::-1]
            outputs = dict(zip(names, session.run(None, {"input": pixels.transpose(2, 0, 1)[None]}), strict=True))
            seen = []
            for stride in (8, 16, 32):
                score = np.sqrt(np.clip(outputs[f"cls_{stride}"][0, :, 0] * outputs[f"obj_{stride}"][0, :, 0], 0, 1))
                for cell in np.flatnonzero(score > 0.6):
                    row, column = divmod(int(cell), 320 // stride)
                    dx, dy, log_w, log_h = outputs[f"bbox_{stride}"][0, cell]
                    x, y, w, h = (column + dx) * stride, (row + dy) * stride, np.exp(log_w) * stride, np.exp(log_h) * stride
                    seen.append(np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]))
            both.append(all(any(overlap(box, other) > 0.5 for other in seen) for box in truth.boxes[:, frame]))
    assert np.mean(both) >= 0.95


def test_one_of_two_people_speaks(tmp_path: Path) -> None:
    config = SynthConfig(two_person_share=1, duration_s=3, forgeries=("none",))
    for index in range(2):
        decoded, truth = make(tmp_path, index, config)
        match = [lag_profile(decoded.darkness(truth.mouths[person], truth.boxes[person]), decoded.loudness(), 0)[0] for person in (0, 1)]
        assert match[truth.speaker] > 0.5
        assert abs(match[1 - truth.speaker]) < 0.3
        assert truth.openness[1 - truth.speaker].max() == 0
        assert truth.boxes[0, :, 0].max() < truth.boxes[1, :, 0].min(), "people are numbered from left to right"
        np.testing.assert_allclose(truth.openness[truth.speaker], truth.sound_openness, atol=1e-5)
