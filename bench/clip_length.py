"""Rung `clip-length`: whether longer real videos are called fake more often. A rule that takes the worst window of all would.

Real synthetic clips of 5 s to 10 min, scanned; at each of the bundle's two thresholds the share of them that crosses it, with Wilson's 95 % interval.
"""

import json
import tempfile
from pathlib import Path

from bench._rows import Row, measured, tell
from bench._scans import draw_and_scan, table
from dissonance.training.evaluation import wilson

LENGTHS = {"5 s": (5, 200), "30 s": (30, 100), "2 min": (120, 50), "10 min": (600, 20)}  # seconds, clips


def run() -> list[Row]:
    """Measure everything; over an hour on two cores."""
    rows = []
    for number, (name, (seconds, count)) in enumerate(LENGTHS.items()):
        with tempfile.TemporaryDirectory(prefix="dissonance-bench-") as folder:
            options = ("--forgery", "none", "--duration", seconds)
            _, out = draw_and_scan(Path(folder), *options, count=count, seed=8100 + number)
            labels = [row["label"] for row in table(out, "files") if row["status"] == "scored"]
        for what, hits in (("likely_fake", labels.count("likely_fake")), ("not likely_real", len(labels) - labels.count("likely_real"))):
            interval = wilson(hits / len(labels), len(labels))
            how = f"{hits} of {len(labels)} clips, {count - len(labels)} without a score; 95 % {interval.low:.3f} to {interval.high:.3f}"
            rows.append(measured(f"{name}: real clips called {what}", hits / len(labels), how))
            tell(f"{rows[-1]['what']}: {how}")
    return rows


if __name__ == "__main__":
    for row in run():
        print(json.dumps(row))
