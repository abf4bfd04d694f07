"""Finds and runs the rungs in `bench/`, which are part of a checkout and not of the installed package."""

import importlib.util
import json
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dissonance.errors import EnvironmentMissingError, UsageError

_BENCH = Path(__file__).resolve().parents[2] / "bench"

BenchRow = dict[str, Any]  # what, value, limit, holds, how


def run_rung(name: str, *, tell: Callable[[str], None]) -> list[BenchRow]:
    """Run `bench/<name>.py`'s `run`. Raises UsageError for an unknown rung, EnvironmentMissingError outside a checkout."""
    if not _BENCH.is_dir():
        raise EnvironmentMissingError("The benchmarks are not part of the installed package. Run them in a checkout of the repository.")
    rungs = {path.stem.replace("_", "-"): path for path in _BENCH.glob("[a-z]*.py")}
    if name not in rungs:
        raise UsageError(f"Unknown benchmark '{name}'. Known ones: {', '.join(sorted(rungs))}.")
    spec = importlib.util.spec_from_file_location(f"bench_{rungs[name].stem}", rungs[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows: list[BenchRow] = module.run(tell)
    return rows


def save_rows(name: str, rows: list[BenchRow]) -> None:
    """Append rows to bench/results/<name>.jsonl, with when and on what they were measured."""
    where = {"measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": _machine(), "python": platform.python_version()}
    with (_BENCH / "results" / f"{name}.jsonl").open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps({**where, **row}) + "\n" for row in rows)


def _machine() -> str:
    model = "unknown CPU"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores"
