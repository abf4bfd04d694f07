"""Evaluation: a scan's scores, scikit-learn's metrics on the report's own rows, and an account of every clip."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from dissonance.bundle import open_bundle
from dissonance.config import ScanConfig, SpeechConfig
from dissonance.engine.runtime.torch_runtime import TorchRuntime
from dissonance.errors import BundleError, OutputError, UsageError
from dissonance.model.checkpoint import load_checkpoint
from dissonance.synth import SynthConfig, generate
from dissonance.training.cached_clip import CachedClip, Track
from dissonance.training.evaluation import MOUTH_LOUDNESS, figures, rate, silence_trimmed, summaries, thresholds, verdict_counts, wilson
from dissonance.training.fakeavceleb import read_fakeavceleb
from dissonance.training.labels import Clip
from dissonance.training.metrics import mouth_loudness_score
from dissonance.training.report import Request, evaluate
from dissonance.training.scored import ScoredClip, mouth_loudness, score_clips
from tests.engine.scan.runs import by_uri, run_scan

pytestmark = pytest.mark.xdist_group("evaluation")  # what its tests share is made once
RESAMPLES = 20
SMALL = SynthConfig(width=200, height=150, duration_s=1.6, two_person_share=0, compressions=("c18", "c28"))


class Quiet:
    """Progress that keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def tell(self, line: str) -> None:
        self.lines.append(line)

    def counted(self, _what: str, _total: int, items: Iterable[Any], /) -> Iterator[Any]:
        yield from items

    def caching(self, _done: int, _total: int, _uri: str, _outcome: str) -> None:
        pass


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 clips, one of them destroyed."""
    folder = tmp_path_factory.mktemp("data") / "clips"
    rows = list(generate(folder, count=12, seed=5, config=SMALL))
    (folder / rows[-2].file).write_bytes(b"no video at all")
    return folder


@pytest.fixture(scope="module")
def report(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("report")
    return out, evaluate(Request(data, out, split="all", workers=1, resamples=RESAMPLES), progress=Quiet())


@pytest.fixture(scope="module")
def scanned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scan")
    run_scan([str(data)], out, workers=1)
    return out


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "clips.jsonl").read_text().splitlines()]


HEADS = {"fused": ("fake", "p_fake"), "visual_head": ("picture_fake", "p_visual"), "audio_head": ("sound_fake", "p_audio")}


def assert_scikit_learn_says(found: dict[str, Any], labels: list[bool], scores: list[float]) -> None:
    called = [score >= 0.5 for score in scores]
    assert (found["clips"], found["real"], found["fake"]) == (len(labels), labels.count(False), labels.count(True))
    assert found["accuracy"]["value"] == pytest.approx(sk.accuracy_score(labels, called))
    assert found["balanced_accuracy"]["value"] == pytest.approx(sk.balanced_accuracy_score(labels, called))
    assert found["auc"]["value"] == pytest.approx(sk.roc_auc_score(labels, scores))
    assert found["average_precision"]["value"] == pytest.approx(sk.average_precision_score(labels, scores))
    interval = found["auc"]["interval"]
    assert interval["low"] <= interval["high"]


@pytest.mark.parametrize("section", ["as_found", "leading_silence_trimmed"])
def test_figures_are_scikit_learn_s_on_the_report_s_rows(report: tuple[Path, dict[str, Any]], section: str) -> None:
    rows = [line for line in lines_of(report[0]) if "uri" in line]
    assert len(rows) == report[1]["scored"] >= 9
    for head, (label, score) in HEADS.items():
        told = [(row, (row if section == "as_found" else row["leading_silence_trimmed"])[score]) for row in rows]
        found = report[1][section][head]
        assert_scikit_learn_says(found["overall"], [row[label] for row, _ in told], [value for _, value in told])
        for kind, summary in found["by_manipulation"].items():
            fakes = [(row, value) for row, value in told if row["manipulation"] == kind and row[label]]
            if fakes:
                kept = fakes + [(row, value) for row, value in told if not row[label]]
                assert_scikit_learn_says(summary, [row[label] for row, _ in kept], [value for _, value in kept])
        for name, level in (("by_compression", "compression"), ("by_group", "group"), ("by_category", "category")):
            assert set(found[name]) == {row[level] for row in rows}
    assert set(report[1][section]["mouth_loudness"]) >= {"overall", "by_manipulation"}
    assert report[1][section]["fused"]["mouth_loudness"] == report[1][section]["mouth_loudness"]["overall"]


def test_clips_score_as_in_a_scan(report: tuple[Path, dict[str, Any]], scanned: Path) -> None:
    rows = by_uri(scanned)
    compared = 0
    for line in lines_of(report[0]):
        if "uri" in line:
            row = rows[line["uri"]]
            for name in ("p_fake", "p_visual", "p_audio"):
                assert line[name] == pytest.approx(row[name], abs=1e-5)
            assert (line["label"], line["modalities"]) == (row["label"], row["modalities"])
            compared += 1
    assert compared == report[1]["scored"]


def test_every_clip_is_accounted_for(report: tuple[Path, dict[str, Any]]) -> None:
    out, document = report
    without = [line for line in lines_of(out) if "uri" not in line]
    assert document["clips"] == 12 == document["scored"] + len(without)
    assert (
        document["left_out"]["in all"]["clips"]
        == len(without)
        == sum(each["clips"] for name, each in document["left_out"].items() if name != "in all")
    )
    assert {"unsupported_codec", "corrupt"} & set(document["left_out"])  # the destroyed one
    assert sum(count for each in document["verdicts"].values() for count in each.values()) == document["scored"]
    bundle = open_bundle("demo")
    assert (document["bundle_id"], document["trained_on"], document["warning"]) == (bundle.id, bundle.spec.trained_on, bundle.warning)
    assert json.loads((out / "report.json").read_text()) == document
    text = (out / "report.md").read_text()
    for expected in (bundle.id, bundle.spec.trained_on, "leading_silence_trimmed", "majority_class", "by_compression", "roc.png"):
        assert expected in text
    assert {path.name for path in out.iterdir()} == {
        "cache", "clips.jsonl", "report.json", "report.md", "roc.png", "scores_fused.png", "scores_visual_head.png", "scores_audio_head.png",
        "score_against_duration.png", "reliability.png",
    }  # fmt: skip
    assert all((out / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("roc", "reliability"))


def test_a_scan_joined_with_labels(scanned: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    document = evaluate(Request(scanned, tmp_path / "run", labels=data, split="all", resamples=RESAMPLES), progress=(told := Quiet()))
    assert "12 of 12 rows have a label; 0 have none" in told.lines
    rows = by_uri(scanned)
    lines = [line for line in lines_of(tmp_path / "run") if "uri" in line]
    scored = {uri: row for uri, row in rows.items() if row["status"] == "scored"}
    assert {line["uri"] for line in lines} == set(scored)
    assert_scikit_learn_says(
        document["as_found"]["fused"]["overall"], [line["fake"] for line in lines], [scored[line["uri"]]["p_fake"] for line in lines]
    )
    assert document["left_out"]["in all"]["clips"] == 12 - len(scored)
    assert any(reason.startswith("failed: ") for reason in document["left_out"])
    assert "leading_silence_trimmed" not in document
    assert f"dissonance evaluate {data}" in document["not_computed"]
    assert "mouth_loudness" not in document["as_found"]
    assert document["bundle_id"] == open_bundle("demo").id
    assert document["warning"] == open_bundle("demo").warning


def test_labels_of_some_rows_and_rows_of_some_labels(scanned: Path, report: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Two labels of which one was scanned, beside eleven other rows."""
    known = next(line["uri"] for line in lines_of(report[0]) if "uri" in line)
    (tmp_path / "new.mp4").touch()
    labels = tmp_path / "labels.csv"
    labels.write_text(f"uri,picture_fake,sound_fake\n{known},1,0\n{tmp_path / 'new.mp4'},0,0\n")
    document = evaluate(Request(scanned, tmp_path / "out", labels=labels, resamples=RESAMPLES), progress=Quiet())
    assert (document["rows_of_the_scan"], document["rows_with_a_label"], document["rows_without_a_label"]) == (12, 1, 11)
    assert (document["scored"], document["left_out"]["not_in_scan"]["clips"]) == (1, 1)
    auc = document["as_found"]["fused"]["overall"]["auc"]
    assert (auc["value"], auc["reason"]) == (None, "no real clips")
    assert "no real clips" in (tmp_path / "out" / "report.md").read_text()


# ----------------------------------------------------------------------------------------------------- what goes wrong


def row_of(uri: str, /, **fields: Any) -> dict[str, Any]:
    scores = {"p_fake": 0.7, "p_visual": None, "p_audio": 0.2, "label": "likely_fake", "modalities": "av", "duration_s": 2.0, "best_lag_frames": 1}
    return {"uri": uri, "status": "scored", "reason": None, "detail": None, "bundle_id": "b" * 64, "trained_on": "t", **scores, **fields}


def scan_of(folder: Path, *rows: dict[str, Any]) -> Request:
    """A hand-made scan of real.mp4 and fake.mp4, and its labels."""
    out, clips = folder / "scan", [folder / "real.mp4", folder / "fake.mp4"]
    out.mkdir()
    (out / "files.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "run.json").write_text('{"warning": null}')
    for clip in clips:
        clip.touch()
    (folder / "labels.csv").write_text(f"uri,picture_fake,sound_fake\n{clips[0]},0,0\n{clips[1]},1,0\n")
    return Request(out, folder / "report", labels=folder / "labels.csv", resamples=RESAMPLES)


def test_abstained_and_failed_rows_are_counted_and_never_given_a_score(tmp_path: Path) -> None:
    none = dict.fromkeys(("p_fake", "p_visual", "p_audio", "label", "modalities", "duration_s"))
    request = scan_of(
        tmp_path,
        row_of(str(tmp_path / "real.mp4"), status="abstained", reason="no_face", **none),
        row_of(str(tmp_path / "fake.mp4"), status="failed", reason="timeout", **none),
    )
    document = evaluate(request, progress=Quiet())
    assert (document["scored"], document["clips"]) == (0, 2)
    assert {name: each["clips"] for name, each in document["left_out"].items()} == {"in all": 2, "abstained: no_face": 1, "failed: timeout": 1}
    assert document["as_found"]["fused"]["overall"]["auc"]["reason"] == "no clips"


def test_only_clips_of_the_split_count(tmp_path: Path) -> None:
    request = scan_of(tmp_path, row_of(str(tmp_path / "fake.mp4")), row_of(str(tmp_path / "real.mp4")))
    (tmp_path / "labels.csv").write_text(f"uri,picture_fake,sound_fake,split\n{tmp_path / 'real.mp4'},0,0,train\n{tmp_path / 'fake.mp4'},1,0,test\n")
    document = evaluate(request, progress=Quiet())
    assert (document["clips"], document["scored"], document["rows_with_a_label"]) == (1, 1, 2)
    assert document["majority_class"] == "of the 1 clips of train"
    assert document["as_found"]["fused"]["majority_class"]["accuracy"]["value"] == 0.0


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"p_fake": None}, r"files\.jsonl', line 1: invalid 'p_fake' \(None\)"),
        ({"p_fake": float("nan")}, "invalid 'p_fake'"),
        ({"p_visual": 1.5}, "invalid 'p_visual' \\(1.5\\)"),
        ({"status": "fine"}, "Supported values are scored, abstained, failed"),
        ({"label": ""}, "invalid 'label'"),
        ({"modalities": "va"}, "invalid 'modalities'"),
        ({"uri": 3}, "invalid 'uri'"),
        ({"bundle_id": "another"}, "rows of 2 bundles"),
    ],
)
def test_a_table_that_no_scan_wrote(tmp_path: Path, fields: dict[str, Any], error: str) -> None:
    request = scan_of(tmp_path, row_of(str(tmp_path / "fake.mp4"), **fields), row_of(str(tmp_path / "real.mp4")))
    with pytest.raises(UsageError, match=error):
        evaluate(request, progress=Quiet())


def test_a_row_twice_is_no_scan_s(tmp_path: Path) -> None:
    row = row_of(str(tmp_path / "fake.mp4"))
    with pytest.raises(UsageError, match="has a row already"):
        evaluate(scan_of(tmp_path, row, row), progress=Quiet())


def test_paths_spelled_otherwise_are_shown_side_by_side(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a row's uri is 'clips/fake\.mp4', a label's '.*/real\.mp4'.*Spell the path") as error:
        evaluate(scan_of(tmp_path, row_of("clips/fake.mp4")), progress=Quiet())
    assert "dissonance scan" in str(error.value)


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    request = scan_of(tmp_path, row_of(str(tmp_path / "fake.mp4")), row_of(str(tmp_path / "real.mp4")))
    with pytest.raises(UsageError, match=r"has no labels\. Name the labelled data set"):
        evaluate(replace(request, labels=None), progress=Quiet())
    with pytest.raises(UsageError, match="is no scan's folder"):
        evaluate(replace(request, data=tmp_path), progress=Quiet())
    with pytest.raises(UsageError, match=r"of split 'validation' \(clips: train 0, validation 0, test 2\)"):
        evaluate(replace(request, split="validation"), progress=Quiet())
    with pytest.raises(UsageError, match="made with bundle bbbbbbbbbbbb, and 'demo' is"):
        evaluate(replace(request, bundle="demo"), progress=Quiet())
    with pytest.raises(BundleError, match="No bundle 'nowhere'"):
        evaluate(replace(request, bundle="nowhere"), progress=Quiet())
    with pytest.raises(BundleError, match="No bundle 'nowhere'"):
        evaluate(replace(request, data=tmp_path / "labels.csv", labels=None, bundle="nowhere"), progress=Quiet())
    with pytest.raises(UsageError, match=r"Cannot read table '.*none\.csv'"):
        evaluate(replace(request, labels=tmp_path / "none.csv"), progress=Quiet())
    with pytest.raises(OutputError, match="Cannot write"):
        evaluate(replace(request, out=tmp_path / "fake.mp4"), progress=Quiet())
    (tmp_path / "scan" / "run.json").write_text("?")
    assert "cannot be read" in evaluate(request, progress=Quiet())["warning"]


def test_a_network_that_went_astray_is_a_bad_bundle(data: Path, report: tuple[Path, dict[str, Any]]) -> None:
    bundle = open_bundle("demo")
    network = load_checkpoint(bundle.path / "weights.safetensors").network
    network.head.tail.fused.fc2.bias.data.fill_(float("nan"))
    clips, runtime = read_fakeavceleb(data).clips, TorchRuntime(network)
    with pytest.raises(BundleError, match=r"not finite for '.*mp4'"):
        score_clips(clips, bundle=bundle, runtime=runtime, scan=ScanConfig(), cache_folder=report[0] / "cache", workers=1, progress=Quiet())


# ----------------------------------------------------------------------------------------------------------- the figures


def scored(number: int, *, picture: bool = False, sound: bool = False, label: str = "likely_real", **fields: Any) -> ScoredClip:
    kind = "none" if not (picture or sound) else "x"
    clip = Clip(str(number), Path(str(number)), picture, sound, kind, "", f"p{number % 5}", "", "test")
    values: dict[str, Any] = {"modalities": "av", "p_fake": 0.5, "p_visual": 0.5, "p_audio": 0.5, "best_lag_frames": 0, "duration_s": 1.0}
    return ScoredClip(clip=clip, label=label, **{**values, **fields})


@pytest.mark.parametrize(("hits", "trials"), [(0, 1), (0, 37), (12, 12), (3, 8)])
def test_wilson_is_scipy_s(hits: int, trials: int) -> None:
    expected = stats.binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    found = wilson(hits / trials, trials)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_rate_s_interval() -> None:
    """Of 0 hits Wilson's, over people; of some, the resampled share, which of one clip a person is the plain bootstrap's."""
    people = np.repeat(np.arange(10), 3)
    none = rate(np.zeros(30, bool), people, of="real", resamples=100)
    assert none.interval is not None
    assert (none.value, none.interval.high) == (0.0, pytest.approx(stats.binomtest(0, 10).proportion_ci(method="wilson").high))
    hit = np.random.default_rng(0).random(400) < 0.3
    found = rate(hit, np.arange(400), of="real", resamples=2000)
    assert found.interval is not None
    half = 1.96 * np.sqrt(hit.mean() * (1 - hit.mean()) / 400)
    assert found.value == hit.mean()
    assert (found.interval.low, found.interval.high) == pytest.approx((hit.mean() - half, hit.mean() + half), abs=0.01)
    clustered = rate(np.repeat(hit[:40], 10), np.repeat(np.arange(40), 10), of="real", resamples=2000)
    assert clustered.interval is not None
    assert clustered.interval.high - clustered.interval.low > 2 * (found.interval.high - found.interval.low)
    assert rate(np.array([True, False]), np.zeros(2), of="real", resamples=9).reason == "no interval: all clips are of one identity"
    assert rate(np.zeros(0, bool), np.zeros(0), of="fake", resamples=9).reason == "no fake clips"


def test_thresholds_are_judged_case_by_case_on_the_case_s_own_label() -> None:
    rows = [
        *(scored(number, label="likely_fake" if number < 2 else "uncertain" if number == 2 else "likely_real") for number in range(10)),
        *(scored(number, sound=True, label="likely_fake" if number < 3 else "likely_real") for number in range(4)),
        *(scored(number, sound=True, modalities="v", label="likely_real") for number in range(6)),  # to the picture alone they are real
    ]
    found = thresholds(rows, spec=open_bundle("demo").spec, resamples=RESAMPLES)
    assert set(found) == {"av", "v"}
    values = {name: metric.value for name, metric in found["av"].items() if "positive_rate" in name}
    assert values == {
        "likely_fake: false_positive_rate": 0.2, "likely_fake: true_positive_rate": 0.75,
        "not_likely_real: false_positive_rate": 0.3, "not_likely_real: true_positive_rate": 0.75,
    }  # fmt: skip
    assert (found["v"]["real"], found["v"]["fake"]) == (6, 0)
    assert found["v"]["likely_fake: true_positive_rate"].reason == "no fake clips"
    assert found["av"]["likely_fake_from"] == open_bundle("demo").spec.calibration["av"].likely_fake_from
    assert thresholds(rows, spec=None, resamples=RESAMPLES)["av"]["likely_fake_from"] is None
    assert verdict_counts(rows)["real"] == {"likely_real": 7, "uncertain": 1, "likely_fake": 2}


def test_a_head_is_judged_on_the_clips_that_it_says_something_of() -> None:
    rows = [scored(1, p_audio=None), scored(2, sound=True, p_audio=0.9), scored(3, p_audio=0.1)]
    found = figures(rows, training=[row.clip for row in rows[1:2]], baseline=False, resamples=RESAMPLES)
    assert (found["fused"]["overall"].clips, found["audio_head"]["overall"].clips) == (3, 2)
    assert found["audio_head"]["overall"].auc.value == 1.0
    assert found["fused"]["majority_class"].accuracy.value == pytest.approx(1 / 3)  # in training all were fake
    assert "by_group" not in found["fused"]
    assert "mouth_loudness" not in found


def test_leading_silence_by_class() -> None:
    found = silence_trimmed([scored(1), scored(2, trimmed_s=0.4), scored(3, sound=True, trimmed_s=1.0)])
    assert found == {
        "real": {"clips": 2, "with_leading_silence": 1, "mean_s": pytest.approx(0.2)},
        "fake": {"clips": 1, "with_leading_silence": 1, "mean_s": pytest.approx(1.0)},
    }


def test_the_mouth_that_speaks_is_held_against_the_loudness_of_its_frames() -> None:
    """Two faces; the sound ends before the picture; speech in part of it."""
    generator = np.random.default_rng(0)
    log_mel = generator.normal(size=(4 * 40, 8)).astype(np.float32)
    speech = np.arange(40) >= 10
    boxes = np.zeros((50, 4), np.float32)
    crops = np.zeros((50, 1, 1, 3), np.uint8)
    moving, still = (generator.random(50).astype(np.float32) * level for level in (20.0, 0.1))
    clip = CachedClip((Track(0, 5, crops, boxes, moving), Track(1, 0, crops, boxes, still)), log_mel, speech)
    loudness = [float(np.mean([log_mel[4 * frame + part].mean() for part in range(4)])) for frame in range(40)]
    kept = [frame for frame in range(5, 40) if frame >= 10]
    correlation = stats.pearsonr([moving[frame - 5] for frame in kept], [loudness[frame] for frame in kept]).statistic
    assert mouth_loudness(clip, SpeechConfig()) == pytest.approx((1 - correlation) / 2, abs=1e-6)
    of_still = mouth_loudness_score(still[:40], loudness, valid=speech)
    assert of_still is not None
    assert mouth_loudness(clip, SpeechConfig(min_mouth_motion=255.0)) == pytest.approx(max((1 - correlation) / 2, of_still), abs=1e-6)
    assert mouth_loudness(replace(clip, speech=np.zeros(40, bool)), SpeechConfig()) is None
    rows = [scored(1, mouth_loudness=None), scored(2, mouth_loudness=0.3), scored(3, sound=True, mouth_loudness=0.8)]
    assert summaries(MOUTH_LOUDNESS, rows, resamples=RESAMPLES)["overall"].clips == 2


def test_what_trimming_leaves_nothing_of_is_counted(data: Path, tmp_path: Path) -> None:
    """With limits.min_frames at the clips' own length, a single frame less is too short."""
    scan = ScanConfig()
    strict = scan.model_copy(update={"limits": scan.limits.model_copy(update={"min_frames": 40})})
    document = evaluate(Request(data, tmp_path, split="all", scan=strict, workers=1, resamples=RESAMPLES), progress=Quiet())
    cut = document["left_out_when_trimmed"]
    rows = [line for line in lines_of(tmp_path) if "uri" in line]
    assert cut["in all"]["clips"] == cut["trimmed_away"]["clips"] == sum(row["leading_silence_trimmed"] is None for row in rows)
    assert document["leading_silence_trimmed"]["fused"]["overall"]["clips"] == document["scored"] - cut["in all"]["clips"]


def test_shuffled_sound_goes_to_another_picture(data: Path, report: tuple[Path, dict[str, Any]], scanned: Path, tmp_path: Path) -> None:
    own = {line["uri"]: line for line in lines_of(report[0]) if "p_fake" in line}
    evaluate(Request(data, tmp_path, split="all", cache=report[0] / "cache", workers=1, resamples=RESAMPLES, shuffle_seed=3), progress=Quiet())
    shuffled = {line["uri"]: line for line in lines_of(tmp_path) if "p_fake" in line}
    assert len(shuffled) == len(own) > 5
    assert [shuffled[uri]["p_visual"] for uri in own] == pytest.approx([line["p_visual"] for line in own.values()], abs=1e-6)
    assert sorted(line["p_audio"] for line in shuffled.values()) == pytest.approx(sorted(line["p_audio"] for line in own.values()), abs=1e-6)
    assert all(abs(shuffled[uri]["p_audio"] - line["p_audio"]) > 1e-6 for uri, line in own.items())
    assert "another clip" in json.loads((tmp_path / "report.json").read_text())["sound"]
    with pytest.raises(UsageError, match="--shuffle-sound needs the clips"):
        evaluate(Request(scanned, tmp_path, labels=data, shuffle_seed=3), progress=Quiet())
