"""What a network says of whole validation clips, by the rules of a scan: figures to select weights by, and the calibration of the best ones."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest

import numpy as np
from sklearn.metrics import roc_auc_score

from dissonance.bundle import BundleSpec, CropSpec, MelSpec, ModalityCase
from dissonance.config import ModelConfig
from dissonance.engine.runtime.torch_runtime import TorchRuntime
from dissonance.errors import CheckpointError, UsageError
from dissonance.model.network import AudioVisualNetwork
from dissonance.training.cached_clip import CachedClip
from dissonance.training.calibration import Calibration, CalibrationError, calibrate
from dissonance.training.config import TrainConfig
from dissonance.training.labels import LABEL_OF_CASE, Clip
from dissonance.training.scoring import ClipScore, ClipScorer


class ClipJudge:
    """What a network says of whole clips, by the rules of a scan."""

    def __init__(self, config: TrainConfig, open_clip: Callable[[str], CachedClip]) -> None:
        assert isinstance(config.model, ModelConfig)
        self._open_clip = open_clip
        self._scan = config.scan
        self._spec = BundleSpec(
            model=config.model,
            crop=CropSpec(size_px=config.model.visual.image_size),
            mel=MelSpec(bins=config.model.audio.mel_bins),
            trained=True,
            trained_on="validation",
        )

    def scores(self, network: AudioVisualNetwork, clips: Iterable[Clip]) -> Iterator[tuple[Clip, ClipScore]]:
        """The score of each clip that has one; whole clips, however they were trained on: a scan trims nothing."""
        device = next(network.parameters()).device
        scorer = ClipScorer(TorchRuntime(network, device=device.type), spec=self._spec, scan=self._scan)
        for clip in clips:
            try:
                score = scorer.score(self._open_clip(clip.uri))
            except FloatingPointError as error:
                raise CheckpointError(f"Training has diverged: {error} for '{clip.uri}'. Lower optimiser.learning_rate.") from error
            if score is not None:
                yield clip, score

    def figures(self, network: AudioVisualNetwork, clips: Iterable[Clip]) -> dict[str, float | None]:
        """AUC of each head on its own label, and the share of real clips whose best lag is within a frame of 0. None: not defined."""
        found = list(self.scores(network, clips))

        def auc(case: ModalityCase) -> float | None:
            rows = [(LABEL_OF_CASE[case](clip), score.logits[case]) for clip, score in found if case in score.logits]
            labels, logits = [fake for fake, _ in rows], [logit for _, logit in rows]
            return float(roc_auc_score(labels, logits)) if len(set(labels)) == 2 else None

        lags = [abs(score.best_lag) <= 1 for clip, score in found if not clip.fake and score.best_lag is not None]
        return {
            "auc_fused": auc("av"),
            "auc_visual": auc("v"),
            "auc_audio": auc("a"),
            "lag_within_1": float(np.mean(lags)) if lags else None,
        }


def calibrate_cases(scored: Iterable[tuple[Clip, ClipScore]]) -> tuple[dict[ModalityCase, Calibration], dict[ModalityCase, str]]:
    """Each modality case on its own label, and why a case was not calibrated."""
    found = list(scored)
    done: dict[ModalityCase, Calibration] = {}
    without: dict[ModalityCase, str] = {}
    for case, label in LABEL_OF_CASE.items():
        rows = [(score.logits[case], label(clip), clip.identity) for clip, score in found if case in score.logits]
        try:
            done[case] = calibrate(case, [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])
        except CalibrationError as error:
            without[case] = str(error)
    return done, without


def halve(clips: Sequence[Clip], *, seed: int) -> tuple[tuple[Clip, ...], tuple[Clip, ...]]:
    """Validation clips by identity: those that select the weights, and those that calibrate them.

    In a fixed order that mixes people and kinds; reals and fakes take turns as long as there are both, so that the first n hold both. Raises
    UsageError where a half lacks one of the classes.
    """

    def draw(text: str) -> str:
        return hashlib.sha256(f"{seed}:{text}".encode("utf-8", "surrogatepass")).hexdigest()

    people = sorted({clip.identity for clip in clips}, key=draw)
    first = set(people[: (len(people) + 1) // 2])
    ordered = sorted(clips, key=lambda clip: draw(f"{clip.identity}:{clip.path.name}"))
    halves = [clip for clip in ordered if clip.identity in first], [clip for clip in ordered if clip.identity not in first]
    for half, purpose in zip(halves, ("select the weights", "calibrate them"), strict=True):
        if len({clip.fake for clip in half}) < 2:
            reals = sum(not clip.fake for clip in half)
            raise UsageError(
                f"Of the {len(people)} people of the validation clips half are to {purpose}: {reals} real and {len(half) - reals} fake clips. "
                "Both classes are needed: add validation clips, or choose another split or seed."
            )
    return _taking_turns(halves[0]), _taking_turns(halves[1])


def _taking_turns(clips: Sequence[Clip]) -> tuple[Clip, ...]:
    turns = zip_longest([clip for clip in clips if not clip.fake], [clip for clip in clips if clip.fake])
    return tuple(clip for pair in turns for clip in pair if clip is not None)
