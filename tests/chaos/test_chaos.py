"""The chaos run in its short form; `python -m tests.chaos --files 2000 --seed S` is the long one."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_kills_lose_and_double_nothing() -> None:
    command = [sys.executable, "-m", "tests.chaos", "--files", "70", "--seed", "1", "--short"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "70 rows for 70 inputs, none doubled; 0 differences from the calm run" in done.stdout
    assert "killed: 0 workers" not in done.stdout
