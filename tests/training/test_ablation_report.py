"""Rows of ablations: what each changes and nothing else; and the figures and tables of runs. Nothing is trained."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dissonance.config import ModelConfig
from dissonance.errors import UsageError
from dissonance.model.network import build_network
from dissonance.training.ablation_report import Run, differences, figures, table
from dissonance.training.ablations import ROWS, resolve_rows
from dissonance.training.labels import Clip
from dissonance.training.run import load_train_config
from dissonance.training.scoring import ClipScore
from tests.training.tiny import named, tiny_model, tiny_run

# ----------------------------------------------------------------------------------------------------------------- rows

PLAIN = tiny_run(augment={})  # with augmentation, so that it can be switched off


def flat(document: Any, key: str = "") -> dict[str, Any]:
    """Leaves by dotted key."""
    if not isinstance(document, dict):
        return {key: document}
    return {inner: value for name, part in document.items() for inner, value in flat(part, f"{key}.{name}" if key else name).items()}


def test_each_row_differs_from_the_default_in_the_keys_that_it_names_and_builds() -> None:
    rows, left_out = resolve_rows(PLAIN)
    assert rows["default"] == PLAIN
    assert list(rows) == [name for name in ROWS if name not in left_out]
    before = flat(PLAIN.model_dump(mode="json"))
    for name, config in rows.items():
        after = flat(config.model_dump(mode="json"))
        assert {key: after[key] for key in after if after[key] != before.get(key)} == ROWS[name], name
        assert isinstance(config.model, ModelConfig)
        build_network(config.model, seed=0)
    assert list(left_out) == ["beta_on"]


def test_every_weight_of_the_loss_has_a_row_but_for_the_head_that_is_measured() -> None:
    weights = [
        name for name, field in type(PLAIN.loss).model_fields.items() if field.annotation is float and name not in ("margin", "tau", "tau_min")
    ]
    assert {f"loss.{name}" for name in weights} - {key for changes in ROWS.values() for key in changes} == {"loss.bce_fused"}


OF_MATCH = {"no_alpha", "no_beta", "beta_on", "no_gamma", "no_delta", "no_contrast_windows", "no_contrast_lag", "no_lambda_match"}


@pytest.mark.parametrize(
    ("changes", "idle", "impossible"),
    [
        ({"loss": {"beta": 0.0}}, {"no_beta"}, set()),
        ({"loss": {"beta": 1.0}}, set(), set()),
        ({"loss": {"delta": 0.0}}, {"beta_on", "no_delta", "no_contrast_windows", "no_contrast_lag"}, set()),
        ({"loss": {"lambda_match": 0.0}}, OF_MATCH, set()),
        ({"loss": {"bce_audio": 0.0, "bce_fused": 0.0, "lambda_match": 0.0}}, OF_MATCH | {"no_bce_audio"}, {"no_bce_visual"}),
        ({"fused_from": 0.0}, {"beta_on", "fused_from_start"}, set()),
        ({"batch": {"windows": 4, "mismatches": 0, "apart_frames": 3}}, {"beta_on", "no_mismatches", "no_glimpses"}, set()),
        ({"augment": tiny_run().augment}, {"beta_on", "no_augmentation"}, set()),
        (
            {"model": tiny_model(prompts={"count": 0})},
            {"beta_on", "no_visual_prompts", "carry_replace", "per_frame"},
            {"readout_prompt", "readout_cls_prompt"},
        ),
    ],
)
def test_a_row_that_changes_nothing_or_cannot_be_is_left_out_with_its_reason(changes: dict[str, Any], idle: set[str], impossible: set[str]) -> None:
    rows, left_out = resolve_rows(tiny_run(**{"augment": {}, **changes}))
    assert {name for name, why in left_out.items() if why.startswith("changes nothing here")} == idle
    assert {name for name, why in left_out.items() if why.startswith("is not possible with this configuration: ")} == impossible
    assert set(rows) == set(ROWS) - idle - impossible
    for name, why in left_out.items():
        assert all(key in why for key in ROWS[name])


def test_rows_are_chosen_by_name_and_the_default_is_always_there() -> None:
    assert list(resolve_rows(PLAIN, ["no_gamma", "per_frame"])[0]) == ["default", "per_frame", "no_gamma"]
    assert set(resolve_rows(PLAIN, ["beta_on"])[1]) == {"beta_on"}
    with pytest.raises(UsageError, match=r"Invalid --row 'no_sound'. Supported values are default, carry_replace, .*no_augmentation\."):
        resolve_rows(PLAIN, ["default", "no_sound"])


# -------------------------------------------------------------------------------------------------------------- figures


def scored(count: int = 40) -> list[tuple[Clip, ClipScore]]:
    """Clips of every kind with scores by chance; some are judged by their picture."""
    generator = np.random.default_rng(3)
    kinds = {"none": (False, False), "visual_timing": (True, False), "audio_timing": (False, True), "mouth": (True, False), "voice": (False, True)}
    rows = []
    for number in range(count):
        name, (picture, sound) = list(kinds.items())[number % len(kinds)]
        clip = replace(named(str(number), picture_fake=picture, sound_fake=sound), manipulation=name)
        silent = number % 9 == 8
        logits = {case: float(generator.normal()) for case in (("v",) if silent else ("av", "v", "a"))}
        rows.append((clip, ClipScore("v" if silent else "av", logits, None, None if silent else int(generator.integers(-4, 5)), 1, 1.0)))  # type: ignore[arg-type]
    return rows


def test_figures_are_scikit_learn_s_by_kind_of_forgery() -> None:
    rows = scored()
    found = figures(rows)

    def auc(case: Any, fakes: set[str], reals: set[str]) -> float:
        kept = [
            (clip.manipulation in fakes, score.logits[case]) for clip, score in rows if case in score.logits and clip.manipulation in fakes | reals
        ]
        return float(roc_auc_score(*zip(*kept, strict=True)))

    expected = {
        "auc_fused": auc("av", {"visual_timing", "audio_timing", "mouth", "voice"}, {"none"}),
        "auc_fused_timing": auc("av", {"visual_timing", "audio_timing"}, {"none"}),
        **{f"auc_fused:{name}": auc("av", {name}, {"none"}) for name in ("audio_timing", "mouth", "visual_timing", "voice")},
        "auc_visual_artefacts": auc("v", {"mouth"}, {"none", "audio_timing", "voice"}),
        "auc_audio_artefacts": auc("a", {"voice"}, {"none", "visual_timing", "mouth"}),
        "lag_within_1": np.mean([score.best_lag in (-1, 0, 1) for clip, score in rows if clip.manipulation == "none" and score.best_lag is not None]),
    }
    assert list(found) == list(expected)
    assert found == pytest.approx(expected)
    assert len(set(expected.values())) == len(expected)


def test_a_data_set_without_manipulations_of_timing_has_no_such_figure_and_what_is_not_defined_is_none() -> None:
    rows = [(clip, score) for clip, score in scored() if clip.manipulation in ("none", "mouth")]
    found = figures(rows)
    assert list(found) == ["auc_fused", "auc_fused:mouth", "auc_visual_artefacts", "auc_audio_artefacts", "lag_within_1"]
    assert found["auc_audio_artefacts"] is None
    assert set(figures([]).values()) == {None}


# --------------------------------------------------------------------------------------------------------------- tables

VALUES = {"default": [0.8, 0.7, 0.95], "no_gamma": [0.6, 0.9, None], "no_delta": [0.5]}
RUNS = [
    Run(row, seed, figures={"auc": value, "never": None}, losses={"total": 10.0 * seed + 1}, cost={"steps": 5})
    for row, values in VALUES.items()
    for seed, value in enumerate(values)
]
RUNS.append(Run("no_delta", 1, failed="it diverged"))


def test_tables_have_mean_lowest_and_highest_over_the_seeds() -> None:
    found = table(RUNS, "figures")
    assert list(found) == list(VALUES)
    for row, values in VALUES.items():
        known = np.array([value for value in values if value is not None])
        assert asdict(found[row]["auc"]) == {"mean": pytest.approx(known.mean()), "low": known.min(), "high": known.max(), "seeds": len(known)}  # type: ignore[arg-type]
        assert found[row]["never"] is None
    losses = table(RUNS, "losses")["default"]["total"]
    assert losses is not None
    assert (losses.mean, losses.low, losses.high) == (11.0, 1.0, 21.0)


def test_differences_are_paired_by_seed() -> None:
    found = differences(RUNS, "figures")
    assert list(found) == ["no_gamma", "no_delta"]
    base = np.array(VALUES["default"])
    of_gamma, of_delta = np.array([0.6, 0.9]) - base[:2], np.array([0.5]) - base[:1]
    for row, expected in (("no_gamma", of_gamma), ("no_delta", of_delta)):
        spread = asdict(found[row]["auc"])  # type: ignore[arg-type]
        assert spread == pytest.approx({"mean": expected.mean(), "low": expected.min(), "high": expected.max(), "seeds": len(expected)})
    assert differences(RUNS[3:], "figures")["no_gamma"]["auc"] is None  # nothing to compare with


# --------------------------------------------------------------------------------------------- the shipped configuration


def test_the_shipped_configuration_has_all_rows() -> None:
    base = load_train_config(Path(__file__).resolve().parents[2] / "configs" / "train" / "ablations.yaml")
    rows, left_out = resolve_rows(base)
    assert set(left_out) == {"no_beta"}
    assert set(rows) == set(ROWS) - {"no_beta"}
