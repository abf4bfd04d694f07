"""A scan that is disturbed until it is done: `python -m tests.chaos --files 2000 --seed S`.

Many small clips, every hostile input of tests/hostile, decoders with injected faults, and a file that never stops changing are scanned twice: once
calmly, once while workers and the whole run are killed (SIGKILL) every few seconds, with a full /dev/shm where the system allows to make one. Killed
runs are resumed. Files that random kills cost both their tries are tried again at the end, as a user would with --retry-failed. Then there must be
one row for each input, none doubled, all outcomes allowed and equal to the calm run's, scores within 1e-5. Exit status 0 where that holds.
"""

import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from dissonance.engine.scan.sources import Input
from dissonance.synth.config import SynthConfig
from dissonance.synth.dataset import generate
from tests.hostile.inputs import make_hostile

Rows = dict[str, dict[str, Any]]

TOLERANCE = 1e-5
DIFFERENT_CLIPS = 12
FAULTS = {  # of tests/engine/scan/faulty_worker.py, and the reason that each must end in
    "abort": "decoder_crash",
    "segv": "decoder_crash",
    "raise": "decoder_crash",
    "garbage": "decoder_crash",
    "stutter": "timeout",
    "hang": "timeout",
    "slow": "timeout",
    "eat": "out_of_memory",
    "share": "out_of_memory",
}
CONFIG = "limits: {stall_timeout_s: 15, timeout_s: 15, max_memory_mib: 900}\nexecution: {shard_files: 16, shard_interval_s: 1}\n"
SCORES = ("p_fake", "p_visual", "p_audio", "match_similarity")
FACTS = ("status", "reason", "label", "best_lag_frames", "speech_fraction", "modalities", "tracks", "windows", "frames_decoded", "content_hash")
RUN_KILL_SHARE = 0.3  # of the kills; the others hit a worker
KILL_EVERY_S = (1.0, 4.0)
SHORT_STEP = 5
IDLE_RUNS = 6  # after so many killed runs without a new row only slow files are left, which need the time: nothing is killed any more


@dataclass
class Kills:
    """What was done to the disturbed scan."""

    workers: int = 0
    runs: int = 0
    restarts: int = 0


@dataclass
class Inputs:
    """What is scanned: uri -> allowed reasons (None in it: a score)."""

    folder: Path
    allowed: dict[str, frozenset[str | None]] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    changing: str = ""

    def add(self, path: Path, reasons: frozenset[str | None]) -> str:
        """One more; returns its uri."""
        uri = Input.of(str(path)).uri
        assert uri not in self.allowed
        self.allowed[uri] = reasons
        self.paths.append(str(path))
        return uri


def make_inputs(folder: Path, *, files: int, seed: int, short: bool) -> Inputs:
    """`files` inputs, as many of them small clips as there is room for beside the hostile ones, in random order in a manifest."""
    made = generate(folder / "made", count=DIFFERENT_CLIPS, seed=seed, config=SynthConfig(duration_s=2.0))
    clips = [folder / "made" / row.file for row in made]
    inputs = Inputs(folder)
    for name in ("hostile", "faulty", "clips"):
        (folder / name).mkdir()
    whole = generate(folder / "whole", count=1, seed=5, config=SynthConfig(duration_s=2.4, two_person_share=0))
    clip = next(folder / "whole" / row.file for row in whole)
    for member in make_hostile(folder / "hostile", clip=clip, small=True)[:: SHORT_STEP if short else 1]:
        inputs.add(member.path, member.reasons)
    for fault, reason in FAULTS.items():
        if not (short and reason == "timeout"):
            path = folder / "faulty" / f"clip.fault-{fault}.mp4"
            shutil.copy(clips[1], path)
            inputs.add(path, frozenset({reason}))
    never_the_same = folder / "faulty" / "never-the-same.mp4"
    shutil.copy(clips[1], never_the_same)
    inputs.changing = inputs.add(never_the_same, frozenset({"changed", None}))
    for number in range(max(0, files - len(inputs.allowed))):
        path = folder / "clips" / f"{number:05d}.mp4"
        os.link(clips[number % len(clips)], path)
        inputs.add(path, frozenset({None}))
    random.Random(seed).shuffle(inputs.paths)
    with (folder / "manifest.jsonl").open("w") as manifest:
        manifest.writelines(json.dumps({"uri": path}) + "\n" for path in inputs.paths)
    return inputs


def command(inputs: Inputs, out: Path, *options: str) -> list[str]:
    """The scan of all inputs, by workers that have the injected faults."""
    config = inputs.folder / "scan.yaml"
    config.write_text(CONFIG)
    scan = [sys.executable, "-m", "tests.chaos.scan", "scan", str(inputs.folder / "manifest.jsonl"), "-o", str(out), "--config", str(config)]
    return [*scan, "--workers", "2", "--threads", "1", "--json", "--max-failures", "100%", *options]


def calm(inputs: Inputs, out: Path, *options: str) -> Rows:
    """A scan that is left alone. Raises CalledProcessError where it fails."""
    subprocess.run(command(inputs, out, *options), stdout=subprocess.DEVNULL, check=True)
    return read(out)


def read(out: Path) -> Rows:
    """The files rows by uri. Raises AssertionError where an input has two."""
    rows = [json.loads(line) for line in (out / "files.jsonl").read_text().splitlines()]
    by_uri = {row["uri"]: row for row in rows}
    assert len(by_uri) == len(rows), "an input has two rows"
    return by_uri


def disturbed(inputs: Inputs, out: Path, *, seed: int) -> Kills:
    """Scan with kills until a run ends by itself."""
    chance, kills, idle, rows_before = random.Random(seed), Kills(), 0, 0
    while True:
        resume = ["--resume"] if (out / "run.db").exists() else []
        with subprocess.Popen(command(inputs, out, *resume), stdout=subprocess.DEVNULL) as scan:
            while scan.poll() is None:
                try:
                    scan.wait(timeout=chance.uniform(*KILL_EVERY_S))
                    break
                except subprocess.TimeoutExpired:
                    pass
                if chance.random() < RUN_KILL_SHARE and idle < IDLE_RUNS:
                    scan.kill()
                    kills.runs += 1
                elif idle < IDLE_RUNS:
                    kills.workers += kill_a_worker(scan.pid, chance)
        if scan.returncode == 0:
            return kills
        assert scan.returncode == -9, f"the scan ended with {scan.returncode}"
        kills.restarts += 1
        rows_now = len(list(out.glob("shards/files-*.parquet")))
        idle = idle + 1 if rows_now == rows_before else 0
        rows_before = rows_now


def kill_a_worker(pid: int, chance: random.Random) -> int:
    """SIGKILL one child; returns how many were killed."""
    try:
        children = psutil.Process(pid).children()
        if children:
            chance.choice(children).kill()
            return 1
    except psutil.NoSuchProcess:
        pass
    return 0


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Meanwhile the file grows and shrinks all the time."""
    done = threading.Event()
    size = path.stat().st_size

    def change() -> None:
        while not done.wait(0.02):
            os.truncate(path, size + time.monotonic_ns() % 1000)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def differences(inputs: Inputs, found: Rows, expected: Rows) -> list[str]:
    """What is wrong, one line each."""
    wrong = [f"{uri!r}: no row" for uri in inputs.allowed if uri not in found] + [
        f"{uri!r}: not an input" for uri in found if uri not in inputs.allowed
    ]
    for uri, row in found.items():
        if uri not in inputs.allowed:
            continue
        if row["reason"] not in inputs.allowed[uri]:
            wrong.append(f"{uri!r}: {row['status']} {row['reason']}: {row['detail']}; allowed: {sorted(map(str, inputs.allowed[uri]))}")
        if uri == inputs.changing:
            continue
        calmly = expected[uri]
        facts = [name for name in FACTS if row[name] != calmly[name]]
        scores = [name for name in SCORES if not _close(row[name], calmly[name])]
        wrong += [f"{uri!r}: {name} is {row[name]!r}, calmly {calmly[name]!r}" for name in facts + scores]
    return wrong


def _close(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else math.isclose(a, b, rel_tol=0, abs_tol=TOLERANCE)


def with_full_shm(arguments: list[str]) -> None:
    """Become the same program where /dev/shm is a disk without room; returns where the system does not allow it."""
    mount = 'mount -t tmpfs -o size=4k tmpfs /dev/shm && head -c 4096 /dev/zero > /dev/shm/full && exec "$@"'
    probe = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") and subprocess.run([*probe, "true"], capture_output=True, check=False).returncode == 0:
        os.execvp("unshare", [*probe, sys.executable, "-m", "tests.chaos", *arguments, "--in-full-shm"])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000, help="inputs in all; at least the hostile ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help=f"every {SHORT_STEP}th hostile input, no fault that takes long to be noticed")
    parser.add_argument("--keep", type=Path, help="a new folder for inputs and outputs, which are then kept")
    parser.add_argument("--in-full-shm", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.in_full_shm:
        with_full_shm(arguments)
    with tempfile.TemporaryDirectory(prefix="dissonance-chaos-") as name:
        folder = Path(options.keep or name)
        (folder / "in").mkdir(parents=True)
        inputs = make_inputs(folder / "in", files=options.files, seed=options.seed, short=options.short)
        print(f"{len(inputs.allowed)} inputs; /dev/shm is {'full' if options.in_full_shm else 'as it is'}", flush=True)
        started_s = time.monotonic()
        with changing(Path(inputs.changing)):
            expected = calm(inputs, folder / "calm")
            calm_s = time.monotonic() - started_s
            print(f"calm run: {calm_s:.0f} s", flush=True)
            kills = disturbed(inputs, folder / "out", seed=options.seed)
            disturbed_s = time.monotonic() - started_s - calm_s
            found = read(folder / "out")
            retried = sum("SIGKILL" in (row["fallback_cause"] or "") for row in found.values())
            killed = [uri for uri, row in found.items() if row["reason"] == "decoder_crash" != expected[uri]["reason"]]
            if killed:
                found = calm(inputs, folder / "out", "--retry-failed")
        print(f"disturbed run: {disturbed_s:.0f} s; killed: {kills.workers} workers, {kills.runs} runs; {kills.restarts} restarts")
        print(f"files with a second try after a kill: {retried}; with both tries killed, and tried again with --retry-failed: {len(killed)}")
        counts = Counter(f"{row['status']} {row['reason'] or ''}".strip() for row in found.values())
        for outcome, count in sorted(counts.items()):
            print(f"  {count:5d} {outcome}")
        wrong = differences(inputs, found, expected)
        for line in wrong:
            print(f"WRONG {line}")
        print(f"{len(found)} rows for {len(inputs.allowed)} inputs, none doubled; {len(wrong)} differences from the calm run")
        return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
