"""Every hostile input, scanned: allowed outcomes, within limits. `python -m tests.hostile` prints the whole table."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_hostile_input_ends_as_it_may_and_within_its_limits() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.hostile", "--small"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 beyond what is allowed" in done.stdout
    assert len(done.stdout.splitlines()) > 280
