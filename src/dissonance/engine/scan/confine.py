"""What a decode worker gives up before it opens its first file: `python -m dissonance.engine.scan.confine` tells what of it this machine offers.

A decoder that a hostile file has taken over can then neither reach the network, start a program, write or lock a file, signal or inspect another
process, type into a terminal, gain a privilege, take more memory than its share, nor outlive the scan. What it still can do: read files that the
user may read, use its share, and lie about the files it is given. Nothing takes root's rights from a scan that root runs.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import stat
import struct
import sys
from pathlib import Path

STDERR_BYTES = 64 << 10  # what a worker may print
LARGEST_FILE_BYTES = 64 << 20  # that a worker on a GPU may write: also CUDA's own cache of kernels
OPEN_FILES = 64
EVERYTHING = ("core", "file_size", "open_files", "memory", "ends_with_the_scan", "no_new_privileges", "domain", "system_calls")
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
_FCNTL, _IOCTL, _PRLIMIT64 = (72, 25), (16, 29), (302, 261)
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)  # F_DUPFD to F_SETFL, F_DUPFD_CLOEXEC: no locks, and no owner, to whom the kernel would send any signal
_IOCTL_REQUESTS = (0x5401, 0x5450, 0x5451, 0x5421, 0x541B)  # isatty, FIONCLEX, FIOCLEX, FIONBIO, FIONREAD: not TIOCSTI, which types into a terminal
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446  # on every machine
_LANDLOCK_RULE_PATH_BENEATH, _LANDLOCK_READ_FILE, _LANDLOCK_READ_DIR = 1, 1 << 2, 1 << 3  # linux/landlock.h
_ABSENT = {"clone3": (435, 435), "openat2": (437, 437)}  # their arguments cannot be looked into; libc falls back to the older call
_DENIED = {
    # the network, and what listens on this machine
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242),
    # programs and other processes
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117), "prctl": (157, 167),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "kcmp": (312, 272),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "setrlimit": (160, 164),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239), "flock": (73, 32),
    "sched_setaffinity": (203, 122), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
    # memory that no limit counts, or that outlives its process
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    # doors into the kernel
    "io_uring_setup": (425, 425), "bpf": (321, 280), "userfaultfd": (323, 282), "perf_event_open": (298, 241),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "setns": (308, 268), "unshare": (272, 97),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104), "reboot": (169, 142),
    "swapon": (167, 224), "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "sethostname": (170, 161),
    "syslog": (103, 116), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "open_by_handle_at": (304, 265),
    # writing
    "creat": (85, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "link": (86, None), "linkat": (265, 37),
    "symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None), "mknodat": (259, 33), "truncate": (76, 45),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
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
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    in_force = ["core", "file_size", "open_files"]
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
            if _enter_domain(libc):
                in_force.append("domain")
            if _filter_system_calls(libc):
                in_force.append("system_calls")
    return in_force


def confine_on_gpu() -> list[str]:
    """What can be given up by a worker that decodes on a GPU: little. CUDA reserves address space, writes to devices and asks them much by ioctl."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE_BYTES, LARGEST_FILE_BYTES))
    libc = ctypes.CDLL(None, use_errno=True)
    ends = libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    no_new = libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    return ["core", "file_size", *(["ends_with_the_scan"] if ends else []), *(["no_new_privileges"] if no_new else [])]


def _enter_domain(libc: ctypes.CDLL) -> bool:
    """Landlock: of what the user may read, all but /proc and /sys, where other processes' environments are; and none can be traced from a domain."""
    rights = ctypes.c_uint64(_LANDLOCK_READ_FILE | _LANDLOCK_READ_DIR)
    ruleset = libc.syscall(_LANDLOCK_CREATE_RULESET, ctypes.byref(rights), ctypes.sizeof(rights), 0)
    if ruleset < 0:
        return False
    try:
        for place in os.listdir("/"):
            if place not in ("proc", "sys"):
                _allow_reading(libc, ruleset, f"/{place}")
        return bool(libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _allow_reading(libc: ctypes.CDLL, ruleset: int, place: str) -> None:
    try:
        descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # a link to nowhere
        return
    try:
        rights = _LANDLOCK_READ_FILE | (_LANDLOCK_READ_DIR if stat.S_ISDIR(os.fstat(descriptor).st_mode) else 0)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor))
        libc.syscall(_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)


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
    for numbers, values in ((_FCNTL, _FCNTL_COMMANDS), (_IOCTL, _IOCTL_REQUESTS)):
        # each value jumps over those after it and over `deny`
        on(numbers, [argument(1), *((_JEQ, len(values) - index, 0, value) for index, value in enumerate(values)), deny, allow])
    upper_half = (_LD, 0, 0, 16 + 8 * 2 + 4)
    on(_PRLIMIT64, [argument(2), (_JEQ, 0, 3, 0), upper_half, (_JEQ, 0, 1, 0), allow, deny])  # to read a limit, not to set one
    on(_CLONE, [argument(0), (_AND, 0, 0, _CLONE_THREAD), (_JEQ, 1, 0, 0), allow, deny])
    return [*rules, allow]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(confine(more_memory_bytes=1 << 30)) + "\n")
