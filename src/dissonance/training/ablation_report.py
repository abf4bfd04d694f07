"""What ablations measure, and the tables of it: means over seeds, and differences to the default paired by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml
from sklearn.metrics import roc_auc_score

from dissonance.bundle import ModalityCase
from dissonance.training.labels import LABEL_OF_CASE, Clip
from dissonance.training.metrics import as_json, as_markdown
from dissonance.training.scoring import ClipScore

DEFAULT = "default"
NOTE = """Each cell is the mean over seeds, and in brackets the lowest and the highest. AUC and lag are of the weights with the best validation
AUC, on validation clips that did not select them; a seed draws the weights at the start, the order of the clips, and which identities select.
`auc_fused:<manipulation>`: its fakes against all reals; `auc_fused_timing`: those of all manipulations of timing. `auc_visual_artefacts` is the
visual head's on fake pictures but for those of timing, `auc_audio_artefacts` the audio head's on fake sounds alike. `lag_within_1`: the share of
real clips whose best lag is within a frame of 0."""


@dataclass(frozen=True)
class Run:
    """One row with one seed: numbers by name, or why it could not be trained. losses: of the last step, before their weights."""

    row: str
    seed: int
    figures: dict[str, float | None] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float | None] = field(default_factory=dict)
    failed: str | None = None


def figures(scored: Sequence[tuple[Clip, ClipScore]]) -> dict[str, float | None]:
    """What a run is measured by, of clips and their scores; see NOTE. None: not defined.

    A data set without manipulations of timing has no figure of them.
    """
    fakes = sorted({clip.manipulation for clip, _ in scored if clip.fake})

    def auc(case: ModalityCase, *, of: Sequence[str] = fakes) -> float | None:
        """Of the case's head on its own label, the fakes being those of some manipulations."""
        label = LABEL_OF_CASE[case]
        rows = [(label(clip), score.logits[case]) for clip, score in scored if case in score.logits and (clip.manipulation in of or not label(clip))]
        labels, logits = [fake for fake, _ in rows], [logit for _, logit in rows]
        return float(roc_auc_score(labels, logits)) if len(set(labels)) == 2 else None

    timing = [name for name in fakes if "timing" in name]
    artefacts = [name for name in fakes if name not in timing]
    lags = [abs(score.best_lag) <= 1 for clip, score in scored if not clip.fake and score.best_lag is not None]
    return {
        "auc_fused": auc("av"),
        **({"auc_fused_timing": auc("av", of=timing)} if timing else {}),
        **{f"auc_fused:{name}": auc("av", of=[name]) for name in fakes},
        "auc_visual_artefacts": auc("v", of=artefacts),
        "auc_audio_artefacts": auc("a", of=artefacts),
        "lag_within_1": float(np.mean(lags)) if lags else None,
    }


# --------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Spread:
    """One number over the seeds that have it."""

    mean: float
    low: float
    high: float
    seeds: int


def spread(values: Sequence[float]) -> Spread | None:
    """None of no values."""
    return Spread(float(np.mean(values)), float(np.min(values)), float(np.max(values)), len(values)) if values else None


Table = dict[str, dict[str, Spread | None]]  # by row, then by number


def table(runs: Sequence[Run], section: str) -> Table:
    """Each number of a section of the runs (`figures`, `losses`, `cost`), by row; runs that failed are left out."""
    return {row: {name: spread(list(found.values())) for name, found in numbers.items()} for row, numbers in _by_row(runs, section).items()}


def differences(runs: Sequence[Run], section: str) -> Table:
    """What each row has more than the default, over the seeds that both have."""
    rows = _by_row(runs, section)
    base = rows.pop(DEFAULT, {})

    def paired(name: str, found: Mapping[int, float]) -> list[float]:
        return [value - base[name][seed] for seed, value in found.items() if seed in base.get(name, {})]

    return {row: {name: spread(paired(name, found)) for name, found in numbers.items()} for row, numbers in rows.items()}


def _by_row(runs: Sequence[Run], section: str) -> dict[str, dict[str, dict[int, float]]]:
    """By row, number and seed; what a run has as None is left out."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for run in runs:
        for name, value in getattr(run, section).items():
            of_name = found.setdefault(run.row, {}).setdefault(name, {})
            if value is not None:
                of_name[run.seed] = value
    return found


# ------------------------------------------------------------------------------------------------------------ documents


def as_document(facts: Mapping[str, Any], changes: Mapping[str, str], runs: Sequence[Run]) -> dict[str, Any]:
    """Facts, runs and tables, as JSON has them. `changes`: of each row that has runs, in the tables' order."""
    order = list(changes)
    runs = sorted(runs, key=lambda run: (order.index(run.row), run.seed))
    tables = {section: table(runs, section) for section in ("figures", "losses", "cost")}
    document = {**facts, "rows": changes, "tables": {**tables, "figures_against_default": differences(runs, "figures")}, "runs": runs}
    return dict(as_json(document))


def markdown(document: Mapping[str, Any]) -> str:
    """The document to read."""
    tables, runs = document["tables"], document["runs"]
    failed = [run for run in runs if run["failed"] is not None]
    finished = {row: [run["seed"] for run in runs if run["row"] == row and run["failed"] is None] for row in document["rows"]}
    measured = {}
    for row, seeds in finished.items():
        why = "; ".join(f"seed {run['seed']}: {run['failed']}" for run in failed if run["row"] == row)
        measured[row] = {"seeds": seeds, **_cells(tables["figures"].get(row, {}), "{:.3f}"), **({"could not be trained": why} if failed else {})}
    sections: dict[str, Mapping[str, Any]] = {
        "Figures": measured,
        f"Difference to `{DEFAULT}`, paired by seed": _rows(tables["figures_against_default"], "{:+.3f}"),
        "Losses at the last step, before their weights": _rows(tables["losses"], "{:.3f}"),
        "Cost": _rows(tables["cost"], "{:,.0f}"),
        "What each row changes": {row: {"changes": changes} for row, changes in document["rows"].items()},
        "Rows that are left out": {row: {"because it": why} for row, why in document["left_out"].items()},
    }
    parts = ["# Ablations", f"Made by `{document['command']}`, {document['date']}, on {document['machine']}.", NOTE]
    parts += [f"## {heading}\n\n{as_markdown(rows, depth=3).strip()}" for heading, rows in sections.items() if rows]
    parts.append(f"## The configuration\n\n`{document['config_file']}`, with all that it leaves to defaults:\n\n```yaml\n{_yaml(document)}```")
    return "\n\n".join(parts) + "\n"


def _rows(rows: Mapping[str, Mapping[str, Any]], form: str) -> dict[str, dict[str, str]]:
    return {row: _cells(numbers, form) for row, numbers in rows.items()}


def _cells(numbers: Mapping[str, Mapping[str, float] | None], form: str) -> dict[str, str]:
    def cell(found: Mapping[str, float] | None) -> str:
        if found is None:
            return ""
        shown = [form.format(found[name]) for name in ("mean", "low", "high")]
        return shown[0] if shown[1] == shown[2] else f"{shown[0]} ({shown[1]} to {shown[2]})"

    return {name: cell(found) for name, found in numbers.items()}


def _yaml(document: Mapping[str, Any]) -> str:
    return yaml.safe_dump(document["config"], sort_keys=False, width=140)
