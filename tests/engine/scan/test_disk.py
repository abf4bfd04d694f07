"""A disk that fills in mid-run, one that is read-only, and an OUT of another time."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dissonance.engine.scan.ledger import SCHEMA_VERSION
from tests.engine.scan.runs import Rows, assert_same_rows, run_scan

ROOT = Path(__file__).resolve().parents[3]
NAMESPACE = ["unshare", "-rm"]


def test_a_disk_that_fills_in_mid_run(clips: list[Path], reference: Rows, tmp_path: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a mount namespace of its own is needed for a small disk, and this machine gives none")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [*NAMESPACE, sys.executable, "-m", "tests.engine.scan.small_disk", disk, *clips]
    found = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    steps = found["steps"]
    for step in ("full", "still full", "read-only"):
        assert steps[step]["exit"] == 4, steps[step]
        assert f"error: Cannot work in --out '{disk}/out'" in steps[step]["stderr"]
        assert "continue with --resume" in steps[step]["stderr"]
        assert "Traceback" not in steps[step]["stderr"]
    assert "full" in steps["full"]["stderr"] or "No space" in steps["full"]["stderr"]
    assert steps["new in read-only"]["exit"] == 2
    assert "Give a folder that can be written" in steps["new in read-only"]["stderr"]
    assert 0 < found["shards_before"] < len(clips)  # it did fill in mid-run
    assert steps["mended"]["exit"] == 0
    assert found["left_over"] == []
    assert len(found["rows"]) == len(clips)
    assert_same_rows({row["uri"]: row for row in found["rows"]}, reference)


def test_an_out_of_another_schema_version_is_refused_with_the_remedy(
    clips: list[Path], tmp_path: Path, cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    out = tmp_path / "out"
    run_scan(clips[:1], out, workers=1)
    with sqlite3.connect(out / "run.db") as ledger:
        ledger.execute("UPDATE meta SET value = '0' WHERE key = 'schema_version'")
    ledger.close()
    before = {path: path.read_bytes() for path in out.rglob("*.parquet")}
    done = cli("scan", clips[0], "-o", out, "--resume")
    assert done.returncode == 2
    assert f"another schema version ('0', now '{SCHEMA_VERSION}')" in done.stderr
    assert "Give another --out" in done.stderr
    assert before == {path: path.read_bytes() for path in out.rglob("*.parquet")}
