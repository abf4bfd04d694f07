"""What this machine lends us."""

import os


def available_cores() -> int:
    """CPU cores this process may use: those of its affinity mask where the system has one, which a container may have narrowed."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
