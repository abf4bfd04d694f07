"""Pictures of an evaluation: ROC, scores by class, scores against duration, reliability. PNG, 800 x 600 pixels.

Drawn on matplotlib's Agg canvas with its own defaults, whatever the user's matplotlibrc says, and without pyplot's global state: the same numbers
give the same bytes with one version of matplotlib. Each function writes its file whole or not at all, returns its path, and raises OutputError where
it cannot. A class without clips leaves its part of the picture empty, and the legend says so.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from sklearn.metrics import auc, roc_curve

from dissonance.errors import OutputError
from dissonance.files import replacing
from dissonance.training.calibration import reliability
from dissonance.training.metrics import checked

SIZE_PX = (800, 600)
REAL, FAKE = "#1f6f8b", "#c8553d"  # told apart by colour-blind readers, and in grey
_DPI = 100


def plot_roc(path: Path, curves: Mapping[str, tuple[ArrayLike, ArrayLike]], *, title: str) -> Path:
    """ROC curves by name: each (scores (clips,), labels (clips,) bool)."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for name, (scores, labels) in curves.items():
            values, fake = checked(scores, labels, labels)
            if not fake.any() or fake.all():
                axes.plot([], [], label=_shown(f"{name}: one class only"))
                continue
            false_positive_rate, true_positive_rate, _ = roc_curve(fake, values)
            area = auc(false_positive_rate, true_positive_rate)
            axes.plot(false_positive_rate, true_positive_rate, label=_shown(f"{name}: AUC {area:.3f}"))
        axes.set(xlabel="false-positive rate", ylabel="true-positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        _add_legend(axes, "lower right")

    return _write(path, draw, title=title)


def plot_score_histograms(
    path: Path, scores: ArrayLike, labels: ArrayLike, *, title: str, thresholds: tuple[float, ...] = (), bins: int = 40
) -> Path:
    """Densities of the scores (clips,) of reals and of fakes on common bins; `thresholds` are drawn as lines."""
    values, fake = checked(scores, labels, labels)

    def draw(axes: Axes) -> None:
        edges = np.histogram_bin_edges(values, bins=bins)
        for name, colour, mask in (("real", REAL, ~fake), ("fake", FAKE, fake)):
            density = np.histogram(values[mask], bins=edges)[0] / max(1, mask.sum())
            axes.stairs(density, edges, color=colour, fill=True, alpha=0.5, label=f"{name} ({mask.sum()})")
        for threshold in thresholds:
            axes.axvline(threshold, color="0.3", linestyle="--", linewidth=1)
        axes.set(xlabel="score", ylabel="share of the class's clips")
        _add_legend(axes, "upper center")

    return _write(path, draw, title=title)


def plot_score_against_duration(path: Path, scores: ArrayLike, labels: ArrayLike, durations_s: ArrayLike, *, title: str) -> Path:
    """One point a clip: score (clips,) over duration in seconds (clips,), on a logarithmic axis. Durations must be above 0."""
    values, fake = checked(scores, labels, durations_s)
    durations, _ = checked(durations_s, labels, labels)
    if (durations <= 0).any():
        raise ValueError(f"{(durations <= 0).sum()} of {len(durations)} durations are not above 0")

    def draw(axes: Axes) -> None:
        for name, colour, mask in (("real", REAL, ~fake), ("fake", FAKE, fake)):
            axes.scatter(durations[mask], values[mask], s=12, color=colour, alpha=0.6, linewidths=0, label=f"{name} ({mask.sum()})")
        axes.set(xlabel="duration (s)", ylabel="score", xscale="log" if len(values) else "linear")
        _add_legend(axes, "best")

    return _write(path, draw, title=title)


def plot_reliability(path: Path, curves: Mapping[str, tuple[ArrayLike, ArrayLike]], *, title: str) -> Path:
    """Share of fakes over mean probability, in bins of equal mass, by name: each (p_fake (clips,), labels (clips,) bool)."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for name, (p_fake, labels) in curves.items():
            bins = reliability(p_fake, labels)
            clips = sum(each.clips for each in bins)
            axes.plot([each.mean_p_fake for each in bins], [each.share_fake for each in bins], marker="o", label=_shown(f"{name} ({clips} clips)"))
        axes.set(xlabel="mean p_fake", ylabel="share of fakes", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        _add_legend(axes, "upper left")

    return _write(path, draw, title=title)


def _shown(name: str) -> str:
    """matplotlib leaves names that begin with an underscore out of a legend."""
    return name.lstrip("_")


def _add_legend(axes: Axes, place: Literal["lower right", "upper center", "upper left", "best"]) -> None:
    if axes.get_legend_handles_labels()[0]:
        for text in axes.legend(loc=place).get_texts():
            text.set_parse_math(False)  # a dollar in a name is no formula


def _write(path: Path, draw: Callable[[Axes], None], *, title: str) -> Path:
    buffer = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(SIZE_PX[0] / _DPI, SIZE_PX[1] / _DPI), dpi=_DPI)
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(title, parse_math=False)
        axes.grid(alpha=0.3)
        figure.savefig(buffer, format="png", metadata={"Software": None})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_bytes(buffer.getvalue())
    except OSError as error:
        raise OutputError(f"Cannot write plot '{path}': {error.strerror or error}. Free some space, or choose another folder.") from error
    return path
