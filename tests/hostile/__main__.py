"""What each hostile input comes to: `python -m tests.hostile [--small]` scans them all and prints a Markdown table.

Beside the inputs of `inputs.py` stand decoders with injected faults (tests/engine/scan/faulty_worker.py). Exit status 1 where an outcome is not
allowed or a limit was crossed: memory, and wall time for both tries together.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dissonance.config import LimitsConfig
from dissonance.engine.scan.sources import Input
from dissonance.synth.config import SynthConfig
from dissonance.synth.dataset import generate
from tests.hostile.inputs import Hostile, make_hostile
from tests.hostile.member import hostile

LIMITS = LimitsConfig(stall_timeout_s=15, timeout_s=20, max_memory_mib=1500)
FAULTS = {
    "a decoder that hangs": ("hang", "timeout"),
    "a decoder that stops in the middle of a message": ("stutter", "timeout"),
    "a decoder that works and gets nowhere": ("slow", "timeout"),
    "a decoder that eats memory": ("eat", "out_of_memory"),
    "a decoder that eats shared memory": ("share", "out_of_memory"),
    "a decoder that aborts": ("abort", "decoder_crash"),
    "a decoder that writes garbage back": ("garbage", "decoder_crash"),
    "a decoder that announces 3 GiB": ("announce", "decoder_crash"),
}
TRIES = 2
CLIP_S = 2.4


def members(folder: Path, *, small: bool) -> list[Hostile]:
    """Every hostile input and every fault, made in `folder`; if `small`, without those that take long to scan or to be noticed."""
    made = generate(folder / "clips", count=1, seed=5, config=SynthConfig(duration_s=CLIP_S, two_person_share=0))
    clip = next(folder / "clips" / row.file for row in made)
    (folder / "hostile").mkdir()
    (folder / "faulty").mkdir()
    found = make_hostile(folder / "hostile", clip=clip, small=small)
    for name, (fault, reason) in FAULTS.items():
        if small and reason == "timeout":
            continue
        path = folder / "faulty" / f"clip.fault-{fault}.mp4"
        shutil.copy(clip, path)
        found.append(hostile(name, path, reason))
    return found


def scan(folder: Path, inputs: list[Hostile]) -> dict[str, dict[str, Any]]:
    """Rows by uri."""
    manifest, config = folder / "manifest.jsonl", folder / "scan.yaml"
    manifest.write_text("".join(json.dumps({"uri": str(member.path)}) + "\n" for member in inputs))
    config.write_text(json.dumps({"limits": LIMITS.model_dump()}))
    command = [sys.executable, "-m", "tests.chaos.scan", "scan", manifest, "-o", folder / "out", "--config", config, "--workers", "2", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3, f"the scan ended with {done.returncode}"
    return {row["uri"]: row for row in map(json.loads, done.stdout.splitlines())}


def faults_of(member: Hostile, row: dict[str, Any]) -> list[str]:
    """What is wrong with a row."""
    wrong = []
    if row["reason"] not in member.reasons:
        wrong.append("outcome")
    if (row["peak_memory_mib"] or 0) > LIMITS.max_memory_mib:
        wrong.append("memory")
    allowed_s = LIMITS.timeout_s + LIMITS.timeout_per_media_s * (row["duration_s"] or CLIP_S) + LIMITS.stall_timeout_s
    if row["elapsed_s"] > TRIES * allowed_s:
        wrong.append("time")
    return wrong


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="without those that take more than a few seconds")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="dissonance-hostile-") as name:
        inputs = members(Path(name), small=options.small)
        rows = scan(Path(name), inputs)
    print("| input | status | reason | wall s | peak MiB | |\n| --- | --- | --- | --- | --- | --- |")
    bad = 0
    for member in inputs:
        row = rows[Input.of(str(member.path)).uri]
        wrong = faults_of(member, row)
        bad += bool(wrong)
        peak = "" if row["peak_memory_mib"] is None else row["peak_memory_mib"]
        remark = f"WRONG: {', '.join(wrong)}: {row['detail']}" if wrong else ""
        print(f"| {member.name} | {row['status']} | {row['reason'] or ''} | {row['elapsed_s']:.2f} | {peak} | {remark} |")
    slowest, largest = max(row["elapsed_s"] for row in rows.values()), max(row["peak_memory_mib"] or 0 for row in rows.values())
    print(f"\n{len(rows)} rows for {len(inputs)} inputs; {bad} beyond what is allowed; slowest {slowest:.1f} s, largest {largest} MiB")
    print(f"limits: {LIMITS.max_memory_mib} MiB; {LIMITS.timeout_s:g} s, and {LIMITS.timeout_per_media_s:g} s for each second of media, a try")
    return 1 if bad or len(rows) != len(inputs) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
