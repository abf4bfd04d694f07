"""Labelled clips with what a network says of them: scored here by way of the cache, or taken from the rows of a scan."""

import json
import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast, get_args

import numpy as np

from dissonance.bundle import Bundle, ModalityCase
from dissonance.config import ScanConfig, SpeechConfig
from dissonance.engine.media.clip import MEL_FRAMES
from dissonance.engine.runtime.base import Runtime
from dissonance.engine.scan.verdict import label_of, probability
from dissonance.errors import BundleError, UsageError
from dissonance.tables import Cells, is_file, read_table
from dissonance.training.cache import ClipCache, Outcome
from dissonance.training.cached_clip import CachedClip
from dissonance.training.labels import Clip, Skipped
from dissonance.training.metrics import mouth_loudness_score
from dissonance.training.scoring import ClipScore, ClipScorer

VERDICTS = ("likely_real", "uncertain", "likely_fake")
_TABLES = ("files.parquet", "files.jsonl")
_STATUSES = ("scored", "abstained", "failed")


class Progress(Protocol):
    """Is told how the work goes."""

    def tell(self, line: str) -> None: ...
    def counted(self, what: str, total: int, items: Iterable[Any], /) -> Iterator[Any]: ...
    def caching(self, done: int, total: int, uri: str, outcome: Outcome) -> None: ...


@dataclass(frozen=True)
class ScoredClip:
    """A clip and its row: names and meanings are those of a scan's `files` table.

    mouth_loudness: the baseline's score (`metrics.mouth_loudness_score`); None where it has none, or where only a scan's row is known.
    trimmed_s: how much was cut off its start before it was scored.
    """

    clip: Clip
    modalities: ModalityCase
    label: str
    p_fake: float
    p_visual: float | None
    p_audio: float | None
    best_lag_frames: int | None
    duration_s: float
    mouth_loudness: float | None = None
    trimmed_s: float = 0.0


@dataclass(frozen=True)
class Scores:
    """Clips with a score, and those without, each with its reason."""

    clips: tuple[ScoredClip, ...]
    left_out: tuple[Skipped, ...]


# --------------------------------------------------------------------------------------------------------- scored here


def score_clips(
    clips: Sequence[Clip],
    *,
    bundle: Bundle,
    runtime: Runtime,
    scan: ScanConfig,
    cache_folder: Path,
    workers: int,
    progress: Progress,
    shuffle_seed: int | None = None,
) -> tuple[Scores, Scores]:
    """Scores of the clips as they are, and with the leading silence trimmed from picture and sound.

    `shuffle_seed`: every picture gets the sound of another clip, drawn with this seed.

    Raises what `ClipCache.build` does, and BundleError for a network whose logits are not finite.
    """
    cache = ClipCache(cache_folder, model=bundle.spec.model, scan=scan)
    built = cache.build(clips, workers=workers, progress=progress.caching)
    usable = [clip for clip in clips if clip.uri in built.entries]
    scorer = ClipScorer(runtime, spec=bundle.spec, scan=scan)
    whole, trimmed = _Collector(bundle, scan), _Collector(bundle, scan)
    sound_of = dict(zip(usable, usable, strict=True)) if shuffle_seed is None else other_sounds(usable, seed=shuffle_seed)
    for clip in progress.counted("scoring clips", len(usable), usable):
        cached = cache.open(built.entries[clip.uri])
        if shuffle_seed is not None:
            heard = cache.open(built.entries[sound_of[clip].uri])
            cached = replace(cached, log_mel=heard.log_mel, speech=heard.speech)
        shorter = cached.trimmed()
        try:
            score = scorer.score(cached)
            score_of_shorter = score if shorter.begin == cached.begin else scorer.score(shorter)
        except FloatingPointError as error:
            raise BundleError(f"Bundle '{bundle.path}' cannot be evaluated: {error} for '{clip.uri}'. Train and export it again.") from error
        whole.add(clip, cached, score)
        trimmed.add(clip, shorter, score_of_shorter)
    return whole.scores(built.skipped), trimmed.scores(built.skipped)


def other_sounds(clips: Sequence[Clip], *, seed: int) -> dict[Clip, Clip]:
    """Whose sound each clip gets: every clip's goes to one other clip, whatever their labels. A single clip keeps its own."""
    order = np.random.default_rng(seed).permutation(len(clips))
    return {clips[order[place]]: clips[order[place - 1]] for place in range(len(order))}  # one cycle through all of them


class _Collector:
    """Rows of one pass over the clips."""

    def __init__(self, bundle: Bundle, scan: ScanConfig) -> None:
        self._calibration = bundle.spec.calibration
        self._fps = bundle.spec.model.fps
        self._speech = scan.speech
        self._clips: list[ScoredClip] = []
        self._without: list[Skipped] = []

    def add(self, clip: Clip, cached: CachedClip, score: ClipScore | None) -> None:
        if score is None:
            self._without.append(Skipped(clip.path, "trimmed_away", f"too little is left after {cached.begin / self._fps:.2f} s"))
            return
        p = {case: probability(logit, self._calibration[case]) for case, logit in score.logits.items()}
        self._clips.append(
            ScoredClip(
                clip=clip,
                modalities=score.case,
                label=label_of(p[score.case], self._calibration[score.case]),
                p_fake=p[score.case],
                p_visual=p.get("v"),
                p_audio=p.get("a"),
                best_lag_frames=score.best_lag,
                duration_s=score.duration_s,
                mouth_loudness=mouth_loudness(cached, self._speech),
                trimmed_s=cached.begin / self._fps,
            )
        )

    def scores(self, skipped: Sequence[Skipped]) -> Scores:
        return Scores(tuple(self._clips), (*skipped, *self._without))


def mouth_loudness(clip: CachedClip, speech: SpeechConfig) -> float | None:
    """The baseline that knows only that mouths move when they sound: the largest score of the tracks that speak, or of all where none does.

    Loudness is the mean of a frame's log-mel over bins; frames with speech count. None where no track has a score.
    """
    loudness = clip.log_mel.reshape(clip.sound_frames, MEL_FRAMES, -1).mean(axis=(1, 2))
    speakers = [index for index in range(len(clip.tracks)) if clip.speaks(index, speech)]
    scores = []
    for track in (clip.tracks[index] for index in speakers or range(len(clip.tracks))):
        heard = slice(track.first_frame, min(track.end_frame, clip.sound_frames))
        motion = track.mouth_motion[: max(0, heard.stop - heard.start)]
        score = mouth_loudness_score(motion, loudness[heard], valid=clip.speech[heard])
        scores += [] if score is None else [score]
    return max(scores, default=None)


# -------------------------------------------------------------------------------------------------------- from a scan


@dataclass(frozen=True)
class ScannedScores:
    """A scan's rows of labelled clips. unlabelled: rows of other files. bundle_id, trained_on: what the rows say of the bundle."""

    scores: Scores
    rows: int
    matched: int
    unlabelled: int
    bundle_id: str
    trained_on: str
    warning: str | None


def find_scan(path: Path) -> Path | None:
    """The files table of a scan's folder; None where `path` is none."""
    return next((path / name for name in _TABLES if is_file(path / name)), None)


def read_scan(table: Path, clips: Sequence[Clip], *, chosen: Callable[[Clip], bool], labels: Path) -> ScannedScores:
    """Rows of a scan's files table, joined with labelled clips on uri; of those, the `chosen` ones (of a split).

    Raises UsageError for a table that no scan wrote, and where no row has a label.
    """
    of_uri = {clip.uri: clip for clip in clips}
    scored: list[ScoredClip] = []
    without: list[Skipped] = []
    seen: set[str] = set()
    bundles: set[tuple[str, str]] = set()
    rows, other = 0, ""
    for where, row in read_table(table):
        rows += 1
        cells = Cells(table, where, row)
        uri = row.get("uri")
        if not isinstance(uri, str):
            raise cells.wrong("uri", "texts: give the folder of a scan, which has files.parquet or files.jsonl")
        clip = of_uri.get(uri)
        if clip is None:
            other = other or uri
            continue
        if uri in seen:
            raise UsageError(f"Table '{table}', {where}: '{uri}' has a row already. Give the folder of one scan.")
        seen.add(uri)
        status = cells.choice("status", _STATUSES)
        bundles.add((cells.text("bundle_id"), cells.text("trained_on")))
        if not chosen(clip):
            continue
        if status == "scored":
            scored.append(_row(clip, cells, row))
        else:
            without.append(Skipped(clip.path, f"{status}: {cells.text('reason', 'unknown')}", cells.text("detail", "")))
    if not seen:
        said = (
            f"a row's uri is '{other}', a label's '{next(iter(of_uri))}'" if other and of_uri else f"there are {rows} rows and {len(of_uri)} labels"
        )
        raise UsageError(
            f"No row of '{table}' has a label in '{labels}': {said}. Spell the path of the data as it was spelled for the scan "
            f"(both relative, or both absolute), or scan it again: dissonance scan {shlex.quote(str(labels))} -o OUT"
        )
    if len(bundles) > 1:
        raise UsageError(f"Table '{table}' has rows of {len(bundles)} bundles ({', '.join(sorted(name[:12] for name, _ in bundles))}). Evaluate one.")
    ((bundle_id, trained_on),) = bundles
    without += [Skipped(clip.path, "not_in_scan", "the scan has no row of it") for clip in clips if clip.uri not in seen and chosen(clip)]
    return ScannedScores(
        Scores(tuple(scored), tuple(without)), rows, len(seen), rows - len(seen), bundle_id, trained_on, _warning(table.parent / "run.json")
    )


def _row(clip: Clip, cells: Cells, row: Mapping[str, object]) -> ScoredClip:
    def number(field: str, *, least: float = 0.0, most: float = 1.0) -> float:
        value = row.get(field)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not least <= value <= most:
            raise cells.wrong(field, f"numbers from {least:g} to {most:g}")
        return float(value)

    lag = None if row.get("best_lag_frames") is None else int(number("best_lag_frames", least=-1e6, most=1e6))
    return ScoredClip(
        clip=clip,
        modalities=cast(ModalityCase, cells.choice("modalities", get_args(ModalityCase))),
        label=cells.choice("label", VERDICTS),
        p_fake=number("p_fake"),
        p_visual=None if row.get("p_visual") is None else number("p_visual"),
        p_audio=None if row.get("p_audio") is None else number("p_audio"),
        best_lag_frames=lag,
        duration_s=number("duration_s", most=1e9),
    )


def _warning(manifest: Path) -> str | None:
    """What the scan's run.json warns of; a word of its own where it cannot be read."""
    try:
        warning = json.loads(manifest.read_bytes())["warning"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "unknown: the scan's run.json cannot be read"
    return None if warning is None else str(warning)
