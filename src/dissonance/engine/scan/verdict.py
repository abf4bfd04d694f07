"""From window scores to a file's verdict: aggregation, calibration, label, and the rows that say so.

The rule is the bundle's (`AggregationSpec`): mean of the top share of a track's window logits, then the maximum over the tracks that speak (over all,
where none does). Which logit counts depends on what there is: picture and voice (`av`) the fused one, picture alone (`v`) the visual one, a voice
without a face (`a`) the audio one; each case has its own calibration.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dissonance.bundle import Bundle, BundleSpec, CalibrationSpec, ModalityCase
from dissonance.config import Decoder, ScanConfig, SpeechConfig
from dissonance.engine.media.clip import ClipSummary
from dissonance.engine.scan.channel import ProtocolError
from dissonance.engine.scan.messages import Opened
from dissonance.engine.scan.rows import FILES, Row
from dissonance.engine.scan.scoring import WindowScore

ABSTENTIONS = frozenset({"no_face", "no_face_and_no_sound", "no_speech", "too_short"})
_HEADS: tuple[ModalityCase, ...] = ("v", "a")  # those of a single modality


def probability(logit: float, calibration: CalibrationSpec) -> float:
    """sigmoid(scale * logit + bias), without overflow."""
    return 0.5 * (1.0 + math.tanh(0.5 * (calibration.scale * logit + calibration.bias)))


def top_mean(logits: Sequence[float], fraction: float) -> float:
    """Mean of the largest `fraction` of the logits, of one at least."""
    count = max(1, math.ceil(fraction * len(logits)))
    return math.fsum(sorted(logits, reverse=True)[:count]) / count


def label_of(p_fake: float, calibration: CalibrationSpec) -> str:
    """`likely_real`, `uncertain` or `likely_fake` by the bundle's two thresholds."""
    if p_fake >= calibration.likely_fake_from:
        return "likely_fake"
    return "likely_real" if p_fake < calibration.likely_real_below else "uncertain"


def best_lag(lag_profile: NDArray[np.float64]) -> int | None:
    """The lag of the largest similarity in (2 max_lag + 1,), NaN where it has no valid pair.

    Ties go to the smallest |lag|, then to the positive one; None where nothing is valid.
    """
    max_lag = len(lag_profile) // 2
    order = sorted(range(-max_lag, max_lag + 1), key=lambda lag: (abs(lag), -lag))
    valid = [lag for lag in order if not math.isnan(lag_profile[lag + max_lag])]
    return max(valid, key=lambda lag: lag_profile[lag + max_lag], default=None)


@dataclass(slots=True)
class _WindowRecord:
    """One window, as small as it gets: a 10-hour file has 28,000 of them."""

    index: int
    start_s: float
    end_s: float
    box: tuple[float, float, float, float] | None
    logits: dict[ModalityCase, float]
    match_similarity: float | None
    best_lag: int | None
    speech_fraction: float


@dataclass
class TrackScores:
    """All that is kept of one track."""

    track: int
    windows: list[_WindowRecord] = field(default_factory=list)
    frames: int = 0
    speech_frames: int = 0
    speaking_frames: int = 0  # speech-active frames in which this mouth moves
    match_sum: float = 0.0
    match_frames: int = 0
    lag_sum: NDArray[np.float64] | None = None
    lag_count: NDArray[np.float64] | None = None

    def add(self, score: WindowScore, *, min_mouth_motion: float) -> None:
        """Take in one window."""
        window = score.window
        speech = window.speech
        self.frames += window.frames
        self.speech_frames += int(speech.sum())
        self.speaking_frames += int((speech & (window.mouth_motion >= min_mouth_motion)).sum()) if len(window.mouth_motion) else 0
        similarity = None
        if score.matched is not None and score.lag_profile is not None:
            counted = score.matched[speech] if speech.any() else score.matched
            similarity = float(counted.mean(dtype=np.float64))
            self.match_sum += float(counted.sum(dtype=np.float64))
            self.match_frames += len(counted)
            valid = ~np.isnan(score.lag_profile)
            profile = np.where(valid, score.lag_profile, 0.0).astype(np.float64)
            self.lag_sum = profile if self.lag_sum is None else self.lag_sum + profile
            self.lag_count = valid.astype(np.float64) if self.lag_count is None else self.lag_count + valid
        logits: dict[ModalityCase, float | None] = {"av": score.logit_fused, "v": score.logit_visual, "a": score.logit_audio}
        x0, y0, x1, y1 = window.boxes[len(window.boxes) // 2].tolist() if len(window.boxes) else (0.0, 0.0, 0.0, 0.0)
        self.windows.append(
            _WindowRecord(
                index=window.index,
                start_s=window.start_s,
                end_s=window.end_s,
                box=(x0, y0, x1, y1) if len(window.boxes) else None,
                logits={case: logit for case, logit in logits.items() if logit is not None},
                match_similarity=similarity,
                best_lag=score.best_lag,
                speech_fraction=float(speech.mean()) if len(speech) else 0.0,
            )
        )

    def speaks(self, *, min_speaking_fraction: float) -> bool:
        """Whether this mouth moves in enough of the frames in which somebody speaks."""
        return self.speech_frames > 0 and self.speaking_frames >= min_speaking_fraction * self.speech_frames

    def logit(self, case: ModalityCase, fraction: float) -> float | None:
        """The track's aggregated logit, or None where no window has one."""
        logits = [window.logits[case] for window in self.windows if case in window.logits]
        return top_mean(logits, fraction) if logits else None

    @property
    def match_similarity(self) -> float | None:
        """Mean matched similarity over the speech-active frames."""
        return self.match_sum / self.match_frames if self.match_frames else None

    @property
    def best_lag(self) -> int | None:
        """Best lag of the mean lag profile, in frames; above 0 the sound comes later."""
        if self.lag_sum is None or self.lag_count is None:
            return None
        return best_lag(np.where(self.lag_count > 0, self.lag_sum / np.maximum(self.lag_count, 1), np.nan))


@dataclass(frozen=True)
class Aggregate:
    """A file's logits: `logits[case]` judges it; the single heads that the case has are beside it, each the largest over all tracks."""

    case: ModalityCase
    speakers: tuple[TrackScores, ...]  # where the case is av: tracks whose mouth moves while somebody speaks
    decisive: TrackScores  # the track that gave `logits[case]`
    logits: dict[ModalityCase, float]

    @property
    def match_similarity(self) -> float | None:
        """Of the decisive track; None where picture and sound are not judged together."""
        return self.decisive.match_similarity if self.case == "av" else None

    @property
    def best_lag(self) -> int | None:
        """Of the decisive track, in frames; None where picture and sound are not judged together."""
        return self.decisive.best_lag if self.case == "av" else None


def aggregate(tracks: Sequence[TrackScores], case: ModalityCase, *, top_fraction: float, speech: SpeechConfig) -> Aggregate:
    """The maximum over the tracks that speak, or over all where none does. Raises ProtocolError where no window has a finite logit of the case."""
    speakers = tuple(track for track in tracks if case == "av" and track.speaks(min_speaking_fraction=speech.min_speaking_fraction))
    judged = [(logit, track) for track in speakers or tracks if (logit := track.logit(case, top_fraction)) is not None]
    if not judged or not all(math.isfinite(logit) for logit, _ in judged):
        raise ProtocolError(f"nothing in its windows bears out its modalities '{case}'")
    logit, decisive = max(judged, key=lambda pair: pair[0])
    heads = {head: largest for head in _HEADS if head in case and (largest := _largest(head, tracks, top_fraction)) is not None}
    return Aggregate(case, speakers, decisive, {**heads, case: logit})


def _largest(head: ModalityCase, tracks: Sequence[TrackScores], top_fraction: float) -> float | None:
    return max((logit for track in tracks if (logit := track.logit(head, top_fraction)) is not None), default=None)


@dataclass(frozen=True)
class FileVerdict:
    """Everything the sink writes of one input."""

    file: Row
    tracks: list[Row]
    windows: list[Row]


class VerdictBuilder:
    """Collects one file's scores and ends in exactly one of `scored` (which may abstain) and `without_score`."""

    def __init__(self, *, uri: str, bundle: Bundle, scan: ScanConfig, runtime: str, decoder: Decoder = "pyav") -> None:
        """`decoder`: of this try."""
        self._bundle = bundle
        self._spec: BundleSpec = bundle.spec
        self._scan = scan
        self._tracks: dict[int, TrackScores] = {}
        self._row: Row = dict.fromkeys(FILES.names)
        self._row.update(uri=uri, decoder=decoder, detector=scan.detector.kind, runtime=runtime)
        self._row.update(bundle_id=bundle.id, trained_on=bundle.spec.trained_on, tracks=0, windows=0)

    def anew(self, *, fallback_cause: str) -> "VerdictBuilder":
        """An empty builder for the same file, to try it again, with PyAV; its row will say why."""
        uri, runtime = str(self._row["uri"]), str(self._row["runtime"])
        builder = VerdictBuilder(uri=uri, bundle=self._bundle, scan=self._scan, runtime=runtime)
        causes = (self._row["fallback_cause"], fallback_cause)
        builder._row.update({name: self._row[name] for name in ("content_hash", "size_bytes", "peak_memory_mib")})
        builder._row.update(fallback_cause="; ".join(str(cause) for cause in causes if cause))
        return builder

    def peak_memory(self, mib: int) -> None:
        """The most memory that the file's worker held at once, over all tries."""
        known = self._row["peak_memory_mib"]
        self._row["peak_memory_mib"] = max(mib, known) if isinstance(known, int) else mib

    def opened(self, opened: Opened) -> None:
        """The file's hash and size are known."""
        self._row.update(content_hash=opened.content_hash, size_bytes=opened.size_bytes)

    def add(self, score: WindowScore) -> None:
        """One window was scored."""
        track = self._tracks.setdefault(score.window.track, TrackScores(score.window.track))
        track.add(score, min_mouth_motion=self._scan.speech.min_mouth_motion)

    def without_score(self, *, reason: str, detail: str, elapsed_s: float) -> FileVerdict:
        """The row of a file that abstains or failed; whatever was scored of it is dropped."""
        status = "abstained" if reason in ABSTENTIONS else "failed"
        self._row.update(status=status, reason=reason, detail=detail, elapsed_s=elapsed_s)
        return FileVerdict(self._row, [], [])

    def scored(self, summary: ClipSummary, *, elapsed_s: float) -> FileVerdict:
        """The verdict of a file that was read to its end."""
        info = summary.info
        causes = (self._row["fallback_cause"], summary.picture_error, summary.sound_error)
        self._row.update(
            duration_s=summary.duration_s,
            video_codec=info.video.codec if info.video else None,
            audio_codec=info.audio.codec if info.audio else None,
            stream_choice=info.choice,
            decoder=self._row["decoder"] if info.video else "pyav",
            fallback_cause="; ".join(str(cause) for cause in causes if cause) or None,
            frames_decoded=summary.frames_decoded,
            frames_dropped=summary.frames_dropped,
            decode_errors=summary.decode_errors,
            variable_frame_rate=summary.variable_frame_rate,
            speech_fraction=summary.speech_fraction,
        )
        voice = summary.speech_fraction is not None and summary.speech_fraction >= self._scan.speech.min_fraction
        abstention = self._abstention(summary, voice=voice)
        if abstention is not None:
            return self.without_score(reason=abstention[0], detail=abstention[1], elapsed_s=elapsed_s)
        case: ModalityCase = "a" if set(self._tracks) == {-1} else "av" if voice else "v"
        return self._verdict(case, elapsed_s)

    def _abstention(self, summary: ClipSummary, *, voice: bool) -> tuple[str, str] | None:
        shortest_s = self._scan.limits.min_frames / self._spec.model.fps
        if summary.duration_s < shortest_s - 1e-6:
            return "too_short", f"lasts {summary.duration_s:.2f} s; {shortest_s:.2f} s is the least"
        if self._tracks:
            return None
        if summary.picture_error is not None and not voice:
            return "corrupt", summary.picture_error
        if summary.speech_fraction is None:
            return "no_face_and_no_sound", "no face was found and there is no sound"
        if voice:
            return "no_face", "no face was found and no stretch of its sound holds enough speech to score"
        heard = f"speech in {summary.speech_fraction:.0%} of its sound"
        return ("no_speech", f"sound alone, with {heard}") if summary.info.video is None else ("no_face", f"no face was found, and {heard}")

    def _verdict(self, case: ModalityCase, elapsed_s: float) -> FileVerdict:
        calibration, fraction = self._spec.calibration, self._spec.aggregation.top_fraction
        tracks = [self._tracks[track] for track in sorted(self._tracks)]
        found = aggregate(tracks, case, top_fraction=fraction, speech=self._scan.speech)
        p = {head: probability(logit, calibration[head]) for head, logit in found.logits.items()}
        self._row.update(
            status="scored",
            reason=None,
            p_fake=p[case],
            label=label_of(p[case], calibration[case]),
            p_visual=p.get("v"),
            p_audio=p.get("a"),
            match_similarity=found.match_similarity,
            best_lag_frames=found.best_lag,
            offscreen_voice=(case == "av" and not found.speakers) if case != "a" else None,
            modalities=case,
            tracks=sum(track.track >= 0 for track in tracks),
            windows=sum(len(track.windows) for track in tracks),
            elapsed_s=elapsed_s,
        )
        uri = self._row["uri"]
        track_rows = [{"uri": uri, **self._track_row(track, case, fraction, speaker=track in found.speakers)} for track in tracks]
        window_rows = [{"uri": uri, "track": track.track, **self._window_row(window, case)} for track in tracks for window in track.windows]
        return FileVerdict(self._row, track_rows, window_rows)

    def _head(self, head: ModalityCase, track: TrackScores, case: ModalityCase, fraction: float) -> float | None:
        """A single head's probability, or None where that modality is not there."""
        logit = track.logit(head, fraction) if head in case else None
        return None if logit is None else probability(logit, self._spec.calibration[head])

    def _track_row(self, track: TrackScores, case: ModalityCase, fraction: float, *, speaker: bool) -> dict[str, Any]:
        logit = track.logit(case, fraction)
        return {
            "track": track.track,
            "start_s": min(window.start_s for window in track.windows),
            "end_s": max(window.end_s for window in track.windows),
            "windows": len(track.windows),
            "speaker": speaker if case == "av" else None,
            "p_fake": None if logit is None else probability(logit, self._spec.calibration[case]),
            "p_visual": self._head("v", track, case, fraction),
            "p_audio": self._head("a", track, case, fraction),
            "match_similarity": track.match_similarity if case == "av" else None,
            "best_lag_frames": track.best_lag if case == "av" else None,
            "speech_fraction": track.speech_frames / track.frames if track.frames and self._row["speech_fraction"] is not None else None,
        }

    def _window_row(self, window: _WindowRecord, case: ModalityCase) -> dict[str, Any]:
        x0, y0, x1, y1 = window.box or (None, None, None, None)
        present = {head: logit for head, logit in window.logits.items() if head in case}
        scores = {head: probability(logit, self._spec.calibration[head]) for head, logit in present.items()}
        return {
            "window": window.index,
            "start_s": window.start_s,
            "end_s": window.end_s,
            "x0": x0,
            "y0": y0,
            "x1": x1,
            "y1": y1,
            "p_fake": scores.get(case),
            "p_visual": scores.get("v"),
            "p_audio": scores.get("a"),
            "match_similarity": window.match_similarity if case == "av" else None,
            "best_lag_frames": window.best_lag if case == "av" else None,
            "speech_fraction": window.speech_fraction if self._row["speech_fraction"] is not None else None,
        }
