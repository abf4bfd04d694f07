"""Scores of cached clips against a scan of the same files."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dissonance.bundle import Bundle, BundleSpec, CalibrationSpec, CropSpec, MelSpec
from dissonance.config import LimitsConfig, ModelConfig, ScanConfig, SpeechConfig
from dissonance.engine.runtime.base import Runtime
from dissonance.engine.runtime.torch_runtime import TorchRuntime
from dissonance.engine.scan.pipeline import Scan
from dissonance.synth import SynthConfig, generate
from dissonance.training.cache import ClipCache
from dissonance.training.cached_clip import CachedClip, Track
from dissonance.training.fakeavceleb import read_fakeavceleb
from dissonance.training.labels import Clip
from dissonance.training.scoring import ClipScorer
from tests.engine.scan.runs import Silent, by_uri
from tests.model.tiny import tiny_network

SEED = 2  # one of its first four clips has a second face
SPEECH = SpeechConfig()
SCANS = {
    "as it comes": SPEECH,
    "too little speech": SpeechConfig(min_fraction=1.0),
    "nobody speaks": SpeechConfig(min_mouth_motion=255.0),
}
CALIBRATION = {"av": CalibrationSpec(scale=1.5, bias=0.25), "v": CalibrationSpec(bias=-0.5), "a": CalibrationSpec(scale=0.5)}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clip, ...]:
    folder = tmp_path_factory.mktemp("synth")
    assert len(list(generate(folder, count=4, seed=SEED, config=SynthConfig(width=240, height=180, duration_s=1.6)))) == 4
    return read_fakeavceleb(folder).clips


def bundle_of(model: ModelConfig) -> Bundle:
    spec = BundleSpec(
        model=model,
        crop=CropSpec(size_px=model.visual.image_size),
        mel=MelSpec(bins=model.audio.mel_bins),
        calibration=CALIBRATION,  # type: ignore[arg-type]
        trained=False,
        trained_on="nothing (random weights)",
    )
    return Bundle(Path("nowhere"), spec, hashlib.sha256(b"").hexdigest())


def cached(clips: Sequence[Clip], folder: Path, model: ModelConfig) -> dict[str, CachedClip]:
    cache = ClipCache(folder, model=model, scan=ScanConfig())
    return {uri: cache.open(key) for uri, key in cache.build(clips).entries.items()}


def scanned(clips: Sequence[Clip], out: Path, *, bundle: Bundle, runtime: Runtime, scan: ScanConfig) -> dict[str, dict[str, Any]]:
    paths = [str(clip.path) for clip in clips]
    Scan(paths, out=out, bundle=bundle, runtime=runtime, config=scan, progress=Silent(), resume=False, retry_failed=False).run()
    return by_uri(out)


@pytest.mark.parametrize("per_frame", [False, True])
def test_a_clip_scores_as_its_file_does_in_a_scan(clips: Sequence[Clip], per_frame: bool, tmp_path: Path) -> None:
    """Windows of 6 frames every 3, so that most frames are in two of them; 40 frames, and two faces in one clip."""
    network = tiny_network(prompts={"per_frame": per_frame})
    bundle, runtime = bundle_of(network.config), TorchRuntime(network)
    found = cached(clips, tmp_path / "cache", network.config)
    cases, decided = set(), set()
    for number, (name, speech) in enumerate(SCANS.items()):
        scan = ScanConfig(speech=speech)
        rows = scanned(clips, tmp_path / str(number), bundle=bundle, runtime=runtime, scan=scan)
        scorer = ClipScorer(runtime, spec=bundle.spec, scan=scan)
        for clip in clips:
            row, score = rows[str(clip.path)], scorer.score(found[clip.uri])
            assert row["status"] == "scored"
            assert score is not None
            assert score.case == row["modalities"], name
            p = {case: 1 / (1 + np.exp(-(CALIBRATION[case].scale * logit + CALIBRATION[case].bias))) for case, logit in score.logits.items()}
            assert p[score.case] == pytest.approx(row["p_fake"], abs=1e-5)
            assert p.get("v") == pytest.approx(row["p_visual"], abs=1e-5)
            assert p.get("a") == (row["p_audio"] if row["p_audio"] is None else pytest.approx(row["p_audio"], abs=1e-5))
            assert score.match_similarity == (None if score.case == "v" else pytest.approx(row["match_similarity"], abs=1e-5))
            assert (score.best_lag, score.windows) == (row["best_lag_frames"], row["windows"])
            assert score.duration_s == pytest.approx(row["duration_s"], abs=0.1)  # its last sound frame may lie a little beyond the picture
            cases.add(score.case)
            decided.add((row["tracks"], row["offscreen_voice"]))
    assert cases == {"av", "v"}
    assert {(2, False), (2, True), (1, False)} <= decided


def cut(clip: CachedClip, begin: int) -> CachedClip:
    """The clip as if its file began at frame `begin`."""
    tracks = tuple(
        Track(
            track.number,
            max(0, track.first_frame - begin),
            track.cut(max(begin, track.first_frame), track.end_frame - max(begin, track.first_frame)),
            track.boxes[max(0, begin - track.first_frame) :],
            track.mouth_motion[max(0, begin - track.first_frame) :],
        )
        for track in clip.tracks
    )
    return CachedClip(tracks, clip.log_mel[4 * begin :], clip.speech[begin:])


def test_a_trimmed_clip_scores_as_one_that_begins_there(clips: Sequence[Clip], tmp_path: Path) -> None:
    network = tiny_network()
    scorer = ClipScorer(TorchRuntime(network), spec=bundle_of(network.config).spec, scan=ScanConfig())
    whole = next(iter(cached(clips[:1], tmp_path, network.config).values()))
    silent_start = replace(whole, speech=whole.speech & (np.arange(whole.sound_frames) >= 8))
    trimmed = silent_start.trimmed()
    assert trimmed.begin >= 8
    score, expected = scorer.score(trimmed), scorer.score(cut(silent_start, trimmed.begin))
    assert score is not None
    assert expected is not None
    assert score.logits == pytest.approx(expected.logits, abs=1e-5)
    assert (score.windows, score.best_lag) == (expected.windows, expected.best_lag)
    assert score.duration_s == pytest.approx(expected.duration_s)
    untrimmed = scorer.score(silent_start)
    assert untrimmed is not None
    assert untrimmed.logits["av"] != pytest.approx(score.logits["av"], abs=1e-5)


def test_speech_after_the_start_is_a_voice_by_what_is_left(clips: Sequence[Clip], tmp_path: Path) -> None:
    """2 of 40 frames are no voice where 10 % are asked for; 2 of the last 15 are one."""
    network = tiny_network()
    scan = ScanConfig(speech=SpeechConfig(min_fraction=0.1))
    scorer = ClipScorer(TorchRuntime(network), spec=bundle_of(network.config).spec, scan=scan)
    whole = next(iter(cached(clips[:1], tmp_path, network.config).values()))
    frames = np.arange(whole.sound_frames)
    late = replace(whole, speech=(frames >= len(frames) - 15) & (frames < len(frames) - 13))
    before, after = scorer.score(late), scorer.score(late.trimmed())
    assert before is not None
    assert after is not None
    assert (before.case, after.case) == ("v", "av")
    assert set(before.logits) == {"v"}


def test_where_trimming_leaves_too_little_there_is_no_score(clips: Sequence[Clip], tmp_path: Path) -> None:
    network = tiny_network()
    scan = ScanConfig(limits=LimitsConfig(min_frames=12))
    scorer = ClipScorer(TorchRuntime(network), spec=bundle_of(network.config).spec, scan=scan)
    whole = next(iter(cached(clips[:1], tmp_path, network.config).values()))
    end = max(track.end_frame for track in whole.tracks)
    for left, scores in ((12, True), (11, False)):
        late = replace(whole, speech=np.arange(whole.sound_frames) >= end - left).trimmed()
        assert (scorer.score(late) is not None) == scores
    assert scorer.score(replace(whole, tracks=(), begin=5)) is None


def test_a_network_that_went_astray_is_told(clips: Sequence[Clip], tmp_path: Path) -> None:
    network = tiny_network()
    network.head.tail.fused.fc2.bias.data.fill_(float("nan"))
    scorer = ClipScorer(TorchRuntime(network), spec=bundle_of(network.config).spec, scan=ScanConfig())
    clip = next(iter(cached(clips[:1], tmp_path, network.config).values()))
    with pytest.raises(FloatingPointError, match="not finite"):
        scorer.score(clip)
