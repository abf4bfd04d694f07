"""What is known of a clip before it is looked at, whatever data set it is from. Labels are per modality."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from dissonance.bundle import ModalityCase

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
REAL = "none"  # the manipulation of a clip whose picture and sound are both real


@dataclass(frozen=True)
class Clip:
    """One labelled file.

    uri: the name that a scan's rows give it when it is pointed at the same folder or manifest, spelled alike ("data", not "./data").
    path: what is opened.
    picture_fake, sound_fake: the labels. What the fused head is asked is `fake`, whether either is.
    manipulation: what was done to it, in the data set's own words ("wav2lip", "visual_timing"); REAL exactly where nothing was.
    category: a coarser class, where the data set has one (FakeAVCeleb: A, B, C, D); else "".
    identity: the person. No two splits may share one, and intervals are bootstrapped over it.
    group: what the split is made by (FakeAVCeleb: ethnicity); else "".
    compression: the level it was encoded at, where that is known.
    """

    uri: str
    path: Path
    picture_fake: bool
    sound_fake: bool
    manipulation: str
    category: str
    identity: str
    group: str
    split: Split
    compression: str | None = None

    @property
    def fake(self) -> bool:
        """Whether picture or sound is."""
        return self.picture_fake or self.sound_fake


LABEL_OF_CASE: dict[ModalityCase, Callable[[Clip], bool]] = {  # what each modality case is asked
    "av": lambda clip: clip.fake,
    "v": lambda clip: clip.picture_fake,
    "a": lambda clip: clip.sound_fake,
}


@dataclass(frozen=True)
class Skipped:
    """A row or a file that is left out. `reason` is a code to count by, `detail` says more."""

    path: Path
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Dataset:
    """Clips in a fixed order, and what was left out: every row and every media file is in one of the two."""

    clips: tuple[Clip, ...]
    skipped: tuple[Skipped, ...]
