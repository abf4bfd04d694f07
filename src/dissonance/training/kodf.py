"""KoDF (Kwon et al., "KoDF: A Large-scale Korean DeepFake Detection Dataset", ICCV 2021), for evaluation across data sets.

Known from its paper and page: 62,166 real and 175,776 synthesized clips of 403 Korean subjects, made by six models (FaceSwap, DeepFaceLab, FSGAN,
FOMM, ATFHP, Wav2Lip); real clips, synthesized clips, clips with an adversarial attack, and metadata as CSV come in parts of their own. The method's
paper evaluates on a subset of it and does not say which.

Assumed here, because access is by request and the files' layout is not described in public:
- A clip is real or synthesized by the first folder on its way that says so: a name with "synth" or "fake" in it, or with "real" or "original".
  Below a folder with "adversarial" or "noise" clips are left out.
- The forgeries are of the picture only (four models swap or reenact faces, two move lips to recorded speech): every sound is labelled real.
- The model is named by a folder or by the metadata, under one of the spellings in `MODELS`; else it is "unknown".
- The subject is what the metadata say, else the folder that the file lies in.
- A metadata row belongs to the file of the same name (or path) as its cell under one of `FILE_COLUMNS`; where several files have the name, to none.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePath

from dissonance.config import ScanConfig
from dissonance.engine.scan.sources import Input, Sources
from dissonance.errors import UsageError
from dissonance.tables import read_table
from dissonance.training.labels import REAL, Clip, Dataset, Skipped
from dissonance.training.manifest import read_manifest, write_manifest

SEED = 20250225  # of the subset that this project publishes figures on
MODELS = {
    "faceswap": ("faceswap", "fs"),
    "deepfacelab": ("deepfacelab", "dfl"),
    "fsgan": ("fsgan",),
    "fomm": ("fomm", "fo", "firstordermotionmodel"),
    "atfhp": ("atfhp", "audiodriven"),
    "wav2lip": ("wav2lip", "wavtolip"),
}
FILE_COLUMNS = ("path", "file", "filename", "file_name", "video", "video_name", "name")
SUBJECT_COLUMNS = ("subject", "subject_id", "identity", "source", "source_id", "id")
MODEL_COLUMNS = ("model", "method", "manipulation")
_SYNTHESIZED, _REAL, _ATTACKED = ("synth", "fake"), ("real", "original"), ("adversarial", "noise")
_MODEL_OF_SPELLING = {spelling: model for model, spellings in MODELS.items() for spelling in spellings}


def read_kodf(folder: Path) -> Dataset:
    """All clips of both classes, in the order of their paths, every one of split "test" and group "Asian (East)".

    Skips: files below folders for attacked clips (adversarial), or below none that tells the class (unlabelled), and metadata rows without a file
    (missing). Raises UsageError where there is no clip, or metadata cannot be read.
    """
    files = [Path(file.path) for file in Sources([str(folder)], extensions=ScanConfig().extensions)] if folder.is_dir() else []
    skipped: list[Skipped] = []
    told = _metadata(folder, files, skipped)
    clips = []
    for path in files:
        parts = path.relative_to(folder).parts[:-1]
        kind = _kind(parts)
        if kind not in ("real", "synthesized"):
            skipped.append(Skipped(path, kind))
            continue
        row = told.get(path, {})
        spellings = [row.get(column, "") for column in MODEL_COLUMNS] + list(parts)
        model = next((found for text in spellings if (found := _MODEL_OF_SPELLING.get(_plain(text)))), "unknown")
        fake = kind == "synthesized"
        clips.append(
            Clip(
                uri=Input.of(str(path)).uri,
                path=path,
                picture_fake=fake,
                sound_fake=False,
                manipulation=model if fake else REAL,
                category="C" if fake else "A",
                identity=next((row[column] for column in SUBJECT_COLUMNS if row.get(column)), parts[-1]),
                group="Asian (East)",
                split="test",
            )
        )
    if not clips:
        raise UsageError(
            f"'{folder}' holds no clip of KoDF. Give a folder with one for real clips ('real' or 'original' in its name) and one for "
            "synthesized clips ('synth' or 'fake'), or write a manifest of the clips."
        )
    return Dataset(tuple(clips), tuple(skipped))


def _kind(parts: Iterable[str]) -> str:
    names = [part.lower() for part in parts]
    if any(word in name for name in names for word in _ATTACKED):
        return "adversarial"
    for name in names:
        if any(word in name for word in _SYNTHESIZED):
            return "synthesized"
        if any(word in name for word in _REAL):
            return "real"
    return "unlabelled"


def _plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def _metadata(folder: Path, files: list[Path], skipped: list[Skipped]) -> dict[Path, dict[str, str]]:
    """What every CSV below the folder says, by file; columns in lower case."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        by_name[path.name].append(path)
    told: dict[Path, dict[str, str]] = {}
    for table in sorted(folder.rglob("*.csv")) if folder.is_dir() else ():
        for where, row in read_table(table):
            fields = {name.lower().strip(): str(value).strip() for name, value in row.items()}
            named = next((fields[column] for column in FILE_COLUMNS if fields.get(column)), None)
            if named is None:
                break  # a table of something else
            found = by_name.get(PurePath(named).name, [])
            exact = [path for path in found if path == folder / named]
            if not found:
                skipped.append(Skipped(folder / named, "missing", f"{table.name}, {where}"))
            elif exact or len(found) == 1:
                told.setdefault((exact or found)[0], {}).update(fields)
    return told


def choose_subset(clips: Iterable[Clip], *, root: Path, per_class: int, seed: int = SEED) -> tuple[Clip, ...]:
    """`per_class` real clips and as many fakes, these as evenly over the manipulations as they reach; in the order of their paths.

    Which ones depends on the seed and on the paths below `root` alone, not on a generator or on the order of `clips`: they are those whose
    SHA-256 of "seed:path" come first. Raises UsageError where a class has too few.
    """

    def lot(clip: Clip) -> bytes:
        return hashlib.sha256(os.fsencode(f"{seed}:{Path(os.path.relpath(clip.path, root)).as_posix()}")).digest()

    chosen: list[Clip] = []
    pools: dict[bool, dict[str, list[Clip]]] = {False: defaultdict(list), True: defaultdict(list)}
    for clip in sorted(clips, key=lot):
        pools[clip.fake][clip.manipulation].append(clip)
    for fake, of_manipulation in pools.items():
        turns = [(turn, name, clip) for name, pool in of_manipulation.items() for turn, clip in enumerate(pool)]
        turns.sort(key=lambda item: item[:2])
        if per_class < 1 or len(turns) < per_class:
            raise UsageError(
                f"Invalid per_class ({per_class}): there are {len(turns)} {'synthesized' if fake else 'real'} clips. "
                f"Supported values are 1 to {min(sum(map(len, pool.values())) for pool in pools.values())}."
            )
        chosen += [clip for _, _, clip in turns[:per_class]]
    return tuple(sorted(chosen, key=lambda clip: clip.path))


def write_file_list(path: Path, clips: Iterable[Clip], *, root: Path, seed: int = SEED) -> None:
    """Publish a subset: JSONL, a row a clip with its path below `root`, its labels and the seed. Raises OutputError."""
    write_manifest(path, clips, root=root, extra={"dataset": "KoDF", "seed": seed})


def read_file_list(path: Path, *, root: Path) -> Dataset:
    """The subset that a published file list names, in a copy of the data set at `root`. Raises UsageError."""
    return read_manifest(path, root=root)
