"""`doctor` and `bench`: what this machine has, and how fast it is."""

import json
from typing import Annotated

import typer

from dissonance.cli.options import JsonOption

commands = typer.Typer()
bench_commands = typer.Typer(help="Measure speed, as ratios within one run, and what the demo bundle knows.", no_args_is_help=True)
commands.add_typer(bench_commands, name="bench")


@bench_commands.command("run", epilog="Example: dissonance bench run cpu-decode")
def bench_run(
    rung: Annotated[str, typer.Argument(help="What to measure: cpu-decode, isolation, demo-bundle, clip-length.")],
    save: Annotated[bool, typer.Option("--save", help="Append the results to bench/results/.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure one rung of the ladder in bench/ (in a checkout of the repository)."""
    from dissonance.benchmarks import run_rung, save_rows
    from dissonance.console import bench_table, stdout

    rows = run_rung(rung)
    if save:
        save_rows(rung, rows)
    if as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        stdout().print(bench_table(rung, rows))


@commands.command(epilog="Example: dissonance doctor")
def doctor(as_json: JsonOption = False) -> None:
    """Say what is usable on this machine, and why what is not, is not."""
    from dissonance.console import findings_table, stdout
    from dissonance.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([finding.as_row() for finding in findings]))
    else:
        stdout().print(findings_table(findings))
