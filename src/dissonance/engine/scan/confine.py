"""What a decode worker gives up before it opens its first file: `python -m dissonance.engine.scan.confine` tells what of it this machine offers.

A decoder that a hostile file has taken over can then neither reach the network, start a program, write a file, signal or inspect another process,
gain a privilege, take more memory than its share, nor outlive the scan. What it still can do: read files, use its share, and lie about its own file.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import sys
from pathlib import Path

STDERR_BYTES = 64 << 10  # what a worker may print
EVERYTHING = ("core", "file_size", "memory", "ends_with_the_scan", "no_new_privileges", "system_calls")
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1  # linux/seccomp.h
_RET_ALLOW, _RET_ERRNO = 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS = 1, 38
# linux/bpf_common.h: load a word, return, jump if equal / if at least, and with a constant.
_LD, _RET, _JEQ, _JGE, _AND = 0x20, 0x06, 0x15, 0x35, 0x54
_NUMBER, _ARCH = 0, 4  # where struct seccomp_data has them
_WRITES = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
_CLONE_THREAD = 0x10000
_X32 = 0x40000000

# System calls by number on (x86_64, aarch64); None: that machine has no such call.
_SECCOMP = (317, 277)
_OPEN, _OPENAT = (2, None), (257, 56)
_CLONE = (56, 220)
_TO_A_PROCESS = {"kill": (62, 129), "tgkill": (234, 131)}  # allowed to itself: how a library aborts
_ABSENT = {"clone3": (435, 435), "openat2": (437, 437)}  # their arguments cannot be looked into; libc falls back to the older call
_DENIED = {
    # the network
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242),
    # programs and other processes
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    # doors into the kernel
    "io_uring_setup": (425, 425), "bpf": (321, 280), "userfaultfd": (323, 282), "perf_event_open": (298, 241),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "setns": (308, 268), "unshare": (272, 97),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "open_by_handle_at": (304, 265),
    # writing
    "creat": (85, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "link": (86, None), "linkat": (265, 37),
    "symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None), "mknodat": (259, 33), "truncate": (76, 45),
    "chmod": (90, None), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
}  # fmt: skip
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, and AUDIT_ARCH of linux/audit.h


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def confine(*, more_memory_bytes: int) -> list[str]:
    """Give up all of the above for the rest of this process's life; returns the names of what is in force here.

    Of address space, private and shared, it may take `more_memory_bytes` beyond what it has now.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (STDERR_BYTES, STDERR_BYTES))
    in_force = ["core", "file_size"]
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + more_memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        in_force.append("memory")
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0:
            in_force.append("ends_with_the_scan")
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
            in_force.append("no_new_privileges")
            if _filter_system_calls(libc):
                in_force.append("system_calls")
    return in_force


def _filter_system_calls(libc: ctypes.CDLL) -> bool:
    """Install the seccomp filter in every thread; False where the kernel or the machine has none."""
    known = _MACHINES.get(platform.machine())
    if known is None or sys.byteorder != "little" or sys.maxsize < 2**32:
        return False
    column, arch = known
    rules = _rules(column, arch)
    instructions = (_Instruction * len(rules))(*(_Instruction(*rule) for rule in rules))
    program = _Program(len(rules), instructions)
    return bool(libc.syscall(_SECCOMP[column], _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, ctypes.byref(program)) == 0)


def _rules(column: int, arch: int) -> list[tuple[int, int, int, int]]:
    """The filter in classic BPF: (code, skip if true, skip if false, constant)."""
    deny, allow = (_RET, 0, 0, _RET_ERRNO | _EPERM), (_RET, 0, 0, _RET_ALLOW)

    def argument(index: int) -> tuple[int, int, int, int]:
        return _LD, 0, 0, 16 + 8 * index  # its lower half

    rules = [(_LD, 0, 0, _ARCH), (_JEQ, 1, 0, arch), deny, (_LD, 0, 0, _NUMBER), (_JGE, 0, 1, _X32), deny]

    def on(numbers: tuple[int | None, int | None], then: list[tuple[int, int, int, int]]) -> None:
        if (number := numbers[column]) is not None:
            rules.extend([(_JEQ, 0, len(then), number), *then])

    for numbers in _DENIED.values():
        on(numbers, [deny])
    for numbers in _ABSENT.values():
        on(numbers, [(_RET, 0, 0, _RET_ERRNO | _ENOSYS)])
    for numbers, flags in ((_OPEN, 1), (_OPENAT, 2)):
        on(numbers, [argument(flags), (_AND, 0, 0, _WRITES), (_JEQ, 0, 1, 0), allow, deny])
    for numbers in _TO_A_PROCESS.values():
        on(numbers, [argument(0), (_JEQ, 0, 1, os.getpid()), allow, deny])
    on(_CLONE, [argument(0), (_AND, 0, 0, _CLONE_THREAD), (_JEQ, 1, 0, 0), allow, deny])
    return [*rules, allow]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(confine(more_memory_bytes=1 << 30)) + "\n")
