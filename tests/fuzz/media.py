"""Mutation fuzzing of the decode worker: small real files of every container and codec, damaged, each read by a real worker process.

    python -m tests.fuzz.media --executions 20000 --seed 1 --keep findings/
    python -m tests.fuzz.media --seed 1 --only 1234 --keep findings/       writes that one file and reads it

A finding is a worker that died, printed a traceback, ran out of time, outgrew its memory or said what is no message; or a file that failed for an
undocumented reason. Findings are reported once for each place in the code, reduced, and kept. Exits with 1 where there were findings.
"""

import argparse
import heapq
import math
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dissonance.bundle import open_bundle
from dissonance.config import DetectorConfig, LimitsConfig, ScanConfig
from dissonance.engine.media.clip import ClipSummary, Window
from dissonance.engine.scan.messages import Crashed, Failed, Message, Task
from dissonance.engine.scan.workers import WorkerPool
from tests.fuzz.mutations import Damage
from tests.fuzz.seeds import Seed, make_seeds

REASONS = ("corrupt", "unsupported_codec", "unreadable", "refused", "changed")  # that a file may fail for
LIMITS = LimitsConfig(stall_timeout_s=60, timeout_s=120, max_duration_s=900, max_memory_mib=2048)
URI = "fuzz"
# Faces that are not looked for: so that every picture that decodes is cropped. One within the picture, one that wanders through it and beyond.
BOXES = f"""uri,track,time_s,x0,y0,x1,y1
{URI},0,-100,10,5,40,35
{URI},0,100000,10,5,40,35
{URI},1,-1,-30,-30,5,5
{URI},1,1,40,30,300,200
"""
_SLOWEST = 5
_MAX_FINDINGS = 100
_REDUCE_S = 60.0  # so long may the reduction of one finding take


@dataclass(frozen=True)
class Finding:
    """One kind of trouble, with the first file that made it."""

    key: str
    number: int
    detail: str
    data: bytes


@dataclass
class Report:
    """What came of a run."""

    executions: int = 0
    seconds: float = 0.0
    windows: int = 0
    peak_memory_mib: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: dict[str, Finding] = field(default_factory=dict)
    occurrences: Counter[str] = field(default_factory=Counter)
    slowest: list[tuple[float, int]] = field(default_factory=list)  # (seconds, number)


@dataclass(frozen=True)
class Outcome:
    """How a file ended: the message, how long it took, and what the worker needed. `improper`: what no worker should have said before."""

    message: Message
    windows: int
    improper: str | None
    elapsed_s: float
    peak_memory_mib: int


class Reader:
    """Reads files in real workers. Use as a context manager; files live in memory and only as long as they are read."""

    def __init__(self, *, detector: str, workers: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        boxes = Path(self._folder.name) / "boxes.csv"
        boxes.write_text(BOXES)
        scan = ScanConfig(detector=DetectorConfig(kind="boxes", boxes_file=boxes) if detector == "boxes" else DetectorConfig(), limits=LIMITS)
        self._pool = WorkerPool(count=workers, spec=open_bundle("demo").spec, scan=scan)

    def __enter__(self) -> "Reader":
        self._pool.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.__exit__()
        self._folder.cleanup()

    def read(self, files: Iterator[tuple[int, bytes]], *, fresh: bool = False) -> Iterator[tuple[int, bytes, Outcome]]:
        """(number, bytes, what came of it) of each file, as they end. `fresh`: each in a process that has read nothing else."""
        started: dict[int, tuple[bytes, float]] = {}
        windows: Counter[int] = Counter()
        improper: dict[int, str] = {}

        def next_task() -> Task | None:
            number, data = next(files, (-1, b""))
            if number < 0:
                return None
            self._path(number).write_bytes(data)
            started[number] = data, time.monotonic()
            return Task(number, str(self._path(number)), URI, fresh=fresh)

        for event in self._pool.run(next_task, poll=lambda: 1.0):
            number = event.task.id
            if isinstance(event.message, Window):
                windows[number] += 1
                if not event.message.start_s < event.message.end_s:
                    improper[number] = f"window from {event.message.start_s} to {event.message.end_s}"
            elif isinstance(event.message, ClipSummary | Failed | Crashed):
                data, start_s = started.pop(number)
                self._path(number).unlink()
                wrong = improper.pop(number, None) or _improper(event.message)
                yield number, data, Outcome(event.message, windows.pop(number, 0), wrong, time.monotonic() - start_s, event.peak_memory_mib or 0)

    def read_one(self, data: bytes) -> Outcome:
        """One file, in a new process."""
        return next(outcome for _, _, outcome in list(self.read(iter([(0, data)]), fresh=True)))

    def _path(self, number: int) -> Path:
        return Path(self._folder.name) / f"{number}.bin"


def _improper(message: Message) -> str | None:
    if not isinstance(message, ClipSummary):
        return None
    shares = [0.0 if message.speech_fraction is None else message.speech_fraction]
    counts = [message.duration_s, message.frames, message.frames_decoded, message.frames_dropped, message.faces, message.decode_errors]
    if not all(0 <= share <= 1 for share in shares) or not all(count >= 0 and math.isfinite(count) for count in counts):
        return f"summary {message}"
    return None


def detector_of(number: int) -> str:
    """Half of the files are read with given boxes, the others with the Haar detector."""
    return ("boxes", "haar")[number % 2]


def trouble(outcome: Outcome, container: str) -> tuple[str, str] | None:
    """(key, detail) of a finding, or None where all is well. Native deaths and limits have no line, so the container stands for it."""
    message = outcome.message
    if outcome.improper is not None:
        return f"improper-{container}", outcome.improper
    if isinstance(message, Failed) and message.reason not in REASONS:
        return f"reason-{message.reason}-{container}", message.detail
    if not isinstance(message, Crashed):
        return None
    if message.reason == "out_of_memory" and outcome.peak_memory_mib <= LIMITS.max_memory_mib:
        return None  # it asked for too much, and was refused in time
    if message.reason != "decoder_crash":
        return f"{message.reason}-{container}", message.detail
    lines = re.findall(r'File "[^"]*?([^/"]+)\.\w+", line (\d+)', message.detail)
    if lines and "Traceback" in message.detail:
        error = message.detail.strip().splitlines()[-1].partition(":")[0]
        return f"traceback-{error}-{lines[-1][0]}-{lines[-1][1]}", message.detail
    signal = re.search(r"SIG\w+|exit status \d+", message.detail)
    return f"{signal[0].replace(' ', '-')}-{container}" if signal else "not-a-message", message.detail


def fuzz(seeds: list[Seed], *, executions: int, seed: int, workers: int, first: int = 0, say: Callable[[str], None] = lambda _: None) -> Report:
    """Read files first, first + 1, ... of run `seed`."""
    report = Report()
    damage = Damage(seeds, seed=seed)
    began_s = said_s = time.monotonic()
    for detector in ("boxes", "haar"):
        numbers = [number for number in range(first, first + executions) if detector_of(number) == detector]
        with Reader(detector=detector, workers=workers) as reader:
            for number, data, outcome in reader.read((number, damage.file(number).data) for number in numbers):
                _count(report, number, data, outcome, damage.file(number).seed.container)
                if time.monotonic() - said_s > 60:
                    said_s = time.monotonic()
                    rate = report.executions / (said_s - began_s)
                    say(f"{report.executions:7} executions {rate:6.1f}/s  findings {len(report.findings)} ({report.occurrences.total()})")
    report.seconds = time.monotonic() - began_s
    for key, finding in list(report.findings.items()):
        if key.startswith("timeout-"):
            with Reader(detector=detector_of(finding.number), workers=1) as reader:
                again = trouble(reader.read_one(finding.data), key.removeprefix("timeout-"))
            if again is None:  # it was the machine that stood still, not the decoder
                del report.findings[key]
                report.outcomes["timeout"] -= report.occurrences[key]
                report.outcomes["timeout once, in time when read again"] += report.occurrences.pop(key)
    return report


def _count(report: Report, number: int, data: bytes, outcome: Outcome, container: str) -> None:
    message = outcome.message
    report.executions += 1
    report.windows += outcome.windows
    report.peak_memory_mib = max(report.peak_memory_mib, outcome.peak_memory_mib)
    heapq.heappush(report.slowest, (outcome.elapsed_s, number))
    if len(report.slowest) > _SLOWEST:
        heapq.heappop(report.slowest)
    if isinstance(message, ClipSummary):
        report.outcomes[f"read, {'with' if outcome.windows else 'no'} windows{', damaged' if message.decode_errors else ''}"] += 1
    else:
        report.outcomes[message.reason if isinstance(message, Failed | Crashed) else type(message).__name__] += 1
    if (found := trouble(outcome, container)) is not None:
        key, detail = found
        report.occurrences[key] += 1
        if key not in report.findings and len(report.findings) < _MAX_FINDINGS:
            report.findings[key] = Finding(key, number, detail, data)


def reduce(finding: Finding, seeds: list[Seed], *, seed: int) -> tuple[bytes, bool]:
    """A smaller file that still makes the finding, and whether it does so in a process of its own at all (else the bytes are as they were)."""
    damage = Damage(seeds, seed=seed)
    original = damage.file(finding.number)
    end_s = time.monotonic() + _REDUCE_S
    with Reader(detector=detector_of(finding.number), workers=1) as reader:

        def still(data: bytes) -> bool:
            found = trouble(reader.read_one(data), original.seed.container)
            return found is not None and found[0] == finding.key

        best = finding.data
        if not still(best):
            return best, False
        without: frozenset[int] = frozenset()
        for place in range(len(original.mutations)):
            fewer = damage.file(finding.number, without=without | {place}).data
            if time.monotonic() < end_s and still(fewer):
                best, without = fewer, without | {place}
        step = len(best) // 2
        while step >= 64 and time.monotonic() < end_s:
            if len(best) > step and still(best[:-step]):
                best = best[:-step]
            else:
                step //= 2
    return best, True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", type=int, help="write this one file, read it, and say what came of it")
    parser.add_argument("--keep", type=Path, help="folder for the files that found something (default: a new temporary one)")
    given = parser.parse_args()
    keep = given.keep or Path(tempfile.mkdtemp(prefix="findings-"))
    keep.mkdir(parents=True, exist_ok=True)
    seeds = make_seeds()
    per_container = Counter(one.container for one in seeds)
    print(f"{len(seeds)} seeds: {', '.join(f'{container} {count}' for container, count in per_container.items())}", flush=True)
    if given.only is not None:
        return _one(seeds, seed=given.seed, number=given.only, keep=keep)
    report = fuzz(
        seeds, executions=given.executions, seed=given.seed, workers=given.workers, first=given.first, say=lambda text: print(text, flush=True)
    )
    _print(report, seeds, seed=given.seed, keep=keep)
    return 1 if report.findings else 0


def _one(seeds: list[Seed], *, seed: int, number: int, keep: Path) -> int:
    file = Damage(seeds, seed=seed).file(number)
    path = keep / f"{seed}-{number}.bin"
    path.write_bytes(file.data)
    print(f"{path}: {len(file.data)} bytes of {file.seed.name} after {', '.join(file.mutations)}; read with {detector_of(number)}")
    with Reader(detector=detector_of(number), workers=1) as reader:
        outcome = reader.read_one(file.data)
    print(f"{outcome.elapsed_s:.2f} s, {outcome.peak_memory_mib} MiB, {outcome.windows} windows: {outcome.message}")
    return 1 if trouble(outcome, "-") else 0


def _print(report: Report, seeds: list[Seed], *, seed: int, keep: Path) -> None:
    print(
        f"{report.executions} executions in {report.seconds:.0f} s, {report.executions / max(report.seconds, 1e-9):.1f}/s; {report.windows} windows"
    )
    print(f"most memory: {report.peak_memory_mib} MiB; slowest: {', '.join(f'#{n} {s:.1f} s' for s, n in sorted(report.slowest, reverse=True))}")
    for outcome, count in report.outcomes.most_common():
        print(f"{count:8}  {outcome}")
    print(f"{len(report.findings)} findings")
    for finding in report.findings.values():
        data, again = reduce(finding, seeds, seed=seed)
        path = keep / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', finding.key)}-{seed}-{finding.number}.bin"
        path.write_bytes(data)
        said = "" if again else ", not again in a process of its own"
        print(f"--- {finding.key}: {report.occurrences[finding.key]} times, first #{finding.number}; {path} ({len(data)} bytes{said})")
        print(finding.detail.strip()[-1200:], flush=True)


if __name__ == "__main__":
    sys.exit(main())
