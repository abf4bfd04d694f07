"""Clips drawn, scanned and read back by the commands that a user has."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from bench._rows import tell
from dissonance.training.fakeavceleb import read_fakeavceleb
from dissonance.training.labels import Clip


def dissonance(*arguments: object) -> None:
    """Run a command; what it prints goes to stderr."""
    tell(f"$ dissonance {' '.join(map(str, arguments))}")
    subprocess.run([sys.executable, "-m", "dissonance", *map(str, arguments)], check=True, stdout=sys.stderr)


def draw_and_scan(folder: Path, *options: object, count: int, seed: int) -> tuple[Path, Path]:
    """(clips, scan): two new folders in `folder`. `options` are those of `dissonance synth`."""
    clips, out = folder / "clips", folder / "out"
    dissonance("synth", clips, "--count", count, "--seed", seed, *options)
    dissonance("scan", clips, "-o", out)
    return clips, out


def table(out: Path, name: str) -> list[dict[str, Any]]:
    """Rows of one of a scan's tables."""
    rows: list[dict[str, Any]] = pq.read_table(out / f"{name}.parquet").to_pylist()
    return rows


def labelled(clips: Path) -> dict[str, Clip]:
    """The clips of a synthetic data set by uri, which is what joins them with a scan's rows."""
    return {clip.uri: clip for clip in read_fakeavceleb(clips).clips}
