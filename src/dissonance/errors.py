"""Every error a user can cause, each with the exit code the command line gives for it.

A `DissonanceError` says what was wrong, with what value, and what to do. An internal bug is deliberately
not one of them: it reaches the top as whatever it is and exits with `EXIT_BUG`.
"""

import importlib
from typing import ClassVar

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_SOME_FAILED = 3
EXIT_ENVIRONMENT = 4
EXIT_BUNDLE = 5
EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class DissonanceError(Exception):
    """Something the user can mend. `exit_code` is what the command line exits with."""

    exit_code: ClassVar[int] = EXIT_USAGE


class UsageError(DissonanceError):
    """A wrong argument, or a combination of arguments that cannot work."""


class ConfigError(DissonanceError):
    """A configuration file that does not parse, or holds an unknown key or an impossible value."""


class CheckpointError(DissonanceError):
    """A checkpoint that is missing, unreadable, or does not fit the model it is loaded into."""


class TrainingDivergedError(CheckpointError):
    """A loss or a gradient that is no number any more."""


class EnvironmentMissingError(DissonanceError):
    """A library, a device or a tool that this command needs is not here."""

    exit_code = EXIT_ENVIRONMENT


class ServerError(DissonanceError):
    """An inference server that does not answer, is overloaded for too long, or refuses a request."""

    exit_code = EXIT_ENVIRONMENT


class UnreadableFileError(DissonanceError):
    """The one file a command was asked about cannot be read (a scan gives such a file a row instead)."""

    exit_code = EXIT_SOME_FAILED


class OutputError(DissonanceError):
    """Results cannot be written: a full disk, a folder that became read-only, a damaged ledger."""

    exit_code = EXIT_ENVIRONMENT


class BundleError(DissonanceError):
    """A bundle that is missing a file, was changed, or does not fit this version."""

    exit_code = EXIT_BUNDLE


class MediaError(Exception):
    """One file that cannot be scored. It costs that file only, and becomes its row's `reason`.

    Not a `DissonanceError`: it never ends a run. `reason` is one of corrupt, unsupported_codec, unreadable, refused, changed, out_of_memory.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def missing_extra(module: str, extra: str, purpose: str) -> EnvironmentMissingError:
    """The error for an optional library that is not installed; names the extra that brings it."""
    return EnvironmentMissingError(
        f"{purpose} needs the Python module '{module}', which is not installed. Install it with: pip install 'dissonance[{extra}]'"
    )


def require_extra(extra: str, purpose: str, *modules: str) -> None:
    """Raise `missing_extra` for the first of `modules` that is not installed."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise missing_extra(error.name or module, extra, purpose) from error
