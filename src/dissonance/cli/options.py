"""Options that several commands have."""

from typing import Annotated

import typer

SHOWN_ROWS = 40  # of a table on a screen

BundleOption = Annotated[str, typer.Option("--bundle", help="A bundle folder, or the name of one that ships with the package.", metavar="NAME|DIR")]
JsonOption = Annotated[bool, typer.Option("--json", help="Results for machines: JSON on stdout.")]
