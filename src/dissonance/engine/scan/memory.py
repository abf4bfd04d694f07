"""How much memory another process held at most, by Linux's /proc. Elsewhere, and where the process is gone, all is None."""

import contextlib
from pathlib import Path


def peak_bytes(pid: int) -> int | None:
    """The most that it held at once since its start or `reset_peak`."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def reset_peak(pid: int) -> None:
    """Let `peak_bytes` count from now on."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")
