"""`synth`: clips to try things on."""

import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dissonance.cli.options import SHOWN_ROWS, JsonOption
from dissonance.config import parse_config

commands = typer.Typer()


@commands.command(epilog="Example: dissonance synth clips --count 20 --seed 1     Sound 3 frames late: dissonance synth late --shift 3")
def synth(
    folder: Annotated[Path, typer.Argument(help="Where the clips go.", metavar="DIR")],
    count: Annotated[int, typer.Option(min=1, help="How many clips.")] = 20,
    seed: Annotated[int, typer.Option(help="Same seed, same clips.")] = 0,
    shift: Annotated[int, typer.Option(help="All clips real, their sound moved so many frames later.")] = 0,
    people: Annotated[int | None, typer.Option(min=1, max=2, help="Faces in each clip; one speaks. \\[default: mostly 1]")] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds a clip. \\[default: 4]")] = None,
    size: Annotated[str | None, typer.Option(help="Picture size. \\[default: 320x240]", metavar="WxH")] = None,
    forgery: Annotated[
        list[str] | None,
        typer.Option(
            help="Kinds to take in turn: none, visual_timing, visual_artefact, audio_timing, audio_artefact, both; repeat it. "
            "\\[default: all of them, half of the clips real]",
            metavar="KIND",
        ),
    ] = None,
    renderer: Annotated[Literal["relief", "cel"], typer.Option(help="Style of faces and voices.")] = "relief",
    compression: Annotated[
        list[str] | None, typer.Option(help="c18, c23, c28 or c35 (H.264 crf, AAC to match); repeat it to mix. \\[default: c23]", metavar="LEVEL")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw; 0: one per core.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier synthetic data set in DIR.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make synthetic talking-head clips, real and forged in timing, picture and sound, in FakeAVCeleb's folder layout with its meta_data.csv."""
    from dissonance.console import clips_table, counted, printable, stderr, stdout
    from dissonance.machine import available_cores
    from dissonance.synth.config import SynthConfig
    from dissonance.synth.dataset import generate

    data: dict[str, Any] = {"shift_frames": shift, "renderer": renderer}
    if forgery:
        data["forgeries"] = forgery
    if compression:
        data["compressions"] = compression
    if people is not None:
        data["two_person_share"] = people - 1
    if duration is not None:
        data["duration_s"] = duration
    if size is not None:
        width, _, height = size.partition("x")
        data.update(width=width, height=height)
    config = parse_config(SynthConfig, data, origin="from the command line")
    clips = generate(folder, count=count, seed=seed, config=config, overwrite=overwrite, workers=workers or available_cores())
    with closing(clips):
        rows = counted(stderr(), "drawing clips", count, clips)
        if as_json:
            for row in rows:
                print(json.dumps({**asdict(row), "file": str(folder / row.file)}))
        else:
            stdout().print(clips_table(rows, most=SHOWN_ROWS))
    if not as_json:
        stdout().print(f"{count} clips in {printable(str(folder))}, listed in meta_data.csv", markup=False)
