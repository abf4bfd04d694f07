"""Which plans this user built on this machine.

A plan can run code, so what a bundle says of itself is no answer: the record is in the user's own state folder.
"""

import os
from pathlib import Path


def _folder() -> Path:
    """XDG Base Directory Specification: $XDG_STATE_HOME, ~/.local/state where it is not set."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "dissonance" / "own_plans"


def remember_own_plan(sha256: str) -> None:
    """Note that this user built the plan with this hash (64 hexadecimal digits). Raises OSError."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / sha256).touch()


def is_own_plan(sha256: str) -> bool:
    """Whether this user built the plan with this hash."""
    return (_folder() / sha256).is_file()
