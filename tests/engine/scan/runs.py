"""Scans as the tests run them, and what their rows must have in common."""

import json
from pathlib import Path
from typing import Any

import pytest

from dissonance.bundle import open_bundle
from dissonance.config import ScanConfig
from dissonance.engine.media.clip import ClipSummary
from dissonance.engine.runtime import RuntimeName, open_runtime
from dissonance.engine.runtime.base import Runtime
from dissonance.engine.scan.pipeline import Scan, ScanSummary
from dissonance.engine.scan.single import score_file
from dissonance.engine.scan.verdict import FileVerdict

Rows = dict[str, dict[str, Any]]  # by uri


class Silent:
    """Progress that nobody watches."""

    def started(self, *, total: int, done: int) -> None:
        pass

    def finished_file(self, row: dict[str, object]) -> None:
        pass

    def merging(self) -> None:
        pass


def run_scan(
    sources: list[str] | list[Path],
    out: Path,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    config: ScanConfig | None = None,
    runtime: RuntimeName | Runtime = "auto",
    **execution: int,
) -> ScanSummary:
    """A scan in this process (its workers are processes, as always)."""
    config = config or ScanConfig()
    config = config.model_copy(update={"execution": config.execution.model_copy(update=execution)})
    bundle = open_bundle("demo")
    scan = Scan(
        [str(source) for source in sources],
        out=out,
        bundle=bundle,
        runtime=open_runtime(bundle, name=runtime, device="cpu", threads=1) if isinstance(runtime, str) else runtime,
        config=config,
        progress=Silent(),
        resume=resume or retry_failed,
        retry_failed=retry_failed,
    )
    return scan.run()


def scored_alone(path: Path) -> tuple[ClipSummary, FileVerdict]:
    """One file as `dissonance inspect` scores it."""
    bundle = open_bundle("demo")
    return score_file(path, bundle=bundle, runtime=open_runtime(bundle, threads=1), config=ScanConfig())


def read_rows(out: Path, table: str = "files") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{table}.jsonl").read_text().splitlines()]


def by_uri(out: Path) -> Rows:
    rows = read_rows(out)
    assert len({row["uri"] for row in rows}) == len(rows), "an input has two rows"
    return {row["uri"]: row for row in rows}


SCORES = ("p_fake", "p_visual", "p_audio", "match_similarity")
FACTS = ("status", "reason", "label", "best_lag_frames", "speech_fraction", "modalities", "tracks", "windows", "frames_decoded", "content_hash")


def assert_same_rows(found: Rows, expected: Rows) -> None:
    """Scores to 1e-5, everything else exactly."""
    assert found.keys() == expected.keys()
    for uri, row in expected.items():
        assert {name: found[uri][name] for name in FACTS} == {name: row[name] for name in FACTS}
        for name in SCORES:
            assert found[uri][name] == (row[name] if row[name] is None else pytest.approx(row[name], abs=1e-5)), (uri, name)
