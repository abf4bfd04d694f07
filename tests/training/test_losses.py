"""The losses against their formulas in plain loops, closed forms, torch's own cross-entropy and numerical gradients."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn.functional import cross_entropy

from dissonance.model.matching import match
from dissonance.training.contrast import NegativesConfig, lag_profile
from dissonance.training.losses import Logits, LossConfig, LossTerms, MultiTaskLoss
from dissonance.training.pairs import NO_LAG, UNKNOWN_ORIGIN, PairedWindows
from tests.training.loss_cases import SWITCHES, TERMS, UNEVEN, full_case, in_sync, loss_of
from tests.training.slow_losses import Case, random_case, slow_losses, unit_rows


def with_features(batch: PairedWindows, v: torch.Tensor, a: torch.Tensor) -> PairedWindows:
    return replace(batch, pictures=replace(batch.pictures, features=v), sounds=replace(batch.sounds, features=a))


def gradients(loss: MultiTaskLoss, batch: PairedWindows, logits: Logits) -> tuple[LossTerms, list[torch.Tensor]]:
    """The terms, and the total's gradients on v, a, the three logits and log tau."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (batch.pictures.features, batch.sounds.features, *logits)]
    terms = loss(with_features(batch, *inputs[:2]), Logits(*inputs[2:]))
    found = torch.autograd.grad(terms.total, [*inputs, loss.log_tau], allow_unused=True, materialize_grads=True)
    return terms, list(found)


# ------------------------------------------------------------------------------------------------------- against the formulas


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    pictures=st.integers(1, 5),
    sounds=st.integers(1, 7),
    pairs=st.integers(1, 9),
    frames=st.integers(1, 7),
    dim=st.integers(1, 5),
    crosses=st.integers(0, 5),
    max_lag=st.integers(0, 4),
    margin=st.sampled_from([-0.3, 0.0, 0.2]),
    negatives=st.builds(
        NegativesConfig,
        other_speaker=st.booleans(),
        same_speaker=st.booleans(),
        shifts=st.lists(st.sampled_from([-5, -2, 2, 3]), min_size=1, max_size=3, unique=True).map(tuple),
    ),
)
def test_equals_the_formulas_for_any_batch(
    seed: int, pictures: int, sounds: int, pairs: int, frames: int, dim: int, crosses: int, max_lag: int, margin: float, negatives: NegativesConfig
) -> None:
    case = random_case(seed, pictures=pictures, sounds=sounds, pairs=pairs, frames=frames, dim=dim, crosses=crosses, max_lag=max_lag)
    config = UNEVEN.model_copy(update={"margin": margin, "negatives": negatives})
    expected = slow_losses(case, config, tau=0.2, max_lag=max_lag)
    # tau is a float32 parameter until the module is made double: set it exactly, so that only the arithmetic is compared
    loss = loss_of(config, max_lag=max_lag)
    loss.log_tau.data.fill_(math.log(0.2))
    found = loss(case.batch(), case.torch_logits()).as_floats()
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    single = MultiTaskLoss(config, max_lag=max_lag)(case.batch(torch.float32), case.torch_logits(torch.float32))
    assert single.total.dtype == torch.float32
    assert single.as_floats() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_case_that_other_tests_use_has_members_in_every_term(seed: int) -> None:
    terms = loss_of()(full_case(seed).batch(), full_case(seed).torch_logits()).as_floats()
    assert all(value > 0 for value in terms.values()), terms


@pytest.mark.parametrize(("switch", "term"), list(zip(SWITCHES, TERMS, strict=True)))
def test_a_term_switched_off_is_zero_and_gone_from_the_total(switch: str, term: str) -> None:
    case = full_case()
    on, off = UNEVEN, UNEVEN.model_copy(update={switch: 0.0})
    before, after = (loss_of(config)(case.batch(), case.torch_logits()).as_floats() for config in (on, off))
    assert after[term] == 0.0
    assert {name: after[name] for name in TERMS if name != term} == {name: before[name] for name in TERMS if name != term}
    weights = dict(zip(TERMS, [0.3, 0.7, 1.1, 0.9 * 1.3, 0.9 * 1.7, 0.9 * 1.9, 0.9 * 2.3 * 2.9, 0.9 * 2.3 * 3.1], strict=True))
    assert before["total"] - after["total"] == pytest.approx(weights[term] * before[term], rel=1e-9)


@pytest.mark.parametrize("switch", ["lambda_match", "delta"])
def test_a_group_is_switched_off_by_its_own_weight(switch: str) -> None:
    case = full_case()
    gone = TERMS[3:] if switch == "lambda_match" else TERMS[6:]
    found = loss_of(UNEVEN.model_copy(update={switch: 0.0}))(case.batch(), case.torch_logits()).as_floats()
    assert [name for name in TERMS if found[name] == 0.0] == list(gone)


def test_a_head_that_says_nothing_takes_no_part() -> None:
    case = full_case()
    logits = case.torch_logits()
    found = loss_of()(case.batch(), Logits(visual=logits.visual)).as_floats()
    assert found["bce_audio"] == found["bce_fused"] == 0.0
    assert found["bce_visual"] > 0
    alone = loss_of()(case.batch()).as_floats()
    assert alone["total"] == pytest.approx(found["total"] - 0.3 * found["bce_visual"], rel=1e-9)


# --------------------------------------------------------------------------------------------------------------- closed forms


def test_info_nce_is_the_cross_entropy_of_the_matrix_of_scores() -> None:
    """Real windows of different people and no shifts: CLIP's loss, the mean of the cross-entropies of rows and columns."""
    generator = np.random.default_rng(3)
    v, a = unit_rows(generator, 4, 5, 3), unit_rows(generator, 4, 5, 3)
    config = UNEVEN.model_copy(update={"negatives": NegativesConfig(shifts=())})
    scores = torch.tensor([[np.mean([v[p, i] @ a[q, i] for i in range(5)]) for q in range(4)] for p in range(4)])
    loss = loss_of(config)
    logits = scores / loss.tau.detach()
    expected = (cross_entropy(logits, torch.arange(4)) + cross_entropy(logits.T, torch.arange(4))) / 2
    assert loss(in_sync(v, a)).contrast_windows.item() == pytest.approx(expected.item(), rel=1e-9)


def test_a_window_that_has_no_negative_does_not_thin_the_mean() -> None:
    """The third window is of unknown origin, so it is no rival and has none: the others cost what they cost without it."""
    generator = np.random.default_rng(9)
    v, a = unit_rows(generator, 3, 5, 3), unit_rows(generator, 3, 5, 3)
    loss = loss_of(UNEVEN.model_copy(update={"negatives": NegativesConfig(shifts=())}))
    origin = np.array([[0, 0, 0], [1, 1, 0], [UNKNOWN_ORIGIN, 2, 0]])
    found = loss(in_sync(v, a, v_origin=origin, a_origin=origin)).contrast_windows.item()
    assert found == pytest.approx(loss(in_sync(v[:2], a[:2])).contrast_windows.item(), rel=1e-9)


def test_lag_cross_entropy_in_closed_form_where_only_the_true_lag_matches() -> None:
    """Every frame has a direction of its own: c is 1 at lag 0 and 0 at the other 2L."""
    frames = np.eye(6)[None]
    loss = loss_of(max_lag=2)
    tau = loss.tau.item()
    assert loss(in_sync(frames, frames)).contrast_lag.item() == pytest.approx(math.log(1 + 4 * math.exp(-1 / tau)), rel=1e-9)
    wrong = in_sync(frames, frames, true_lag=np.array([1]))
    assert loss(wrong).contrast_lag.item() == pytest.approx(1 / tau + math.log(1 + 4 * math.exp(-1 / tau)), rel=1e-9)


def test_a_flat_profile_costs_the_logarithm_of_the_number_of_lags() -> None:
    same = np.ones((2, 8, 1))
    assert loss_of(max_lag=3)(in_sync(same, same)).contrast_lag.item() == pytest.approx(math.log(7), rel=1e-9)


@pytest.mark.parametrize("lag", [-2, 1])
def test_a_positive_true_lag_and_shift_mean_that_the_sound_comes_later(lag: int) -> None:
    """What is seen at frame i is heard at frame i + lag: the lag costs nothing there, and that mismatch has similarity 1."""
    seen = np.eye(12)
    picture, sound = seen[None, 3:9], seen[None, 3 - lag : 9 - lag]
    cross = np.array([[0, 0, lag]])
    found = loss_of(UNEVEN.model_copy(update={"tau": 0.02}))(in_sync(picture, sound, true_lag=np.array([lag]), cross=cross))
    assert found.contrast_lag.item() == pytest.approx(0.0, abs=1e-9)
    assert found.match_cross.item() == pytest.approx(1.0 - 0.1)


def test_the_lag_profile_is_the_one_that_matching_reads_the_lag_from() -> None:
    generator = np.random.default_rng(4)
    v, a = torch.tensor(unit_rows(generator, 3, 9, 4)), torch.tensor(unit_rows(generator, 3, 9, 4))
    mask = torch.arange(9)[None] < torch.tensor([[9], [4], [0]])
    profile, valid = lag_profile(v, a, mask, mask, max_lag=5)
    found = match(v, a, mask, tau=0.07, max_lag=5)
    torch.testing.assert_close(profile, found.lag_profile)
    assert torch.equal(valid, found.lag_valid)


def test_perfect_windows_cost_nothing_and_saddle_windows_what_they_should() -> None:
    frames = np.eye(12).reshape(2, 6, 12)  # no frame is like another
    config = LossConfig(tau=0.02)
    perfect = loss_of(config)(in_sync(frames, frames, cross=np.array([[0, 1, 0], [1, 1, 2]])))
    assert perfect.total.item() == pytest.approx(0.0, abs=1e-9)
    saddle = loss_of(config)(in_sync(frames * 0, frames * 0)).as_floats()
    assert saddle["match_real"] == 1.0
    assert saddle["contrast_windows"] == pytest.approx(math.log(6))  # its own, the other window's, and four shifts
    assert saddle["contrast_lag"] == pytest.approx(math.log(5))


# ------------------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("term", TERMS)
def test_gradients_equal_numerical_ones(term: str) -> None:
    case = random_case(1, pictures=2, sounds=3, pairs=5, frames=4, dim=2, crosses=3, max_lag=2)
    case.v_origin[:, 0], case.a_origin[:, 0] = [0, 1], [0, 1, 2]
    case.v_valid[:, :3] = case.a_valid[:, :3] = case.speech[:, 1] = True
    case.picture_fake[:2] = case.sound_fake[:2] = False
    case.picture_fake[2], case.true_lag[0], case.cross[0, 2] = True, 1, 0
    loss, batch = loss_of(), case.batch()

    def value(v: torch.Tensor, a: torch.Tensor, logits: torch.Tensor, log_tau: torch.Tensor) -> torch.Tensor:
        terms = torch.func.functional_call(loss, {"log_tau": log_tau}, (with_features(batch, v, a), Logits(*logits)))
        found: torch.Tensor = getattr(terms, term)
        return found

    assert value(batch.pictures.features, batch.sounds.features, torch.tensor(case.logits), loss.log_tau).item() > 0
    inputs = (batch.pictures.features, batch.sounds.features, torch.tensor(case.logits), loss.log_tau.detach().clone())
    assert torch.autograd.gradcheck(value, tuple(tensor.requires_grad_() for tensor in inputs))


def test_a_fixed_tau_is_no_parameter_to_learn_and_a_learnt_one_stops_at_its_bound() -> None:
    assert [p.requires_grad for p in MultiTaskLoss(LossConfig(), max_lag=8).parameters()] == [True]
    assert [p.requires_grad for p in MultiTaskLoss(LossConfig(learn_tau=False), max_lag=8).parameters()] == [False]
    loss = MultiTaskLoss(LossConfig(), max_lag=8)
    assert loss.tau.item() == pytest.approx(0.07)
    loss.log_tau.data.fill_(-50.0)
    assert loss.tau.item() == pytest.approx(0.01)


# ------------------------------------------------------------------------------------------------------- terms without members


def no_real_pair(case: Case) -> None:
    case.picture_fake[:] = True


def no_forged_pair(case: Case) -> None:
    case.picture_fake[:] = case.sound_fake[:] = False


def no_speech(case: Case) -> None:
    case.speech[:] = False


def nothing_valid(case: Case) -> None:
    case.v_valid[:] = False


def no_mismatch(case: Case) -> None:
    case.cross = case.cross[:0]


def mismatches_shifted_out_of_the_window(case: Case) -> None:
    case.cross[:, 2] = 6


def no_known_lag(case: Case) -> None:
    case.true_lag[:] = NO_LAG


def one_moment_of_one_clip_and_no_shift_that_fits(case: Case) -> None:
    case.v_origin[:] = case.a_origin[:] = [7, 7, 0]
    case.v_valid[:, 2:] = False
    case.a_valid[:, 2:] = False


def origins_unknown_and_no_shift_that_fits(case: Case) -> None:
    case.v_origin[:, 0] = UNKNOWN_ORIGIN
    case.v_valid[:, 2:] = False
    case.a_valid[:, 2:] = False


WITHOUT_MEMBERS: list[tuple[Callable[[Case], None], tuple[str, ...]]] = [
    (no_real_pair, ("match_real", "contrast_windows")),
    (no_forged_pair, ("match_fake",)),
    (no_speech, ("match_real", "contrast_windows", "contrast_lag")),
    (nothing_valid, TERMS),
    (no_mismatch, ("match_cross",)),
    (mismatches_shifted_out_of_the_window, ("match_cross",)),
    (no_known_lag, ("contrast_lag",)),
    (one_moment_of_one_clip_and_no_shift_that_fits, ("contrast_windows",)),
    (origins_unknown_and_no_shift_that_fits, ("contrast_windows",)),
]


@pytest.mark.parametrize(("change", "empty"), WITHOUT_MEMBERS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_term_without_members_is_exactly_zero_with_zero_gradient(change: Callable[[Case], None], empty: tuple[str, ...]) -> None:
    case = full_case()
    case.true_lag[:3] = 0
    case.speech[:, 0] = case.v_valid[:, 0] = case.a_valid[:, 0] = True
    case.cross[0, 2] = 0
    change(case)
    batch, logits = case.batch(), case.torch_logits()
    terms, found = gradients(loss_of(), batch, logits)
    assert {term for term in TERMS if getattr(terms, term).item() == 0.0} == set(empty)
    assert all(torch.isfinite(gradient).all() for gradient in found)
    for term, switch in zip(TERMS, SWITCHES, strict=True):
        if term in empty:
            alone = UNEVEN.model_copy(update={other: 0.0 for other in SWITCHES if other != switch})
            _, found = gradients(loss_of(alone), batch, logits)
            assert not any(gradient.any() for gradient in found), term


def test_a_single_clip_still_has_its_own_shifts_as_negatives() -> None:
    generator = np.random.default_rng(6)
    v, a = unit_rows(generator, 1, 6, 3), unit_rows(generator, 1, 6, 3)
    found = loss_of()(in_sync(v, a)).contrast_windows.item()
    tau = loss_of().tau.item()
    own = np.mean([v[0, i] @ a[0, i] for i in range(6)])
    rivals = [np.mean([v[0, i] @ a[0, i + d] for i in range(6) if 0 <= i + d < 6]) for d in (-3, 2)]
    assert found == pytest.approx(math.log(sum(math.exp((score - own) / tau) for score in [own, *rivals])), rel=1e-9)


# ------------------------------------------------------------------------------------------------------------------ invariance


def test_the_order_of_pairs_and_windows_changes_nothing() -> None:
    case, generator = full_case(), np.random.default_rng(7)
    expected = loss_of()(case.batch(), case.torch_logits()).as_floats()
    pair, picture, sound, cross = (generator.permutation(count) for count in (11, 5, 9, 7))
    new_picture, new_sound = np.argsort(picture), np.argsort(sound)
    turned = Case(
        v=case.v[picture], v_valid=case.v_valid[picture], v_origin=case.v_origin[picture],
        a=case.a[sound], a_valid=case.a_valid[sound], a_origin=case.a_origin[sound], speech=case.speech[sound],
        picture=new_picture[case.picture[pair]], sound=new_sound[case.sound[pair]],
        picture_fake=case.picture_fake[pair], sound_fake=case.sound_fake[pair], mismatched=case.mismatched[pair],
        true_lag=case.true_lag[pair], logits=case.logits[:, pair],
        cross=np.stack([new_picture[case.cross[cross, 0]], new_sound[case.cross[cross, 1]], case.cross[cross, 2]], axis=1),
    )  # fmt: skip
    assert loss_of()(turned.batch(), turned.torch_logits()).as_floats() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_what_stands_in_padding_changes_neither_terms_nor_gradients(value: float) -> None:
    case = full_case()
    assert not case.v_valid.all()
    assert not case.a_valid.all()
    clean, expected = gradients(loss_of(), case.batch(), case.torch_logits())
    case.v[~case.v_valid] = case.a[~case.a_valid] = value
    case.speech[~case.a_valid] = True
    absent = ~(case.v_valid[case.picture] & case.a_valid[case.sound]).any(axis=1)
    assert absent.any()
    case.logits[:, absent] = value
    dirty, found = gradients(loss_of(), case.batch(), case.torch_logits())
    assert dirty.as_floats() == clean.as_floats()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_autocast_does_not_round_the_similarities() -> None:
    case = full_case()
    batch, logits = case.batch(torch.float32), case.torch_logits(torch.float32)
    loss = MultiTaskLoss(UNEVEN, max_lag=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(batch, logits).as_floats()
    assert inside == loss(batch, logits).as_floats()


def test_bfloat16_features_are_worked_on_in_float32() -> None:
    case = full_case()
    terms = MultiTaskLoss(UNEVEN, max_lag=2)(case.batch(torch.bfloat16), case.torch_logits(torch.bfloat16))
    assert terms.total.dtype == torch.float32
    rounded = replace(case, **{name: torch.tensor(getattr(case, name)).bfloat16().double().numpy() for name in ("v", "a", "logits")})
    expected = slow_losses(rounded, UNEVEN, tau=0.2, max_lag=2)
    assert terms.as_floats() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"alpha": -1}, "alpha"),
        ({"epsilon": 1}, "epsilon"),
        ({"tau": 0.01}, "must be above tau_min"),
        ({"negatives": {"shifts": [1, 4]}}, r"shifts \[1\] are below 2 frames"),
        ({"negatives": {"shifts": [2, 2]}}, "name one twice"),
        ({"negatives": {"shifts": [], "other_speaker": False, "same_speaker": False}}, "there are no negatives"),
        ({"lambda_match": 0, "bce_visual": 0, "bce_audio": 0, "bce_fused": 0}, "every term is switched off"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(data: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        LossConfig.model_validate(data)


def test_the_defaults_are_the_designs() -> None:
    config = LossConfig()
    assert (config.alpha, config.beta, config.gamma, config.delta, config.margin, config.lambda_match) == (2, 2, 1, 1, 0, 1)
    assert (config.bce_visual, config.bce_audio, config.bce_fused, config.tau) == (1, 1, 1, 0.07)
