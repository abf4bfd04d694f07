"""Run in a mount namespace of its own (`unshare -rm python -m tests.engine.scan.small_disk FOLDER CLIP...`): scans whose OUT is on a small disk.

FOLDER becomes the disk. Prints one JSON object: what each step ended with, and the rows that were there at the end.
"""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

DISK = "4m"


def _scan(out: Path, clips: list[str], *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dissonance", "scan", *clips, "-o", str(out), "--workers", "1", "--threads", "1", "--json", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _ended(scan: subprocess.Popen[str]) -> dict[str, object]:
    _, stderr = scan.communicate()
    return {"exit": scan.returncode, "stderr": stderr}


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as ballast:
        while ballast.write(bytes(4096)):
            pass


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def main(folder: Path, clips: list[str]) -> None:
    _mount("-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder))
    out, ballast, config = folder / "out", folder / "ballast", folder / "scan.yaml"
    config.write_text("execution: {shard_files: 1}\n")  # a shard for every file
    scan = _scan(out, clips, "--config", str(config))
    while scan.poll() is None and not list(out.glob("shards/windows-*.parquet")):
        pass
    _fill(ballast)
    steps = {"full": _ended(scan)}
    steps["still full"] = _ended(_scan(out, clips, "--config", str(config), "--resume"))
    ballast.unlink()
    _mount("-o", "remount,ro", str(folder))
    steps["read-only"] = _ended(_scan(out, clips, "--config", str(config), "--resume"))
    steps["new in read-only"] = _ended(_scan(folder / "new", clips))
    _mount("-o", "remount,rw", str(folder))
    done = len(list(out.glob("shards/files-*.parquet")))
    steps["mended"] = _ended(_scan(out, clips, "--config", str(config), "--resume"))
    rows = [json.loads(line) for line in (out / "files.jsonl").read_text().splitlines()]
    left = sorted(path.name for path in out.rglob("*.partial"))
    print(json.dumps({"steps": steps, "rows": rows, "shards_before": done, "left_over": left}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
