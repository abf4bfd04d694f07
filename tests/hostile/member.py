"""One hostile input, and the outcomes that a scan of it may have."""

from dataclasses import dataclass
from pathlib import Path

_ABSTENTIONS = {"no_face", "no_face_and_no_sound", "no_speech", "too_short"}


@dataclass(frozen=True)
class Hostile:
    """name: what it is, short and unique. path: the input, whatever bytes its name is made of. The rest: what its row may hold."""

    name: str
    path: Path
    statuses: frozenset[str]  # "scored", "abstained", "failed"
    reasons: frozenset[str | None]  # None: scored


def hostile(name: str, path: Path, *reasons: str | None) -> Hostile:
    """A member that may come out with any of these reasons; None is a score. A reason determines the status."""
    statuses = {"scored" if reason is None else "abstained" if reason in _ABSTENTIONS else "failed" for reason in reasons}
    return Hostile(name, path, frozenset(statuses), frozenset(reasons))
