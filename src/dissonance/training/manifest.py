"""Any labelled clips: a manifest (CSV, JSONL or Parquet) with `uri` and a label for picture and for sound.

    uri             path of the file; relative ones are relative to the manifest's folder, or to a root that is given
    picture_fake    or video_label: 1/0, true/false, fake/real
    sound_fake      or audio_label
    manipulation    what was done; needed to balance over it and to leave it out. Empty: "none" for real clips, "unknown" for others
    identity        the person; empty: every clip counts as a person of its own
    group, category, compression    free text
    split           train, validation or test; empty: test, as for a data set to evaluate on (`splits.split_by_identity` makes others)

Other columns are ignored. A row whose file is not there, or that names one a second time, is a listed skip; a wrong value is an error.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from dissonance.engine.scan.sources import Input
from dissonance.errors import OutputError, UsageError
from dissonance.files import replacing
from dissonance.tables import Cells, is_file, read_table
from dissonance.training.labels import REAL, SPLITS, Clip, Dataset, Skipped, Split

_LABELS = {"picture_fake": "video_label", "sound_fake": "audio_label"}  # and what it may be called instead
_NAMES_OF_REAL = frozenset({"", "none", "real", "-"})


def read_manifest(path: Path, *, root: Path | None = None) -> Dataset:
    """Clips of a manifest, in its order. Raises UsageError that names line, field and value, or where there is no clip at all."""
    folder = path.parent if root is None else root
    clips: dict[str, Clip] = {}
    skipped: list[Skipped] = []
    for where, row in read_table(path):
        cells = Cells(path, where, row)
        clip = _clip(cells, folder)
        if clip.uri in clips:
            if clip != clips[clip.uri]:
                raise UsageError(f"Table '{path}', {where}: '{clip.uri}' is listed with other labels before. Remove the wrong row.")
            skipped.append(Skipped(clip.path, "repeated", where))
        elif "://" in cells.text("uri"):
            skipped.append(Skipped(clip.path, "refused", "training reads local files only"))
        elif not is_file(clip.path):
            skipped.append(Skipped(clip.path, "missing", f"{where} names it, but there is no such file"))
        else:
            clips[clip.uri] = clip
    if not clips:
        raise UsageError(f"Manifest '{path}' names no file that is there ({len(skipped)} rows). Relative paths are looked up in '{folder}'.")
    return Dataset(tuple(clips.values()), tuple(skipped))


def _clip(cells: Cells, folder: Path) -> Clip:
    path = folder / cells.text("uri")
    try:
        named = Input.of(str(path))
    except UnicodeError:
        raise cells.wrong("uri", "paths that a file can have") from None
    picture, sound = (_label(cells, field) for field in _LABELS)
    manipulation = cells.text("manipulation", "")
    if manipulation.lower() in _NAMES_OF_REAL:
        if manipulation and (picture or sound):
            raise cells.wrong("manipulation", "names of manipulations, for a clip that is labelled fake")
        manipulation = "unknown" if picture or sound else REAL
    elif not (picture or sound):
        raise cells.wrong("manipulation", "'none', for a clip whose picture and sound are labelled real")
    return Clip(
        uri=named.uri,
        path=path,
        picture_fake=picture,
        sound_fake=sound,
        manipulation=manipulation,
        category=cells.text("category", ""),
        identity=cells.text("identity", cells.text("uri")),
        group=cells.text("group", ""),
        split=cast(Split, cells.choice("split", SPLITS, "test")),
        compression=cells.text("compression", "") or None,
    )


def _label(cells: Cells, field: str) -> bool:
    other = _LABELS[field]
    if field in cells and other in cells and cells.flag(field) != cells.flag(other):
        raise cells.wrong(field, f"those that '{other}' agrees with")
    return cells.flag(other if other in cells and field not in cells else field)


def write_manifest(path: Path, clips: Iterable[Clip], *, root: Path, extra: Mapping[str, object] | None = None) -> None:
    """Write clips as JSONL that `read_manifest(path, root=root)` reads back; `uri` is relative to `root`. All or nothing.

    `extra` fields are added to every row, for whoever reads the file. Raises OutputError.
    """
    try:
        with replacing(path) as partial, partial.open("w", encoding="utf-8") as stream:
            for clip in clips:
                labels = {name: value for name, value in vars(clip).items() if name not in ("uri", "path")}
                stream.write(json.dumps({"uri": os.path.relpath(clip.path, root), **labels, **(extra or {})}) + "\n")
    except OSError as error:
        raise OutputError(f"Cannot write manifest '{path}': {error.strerror or error}. Free some space, or choose another folder.") from error
