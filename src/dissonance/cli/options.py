"""Options that several commands have."""

from typing import Annotated

import typer

SHOWN_ROWS = 40  # of a table on a screen

BundleOption = Annotated[str, typer.Option("--bundle", help="A bundle folder, or the name of one that ships with the package.", metavar="NAME|DIR")]
BundleHashOption = Annotated[
    str | None, typer.Option("--bundle-sha256", help="What the bundle's bundle.json must have; then TensorRT plans built elsewhere are run too.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Results for machines: JSON on stdout.")]
