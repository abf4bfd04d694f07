"""Scores of cached clips, by the very code that scores and judges a scan's files: what is measured here is what a user gets."""

from collections.abc import Iterator
from dataclasses import dataclass

from dissonance.bundle import BundleSpec, ModalityCase
from dissonance.config import ScanConfig
from dissonance.engine.media.clip import Window
from dissonance.engine.runtime.base import Runtime
from dissonance.engine.scan.channel import ProtocolError
from dissonance.engine.scan.scoring import Scorer, WindowScore
from dissonance.engine.scan.verdict import TrackScores, aggregate
from dissonance.training.cached_clip import CachedClip


@dataclass(frozen=True)
class ClipScore:
    """What a scan would say of a clip.

    case: what it is judged by, `av`, or `v` where there is too little speech. A cached clip always has a face.
    logits: before calibration; `logits[case]` is the clip's, and the single heads that the case has are beside it (the largest over tracks each).
    match_similarity, best_lag: of the track that decided, see `engine.scan.verdict`; None where the case is `v`.
    duration_s: from where the clip begins to the end of its last face or of its sound, whichever is later.
    """

    case: ModalityCase
    logits: dict[ModalityCase, float]
    match_similarity: float | None
    best_lag: int | None
    windows: int
    duration_s: float


class ClipScorer:
    """Scores clips one by one."""

    def __init__(self, runtime: Runtime, *, spec: BundleSpec, scan: ScanConfig) -> None:
        self._runtime = runtime
        self._model = spec.model
        self._top_fraction = spec.aggregation.top_fraction
        self._scan = scan

    def score(self, clip: CachedClip) -> ClipScore | None:
        """None where nothing is left to score: every face was trimmed away, or all but less than limits.min_frames frames.

        Raises FloatingPointError where the network's logits are not finite.
        """
        end_frame = max((track.end_frame for track in clip.tracks), default=clip.begin)
        least = self._scan.limits.min_frames if clip.begin else 1  # a whole clip's picture goes on where it has no face: its cache has checked it
        if end_frame - clip.begin < least:
            return None
        tracks = {track.number: TrackScores(track.number) for track in clip.tracks}
        for score in self._window_scores(clip):
            tracks[score.window.track].add(score, min_mouth_motion=self._scan.speech.min_mouth_motion)
        speech = clip.speech[clip.begin :]
        voice = len(speech) > 0 and float(speech.mean()) >= self._scan.speech.min_fraction
        ordered = [tracks[number] for number in sorted(tracks)]
        try:
            found = aggregate(ordered, "av" if voice else "v", top_fraction=self._top_fraction, speech=self._scan.speech)
        except ProtocolError as error:
            raise FloatingPointError("the network's logits are not finite") from error
        return ClipScore(
            case=found.case,
            logits=found.logits,
            match_similarity=found.match_similarity,
            best_lag=found.best_lag,
            windows=sum(len(track.windows) for track in ordered),
            duration_s=(max(end_frame, clip.sound_frames) - clip.begin) / self._model.fps,
        )

    def _window_scores(self, clip: CachedClip) -> Iterator[WindowScore]:
        scorer = Scorer(self._runtime, model=self._model, execution=self._scan.execution)
        for window in self._windows(clip):
            scorer.add(0, window)
            for _, score in scorer.run():
                yield score
        for _, score in scorer.flush():
            yield score

    def _windows(self, clip: CachedClip) -> Iterator[Window]:
        """The windows of a scan; each brings the frames that the track's earlier ones have not brought, as those of a decode worker do."""
        model = self._model
        for place, track in enumerate(clip.tracks):
            sent = track.first_frame
            for index, first_frame in enumerate(clip.starts(place, model)):
                cut = clip.window(place, first_frame, frames=model.frames)
                end_frame = first_frame + int(cut.mask.sum())
                begin = first_frame if model.visual.prompts.per_frame else max(first_frame, sent)
                sent = end_frame
                rows = slice(first_frame - track.first_frame, end_frame - track.first_frame)
                yield Window(
                    track=track.number,
                    index=index,
                    first_frame=first_frame,
                    frames=end_frame - first_frame,
                    start_s=first_frame / model.fps,
                    end_s=end_frame / model.fps,
                    new_crops=cut.crops[begin - first_frame : end_frame - first_frame],
                    mel=cut.mel,
                    boxes=track.boxes[rows],
                    speech=cut.speech[: end_frame - first_frame],
                    mouth_motion=track.mouth_motion[rows],
                )
