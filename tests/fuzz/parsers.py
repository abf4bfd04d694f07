"""Coverage-guided fuzzing of everything that reads outside bytes but media: manifests, box files, configurations, bundles, worker messages.

    python -m tests.fuzz.parsers --target all --executions 1000000 --seed 1 --keep findings/

Only the documented errors may come out of a reader. A finding is written down and the run goes on; each place in the code is reported once.
Exits with 1 where there were findings. One process a target: libFuzzer, inside atheris, ends the process that it ran in.
"""

import argparse
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GROUPS = {
    "manifest": ("manifest.csv", "manifest.jsonl", "manifest.parquet"),
    "boxes": ("boxes.csv", "boxes.jsonl"),
    "config": ("config.yaml", "config.tree"),
    "bundle": ("bundle.folder", "bundle.spec"),
    "messages": ("messages",),
}
HANG_S = 120  # one input may not take longer; by the clock, so a busy machine must fit in
MEMORY_MB = 3000
_DEATHS = 5  # of libFuzzer's process, after which a target is given up
_STRUCTURED = 0.7  # share of the mutations that keep an input well-formed, where a target knows how


@dataclass
class Report:
    """What came of one target. `findings` are the names of files in the folder that keeps them."""

    target: str
    executions: int = 0
    seconds: float = 0.0
    coverage: int = 0
    findings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rate = self.executions / max(self.seconds, 1e-9)
        return f"{self.target:18} {self.executions:9} executions {rate:7.0f}/s  coverage {self.coverage:4}  findings {len(self.findings)}"


def fuzz(name: str, *, executions: int, seed: int, keep: Path) -> Report:
    """Run one target in processes of its own; a process that dies is a finding, and the next one goes on with what is left."""
    report = Report(name)
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    keep.mkdir(parents=True, exist_ok=True)
    before = set(keep.glob(f"{name}-*"))
    started_s = time.monotonic()
    try:
        for attempt in range(_DEATHS):
            left = executions - report.executions
            command = [sys.executable, "-m", "tests.fuzz.parsers", "--child", name, "--executions", str(left), "--seed", str(seed + 1000 * attempt)]
            child = subprocess.run(
                [*command, "--keep", str(keep)],
                capture_output=True,
                text=True,
                errors="replace",
                env={**os.environ, "DISSONANCE_FUZZ_SCRATCH": str(scratch), "OMP_NUM_THREADS": "1"},
                check=False,
            )
            _read_log(child.stderr, report)
            if child.returncode == 0:
                break
            death = keep / f"{name}-death-{attempt}.txt"
            death.write_text(f"exit status {child.returncode}\n{child.stdout[-2000:]}\n{child.stderr[-6000:]}")
            if report.executions >= executions:
                break
    finally:
        shutil.rmtree(scratch)
    report.seconds = time.monotonic() - started_s  # the start of its processes included
    report.findings = sorted(path.name for path in set(keep.glob(f"{name}-*")) - before if not path.name.endswith(".bin"))
    return report


def _read_log(log: str, report: Report) -> None:
    """libFuzzer's own counts; of a process that died, the last it printed."""
    done = re.findall(r"^(?:#|stat::number_of_executed_units: )(\d+)", log, re.MULTILINE)
    report.executions += int(done[-1]) if done else 0
    report.coverage = max([report.coverage, *map(int, re.findall(r"cov: (\d+)", log))])


def _child(name: str, *, executions: int, seed: int, keep: Path) -> None:
    """Fuzz one target in this process, and end it."""
    import atheris

    with atheris.instrument_imports(include=["dissonance"]):
        from tests.fuzz.targets import SCRATCH, TARGETS
    target = TARGETS[name]
    corpus = SCRATCH / "corpus"
    if not corpus.is_dir():
        corpus.mkdir()
        for number, data in enumerate(target.seeds):
            (corpus / f"seed-{number:02}").write_bytes(data)
    words = SCRATCH / "words"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in dict.fromkeys(target.words)))

    def run(data: bytes) -> None:
        try:
            target.check(data)
        except Exception as error:
            _write_down(name, data, error, keep)

    def mutate(data: bytes, longest: int, number: int) -> bytes:
        rng = random.Random(number)
        if target.mutate is not None and rng.random() < _STRUCTURED:
            mutated = target.mutate(data, rng)
            if mutated is not None and len(mutated) <= longest:
                return mutated
        return bytes(atheris.Mutate(data, len(data)) if len(data) >= longest else atheris.Mutate(data, longest))

    flags = {
        "runs": executions, "seed": seed, "max_len": max(target.longest, *map(len, target.seeds)), "dict": words, "timeout": HANG_S,
        "rss_limit_mb": MEMORY_MB, "artifact_prefix": f"{keep}/{name}-input-", "print_final_stats": 1, "keep_seed": 1, "len_control": 0,
    }  # fmt: skip
    structured: dict[str, Any] = {} if target.mutate is None else {"custom_mutator": mutate}
    atheris.Setup([sys.argv[0], *(f"-{flag}={value}" for flag, value in flags.items()), str(corpus)], run, **structured)
    atheris.Fuzz()


def _escaped(word: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word.encode())


def _write_down(name: str, data: bytes, error: Exception, keep: Path) -> None:
    """The smallest input for each place that an undocumented error came from, and its traceback."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "dissonance" in frame.filename]
    where = f"{Path(place.filename).stem}.{place.lineno}" + (f"-{Path(ours[-1].filename).stem}.{ours[-1].lineno}" if ours else "")
    stem = re.sub(r"[^\w.-]", "_", f"{name}-{type(error).__name__}-{where}")
    kept = keep / f"{stem}.bin"
    if not kept.exists() or kept.stat().st_size > len(data):
        kept.write_bytes(data)
        text = "".join(traceback.format_exception(error))[-8000:]
        (keep / f"{stem}.txt").write_text(f"{hashlib.sha256(data).hexdigest()}\n{text}", errors="backslashreplace")


def shares(names: tuple[str, ...], executions: int) -> dict[str, int]:
    """The executions of each target, by its weight."""
    from tests.fuzz.targets import TARGETS

    total = sum(TARGETS[name].share for name in names)
    return {name: -(-executions * TARGETS[name].share // total) for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=[*GROUPS, "all"], default="all")
    parser.add_argument("--executions", type=int, required=True, help="over all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the inputs that found something (default: a new temporary one)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        _child(given.child, executions=given.executions, seed=given.seed, keep=given.keep)
    keep = given.keep or Path(tempfile.mkdtemp(prefix="findings-"))
    names = tuple(name for group, targets in GROUPS.items() if given.target in (group, "all") for name in targets)
    reports = []
    for name, executions in shares(names, given.executions).items():
        reports.append(fuzz(name, executions=executions, seed=given.seed, keep=keep))
        print(reports[-1], *(f"    {keep / finding}" for finding in reports[-1].findings), sep="\n", flush=True)
    print(f"{'all':18} {sum(r.executions for r in reports):9} executions, {sum(len(r.findings) for r in reports)} findings")
    return 1 if any(report.findings for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
