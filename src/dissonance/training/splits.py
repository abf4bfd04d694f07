"""Which clips are trained on and which judge the result: checks, a split by identity, leave-one-manipulation-out."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from dissonance.errors import UsageError
from dissonance.training.labels import SPLITS, Clip, Split


def of_split(clips: Iterable[Clip], split: Split) -> tuple[Clip, ...]:
    """The clips of one split."""
    return tuple(clip for clip in clips if clip.split == split)


def check_splits(clips: Sequence[Clip], *, needed: Collection[Split] = SPLITS) -> None:
    """Raises UsageError where a person is in two splits, or a needed split lacks clips or one of the two classes."""
    splits: dict[str, set[Split]] = {}
    for clip in clips:
        splits.setdefault(clip.identity, set()).add(clip.split)
    if crossing := sorted(identity for identity, found in splits.items() if len(found) > 1):
        raise UsageError(
            f"Invalid splits: identity {crossing[0]!r:.80} is in {' and '.join(sorted(splits[crossing[0]]))} ({len(crossing)} such identities). "
            "A person must be in one split only, or recognising the face would pass for detecting the forgery."
        )
    for split in needed:
        counts = Counter(clip.fake for clip in clips if clip.split == split)
        if not (counts[True] and counts[False]):
            raise UsageError(
                f"Invalid splits: {split} has {counts[False]} real and {counts[True]} fake clips. Both classes are needed; label the clips' `split` "
                "column, or split by identity."
            )


def split_by_identity(clips: Iterable[Clip], *, seed: int, validation: float = 0.15, test: float = 0.15) -> tuple[Clip, ...]:
    """The clips with new splits, a person's all in one; the shares are of people, and met in the mean.

    Which split a person gets depends on seed and name alone, so adding clips moves nobody. Raises UsageError for shares that leave nothing to
    train on.
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise UsageError(f"Invalid shares (validation {validation}, test {test}). Supported values are from 0 up and together below 1.")

    def place(identity: str) -> Split:
        digest = hashlib.sha256(f"{seed}:{identity}".encode("utf-8", "surrogatepass")).digest()
        draw = int.from_bytes(digest[:8], "big") / 2**64
        return "test" if draw < test else "validation" if draw < test + validation else "train"

    return tuple(replace(clip, split=place(clip.identity)) for clip in clips)


def leave_out(clips: Sequence[Clip], names: Collection[str]) -> tuple[Clip, ...]:
    """The clips without those manipulations in train and validation; test keeps them, as what was never seen.

    A name is a manipulation ("wav2lip"), or one of a category ("D/wav2lip"). FakeAVCeleb's "faceswap-wav2lip" and "fsgan-wav2lip" are names
    of their own: leave all three out to test on wav2lip unseen. Raises UsageError for a name that is none, that test has no clip of, or that
    would leave train or validation without fakes.
    """
    known = {name for clip in clips if clip.fake for name in _names(clip)}
    for name in names:
        if name not in known:
            raise UsageError(f"Invalid manipulation ({name!r:.80}). Supported values are {', '.join(sorted(known))}.")
        if of_split(clips, "test") and not any(name in _names(clip) for clip in of_split(clips, "test")):
            raise UsageError(f"Invalid manipulation ({name!r:.80}): test has no clip of it, so leaving it out would show nothing.")
    kept = tuple(clip for clip in clips if clip.split == "test" or not (clip.fake and set(names) & _names(clip)))
    check_splits(kept, needed=[split for split in SPLITS if of_split(clips, split)])
    return kept


def _names(clip: Clip) -> set[str]:
    return {clip.manipulation, f"{clip.category}/{clip.manipulation}"} if clip.category else {clip.manipulation}
