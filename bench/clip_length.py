"""Rung `clip-length`: whether longer real videos are called fake more often. A rule that takes the worst window of all would.

200 real synthetic clips of each length from 5 s to 10 min, scanned; at each of the bundle's two thresholds the share of them that crosses it, with
Wilson's 95 % interval. The long ones are drawn in parts, each from a seed of its own, which bounds what lies on the disk.

`python -m bench.clip_length "10 min" 0 1` measures the first two parts of one length alone; parts' figures add up.
"""

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench._rows import Row, measured, tell
from bench._scans import draw_and_scan, table
from dissonance.training.evaluation import wilson

LENGTHS = {"5 s": (5, 1), "30 s": (30, 2), "2 min": (120, 4), "10 min": (600, 10)}  # seconds, parts
CLIPS = 200  # of each length
SEED = 8100


def run() -> list[Row]:
    """Measure everything; four fifths of the time, two hours on two cores with AVX-512, are for the clips of 10 minutes."""
    return [row for name, (_, parts) in LENGTHS.items() for row in measure(name, range(parts))]


def measure(name: str, chosen: Sequence[int]) -> list[Row]:
    """One length, by some of its parts or all of them."""
    seconds, parts = LENGTHS[name]
    labels: Counter[str | None] = Counter()
    for part in chosen:
        seed = SEED + list(LENGTHS).index(name) + 10 * part
        with tempfile.TemporaryDirectory(prefix="dissonance-bench-") as folder:
            _, out = draw_and_scan(Path(folder), "--forgery", "none", "--duration", seconds, count=CLIPS // parts, seed=seed)
            found = Counter(row["label"] for row in table(out, "files"))
        tell(f"{name}, part {part} (seed {seed}): {dict(found)}")
        labels += found
    unscored = labels.pop(None, 0)
    clips = labels.total()
    rows = []
    for what, hits in (("likely_fake", labels["likely_fake"]), ("not likely_real", clips - labels["likely_real"])):
        interval = wilson(hits / clips, clips)
        how = f"{hits} of {clips} clips, {unscored} without a score; 95 % {interval.low:.3f} to {interval.high:.3f}"
        rows.append(measured(f"{name}: real clips called {what}", hits / clips, how))
        tell(f"{rows[-1]['what']}: {how}")
    return rows


if __name__ == "__main__":
    for row in measure(sys.argv[1], [int(part) for part in sys.argv[2:]]) if sys.argv[1:] else run():
        print(json.dumps(row))
