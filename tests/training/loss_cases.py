"""Batches that the tests of the losses share, and losses with a weight of its own for each term."""

import numpy as np

from dissonance.training.contrast import NegativesConfig
from dissonance.training.losses import LossConfig, MultiTaskLoss
from dissonance.training.pairs import PairedWindows
from tests.training.slow_losses import Case, random_case

SWITCHES = ("bce_visual", "bce_audio", "bce_fused", "alpha", "beta", "gamma", "contrast_windows", "contrast_lag")  # in the order of TERMS
TERMS = ("bce_visual", "bce_audio", "bce_fused", "match_real", "match_fake", "match_cross", "contrast_windows", "contrast_lag")
UNEVEN = LossConfig(
    bce_visual=0.3, bce_audio=0.7, bce_fused=1.1, lambda_match=0.9, alpha=1.3, beta=1.7, gamma=1.9, delta=2.3, contrast_windows=2.9, contrast_lag=3.1,
    margin=0.1, tau=0.2, negatives=NegativesConfig(shifts=(-3, 2)),
)  # fmt: skip


def loss_of(config: LossConfig = UNEVEN, *, max_lag: int = 2) -> MultiTaskLoss:
    return MultiTaskLoss(config, max_lag=max_lag).double()


def full_case(seed: int = 0) -> Case:
    """Every term has members, and some windows, frames and pairs are left out of each."""
    return random_case(seed, pictures=5, sounds=9, pairs=11, frames=6, dim=4, crosses=7, max_lag=2)


def in_sync(v: np.ndarray, a: np.ndarray, **changes: np.ndarray) -> PairedWindows:
    """Real windows, all there and all spoken, each of another clip and person; picture n goes with sound n."""
    windows, frames, _ = v.shape
    origin = np.stack([np.arange(windows), np.arange(windows), np.zeros(windows, np.int64)], axis=1)
    everything, nothing, number = np.ones((windows, frames), bool), np.zeros(windows, bool), np.arange(windows)
    fields: dict[str, np.ndarray] = {
        "v": v, "a": a, "v_valid": everything, "a_valid": everything, "speech": everything, "v_origin": origin, "a_origin": origin,
        "picture": number, "sound": number, "picture_fake": nothing, "sound_fake": nothing, "mismatched": nothing, "true_lag": number * 0,
        "cross": np.zeros((0, 3), np.int64), "logits": np.zeros((3, windows)),
    }  # fmt: skip
    return Case(**{**fields, **changes}).batch()
