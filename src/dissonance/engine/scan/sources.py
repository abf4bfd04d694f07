"""Sources: what the user points at, turned into a stream of inputs.

A file, a folder (walked, links to folders not followed), a glob, or a manifest (CSV, JSONL or Parquet with a `uri` column).
In a folder, names with a listed extension are inputs and everything else is counted as skipped; a path named by the user or by a manifest is
always an input, so it always gets a row.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dissonance.errors import UsageError
from dissonance.tables import SUFFIXES, read_table

_LOOKS_ESCAPED = re.compile(r"\\x[0-9a-f]{2}")


@dataclass(frozen=True)
class Input:
    """One thing to be accounted for. `path` is what is opened; `uri` is how the rows name it: always valid Unicode, another one for every path.

    A byte that is not UTF-8 stands as `\\xNN`; in names that hold such a byte, or look as if they did, a backslash stands doubled.
    """

    uri: str
    path: str

    @classmethod
    def of(cls, path: str) -> "Input":
        raw = os.fsencode(path)
        try:
            uri = raw.decode()
        except UnicodeDecodeError:
            uri = None
        if uri is None or _LOOKS_ESCAPED.search(uri):  # so that no two paths share a name
            uri = raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
        return cls(uri=uri, path=path)


class Sources:
    """Iterate for the inputs, in a fixed order; `skipped` counts what a folder held besides."""

    def __init__(self, sources: Iterable[str], *, extensions: Iterable[str]) -> None:
        self._sources = list(sources)
        self._extensions = tuple(extension.lower() for extension in extensions)
        self.skipped = 0

    def __iter__(self) -> Iterator[Input]:
        self.skipped = 0
        for source in self._sources:
            yield from self._expand(source)

    def missing(self) -> list[str]:
        """Sources that name a single path at which there is nothing."""
        return [source for source in self._sources if not os.path.lexists(source) and not glob.has_magic(source)]

    def _expand(self, source: str) -> Iterator[Input]:
        if os.path.isdir(source):
            yield from self._walk(source)
        elif source.lower().endswith(SUFFIXES) and os.path.exists(source):
            yield from read_manifest(Path(source))
        elif not os.path.lexists(source) and glob.has_magic(source):
            matches = sorted(glob.iglob(source, recursive=True))
            if not matches:
                raise UsageError(f"No file matches '{source}'. Check the pattern, and quote it so that the shell does not expand it.")
            for match in matches:
                if os.path.isdir(match):
                    yield from self._walk(match)
                else:
                    yield Input.of(match)
        else:
            yield Input.of(source)

    def _walk(self, folder: str) -> Iterator[Input]:
        unread = [iter([folder])]  # folders at each level down to where we are: as deep as the disk goes, which is deeper than a call may
        while unread:
            current = next(unread[-1], None)
            if current is None:
                unread.pop()
                continue
            try:
                with os.scandir(current) as entries:
                    children = sorted(entries, key=lambda entry: entry.name)
            except OSError:
                yield Input.of(current)  # gets a row that says it cannot be read: what is inside is not silently lost
                continue
            folders = []
            for child in children:
                listed = child.name.lower().endswith(self._extensions)
                if listed:
                    yield Input.of(child.path)  # a folder under a video's name too: a row says so
                if child.is_dir(follow_symlinks=False):
                    folders.append(child.path)
                elif not listed:
                    self.skipped += 1
            unread.append(iter(folders))


def read_manifest(path: Path) -> Iterator[Input]:
    """The inputs a manifest names; relative ones are relative to the manifest's folder. Raises UsageError that names line and value."""
    for where, row in read_table(path, need="uri"):
        uri = row["uri"]
        if not isinstance(uri, str) or not uri or "\0" in uri:
            raise UsageError(f"Manifest '{path}', {where}: 'uri' is {uri!r:.80}. Give each row the path of a file.")
        try:
            item = Input.of(uri if "://" in uri else str(path.parent / uri))
        except UnicodeError as error:
            raise UsageError(f"Manifest '{path}', {where}: 'uri' is not UTF-8 text: {error}. Give each row the path of a file.") from error
        yield item
