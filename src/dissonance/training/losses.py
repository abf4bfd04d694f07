"""The loss: L = BCE_v + BCE_a + BCE_f + lambda * L_match.

L_match = alpha * mean_real(1 - s) + beta * mean_fake max(0, s - margin) + gamma * mean_cross max(0, s' - margin) + delta * L_contrast.
The first three terms of L_match are the reading of Miao et al., AAAI 2025; L_contrast (`contrast.py`) is this project's.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from dissonance.config import Frozen
from dissonance.training.contrast import NegativesConfig, info_nce, lag_cross_entropy, mean_of
from dissonance.training.pairs import PairedWindows

Weight = Annotated[float, Field(ge=0.0, le=1000.0)]


class LossConfig(Frozen):
    """Weights of the terms (0 switches one off) and what they need."""

    bce_visual: Weight = 1.0
    bce_audio: Weight = 1.0
    bce_fused: Weight = 1.0
    lambda_match: Weight = 1.0  # of all of L_match
    alpha: Weight = 2.0  # real pairs match
    beta: Weight = 2.0  # forged pairs do not; at odds with the truth for lip-synced ones, which are in sync
    gamma: Weight = 1.0  # mismatches made from real windows do not
    delta: Weight = 1.0  # of L_contrast = contrast_windows * InfoNCE + contrast_lag * cross-entropy of the lag
    contrast_windows: Weight = 1.0
    contrast_lag: Weight = 1.0
    margin: Annotated[float, Field(ge=-1.0, lt=1.0)] = 0.0  # similarity above which a mismatch costs
    tau: Annotated[float, Field(gt=0.0, le=10.0)] = 0.07  # of L_contrast, at the start
    tau_min: Annotated[float, Field(ge=0.001, le=10.0)] = 0.01  # it learns down to here, where it rests
    learn_tau: bool = True
    negatives: NegativesConfig = NegativesConfig()  # of InfoNCE

    @model_validator(mode="after")
    def _is_a_loss(self) -> Self:
        if self.tau <= self.tau_min:
            raise ValueError(f"tau {self.tau} must be above tau_min {self.tau_min}")
        if not any(self.weights.values()):
            raise ValueError("every term is switched off: nothing would be learnt")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """What each term of `LossTerms` is multiplied by in the total."""
        return {
            "bce_visual": self.bce_visual,
            "bce_audio": self.bce_audio,
            "bce_fused": self.bce_fused,
            "match_real": self.lambda_match * self.alpha,
            "match_fake": self.lambda_match * self.beta,
            "match_cross": self.lambda_match * self.gamma,
            "contrast_windows": self.lambda_match * self.delta * self.contrast_windows,
            "contrast_lag": self.lambda_match * self.delta * self.contrast_lag,
        }


class Logits(NamedTuple):
    """What the heads say of each pair, each (P,). A head that is None takes no part: its term is 0."""

    visual: Tensor | None = None
    audio: Tensor | None = None
    fused: Tensor | None = None


class Glimpsed(NamedTuple):
    """What the single heads say of clips that are paired with nothing: logits (N,), labels (N,) bool."""

    visual: Tensor
    audio: Tensor
    picture_fake: Tensor
    sound_fake: Tensor


NO_LOGITS = Logits()  # to train the match alone


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """Every term as a scalar, before its weight, and the weighted total. A term that is switched off or has no members is exactly 0."""

    bce_visual: Tensor
    bce_audio: Tensor
    bce_fused: Tensor
    match_real: Tensor
    match_fake: Tensor
    match_cross: Tensor
    contrast_windows: Tensor
    contrast_lag: Tensor
    total: Tensor

    def as_floats(self) -> dict[str, float]:
        """For logs; waits for the device once."""
        names = [field.name for field in fields(self)]
        values = torch.stack([getattr(self, name).detach() for name in names]).tolist()
        return dict(zip(names, values, strict=True))


class MultiTaskLoss(nn.Module):
    """The loss of a batch. Its one parameter is log tau (no weight decay on it, please: that would pull tau to 1).

    Works in float32 (float64 stays float64) also under autocast: in bfloat16 a cosine is off by 0.004, and tau divides by 0.07 or less.
    """

    def __init__(self, config: LossConfig, *, max_lag: int) -> None:
        """`max_lag` is the model's (`HeadConfig.max_lag`)."""
        super().__init__()
        self.config, self.max_lag = config, max_lag
        self.log_tau = nn.Parameter(torch.tensor(config.tau).log(), requires_grad=config.learn_tau)

    @property
    def tau(self) -> Tensor:
        """The temperature of L_contrast, a scalar."""
        return self.log_tau.exp().clamp(min=self.config.tau_min)

    def forward(self, batch: PairedWindows, logits: Logits = NO_LOGITS, glimpsed: Glimpsed | None = None) -> LossTerms:
        """All terms. A pair, a window or a frame counts in a term only if it is a member of it:

        - BCE: pairs with a valid frame in both streams; of the visual and the audio head those that are not `mismatched`, and what is `glimpsed`.
        - match_real: speech-active valid frames of real pairs, each frame one vote. match_fake: valid frames of pairs that hold a fake and are
          not `mismatched`. match_cross: valid frames of `batch.cross` (0 where that is None).
        - contrast: see `info_nce` and `lag_cross_entropy`.
        """
        weights = self.config.weights
        with torch.autocast(batch.picture.device.type, enabled=False):
            visual, audio = _widened(batch.pictures.features), _widened(batch.sounds.features)
            matched = _matched(visual, audio, batch)
            seen = None if glimpsed is None else (glimpsed.visual, glimpsed.picture_fake)
            heard = None if glimpsed is None else (glimpsed.audio, glimpsed.sound_fake)
            calls: dict[str, Callable[[], Tensor]] = {
                "bce_visual": lambda: _bce(logits.visual, batch.picture_fake, ~batch.mismatched, batch, seen),
                "bce_audio": lambda: _bce(logits.audio, batch.sound_fake, ~batch.mismatched, batch, heard),
                "bce_fused": lambda: _bce(logits.fused, ~batch.real, torch.ones_like(batch.real), batch),
                "match_real": lambda: mean_of(1.0 - matched, batch.spoken & batch.real[:, None]),
                "match_fake": lambda: mean_of(torch.relu(matched - self.config.margin), batch.valid & ~(batch.real | batch.mismatched)[:, None]),
                "match_cross": lambda: _cross(visual, audio, batch, margin=self.config.margin),
                "contrast_windows": lambda: info_nce(batch, visual, audio, self.tau, negatives=self.config.negatives),
                "contrast_lag": lambda: lag_cross_entropy(batch, visual, audio, self.tau, max_lag=self.max_lag),
            }
            terms = {name: call() if weights[name] else visual.new_zeros(()) for name, call in calls.items()}
            total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return LossTerms(**terms, total=total)


def _widened(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _bce(logits: Tensor | None, fake: Tensor, asked: Tensor, batch: PairedWindows, besides: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Binary cross-entropy of `logits` (P,) with the label `fake` (P,) bool, over the pairs `asked` (P,) bool and logits with labels `besides`."""
    if logits is None:
        return batch.pictures.features.new_zeros((), dtype=torch.float32)
    if logits.shape != fake.shape:
        raise ValueError(f"logits have shape {tuple(logits.shape)}, not one for each of the {len(fake)} pairs")
    member = asked & batch.valid.any(dim=1)
    if besides is not None:
        logits, fake = torch.cat([logits, besides[0]]), torch.cat([fake, besides[1]])
        member = torch.cat([member, torch.ones_like(besides[1])])
    wide = _widened(logits).masked_fill(~member, 0.0)
    return mean_of(binary_cross_entropy_with_logits(wide, fake.to(wide.dtype), reduction="none"), member)


def _matched(visual: Tensor, audio: Tensor, batch: PairedWindows) -> Tensor:
    """s_i = <v_i, a_i> (P, T); 0 where either stream has no frame, whatever stands there."""
    outside = ~batch.valid[:, :, None]
    return (visual[batch.picture].masked_fill(outside, 0.0) * audio[batch.sound].masked_fill(outside, 0.0)).sum(dim=-1)


def _cross(visual: Tensor, audio: Tensor, batch: PairedWindows, *, margin: float) -> Tensor:
    """Mean of max(0, s' - margin) with s'_i = <v_i, a'_{i+d}> over the valid frames of the mismatches `batch.cross`."""
    if batch.cross is None:
        return visual.new_zeros(())
    picture, sound, shift = batch.cross.unbind(dim=1)
    frames = visual.shape[1]
    here = torch.arange(frames, device=visual.device)[None, :]
    there = here + shift[:, None]
    inside = (there >= 0) & (there < frames)
    there = there.clamp(0, frames - 1)
    valid = inside & batch.pictures.valid[picture] & batch.sounds.valid[sound].gather(1, there)
    outside = ~valid[:, :, None]
    heard = audio[sound[:, None], there].masked_fill(outside, 0.0)
    return mean_of(torch.relu((visual[picture].masked_fill(outside, 0.0) * heard).sum(dim=-1) - margin), valid)
