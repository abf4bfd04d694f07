"""The clips of a run: of a data set, or drawn for it; cached."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from dissonance.config import ModelConfig
from dissonance.errors import UsageError
from dissonance.machine import available_cores
from dissonance.synth.dataset import MANIFEST, generate
from dissonance.training.cache import ClipCache, Outcome
from dissonance.training.cached_clip import CachedClip
from dissonance.training.config import DataConfig, SyntheticConfig, TrainConfig
from dissonance.training.datasets import open_dataset
from dissonance.training.fakeavceleb import META_DATA, read_fakeavceleb
from dissonance.training.labels import Clip, Skipped, Split
from dissonance.training.splits import check_splits, leave_out, split_by_identity


class Counted(Protocol):
    """Passes items on, and shows how many of how many have come."""

    def __call__(self, what: str, total: int, items: Iterable[Any], /) -> Iterator[Any]: ...


class Preparing(Protocol):
    """Is told how clips are drawn and cached."""

    def counted(self, what: str, total: int, items: Iterable[Any], /) -> Iterator[Any]: ...
    def caching(self, done: int, total: int, uri: str, outcome: Outcome) -> None: ...


@dataclass(frozen=True)
class Material:
    """What a run trains on and is validated with, or several runs. entries: each clip's key in the cache, by its uri."""

    clips: tuple[Clip, ...]
    skipped: tuple[Skipped, ...]
    cache: ClipCache
    entries: Mapping[str, str]

    def open(self, uri: str) -> CachedClip:
        """One of the clips."""
        return self.cache.open(self.entries[uri])

    def reasons(self) -> dict[str, int]:
        """How many clips were left out for what."""
        return dict(sorted(Counter(each.reason for each in self.skipped).items()))

    def check(self) -> None:
        """Raise UsageError where there are no clips to train on or to validate with, or where those of two splits share a person or hold the same."""
        check_splits(self.clips, needed=("train", "validation"))
        seen: dict[str, Clip] = {}
        for clip in self.clips:
            other = seen.setdefault(self.entries[clip.uri], clip)
            if other.split != clip.split:
                raise UsageError(
                    f"'{other.uri}' ({other.split}) and '{clip.uri}' ({clip.split}) have the same content: what is learnt from the one would pass "
                    "for skill on the other. Put both in one split, or remove one."
                )


def prepare_clips(config: TrainConfig, folder: Path, *, console: Preparing) -> Material:
    """Find or draw the clips, and cache those that are not yet: in `folder`/clips and `folder`/cache, or where the configuration says.

    Raises UsageError, ConfigError, EnvironmentMissingError or OutputError.
    """
    assert isinstance(config.model, ModelConfig)  # resolved
    clips, skipped = find_clips(config.data, folder / "clips", seed=config.seed, workers=available_cores(), counted=console.counted)
    cache = ClipCache(config.data.cache or folder / "cache", model=config.model, scan=config.scan)
    report = cache.build(clips, workers=available_cores(), progress=console.caching)
    cached = [clip for clip in clips if clip.uri in report.entries]
    return Material(tuple(cached), (*skipped, *report.skipped), cache, report.entries)


def find_clips(data: DataConfig, folder: Path, *, seed: int, workers: int, counted: Counted) -> tuple[list[Clip], list[Skipped]]:
    """Clips to train on and to validate with, and what their data set left out. Synthetic ones are drawn in `folder` by `workers` processes.

    Raises UsageError.
    """
    if data.synthetic is not None:
        train = _drawn(data.synthetic, folder / "train", split="train", workers=workers, counted=counted)
        validation = _drawn(data.synthetic, folder / "validation", split="validation", workers=workers, counted=counted)
        return train[0] + validation[0], train[1] + validation[1]
    assert data.dataset is not None
    dataset = open_dataset(data.dataset)
    found = dataset.clips
    check_splits(found, needed=())  # with the test clips, which the run itself does not look at
    if data.split == "identity":
        found = split_by_identity(found, seed=seed, validation=data.validation, test=0.0)
    if data.leave_out:
        found = leave_out(found, data.leave_out)
    return [clip for clip in found if clip.split != "test"], list(dataset.skipped)


def trained_on(data: DataConfig, clips: Iterable[Clip]) -> str:
    """What a bundle of these clips says: "synthetic" where any was drawn, wherever it lies; else the data set's name."""
    folders = {folder for clip in clips for folder in clip.path.resolve().parents}
    if data.dataset is None or any((folder / MANIFEST).is_file() for folder in folders):
        return "synthetic"
    return data.name or data.dataset.path.resolve().stem


def _drawn(settings: SyntheticConfig, folder: Path, *, split: Split, workers: int, counted: Counted) -> tuple[list[Clip], list[Skipped]]:
    """One synthetic set, drawn unless it is there already. Its people are its own, whatever their numbers."""
    training = split == "train"
    forgeries = settings.train_forgeries if training else settings.clip.forgeries
    config = settings.clip.model_copy(update={"forgeries": forgeries})
    count = settings.train_clips if training else settings.validation_clips
    seed = settings.seed if training else settings.seed + 1
    if not _is_drawn(folder, {"count": count, "seed": seed, "config": config.model_dump(mode="json")}):
        rows = generate(folder, count=count, seed=seed, config=config, overwrite=(folder / MANIFEST).is_file(), workers=workers)
        for _ in counted(f"drawing {split} clips", count, rows):
            pass
    dataset = read_fakeavceleb(folder)
    return [replace(clip, split=split, identity=f"{split}-{clip.identity}") for clip in dataset.clips], list(dataset.skipped)


def _is_drawn(folder: Path, wanted: dict[str, Any]) -> bool:
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (folder / META_DATA).is_file() and isinstance(found, dict) and {key: found.get(key) for key in wanted} == wanted
