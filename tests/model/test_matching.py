"""Matching against its formulas, one Python loop a formula."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dissonance.model.matching import lag_preference, match

Array = NDArray[np.float64]


def slow_match(v: Array, a: Array, valid: list[bool], *, tau: float, max_lag: int) -> dict[str, object]:
    """One window, in float64, by the book."""
    frames, dim = v.shape
    seen = [i for i in range(frames) if valid[i]]
    s = np.array([[float(np.dot(v[i], a[j])) for j in range(frames)] for i in range(frames)])
    matched, row_match, attended = np.zeros(frames), np.zeros(frames), np.zeros((frames, dim))
    for i in seen:
        matched[i] = s[i, i]
        total = sum(math.exp(s[i, j] / tau) for j in seen)
        row_match[i] = math.exp(s[i, i] / tau) / total
        for j in seen:
            attended[i] += math.exp(s[i, j] / tau) / total * a[j]
    profile, lag_valid = np.zeros(2 * max_lag + 1), np.zeros(2 * max_lag + 1, dtype=bool)
    for d in range(-max_lag, max_lag + 1):
        pairs = [s[i, i + d] for i in seen if i + d in seen]
        if pairs:
            profile[d + max_lag], lag_valid[d + max_lag] = sum(pairs) / len(pairs), True
    best, best_value = 0, -math.inf
    for d in sorted(range(-max_lag, max_lag + 1), key=lambda d: (abs(d), -d)):
        if lag_valid[d + max_lag] and profile[d + max_lag] > best_value + 1e-9:
            best, best_value = d, profile[d + max_lag]
    return {"matched": matched, "row_match": row_match, "attended": attended, "lag_profile": profile, "lag_valid": lag_valid, "best_lag": best}


def unit_rows(generator: np.random.Generator, *shape: int) -> Array:
    rows = generator.standard_normal(shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@settings(max_examples=60, deadline=None)
@given(frames=st.integers(4, 13), dim=st.integers(1, 9), max_lag=st.integers(0, 12), tau=st.sampled_from([0.07, 0.5]), seed=st.integers(0, 10_000))
def test_equals_the_formulas_for_any_shape_and_length(frames: int, dim: int, max_lag: int, tau: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    max_lag = min(max_lag, frames - 1)
    lengths = [frames, int(generator.integers(0, frames + 1)), 0]
    valid = [[i < length for i in range(frames)] for length in lengths]
    v, a = unit_rows(generator, 3, frames, dim), unit_rows(generator, 3, frames, dim)
    found = match(torch.tensor(v), torch.tensor(a), torch.tensor(valid), tau=tau, max_lag=max_lag)
    for window in range(3):
        expected = slow_match(v[window], a[window], valid[window], tau=tau, max_lag=max_lag)
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(found, name)[window].numpy(), value, atol=1e-9, err_msg=f"{name} of window {window}")


def test_similarity_is_the_matrix_of_all_dot_products() -> None:
    generator = np.random.default_rng(1)
    v, a = unit_rows(generator, 2, 5, 3), unit_rows(generator, 2, 5, 3)
    found = match(torch.tensor(v), torch.tensor(a), torch.ones(2, 5, dtype=torch.bool), tau=0.07, max_lag=2)
    np.testing.assert_allclose(found.similarity.numpy(), np.einsum("wid,wjd->wij", v, a), atol=1e-12)


@pytest.mark.parametrize("lag", [-3, -1, 0, 2, 3])
def test_positive_lag_means_that_the_sound_comes_later(lag: int) -> None:
    """What is seen at frame i is heard at frame i + lag."""
    frames = 12
    seen = torch.eye(frames + 6, dtype=torch.float64)
    picture, sound = seen[3 : 3 + frames], seen[3 - lag : 3 - lag + frames]
    found = match(picture[None], sound[None], torch.ones(1, frames, dtype=torch.bool), tau=0.07, max_lag=3)
    assert found.best_lag.item() == lag
    assert found.lag_profile[0, lag + 3].item() == 1.0


def test_ties_go_to_the_smallest_lag_and_then_to_the_positive_one() -> None:
    every, mask = torch.ones(1, 8, 1), torch.ones(1, 8, dtype=torch.bool)
    assert match(every, every, mask, tau=1.0, max_lag=4).best_lag.item() == 0
    assert lag_preference(3) == [0, 1, -1, 2, -2, 3, -3]
    # frames of two kinds in turn: lags -1 and 1 are equally good, and better than 0
    turns = torch.tensor([1.0, -1.0]).repeat(4)[None, :, None]
    assert match(turns, -turns, mask, tau=1.0, max_lag=4).best_lag.item() == 1


def test_padding_is_never_seen_whatever_it_holds() -> None:
    generator = np.random.default_rng(2)
    v, a = torch.tensor(unit_rows(generator, 1, 7, 4)), torch.tensor(unit_rows(generator, 1, 7, 4))
    mask = torch.arange(7)[None] < 4
    plain = match(v, a, mask, tau=0.07, max_lag=5)
    v[:, 4:], a[:, 4:] = float("nan"), 1e6
    for found, expected in zip(match(v, a, mask, tau=0.07, max_lag=5), plain, strict=True):
        assert torch.equal(found, expected)
