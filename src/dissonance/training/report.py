"""An evaluation from its command to its folder.

REPORT_DIR/report.json    everything, for machines
REPORT_DIR/report.md      the same to read
REPORT_DIR/clips.jsonl    one line a clip: labels and scores, or why there are none
REPORT_DIR/*.png          roc, scores_<head>, score_against_duration, reliability
REPORT_DIR/cache/         the clip cache, unless another is named
"""

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from dissonance.bundle import DEMO, Bundle, open_bundle
from dissonance.config import ScanConfig
from dissonance.engine.runtime import open_runtime
from dissonance.errors import OutputError, UsageError
from dissonance.files import write_text
from dissonance.machine import available_cores
from dissonance.training.datasets import DatasetConfig, open_dataset
from dissonance.training.evaluation import (
    AUDIO,
    FUSED,
    HEADS,
    INTERVALS,
    MOUTH_LOUDNESS,
    VISUAL,
    figures,
    scores_and_labels,
    silence_trimmed,
    thresholds,
    verdict_counts,
)
from dissonance.training.labels import SPLITS, Clip, Dataset, Skipped, Split
from dissonance.training.metrics import as_json, as_markdown
from dissonance.training.plots import plot_reliability, plot_roc, plot_score_against_duration, plot_score_histograms
from dissonance.training.scored import Progress, ScoredClip, Scores, find_scan, read_scan, score_clips
from dissonance.training.splits import of_split

Layout = Literal["auto", "fakeavceleb", "kodf", "manifest"]


@dataclass(frozen=True)
class Request:
    """What is to be evaluated, as the command line says it."""

    data: Path  # a data set, or the folder of a scan
    out: Path
    labels: Path | None = None  # of a scan's files
    bundle: str | None = None  # None: the demo bundle; of a scan, the one it names
    cache: Path | None = None
    split: Split | Literal["all"] = "test"
    layout: Layout = "auto"
    scan: ScanConfig = field(default_factory=ScanConfig)
    workers: int = 0
    resamples: int = 1000
    shuffle_seed: int | None = None  # pair every picture with another clip's sound: a control

    def has(self, clip: Clip) -> bool:
        """Whether the clip is of the split."""
        return self.split in ("all", clip.split)


def evaluate(request: Request, *, progress: Progress) -> dict[str, Any]:
    """Evaluate and write the report; returns what report.json holds. Raises DissonanceError."""
    table = find_scan(request.data) if request.labels is not None else None
    if request.labels is not None and table is None:
        raise UsageError(f"'{request.data}' is no scan's folder: it holds neither files.parquet nor files.jsonl. --labels is for a scan's output.")
    if request.labels is not None and request.shuffle_seed is not None:
        raise UsageError("--shuffle-sound needs the clips themselves. Give the data set, and leave --labels out.")
    if request.labels is None and find_scan(request.data) is not None and not (request.data / "meta_data.csv").is_file():
        raise UsageError(f"'{request.data}' is a scan's folder, which has no labels. Name the labelled data set that was scanned: --labels DATA")
    try:
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot write '{request.out}': {error.strerror or error}. Choose another folder.") from error
    dataset = open_dataset(DatasetConfig(path=request.labels or request.data, layout=request.layout))
    chosen = [clip for clip in dataset.clips if request.has(clip)]
    if not chosen:
        counts = ", ".join(f"{split} {len(of_split(dataset.clips, split))}" for split in SPLITS)
        raise UsageError(f"No clip of '{request.labels or request.data}' is of split '{request.split}' (clips: {counts}). Choose another --split.")
    return _of_dataset(request, dataset, chosen, progress) if table is None else _of_scan(request, table, dataset, chosen, progress)


def _of_dataset(request: Request, dataset: Dataset, chosen: Sequence[Clip], progress: Progress) -> dict[str, Any]:
    bundle = open_bundle(request.bundle or DEMO)
    if bundle.warning:
        progress.tell(f"warning: {bundle.warning}")
    overlap = _trained_on_it(bundle, request)
    if overlap is not None:
        progress.tell(f"warning: {overlap}")
    runtime = open_runtime(bundle, threads=request.scan.execution.threads)
    cache = request.cache or request.out / "cache"
    whole, trimmed = score_clips(
        chosen,
        bundle=bundle,
        runtime=runtime,
        scan=request.scan,
        cache_folder=cache,
        workers=request.workers or available_cores(),
        progress=progress,
        shuffle_seed=request.shuffle_seed,
    )
    facts = {"bundle": str(bundle.path), **_bundle_facts(bundle), "data": str(request.data), "cache": str(cache), "runtime": runtime.name}
    if overlap is not None:
        facts["overlap"] = overlap
    if request.shuffle_seed is not None:
        facts["sound"] = f"of another clip, drawn with seed {request.shuffle_seed}: what tells the classes apart here is not the match"
    facts["without_a_face"] = "left out, as are clips without sound; a scan judges them by the one modality that they have"
    return _write(request, facts, dataset, chosen, whole, trimmed, bundle=bundle, progress=progress)


def _of_scan(request: Request, table: Path, dataset: Dataset, chosen: Sequence[Clip], progress: Progress) -> dict[str, Any]:
    assert request.labels is not None
    found = read_scan(table, dataset.clips, chosen=request.has, labels=request.labels)
    bundle = None if request.bundle is None else open_bundle(request.bundle)
    if bundle is not None and bundle.id != found.bundle_id:
        raise UsageError(
            f"The scan in '{request.data}' was made with bundle {found.bundle_id[:12]}, and '{request.bundle}' is {bundle.id[:12]}. "
            "Name the scan's own bundle, or leave --bundle out."
        )
    if found.warning:
        progress.tell(f"warning: {found.warning}")
    progress.tell(f"{found.matched} of {found.rows} rows have a label; {found.unlabelled} have none")
    own = {"bundle": "not named" if bundle is None else str(bundle.path), "bundle_id": found.bundle_id, "trained_on": found.trained_on}
    facts = {
        **own,
        "warning": found.warning,
        "data": str(request.data),
        "labels": str(request.labels),
        "rows_of_the_scan": found.rows,
        "rows_with_a_label": found.matched,
        "rows_without_a_label": found.unlabelled,
        "not_computed": "figures with leading silence trimmed and the mouth-loudness baseline, which need the clips themselves: dissonance evaluate "
        f"{shlex.quote(str(request.labels))} --bundle {shlex.quote(request.bundle or 'BUNDLE')} --split {request.split} -o REPORT_DIR",
    }
    return _write(request, facts, dataset, chosen, found.scores, None, bundle=bundle, progress=progress)


def _trained_on_it(bundle: Bundle, request: Request) -> str | None:
    """A warning where the bundle's training may have seen the clips that are to judge it."""
    data = (bundle.spec.training or {}).get("data") or {}
    dataset = data.get("dataset") or {}
    if Path(str(dataset.get("path"))).resolve() != request.data.resolve():
        return None
    if data.get("split") == "identity":
        return "the bundle was trained on this very data set, split anew by identity: the clips of its test split were among them"
    if request.split != "test":
        return f"the bundle was trained or selected on this very data set: figures of its split '{request.split}' are of clips that it has seen"
    return None


def _bundle_facts(bundle: Bundle) -> dict[str, Any]:
    return {"bundle_id": bundle.id, "trained_on": bundle.spec.trained_on, "warning": bundle.warning}


def _write(
    request: Request,
    facts: dict[str, Any],
    dataset: Dataset,
    chosen: Sequence[Clip],
    whole: Scores,
    trimmed: Scores | None,
    *,
    bundle: Bundle | None,
    progress: Progress,
) -> dict[str, Any]:
    training = of_split(dataset.clips, "train") or chosen
    spec = None if bundle is None else bundle.spec
    progress.tell(f"{len(whole.clips)} clips have a score; computing figures and {request.resamples} resamples of each")
    options: dict[str, Any] = {"training": training, "baseline": trimmed is not None, "resamples": request.resamples}
    report: dict[str, Any] = {
        **facts,
        "split": request.split,
        "clips": len(chosen),
        "scored": len(whole.clips),
        "modalities": ", ".join(f"{case} {count}" for case, count in Counter(row.modalities for row in whole.clips).items()) or "none",
        "detector": request.scan.detector.kind if trimmed is not None else "the scan's",
        "resamples": request.resamples,
        "intervals": INTERVALS,
        "accuracy": "at p_fake 0.5 for the network, at a correlation of 0 for mouth_loudness; AUC, AP and EER need no threshold",
        "majority_class": f"of the {len(training)} clips of " + ("train" if training is not chosen else "those evaluated: the data set has no train"),
        "dissonance": metadata.version("dissonance"),
        "left_out": _left_out([*dataset.skipped, *whole.left_out]),
        "verdicts": verdict_counts(whole.clips),
        "thresholds": thresholds(whole.clips, spec=spec, resamples=request.resamples) or {"none": {"reason": "no clip has a score"}},
        "as_found": figures(whole.clips, **options),
    }
    if trimmed is not None:
        report["leading_silence"] = silence_trimmed(trimmed.clips)
        report["left_out_when_trimmed"] = _left_out([skip for skip in trimmed.left_out if skip not in whole.left_out])
        report["leading_silence_trimmed"] = figures(trimmed.clips, **options)
    plots = _plots(request.out, whole.clips, trimmed.clips if trimmed is not None else None, bundle)
    document = as_json(report)
    write_text(request.out / "clips.jsonl", "".join(json.dumps(line) + "\n" for line in _lines(whole, trimmed)))
    write_text(request.out / "report.md", _markdown(document, plots))
    write_text(request.out / "report.json", json.dumps(document, indent=1, allow_nan=False) + "\n")
    return dict(document)


def _left_out(skipped: Sequence[Skipped]) -> dict[str, dict[str, Any]]:
    """How many for what reason, with one of each; clips.jsonl lists them all."""
    found: dict[str, dict[str, Any]] = {"in all": {"clips": len(skipped), "for example": ""}}
    for skip in skipped:
        found.setdefault(skip.reason, {"clips": 0, "for example": f"{skip.path}" + (f": {skip.detail}" if skip.detail else "")})["clips"] += 1
    return found


def _lines(whole: Scores, trimmed: Scores | None) -> list[dict[str, Any]]:
    def fields(row: ScoredClip) -> dict[str, Any]:
        return {name: getattr(row, name) for name in row.__dataclass_fields__ if name != "clip"}

    of_uri = {row.clip.uri: fields(row) for row in trimmed.clips} if trimmed is not None else {}
    lines = []
    for row in whole.clips:
        lines.append({**vars(row.clip), "fake": row.clip.fake, **fields(row), "leading_silence_trimmed": of_uri.get(row.clip.uri)})
    return [as_json(line) for line in [*lines, *({"path": skip.path, "reason": skip.reason, "detail": skip.detail} for skip in whole.left_out)]]


def _markdown(document: dict[str, Any], plots: Sequence[Path]) -> str:
    warning = f"**{document['warning']}**\n\n" if document["warning"] else ""
    pictures = "\n\n".join(f"![{path.stem.replace('_', ' ')}]({path.name})" for path in plots)
    return f"# Evaluation\n\n{warning}{as_markdown(document, depth=2)}\n## Plots\n\n{pictures}\n"


def _plots(out: Path, rows: Sequence[ScoredClip], trimmed: Sequence[ScoredClip] | None, bundle: Bundle | None) -> list[Path]:
    curves = {head.name: scores_and_labels(head, rows) for head in HEADS}
    roc = dict(curves)
    if trimmed is not None:
        roc["fused, leading silence trimmed"] = scores_and_labels(FUSED, trimmed)
        roc[MOUTH_LOUDNESS.name] = scores_and_labels(MOUTH_LOUDNESS, rows)
    paths = [plot_roc(out / "roc.png", roc, title="ROC")]
    for head, case in ((FUSED, "av"), (VISUAL, "v"), (AUDIO, "a")):
        calibration = None if bundle is None else bundle.spec.calibration[case]  # type: ignore[index]
        lines = () if calibration is None else (calibration.likely_real_below, calibration.likely_fake_from)
        title = f"scores: {head.name}" + (f" (thresholds of case {case})" if lines else "")
        paths.append(plot_score_histograms(out / f"scores_{head.name}.png", *curves[head.name], title=title, thresholds=lines))
    timed = [row for row in rows if row.duration_s > 0]
    scores, labels = scores_and_labels(FUSED, timed)
    durations = [row.duration_s for row in timed]
    paths.append(plot_score_against_duration(out / "score_against_duration.png", scores, labels, durations, title="p_fake against duration"))
    return [*paths, plot_reliability(out / "reliability.png", curves, title="reliability")]
