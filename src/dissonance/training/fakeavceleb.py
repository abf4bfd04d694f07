"""FakeAVCeleb (Khalid et al., NeurIPS 2021 datasets track), and the synthetic clips that share its layout.

    FOLDER/meta_data.csv
    FOLDER/<type>/<race>/<gender>/<id>/<file>.mp4      type: RealVideo-RealAudio, RealVideo-FakeAudio, FakeVideo-RealAudio, FakeVideo-FakeAudio

`path` holds the file's name and the unnamed last column its folder, "FakeAVCeleb/<type>/...". Version 1.2 lists 21,566 rows for 21,544 files, and
some copies write a race in their folders' names with an underscore ("Asian_East"): rows without a file are skips, and such names are understood.
The columns `forgery`, `split` and `compression` are this project's own (`dissonance synth`).
"""

from pathlib import Path, PurePosixPath
from typing import Any, cast, get_args

from dissonance.config import ScanConfig
from dissonance.engine.scan.sources import Input, Sources
from dissonance.errors import UsageError
from dissonance.synth.identity import SPLIT_OF_RACE, Race
from dissonance.tables import Cells, is_file, read_table
from dissonance.training.labels import REAL, Clip, Dataset, Skipped

META_DATA = "meta_data.csv"
TYPE_OF_CATEGORY = {"A": "RealVideo-RealAudio", "B": "RealVideo-FakeAudio", "C": "FakeVideo-RealAudio", "D": "FakeVideo-FakeAudio"}
COLUMNS = ("source", "method", "category", "type", "race", "gender", "path")  # without which it is not this data set
_REAL_METHOD = "real"


def read_fakeavceleb(folder: Path) -> Dataset:
    """Clips in the order of meta_data.csv, split by ethnicity as the method's paper does.

    Train: Asian (South), Asian (East), Caucasian (American). Validation: African. Test: Caucasian (European). `identity` is the person whose
    video it was (`source`), `manipulation` the column `forgery` where there is one, else `method`.

    Skips: rows without a file (missing) or named before (repeated), rows that contradict themselves (contradictory), media files of the four folders
    that no row names (unlisted). Raises UsageError for a folder without meta_data.csv, a missing column, a value that is none, a `split` that is
    not the ethnicity's, and where no row has a file.
    """
    table = folder / META_DATA
    if not table.is_file():
        raise UsageError(f"'{folder}' holds no {META_DATA}. Give the folder in which {META_DATA} and {', '.join(TYPE_OF_CATEGORY.values())} lie.")
    clips: dict[Path, Clip] = {}
    skipped: list[Skipped] = []
    rows = 0
    for rows, (where, row) in enumerate(read_table(table), start=1):
        if rows == 1 and (missing := [name for name in COLUMNS if name not in row]):
            raise UsageError(f"Table '{table}' has no column {missing[0]!r}. Its columns are {', '.join(map(str, row))!r:.200}.")
        cells = Cells(table, where, row)
        path = _file(cells, folder)
        if (clip := _clip(cells, path)) is None:
            skipped.append(Skipped(path, "contradictory", f"{where}: {_labels(row)}"))
        elif path in clips:
            skipped.append(Skipped(path, "repeated", where))
        elif not is_file(path):
            skipped.append(Skipped(path, "missing", f"{where} names it, but there is no such file"))
        else:
            clips[path] = clip
    if not clips:
        raise UsageError(f"None of the {rows} rows of '{table}' has a file below '{folder}'. Is the data set whole, and unpacked there?")
    named = set(clips) | {skip.path for skip in skipped}
    found = Sources([str(folder / kind) for kind in TYPE_OF_CATEGORY.values() if (folder / kind).is_dir()], extensions=ScanConfig().extensions)
    skipped += [Skipped(Path(file.path), "unlisted", f"no row of {META_DATA} names it") for file in found if Path(file.path) not in named]
    return Dataset(tuple(clips.values()), tuple(skipped))


def _labels(row: Any) -> str:
    return ", ".join(f"{name} {row.get(name)!r:.40}" for name in ("category", "type", "method"))


def _file(cells: Cells, folder: Path) -> Path:
    """Where the row's file is, by whichever of the usual spellings; the first where it is nowhere."""
    name, kind = cells.text("path"), cells.choice("type", tuple(TYPE_OF_CATEGORY.values()))
    race, gender, source = (cells.text(field) for field in ("race", "gender", "source"))
    parts = PurePosixPath(cells.text("", f"FakeAVCeleb/{kind}/{race}/{gender}/{source}")).parts[1:]
    for field, places in (("path", (name,)), ("", parts), ("gender", (gender,)), ("source", (source,))):
        if any(place in ("", ".", "..") or "/" in place for place in places) or not places:
            raise cells.wrong(field, "plain names inside the data set")
    underscored = race.replace(" (", "_").replace(")", "")
    folders = [folder.joinpath(*parts), folder / kind / race / gender / source, folder / kind / underscored / gender / source]
    spelled = [place / name for place in folders]
    return next((path for path in spelled if is_file(path)), spelled[0])


def _clip(cells: Cells, path: Path) -> Clip | None:
    """None where the row's labels contradict each other."""
    category, kind = cells.choice("category", tuple(TYPE_OF_CATEGORY)), cells.text("type")
    race = cast(Race, cells.choice("race", get_args(Race)))
    split = SPLIT_OF_RACE[race]
    if cells.text("split", split) != split:
        raise cells.wrong("split", f"'{split}', which is where clips of {race} speakers belong")
    method = cells.text("method")
    manipulation = cells.text("forgery", REAL if method == _REAL_METHOD else method)
    picture, sound = kind.startswith("FakeVideo"), kind.endswith("FakeAudio")
    if TYPE_OF_CATEGORY[category] != kind or (method == _REAL_METHOD) == (picture or sound) or (manipulation == REAL) == (picture or sound):
        return None
    try:
        uri = Input.of(str(path)).uri
    except UnicodeError:
        raise cells.wrong("path", "names that a file can have") from None
    return Clip(
        uri=uri,
        path=path,
        picture_fake=picture,
        sound_fake=sound,
        manipulation=manipulation,
        category=category,
        identity=cells.text("source"),
        group=race,
        split=split,
        compression=cells.text("compression", "") or None,
    )
