"""Opening a data set by a configuration: which reader, and where."""

from pathlib import Path
from typing import Literal

from dissonance.config import Frozen, PossiblePath
from dissonance.errors import UsageError
from dissonance.tables import SUFFIXES
from dissonance.training.fakeavceleb import META_DATA, read_fakeavceleb
from dissonance.training.kodf import read_kodf
from dissonance.training.labels import Dataset
from dissonance.training.manifest import read_manifest


class DatasetConfig(Frozen):
    """Where labelled clips are, and in which layout."""

    path: PossiblePath  # a folder, or a manifest
    layout: Literal["auto", "fakeavceleb", "kodf", "manifest"] = "auto"
    root: PossiblePath | None = None  # of a manifest's relative paths; None: its own folder


def open_dataset(config: DatasetConfig) -> Dataset:
    """Read the labels of a data set. `auto` is a manifest by its suffix, FakeAVCeleb's layout by its meta_data.csv. Raises UsageError."""
    path = config.path
    layout = _guess(path) if config.layout == "auto" else config.layout
    if layout == "manifest":
        return read_manifest(path, root=config.root)
    if config.root is not None:
        raise UsageError(f"Invalid root ({config.root}): only a manifest has one, and '{path}' is read as {layout}. Remove it.")
    if not path.is_dir():
        raise UsageError(f"No folder '{path}'. Give the data set's folder, or a manifest ({', '.join(SUFFIXES)}).")
    return read_fakeavceleb(path) if layout == "fakeavceleb" else read_kodf(path)


def _guess(path: Path) -> Literal["fakeavceleb", "manifest"]:
    if path.suffix.lower() in SUFFIXES and not path.is_dir():
        return "manifest"
    if path.is_dir() and not (path / META_DATA).is_file():
        raise UsageError(f"Cannot tell the layout of '{path}': it holds no {META_DATA}. Name the layout (fakeavceleb, kodf), or give a manifest.")
    return "fakeavceleb"
