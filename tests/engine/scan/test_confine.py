"""What a confined process can no longer do, asked of the kernel; and what it still can."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dissonance.engine.scan.confine import EVERYTHING, STDERR_BYTES, confine

# Each is run in a process that has confined itself. True: it was allowed.
ATTEMPTS = {
    "socket": "__import__('socket').socket()",
    "exec": "os.execv('/bin/true', ['true'])",
    "fork": "os.fork()",
    "spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "write": "open(folder + '/new', 'w')",
    "append": "open(folder + '/old', 'a')",
    "truncate": "os.truncate(folder + '/old', 0)",
    "unlink": "os.unlink(folder + '/old')",
    "rename": "os.rename(folder + '/old', folder + '/new')",
    "mkdir": "os.mkdir(folder + '/new')",
    "link": "os.symlink('a', folder + '/new')",
    "chmod": "os.chmod(folder + '/old', 0)",
    "signal another": "os.kill(os.getppid(), 0)",
    "raise the limit": "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40)) or np.ones(1 << 28)",
    "raise it by the old call": "libc.syscall({'x86_64': 160, 'aarch64': 164}[os.uname().machine], 9, None) == 0 or (_ for _ in ()).throw(OSError())",
    "set another's limit": "resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))",
    "its scan's environment": "open(f'/proc/{os.getppid()}/environ').read()",
    "its scan's memory": "open(f'/proc/{os.getppid()}/maps').read()",
    "an owner for its signals": "fcntl.fcntl(pair[0], fcntl.F_SETOWN, os.getppid())",
    "a lock": "fcntl.lockf(open(folder + '/old'), fcntl.LOCK_SH | fcntl.LOCK_NB)",
    "another lock": "fcntl.flock(open(folder + '/old'), fcntl.LOCK_SH | fcntl.LOCK_NB)",
    "type into a terminal": "fcntl.ioctl(0, termios.TIOCSTI, b'x')",
    "a socket pair": "socket.socketpair()",
    "mode by descriptor": "os.fchmod(open(folder + '/old').fileno(), 0)",
    "attributes": "os.setxattr(folder + '/old', 'user.x', b'x')",
    "times": "os.utime(folder + '/old')",
    "nothing to a file": "os.truncate(folder + '/old', 4)",
    "its scan's priority": "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "its scan's cores": "os.sched_setaffinity(os.getppid(), {0})",
    "outliving": "libc.prctl(1, 0, 0, 0, 0) == 0 or (_ for _ in ()).throw(OSError())",
    "memory without a name": "os.memfd_create('x')",
    "shared memory that stays": "libc.shmget(0, 4096, 0o1600) != -1 or (_ for _ in ()).throw(OSError())",
    "many files": "[open(folder + '/old') for _ in range(100)]",
    "much memory": "np.ones(1 << 28)",
    "read": "open(folder + '/old').read()",
    "list": "os.listdir(folder)",
    "stat": "os.stat(folder)",
    "a thread": "[thread := threading.Thread(target=print), thread.start(), thread.join()]",
    "some memory": "np.ones(1 << 25)",
    "signal itself": "os.kill(os.getpid(), 0)",
    "a file with its flags": "fcntl.fcntl(open(folder + '/old'), fcntl.F_GETFL)",
    "whether that is a terminal": "os.isatty(0)",
    "its own limit": "resource.getrlimit(resource.RLIMIT_AS)",
    "a socket it has": "[pair[0].sendall(b'x'), pair[1].recv(1)]",
}
ALLOWED = {
    "a file with its flags",
    "whether that is a terminal",
    "its own limit",
    "read",
    "list",
    "stat",
    "a thread",
    "some memory",
    "signal itself",
    "a socket it has",
}
PROGRAM = """
import ctypes, fcntl, json, os, resource, socket, sys, termios, threading
import numpy as np
from dissonance.engine.scan.confine import confine
folder, attempts = sys.argv[1], json.loads(sys.argv[2])
pair, libc = socket.socketpair(), ctypes.CDLL(None, use_errno=True)
own_status = open("/proc/self/status", "rb", buffering=0)
in_force = confine(more_memory_bytes=1 << 30)
result = {}
for name, code in attempts.items():
    try:
        eval(code)
        result[name] = True
    except (OSError, MemoryError, ValueError):
        result[name] = False
own_status.seek(0)
status = dict(line.split(":\\t", 1) for line in own_status.read().decode().splitlines())
print(json.dumps({"in force": in_force, "result": result, "NoNewPrivs": status["NoNewPrivs"], "Seccomp": status["Seccomp"]}))
"""


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64"), reason="no system call filter on this machine")
def test_what_is_allowed_is_what_reading_media_needs(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("text")
    command = [sys.executable, "-c", PROGRAM, tmp_path, json.dumps(ATTEMPTS)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name for name, allowed in found["result"].items() if allowed} == ALLOWED
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")  # 2: a filter, linux/seccomp.h
    assert set(EVERYTHING) == set(found["in force"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]
    assert (tmp_path / "old").read_text() == "text"


def test_threads_that_run_already_are_confined_too() -> None:
    program = f"""
import socket, threading
from dissonance.engine.scan.confine import confine
go, told = threading.Event(), []
def other():
    go.wait()
    try:
        socket.socket()
        told.append("allowed")
    except OSError:
        told.append("denied")
thread = threading.Thread(target=other)
thread.start()
in_force = confine(more_memory_bytes={1 << 30})
go.set()
thread.join()
print(told[0] if "system_calls" in in_force else "no filter")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in {"denied", "no filter"}


def test_what_it_prints_is_bounded(tmp_path: Path) -> None:
    program = "from dissonance.engine.scan.confine import confine\nconfine(more_memory_bytes=1 << 30)\nwhile True: print('x' * 1000, flush=True)"
    with (tmp_path / "printed").open("wb") as stream:
        subprocess.run([sys.executable, "-c", program], stdout=stream, stderr=subprocess.DEVNULL, check=False)
    assert (tmp_path / "printed").stat().st_size <= STDERR_BYTES


def test_confine_is_what_the_module_tells() -> None:
    done = subprocess.run([sys.executable, "-m", confine.__module__], capture_output=True, text=True, check=True)
    assert {"core", "file_size", "memory"} <= set(json.loads(done.stdout))
