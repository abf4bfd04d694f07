"""Finds and runs the rungs in `bench/`, which are part of a checkout and not of the installed package."""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dissonance.errors import EnvironmentMissingError, UsageError
from dissonance.machine import describe_machine

_BENCH = Path(__file__).resolve().parents[2] / "bench"

BenchRow = dict[str, Any]  # what, value, limit, holds, how


def run_rung(name: str) -> list[BenchRow]:
    """Run `bench/<name>.py`, which prints a JSON row a line, in a process of its own, its progress on our stderr.

    Idle threads of numpy's BLAS spin, so it gets one, as a decode worker does. Raises UsageError for an unknown rung, EnvironmentMissingError
    outside a checkout or where the rung cannot run.
    """
    if not _BENCH.is_dir():
        raise EnvironmentMissingError("The benchmarks are not part of the installed package. Run them in a checkout of the repository.")
    rungs = {path.stem.replace("_", "-"): path for path in _BENCH.glob("[a-z]*.py")}
    if name not in rungs:
        raise UsageError(f"Unknown benchmark '{name}'. Known ones: {', '.join(sorted(rungs))}.")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"bench.{rungs[name].stem}"]
    done = subprocess.run(command, cwd=_BENCH.parent, stdout=subprocess.PIPE, env=environment, text=True, check=False)
    if done.returncode:
        raise EnvironmentMissingError(f"Benchmark '{name}' ended with exit status {done.returncode}; what it printed is above. Install: .[test]")
    return [json.loads(line) for line in done.stdout.splitlines()]


def save_rows(name: str, rows: list[BenchRow]) -> None:
    """Append rows to bench/results/<name>.jsonl, with when and on what they were measured."""
    where = {"measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": describe_machine(), "python": platform.python_version()}
    results = _BENCH / "results"
    results.mkdir(exist_ok=True)
    with (results / f"{name}.jsonl").open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps({**where, **row}) + "\n" for row in rows)
