"""Plots are PNGs that show what they were given: where the colours lie is read back with PIL."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dissonance.errors import OutputError

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'dissonance[train]'")

from dissonance.training.plots import (  # noqa: E402
    SIZE_PX,
    plot_reliability,
    plot_roc,
    plot_score_against_duration,
    plot_score_histograms,
)

LABELS = np.arange(200) >= 100


def draw_each(folder: Path, scores: Any, labels: Any = LABELS) -> list[Path]:
    durations = np.linspace(1, 600, len(labels))
    return [
        plot_roc(folder / "roc.png", {"fused": (scores, labels)}, title="fused"),
        plot_score_histograms(folder / "histograms.png", scores, labels, title="fused", thresholds=(0.3, 0.8)),
        plot_score_against_duration(folder / "duration.png", scores, labels, durations, title="fused"),
        plot_reliability(folder / "reliability.png", {"fused": (scores, labels)}, title="fused"),
    ]


def pixels(path: Path) -> Any:
    """(height, width, 3), float. Only data has colour: axes, grid and text are grey (but for the legend's samples)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float64)


def centre(mask: Any) -> tuple[float, float]:
    """Mean (column, row) of the pixels of a mask, as shares of the picture."""
    rows, columns = np.nonzero(mask)
    return columns.mean() / mask.shape[1], rows.mean() / mask.shape[0]


def bluish(picture: Any) -> Any:
    return picture[..., 2] - picture[..., 0] > 30


def reddish(picture: Any) -> Any:
    return picture[..., 0] - picture[..., 2] > 30


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings(action="error"):
        yield


def test_every_plot_is_a_png_of_the_stated_size_with_something_on_it(tmp_path: Path) -> None:
    scores = np.random.default_rng(1).random(200)
    for path in draw_each(tmp_path / "new" / "folder", scores):
        with Image.open(path) as image:
            assert (image.format, image.size) == ("PNG", SIZE_PX)
            image.verify()
        assert (pixels(path) < 128).any()
        assert bluish(pixels(path)).sum() > 100
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["duration.png", "histograms.png", "reliability.png", "roc.png"]


def test_the_same_numbers_give_the_same_bytes_whatever_the_users_settings(tmp_path: Path) -> None:
    scores = np.random.default_rng(2).random(200)
    first = [path.read_bytes() for path in draw_each(tmp_path / "a", scores)]
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "black", "savefig.dpi": 30}):
        again = [path.read_bytes() for path in draw_each(tmp_path / "b", scores)]
        assert matplotlib.rcParams["lines.linewidth"] == 9  # and the user's stay
    assert first == again
    assert plot_roc(tmp_path / "c.png", {"fused": (scores[::-1], LABELS)}, title="fused").read_bytes() != first[0]


def test_histograms_have_reals_where_reals_score_and_fakes_where_fakes_score(tmp_path: Path) -> None:
    scores = np.where(LABELS, 0.9, 0.1) + np.linspace(-0.05, 0.05, 200)
    picture = pixels(plot_score_histograms(tmp_path / "h.png", scores, LABELS, title="scores"))
    assert centre(bluish(picture))[0] < 0.4
    assert centre(reddish(picture))[0] > 0.6


def test_long_clips_are_on_the_right_and_high_scores_at_the_top(tmp_path: Path) -> None:
    path = plot_score_against_duration(tmp_path / "d.png", np.where(LABELS, 0.9, 0.1), LABELS, np.where(LABELS, 300.0, 5.0), title="d")
    real, fake = (centre(colour(pixels(path))) for colour in (bluish, reddish))
    assert real[0] < fake[0]
    assert real[1] > fake[1]
    with pytest.raises(ValueError, match="100 of 200 durations are not above 0"):
        plot_score_against_duration(tmp_path / "e.png", np.where(LABELS, 0.9, 0.1), LABELS, np.where(LABELS, 300.0, 0.0), title="d")


def test_a_good_detectors_curve_bends_up_and_left_a_bad_ones_down_and_right(tmp_path: Path) -> None:
    scores = np.random.default_rng(3).normal(np.where(LABELS, 1.0, 0.0))
    good, bad = (centre(bluish(pixels(plot_roc(tmp_path / f"{sign}.png", {"x": (sign * scores, LABELS)}, title="")))) for sign in (1, -1))
    assert good[0] < bad[0]
    assert good[1] < bad[1]


def test_an_unsure_detectors_reliability_lies_above_a_sure_ones_where_it_says_real_too_often(tmp_path: Path) -> None:
    p_fake = np.linspace(0, 1, 200)
    rarely, often = (centre(bluish(pixels(plot_reliability(tmp_path / f"{at}.png", {"x": (p_fake, p_fake > at)}, title=""))))[1] for at in (0.8, 0.2))
    assert often < rarely


@pytest.mark.parametrize("labels", [np.zeros(200, dtype=bool), np.zeros(0, dtype=bool)], ids=["real", "none"])
def test_one_class_or_no_clips_are_drawn_without_it(tmp_path: Path, labels: Any) -> None:
    paths = draw_each(tmp_path, np.linspace(0, 1, len(labels)), labels)
    points = pixels(paths[2])
    assert (bluish(points).sum() > 500) == (len(labels) > 0)
    assert reddish(points).sum() < 200  # the legend's sample


def test_names_from_a_data_set_are_text(tmp_path: Path) -> None:
    names = ["_hidden", "$\\undefined$", "50 % $", "a\nb", ""]
    for plot in (plot_roc, plot_reliability):
        path = plot(tmp_path / "names.png", dict.fromkeys(names, (np.linspace(0, 1, 200), LABELS)), title="$\\undefined$")
        assert pixels(path).shape == (SIZE_PX[1], SIZE_PX[0], 3)


def test_a_plot_that_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plot_roc(tmp_path / "roc.png", {"x": (np.linspace(0, 1, 200), LABELS)}, title="first")
    before = path.read_bytes()
    write: Callable[[Path, bytes], int] = Path.write_bytes

    def full(target: Path, data: bytes) -> int:
        write(target, data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"roc\.png': No space left on device\. Free some space"):
        plot_roc(path, {"x": (np.linspace(1, 0, 200), LABELS)}, title="second")
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["roc.png"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another folder"):
        plot_roc(tmp_path / "file" / "roc.png", {}, title="third")
