"""L_contrast: a picture must pick its own sound among others, and its own lag among others.

The hinge terms alone stay at the saddle where every similarity is 0; these two leave it. Scores are cosines averaged over frames, divided by tau.
"""

from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dissonance.config import Frozen
from dissonance.model.layer import MASKED_SCORE
from dissonance.model.matching import sum_by_lag
from dissonance.training.pairs import MIN_SHIFT_FRAMES, PairedWindows, maybe_together


class NegativesConfig(Frozen):
    """Among what a window must find its partner."""

    other_speaker: bool = True  # windows of other people,
    same_speaker: bool = True  # windows of the same person at another moment,
    shifts: tuple[Annotated[int, Field(ge=-64, le=64)], ...] = (-4, -2, 2, 4)  # and its own partner, so many frames away

    @model_validator(mode="after")
    def _are_mismatches(self) -> Self:
        if near := [shift for shift in self.shifts if abs(shift) < MIN_SHIFT_FRAMES]:
            raise ValueError(f"shifts {near} are below {MIN_SHIFT_FRAMES} frames: too near the truth to be told from it")
        if len(set(self.shifts)) < len(self.shifts):
            raise ValueError(f"shifts {list(self.shifts)} name one twice")
        if not (self.other_speaker or self.same_speaker or self.shifts):
            raise ValueError(
                "without other_speaker, same_speaker and shifts there are no negatives (to leave InfoNCE out, set contrast_windows to 0)"
            )
        return self


def mean_of(values: Tensor, member: Tensor) -> Tensor:
    """Mean of `values` where `member`, both of one shape: a scalar; without members exactly 0, with gradient 0."""
    return values.masked_fill(~member, 0.0).sum() / member.sum().clamp(min=1)


def lag_profile(visual: Tensor, audio: Tensor, seen: Tensor, heard: Tensor, *, max_lag: int) -> tuple[Tensor, Tensor]:
    """c_d = mean of <v_i, a_{i+d}> over the i with `seen`[i] and `heard`[i+d], for |d| <= L = max_lag, at index d + L; and where there is any such i.

    `visual`, `audio` (P, T, D), `seen`, `heard` (P, T) bool -> (P, 2L+1) and (P, 2L+1) bool; c_d is 0 where there is none. With `seen` and `heard`
    the frames that both streams have, it is `model.matching.match`'s.
    """
    counts = sum_by_lag((seen[:, :, None] & heard[:, None, :]).to(visual.dtype), max_lag)
    similarity = visual.masked_fill(~seen[:, :, None], 0.0) @ audio.masked_fill(~heard[:, :, None], 0.0).transpose(1, 2)
    return sum_by_lag(similarity, max_lag) / counts.clamp(min=1.0), counts > 0


def window_scores(visual: Tensor, audio: Tensor, seen: Tensor, heard: Tensor) -> tuple[Tensor, Tensor]:
    """Score of every picture with every sound: mean of <v_i, a_i> over the i with `seen`[i] and `heard`[i]; and where there is any such i.

    `visual` (V, T, D), `audio` (A, T, D), `seen` (V, T), `heard` (A, T) bool -> (V, A) and (V, A) bool.
    """
    counts = seen.to(visual.dtype) @ heard.to(visual.dtype).T
    sums = visual.masked_fill(~seen[:, :, None], 0.0).flatten(1) @ audio.masked_fill(~heard[:, :, None], 0.0).flatten(1).T
    return sums / counts.clamp(min=1.0), counts > 0


def info_nce(batch: PairedWindows, visual: Tensor, audio: Tensor, tau: Tensor, *, negatives: NegativesConfig) -> Tensor:
    """InfoNCE over windows, in both directions: mean of -log softmax at the true partner, over the real pairs from either side.

    A picture chooses among its own sound, the batch's sounds of another moment, and its own sound shifted; a sound chooses among pictures likewise.
    Sounds of forged pairs are candidates too, each once however many pairs have it. Only speech-active frames count, in every score, or silence would
    decide. A row without a spoken frame, or without a single negative, is no member.

    `visual` (V, T, D), `audio` (A, T, D), `tau` () -> ().
    """
    seen, heard = batch.pictures.valid, batch.sounds.valid & batch.speech
    scores, comparable = window_scores(visual, audio, seen, heard)
    same = batch.pictures.identity[:, None] == batch.sounds.identity[None, :]
    wanted = (same & negatives.same_speaker) | (~same & negatives.other_speaker)
    negative = comparable & wanted & ~maybe_together(batch.pictures, batch.sounds)

    picture, sound = batch.picture, batch.sound
    reach = max((abs(shift) for shift in negatives.shifts), default=0)
    columns = torch.tensor([shift + reach for shift in negatives.shifts], dtype=torch.int64, device=visual.device)
    profile, profile_valid = lag_profile(visual[picture], audio[sound], seen[picture], heard[sound], max_lag=reach)
    shifted, shifted_valid = profile[:, columns], profile_valid[:, columns]

    own = scores[picture, sound]
    anchor = batch.real & comparable[picture, sound]
    losses, members = [], []
    for others, usable in ((scores[picture], negative[picture]), (scores.T[sound], negative.T[sound])):
        usable = torch.cat([usable, shifted_valid], dim=1)
        rivals = (torch.cat([others, shifted], dim=1) / tau).masked_fill(~usable, MASKED_SCORE)
        losses.append(torch.logsumexp(torch.cat([own[:, None] / tau, rivals], dim=1), dim=1) - own / tau)
        members.append(anchor & usable.any(dim=1))
    return mean_of(torch.cat(losses), torch.cat(members))


def lag_cross_entropy(batch: PairedWindows, visual: Tensor, audio: Tensor, tau: Tensor, *, max_lag: int) -> Tensor:
    """Cross-entropy of softmax_d(c_d / tau) at the true lag, mean over the pairs that have one within `max_lag` and in which somebody speaks.

    c_d is the profile that a scan reads the lag from, over all frames that both streams have: silence must not hide the lag there either.

    `visual` (V, T, D), `audio` (A, T, D), `tau` () -> ().
    """
    valid = batch.valid
    profile, profile_valid = lag_profile(visual[batch.picture], audio[batch.sound], valid, valid, max_lag=max_lag)
    place = (batch.true_lag.clamp(-max_lag, max_lag) + max_lag)[:, None]
    member = (batch.true_lag.abs() <= max_lag) & profile_valid.gather(1, place)[:, 0] & batch.spoken.any(dim=1)
    log_probability = torch.log_softmax((profile / tau).masked_fill(~profile_valid, MASKED_SCORE), dim=1)
    return mean_of(-log_probability.gather(1, place)[:, 0], member)
