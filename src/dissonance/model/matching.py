"""Frame-level cross-modal matching: what a window's similarity matrix S says.

Miao et al., AAAI 2025, match picture and sound frame by frame; the quantities are this project's. With S_ij = <v_i, a_j>:
matched m_i = S_ii; lag profile c_d = mean over valid pairs of S_{i,i+d}, |d| <= max_lag; best lag = argmax_d c_d;
row match pi_i = softmax_j(S_ij / tau)[i]; attended sound u_i = sum_j softmax_j(S_ij / tau) a_j. d > 0: the sound comes later than the picture.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dissonance.model.layer import MASKED_SCORE


class Match(NamedTuple):
    """What matching finds in windows of T frames; L = max_lag. Everything is 0 where no frame is valid."""

    similarity: Tensor  # S (windows, T, T)
    matched: Tensor  # m (windows, T)
    lag_profile: Tensor  # c (windows, 2L+1), at index d + L; 0 where no pair is valid
    lag_valid: Tensor  # (windows, 2L+1) bool: a valid pair exists
    best_lag: Tensor  # (windows,) int64; 0 where nothing is valid
    row_match: Tensor  # pi (windows, T)
    attended: Tensor  # u (windows, T, D)


def fuse(visual: Tensor, audio: Tensor, matched: Match, weight: Tensor, bias: Tensor) -> Tensor:
    """g_i = GELU(W f_i + b), f_i = [v_i ; a_i ; u_i ; v_i * a_i ; m_i ; pi_i]; u is left out where W has no columns for it.

    v, a (windows, T, D), `weight` W (H, 4D + 2) or (H, 3D + 2), `bias` b (H,) -> g (windows, T, H).
    """
    attended = [matched.attended] if weight.shape[1] == 4 * visual.shape[2] + 2 else []
    parts = [visual, audio, *attended, visual * audio, matched.matched[:, :, None], matched.row_match[:, :, None]]
    return F.gelu(F.linear(torch.cat(parts, dim=-1), weight, bias))


def lag_preference(max_lag: int) -> list[int]:
    """Lags from the most to the least preferred where they tie: smallest |d|, then the positive one: 0, 1, -1, 2, -2, ..."""
    return [0, *(sign * lag for lag in range(1, max_lag + 1) for sign in (1, -1))]


def sum_by_lag(pairs: Tensor, max_lag: int) -> Tensor:
    """Sums along the diagonals of `pairs` (windows, T, T): (windows, 2L+1), at index d + L the sum over i of pairs[i, i+d].

    Padding each row by L zeros on both sides and then reading the flat rows with one column more moves row i left by i, so that the diagonals stand
    as columns: no gather, and one reduction.
    """
    frames = pairs.shape[1]
    width = frames + 2 * max_lag
    flat = F.pad(pairs, (max_lag, max_lag)).reshape(-1, frames * width)
    return F.pad(flat, (0, frames)).reshape(-1, frames, width + 1)[:, :, : 2 * max_lag + 1].sum(dim=1)


def match(visual: Tensor, audio: Tensor, mask: Tensor, *, tau: float, max_lag: int) -> Match:
    """Match aligned picture and sound.

    `visual` v and `audio` a: (windows, T, D), unit rows; `mask` (windows, T) bool, True = valid. Padding is never seen, whatever it holds.
    """
    padding = ~mask[:, :, None]
    visual, audio = visual.masked_fill(padding, 0.0), audio.masked_fill(padding, 0.0)
    valid = mask.to(visual.dtype)
    similarity = visual @ audio.transpose(1, 2)

    pairs = sum_by_lag(valid[:, :, None] * valid[:, None, :], max_lag)
    lag_valid = pairs > 0
    lag_profile = sum_by_lag(similarity, max_lag) / pairs.clamp(min=1.0)
    lags = torch.tensor(lag_preference(max_lag), device=visual.device)
    preferred = lag_profile.masked_fill(~lag_valid, MASKED_SCORE).index_select(1, lags + max_lag)
    best_lag = lags.index_select(0, preferred.argmax(dim=1))  # argmax: the first of equals, on every backend

    scores = similarity / tau + torch.where(mask, 0.0, MASKED_SCORE).to(visual.dtype)[:, None, :]
    attention = torch.softmax(scores, dim=-1) * valid[:, :, None]
    row_match = (attention * torch.eye(mask.shape[1], dtype=visual.dtype, device=visual.device)).sum(dim=-1)
    return Match(
        similarity=similarity,
        matched=(visual * audio).sum(dim=-1),
        lag_profile=lag_profile,
        lag_valid=lag_valid,
        best_lag=best_lag,
        row_match=row_match,
        attended=attention @ audio,
    )
