"""The command line: one thin function a command, one module a family. Results on stdout, everything else on stderr."""

import sys
import traceback
from typing import Any, NoReturn

import typer

from dissonance import errors
from dissonance.cli import bundles, clips, machine, scan, serving, training

app = typer.Typer(
    name="dissonance",
    help="Finds videos whose picture and sound do not belong together.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for family in (scan, clips, training, bundles, serving, machine):  # the order of --help
    app.add_typer(family.commands)

_ARGUMENT_ERROR: Any = typer.BadParameter.__mro__[2]  # click's ClickException; newer releases of typer carry a click of their own


def _report(error: errors.DissonanceError) -> NoReturn:
    from dissonance.console import printable

    text = "\n".join(printable(line) for line in str(error).splitlines())
    print(f"error: {text}", file=sys.stderr)
    sys.exit(error.exit_code)


def _say_interrupted() -> None:
    print("interrupted; what is finished is kept", file=sys.stderr)


def main() -> None:
    """Run the command line; every way it can end has its exit code (see `errors`)."""
    try:
        result: Any = app(standalone_mode=False)
    except errors.DissonanceError as error:
        _report(error)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _say_interrupted()
        sys.exit(errors.EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.exit(errors.EXIT_OK)  # the reader of our output has seen enough
    except Exception as error:
        if isinstance(error, _ARGUMENT_ERROR):
            error.show()
            sys.exit(errors.EXIT_USAGE)
        traceback.print_exc()
        print("This is a bug in Dissonance, not in your files. Please report it with the lines above.", file=sys.stderr)
        sys.exit(errors.EXIT_BUG)
    if result == errors.EXIT_INTERRUPTED:  # what typer makes of Ctrl-C
        _say_interrupted()
    sys.exit(result if isinstance(result, int) else errors.EXIT_OK)
