"""What a network says of whole validation clips, by the rules of a scan: figures to select weights by, and the calibration of the best ones."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from sklearn.metrics import roc_auc_score

from dissonance.bundle import BundleSpec, CropSpec, MelSpec, ModalityCase
from dissonance.config import ModelConfig
from dissonance.engine.runtime.torch_runtime import TorchRuntime
from dissonance.model.network import AudioVisualNetwork
from dissonance.training.cached_clip import CachedClip
from dissonance.training.calibration import Calibration, CalibrationError, calibrate
from dissonance.training.config import TrainConfig, trained_on
from dissonance.training.labels import Clip
from dissonance.training.scoring import ClipScore, ClipScorer

# What each modality case is asked.
LABELS: dict[ModalityCase, Callable[[Clip], bool]] = {
    "av": lambda clip: clip.fake,
    "v": lambda clip: clip.picture_fake,
    "a": lambda clip: clip.sound_fake,
}


class ClipJudge:
    """What a network says of whole clips, by the rules of a scan."""

    def __init__(self, config: TrainConfig, open_clip: Callable[[str], CachedClip]) -> None:
        assert isinstance(config.model, ModelConfig)
        self._open_clip = open_clip
        self._scan = config.scan
        self._trim = config.data.trim_leading_silence
        self._spec = BundleSpec(
            model=config.model,
            crop=CropSpec(size_px=config.model.visual.image_size),
            mel=MelSpec(bins=config.model.audio.mel_bins),
            trained=True,
            trained_on=trained_on(config.data),
        )

    def scores(self, network: AudioVisualNetwork, clips: Iterable[Clip]) -> Iterator[tuple[Clip, ClipScore]]:
        """The score of each clip that has one."""
        device = next(network.parameters()).device
        scorer = ClipScorer(TorchRuntime(network, device=device.type), spec=self._spec, scan=self._scan)
        for clip in clips:
            cached = self._open_clip(clip.uri)
            score = scorer.score(cached.trimmed() if self._trim else cached)
            if score is not None:
                yield clip, score

    def figures(self, network: AudioVisualNetwork, clips: Iterable[Clip]) -> dict[str, float | None]:
        """AUC of each head on its own label, and the share of real clips whose best lag is within a frame of 0. None: not defined."""
        found = list(self.scores(network, clips))

        def auc(case: ModalityCase) -> float | None:
            rows = [(LABELS[case](clip), score.logits[case]) for clip, score in found if case in score.logits]
            labels, logits = [fake for fake, _ in rows], [logit for _, logit in rows]
            return float(roc_auc_score(labels, logits)) if len(set(labels)) == 2 else None

        lags = [abs(score.best_lag) <= 1 for clip, score in found if not clip.fake and score.best_lag is not None]
        return {
            "auc_fused": auc("av"),
            "auc_visual": auc("v"),
            "auc_audio": auc("a"),
            "lag_within_1": float(np.mean(lags)) if lags else None,
        }

    def calibrate(self, network: AudioVisualNetwork, clips: Iterable[Clip]) -> tuple[dict[ModalityCase, Calibration], dict[ModalityCase, str]]:
        """Each modality case on its own label, and why a case was not calibrated."""
        found = list(self.scores(network, clips))
        done: dict[ModalityCase, Calibration] = {}
        without: dict[ModalityCase, str] = {}
        for case, label in LABELS.items():
            rows = [(score.logits[case], label(clip), clip.identity) for clip, score in found if case in score.logits]
            try:
                done[case] = calibrate(case, [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])
            except CalibrationError as error:
                without[case] = str(error)
        return done, without


def halve(clips: Sequence[Clip], *, seed: int) -> tuple[tuple[Clip, ...], tuple[Clip, ...]]:
    """Validation clips by identity: those that select the weights, and those that calibrate them. In a fixed order that mixes people and kinds."""

    def draw(text: str) -> str:
        return hashlib.sha256(f"{seed}:{text}".encode("utf-8", "surrogatepass")).hexdigest()

    people = sorted({clip.identity for clip in clips}, key=draw)
    first = set(people[: (len(people) + 1) // 2])
    ordered = sorted(clips, key=lambda clip: draw(f"{clip.identity}:{clip.path.name}"))
    return tuple(clip for clip in ordered if clip.identity in first), tuple(clip for clip in ordered if clip.identity not in first)
