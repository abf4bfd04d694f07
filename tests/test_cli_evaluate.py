"""`dissonance evaluate` as a user meets it: what it prints, where, and how it exits."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dissonance import errors
from dissonance.cli.training import evaluate

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A folder with a scan's rows of four files in `out`, and their labels in labels.csv."""
    (tmp_path / "out").mkdir()
    rows, labels = [], ["uri,picture_fake,sound_fake,identity"]
    for number, p_fake in enumerate((0.1, 0.6, 0.4, 0.9)):
        clip = tmp_path / f"{number}.mp4"
        clip.touch()
        row = {"uri": str(clip), "status": "scored", "label": "uncertain", "p_fake": p_fake, "p_visual": p_fake, "p_audio": p_fake}
        rows.append({**row, "modalities": "av", "duration_s": 2.0, "best_lag_frames": 0, "bundle_id": "b" * 64, "trained_on": "synthetic"})
        labels.append(f"{clip},{number // 2},0,p{number % 2}")
    (tmp_path / "out" / "files.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "out" / "run.json").write_text(json.dumps({"warning": "synthetic clips only"}))
    (tmp_path / "labels.csv").write_text("\n".join(labels) + "\n")
    return tmp_path


def test_help(cli: Cli) -> None:
    done = cli("evaluate", "--help")
    assert done.returncode == 0
    assert "Example: dissonance evaluate" in " ".join(done.stdout.split())


def test_a_report_for_people_and_for_machines(cli: Cli, scan: Path) -> None:
    arguments = ("evaluate", scan / "out", "--labels", scan / "labels.csv", "-o", scan / "report", "--resamples", "10")
    done = cli(*arguments)
    assert done.returncode == 0, done.stderr
    assert "synthetic clips only" in done.stdout
    assert "0.750 (" in done.stdout  # 3 of 4 pairs are in order
    assert "4 of 4 clips scored" in done.stdout
    assert "4 of 4 rows have a label" in done.stderr
    as_json = cli(*arguments, "--json")
    assert json.loads(as_json.stdout) == json.loads((scan / "report" / "report.json").read_text())
    assert json.loads(as_json.stdout)["as_found"]["fused"]["overall"]["auc"]["value"] == 0.75


def test_a_mistake_is_an_error_of_one_line(cli: Cli, scan: Path) -> None:
    done = cli("evaluate", scan / "out", "-o", scan / "report")
    assert done.returncode == errors.EXIT_USAGE
    assert done.stderr.startswith("error: ")
    assert "--labels" in done.stderr
    assert not (scan / "report").exists()


@pytest.mark.parametrize("module", ["sklearn", "matplotlib", "safetensors"])
def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, scan: Path, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(errors.EnvironmentMissingError, match=rf"'{module}', which is not installed.*dissonance\[train\]"):
        evaluate(scan / "out", scan / "report")
