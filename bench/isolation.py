"""Rung `isolation`: what it costs that files are decoded in confined processes of their own, as ratios within this run.

64 clips are scanned by the pipeline as it is, and by the same pipeline with a pool that decodes in its own process: no worker is started, nothing is
encoded, sent or decoded again, no limit is set. On one core, with one worker, wall time then counts all of the work, start-up included. On all cores
the same comparison shows what the processes bring. Rounds alternate and the median ratio counts, because a shared machine's speed drifts.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench._rows import Row, at_most, tell
from dissonance.synth.config import SynthConfig
from dissonance.synth.dataset import generate

ROUNDS = 3
CLIPS = 64
LIMIT = 1.1


def run() -> list[Row]:
    """Measure everything; about nine minutes on two cores."""
    with tempfile.TemporaryDirectory(prefix="dissonance-bench-") as name:
        folder = Path(name)
        tell(f"drawing {CLIPS} clips")
        for _ in generate(folder / "clips", count=CLIPS, seed=3, config=SynthConfig(width=640, height=480)):
            pass
        rows = []
        cores = sorted(os.sched_getaffinity(0))
        for used in (cores[:1], cores):
            times: dict[str, list[float]] = {"isolated": [], "in process": []}
            for turn in range(ROUNDS):
                for kind, seconds in times.items():
                    seconds.append(scan_s(kind, folder / "clips", folder / f"{kind}-{len(used)}-{turn}", used))
                    tell(f"{len(used)} core(s), round {turn + 1}: {kind} {seconds[-1]:.2f} s")
            ratio = statistics.median(a / b for a, b in zip(times["isolated"], times["in process"], strict=True))
            medians = ", ".join(f"{kind} {statistics.median(seconds):.2f} s" for kind, seconds in times.items())
            what = f"scan of {CLIPS} clips on {len(used)} core(s): isolated / in process"
            rows.append(at_most(what, ratio, LIMIT, f"wall time, median of {ROUNDS}: {medians}"))
        return rows


def scan_s(kind: str, clips: Path, out: Path, cores: list[int]) -> float:
    """Wall seconds of one scan in a fresh process on these cores; every clip must be scored."""
    command = [sys.executable, "-c", _SCAN, kind, str(clips), str(out), ",".join(map(str, cores))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    scored, seconds = done.stdout.split()
    assert int(scored) == CLIPS, f"{scored} of {CLIPS} clips were scored"
    return float(seconds)


_SCAN = """
import os, socket, sys, time
from pathlib import Path
kind, clips, out, cores = sys.argv[1:]
os.sched_setaffinity(0, set(map(int, cores.split(","))))
started_s = time.monotonic()

import cv2
from dissonance.bundle import open_bundle
from dissonance.config import ScanConfig
from dissonance.engine.runtime import open_runtime
from dissonance.engine.scan import pipeline
from dissonance.engine.scan.channel import send
from dissonance.engine.scan.worker import Worker
from dissonance.engine.scan.workers import Event, WorkerPool

class InProcess(WorkerPool):
    # A pool of nobody: decodes where it is.
    def run(self, next_task, *, poll, wake=None):
        cv2.setNumThreads(1)
        ours, theirs = socket.socketpair()
        send(ours, self._settings)
        worker = Worker(theirs)
        while (task := next_task()) is not None:
            for part in worker.read(task.path, task.uri):
                poll()
                yield Event(task, part)

class Silent:
    def started(self, *, total, done): pass
    def merging(self): pass
    def finished_file(self, row): assert row["status"] == "scored", row

if kind == "in process":
    pipeline.WorkerPool = InProcess
bundle = open_bundle("demo")
config = ScanConfig()
threads = len(os.sched_getaffinity(0))
summary = pipeline.Scan([clips], out=Path(out), bundle=bundle, runtime=open_runtime(bundle, threads=threads), config=config, progress=Silent()).run()
print(summary.scored, time.monotonic() - started_s)
"""


if __name__ == "__main__":
    for result in run():
        print(json.dumps(result))
