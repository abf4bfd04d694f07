"""A scan of hostile inputs touches nothing but them, OUT and the installation: every file it opens and every socket it makes, as strace sees them."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import cv2
import pytest

import dissonance
from dissonance.synth.config import SynthConfig
from dissonance.synth.dataset import generate
from tests.hostile.inputs import make_hostile

ROOT = Path(__file__).resolve().parents[2]
# System calls that open a file or reach another process or machine.
TRACED = "open,openat,openat2,creat,open_by_handle_at,socket,connect,bind,sendto,sendmsg,execve,execveat"
INSTALLATION = [
    *map(Path, (sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), "/usr/lib", "/lib", "/lib64", "/usr/share/zoneinfo")),
    *(Path(module.__file__).resolve().parent for module in (dissonance, cv2)),
    ROOT / "configs",
]
# What the dynamic linker, libc, and the libraries' counting of cores read of the system; nothing of a user's.
SYSTEM = re.compile(
    r"/etc/(ld\.so\.\w+|localtime|timezone|locale\.alias|ssl/openssl\.cnf)|/dev/(null|urandom|random|tty)|/proc/.*|/sys/(bus|devices|fs|kernel)/.*|/usr/bin/\w+|pipe:.*"
)
OPENED = re.compile(r'(?:open|openat|openat2|creat)\((?:[^"]*)"((?:[^"\\]|\\.)*)"[^)]*\)\s+= \d+<((?:[^>\\]|\\.)*)>')


def _text(escaped: str) -> str:
    """A name as strace writes it, with its octal and C escapes undone."""
    return os.fsdecode(escaped.encode().decode("unicode_escape").encode("latin-1"))


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_scan_opens_nothing_else_and_no_socket(tmp_path: Path) -> None:
    made = generate(tmp_path / "clips", count=1, seed=5, config=SynthConfig(duration_s=2.4, two_person_share=0))
    clip = next(tmp_path / "clips" / row.file for row in made)
    folder = tmp_path / "in"
    folder.mkdir()
    inputs = make_hostile(folder, clip=clip, small=True)
    tempting = [member for member in inputs if member.path.parent.name in ("lists", "paths", "names")]
    others = [member for member in inputs if member not in tempting]
    chosen = [*tempting, *others[::8]]
    manifest, out, log = folder / "manifest.jsonl", tmp_path / "out", tmp_path / "log"
    manifest.write_text("".join(json.dumps({"uri": str(member.path)}) + "\n" for member in chosen))
    log.mkdir()
    trace = ["strace", "-ff", "-y", "-s", "4096", "-e", f"trace={TRACED}", "-o", log / "trace"]
    scan = [sys.executable, "-m", "dissonance", "scan", manifest, "-o", out, "--workers", "1", "--threads", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "CI"}  # some libraries only phone home where it is not set
    done = subprocess.run([*trace, *scan], capture_output=True, text=True, env=environment, check=False)
    if "PTRACE" in done.stderr or "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr[:200]}")
    assert done.returncode == 3, done.stderr

    opened: set[Path] = set()
    sockets, programs, lines = [], [], 0
    for part in log.iterdir():
        for line in part.read_text(errors="surrogateescape").splitlines():
            lines += 1
            if "O_PATH" in line:  # a place to name in a rule: nothing of it can be read
                continue
            if (match := OPENED.match(line)) is not None:
                opened.add(Path(_text(match[2])))
            elif line.startswith(("socket(", "connect(", "bind(", "sendto(", "sendmsg(")) and "AF_UNIX" not in line and not _is_channel(line):
                sockets.append(line)
            elif line.startswith("exec"):
                programs.append(line)
    assert lines > 1000  # it did trace
    assert clip.resolve() not in opened  # which only a data reference of a hostile file names
    assert any(folder in path.parents for path in opened)
    allowed = [folder.resolve(), out.resolve(), *INSTALLATION]
    strange = {str(path) for path in opened if not any(place == path or place in path.parents for place in allowed)}
    listed = {"/", *(os.fspath(place) for place in (ROOT, ROOT / "src"))}  # for those rules; by the interpreter, in search of modules
    strange = {path for path in strange - listed if not SYSTEM.fullmatch(path) and not path.startswith("/memfd:")}
    assert not strange
    assert not sockets
    assert all(sys.executable in line or Path(sys.executable).name in line for line in programs if "= 0" in line)


def _is_channel(line: str) -> bool:
    """A message to the other end of the pair between scan and worker."""
    return line.startswith(("sendto(", "sendmsg(")) and re.match(r"send\w+\(\d+<(socket|UNIX)", line) is not None
