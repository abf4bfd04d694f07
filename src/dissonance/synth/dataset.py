"""A folder of synthetic clips in FakeAVCeleb's layout, with its `meta_data.csv`.

    DIR/meta_data.csv
    DIR/RealVideo-RealAudio/African/men/id00000/00000.mp4
    DIR/FakeVideo-RealAudio/Asian (East)/women/id00006/00012_id00006_mouth.mp4

As in FakeAVCeleb, the csv's column `path` holds the file's name and an unnamed column after it the folder, which begins with
"FakeAVCeleb/" in place of DIR. This project's own columns follow.
"""

import csv
import json
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dissonance.errors import UsageError
from dissonance.files import replacing
from dissonance.synth.config import Compression, Forgery, Renderer, SynthConfig
from dissonance.synth.drawing import draw_clips
from dissonance.synth.identity import SPLIT_OF_RACE, Gender, Race, Split, gender_of, race_of
from dissonance.synth.plan import ClipPlan, plan_clip

META_DATA = "meta_data.csv"
MANIFEST = "synth.json"  # names the seed and the options, and marks a folder as this program's own
COLUMNS = (
    "source", "target1", "target2", "method", "category", "type", "race", "gender", "path", "",
    "forgery", "identity", "split", "shift_frames", "companion", "renderer", "compression",
)  # fmt: skip
_DATASET_NAME = "FakeAVCeleb"

Category = Literal["A", "B", "C", "D"]
ClipType = Literal["RealVideo-RealAudio", "RealVideo-FakeAudio", "FakeVideo-RealAudio", "FakeVideo-FakeAudio"]
CLIP_TYPES: tuple[ClipType, ...] = ("RealVideo-RealAudio", "RealVideo-FakeAudio", "FakeVideo-RealAudio", "FakeVideo-FakeAudio")
CATEGORY_OF_FORGERY: dict[Forgery, tuple[Category, ClipType]] = {
    "none": ("A", "RealVideo-RealAudio"),
    "audio_timing": ("B", "RealVideo-FakeAudio"),
    "audio_artefact": ("B", "RealVideo-FakeAudio"),
    "visual_timing": ("C", "FakeVideo-RealAudio"),
    "visual_artefact": ("C", "FakeVideo-RealAudio"),
    "both": ("D", "FakeVideo-FakeAudio"),
}
_METHOD_OF_FORGERY: dict[Forgery, tuple[str, str]] = {  # the column `method`, and the end of the file's name
    "none": ("real", ""),
    "visual_timing": ("picture-retiming", "picture"),
    "audio_timing": ("sound-retiming", "sound"),
    "visual_artefact": ("mouth-rerendering", "mouth"),
    "audio_artefact": ("vocoder", "vocoder"),
    "both": ("mouth-rerendering-vocoder", "mouth_vocoder"),
}


@dataclass(frozen=True)
class ClipRow:
    """One line of meta_data.csv. Where FakeAVCeleb writes "-" for nothing, so does this."""

    source: str  # the person's id
    target1: str  # id of the person whose speech a forgery took: the source's own, unless it is another speaker's
    target2: str
    method: str
    category: Category
    type: ClipType
    race: Race
    gender: Gender
    path: str  # file name
    folder: str  # "FakeAVCeleb/<type>/<race>/<gender>/<id>": the unnamed column
    forgery: Forgery
    identity: str
    split: Split
    shift_frames: int
    companion: str  # id of the silent person beside the speaker
    renderer: Renderer
    compression: Compression

    @property
    def file(self) -> Path:
        """The clip, relative to the data set's folder."""
        return Path(*self.folder.split("/")[1:], self.path)

    def cells(self) -> list[str]:
        """The line, in the order of `COLUMNS`."""
        return [str(getattr(self, name or "folder")) for name in COLUMNS]


def describe(plan: ClipPlan) -> ClipRow:
    """The row of a planned clip."""
    name = _name(plan.identity)
    race, gender = race_of(plan.identity), gender_of(plan.identity)
    category, kind = CATEGORY_OF_FORGERY[plan.forgery]
    method, ending = _METHOD_OF_FORGERY[plan.forgery]
    donor = "-" if plan.forgery == "none" else _name(plan.donor)
    return ClipRow(
        source=name,
        target1=donor,
        target2="-",
        method=method,
        category=category,
        type=kind,
        race=race,
        gender=gender,
        path=f"{plan.index:05d}.mp4" if plan.forgery == "none" else f"{plan.index:05d}_{donor}_{ending}.mp4",
        folder="/".join((_DATASET_NAME, kind, race, gender, name)),
        forgery=plan.forgery,
        identity=name,
        split=SPLIT_OF_RACE[race],
        shift_frames=plan.shift_frames,
        companion="-" if plan.companion is None else _name(plan.companion),
        renderer=plan.renderer,
        compression=plan.compression,
    )


def generate(
    out: Path, *, count: int, seed: int, config: SynthConfig | None = None, overwrite: bool = False, workers: int = 1
) -> Generator[ClipRow, None, None]:
    """Make `count` clips in the folder `out`, and yield the row of each once its file is there. Exhaust it: meta_data.csv comes last, at once.

    `overwrite` replaces an earlier synthetic data set in `out`, and nothing else. `workers` processes draw, with more than 1 beside this one (a
    script that asks for them needs `if __name__ == "__main__":`), and change neither the files nor their order; closing the iterator ends them.

    Raises UsageError at once for wrong arguments and where `out` holds something, and later where it cannot be written; EnvironmentMissingError
    where a process cannot start or is killed.
    """
    config = config or SynthConfig()
    if count < 1:
        raise UsageError(f"Invalid count ({count}). Supported values are whole numbers from 1 up.")
    if workers < 1:
        raise UsageError(f"Invalid workers ({workers}). Supported values are whole numbers from 1 up.")
    plan_clip(seed, 0, config)
    try:
        _clear(out, overwrite=overwrite)
    except OSError as error:
        raise UsageError(f"Cannot write '{out}': {error.strerror or error}. Choose another folder.") from error
    return _generate(out, count, seed, config, min(workers, count))


def _generate(out: Path, count: int, seed: int, config: SynthConfig, workers: int) -> Generator[ClipRow, None, None]:
    plans = (plan_clip(seed, index, config) for index in range(count))
    drawn = draw_clips(plans, lambda plan: out / describe(plan).file, config, workers=workers)
    try:
        manifest = {"generator": "dissonance synth", "count": count, "seed": seed, "config": config.model_dump(mode="json")}
        out.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        with replacing(out / META_DATA) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
            lines = csv.writer(stream, lineterminator="\n")
            lines.writerow(COLUMNS)
            for row in map(describe, drawn):
                lines.writerow(row.cells())
                yield row
    except OSError as error:
        raise UsageError(f"Cannot write '{out}': {error.strerror or error}. Free some space, or choose another folder.") from error
    finally:
        drawn.close()


def _name(number: int) -> str:
    return f"id{number:05d}"


def _clear(out: Path, *, overwrite: bool) -> None:
    """Make sure that `out` is free. Removes only what this program writes."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"'{out}' is not a folder. Choose another name.")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / MANIFEST).is_file():
        raise UsageError(f"'{out}' holds files that 'dissonance synth' did not write. Choose an empty or a new folder.")
    if not overwrite:
        raise UsageError(f"'{out}' already holds synthetic clips. Choose another folder, or pass --overwrite to replace them.")
    for kind in CLIP_TYPES:
        shutil.rmtree(out / kind, ignore_errors=True)
    for file in (out / META_DATA, *out.glob(f".{META_DATA}.*.partial"), out / MANIFEST):
        file.unlink(missing_ok=True)
