"""What can lie at a path besides a film: nothing, a folder, links, pipes, devices; names of any bytes; sizes of any number."""

import os
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.hostile.member import Hostile, hostile

TERABYTE = 1 << 40
_ZERO_DEVICE = os.makedev(1, 5)  # /dev/zero, which never ends

# All of a name but its folder; each is given to a sound film.
_NAMES = {
    "newline in its name": b"one\nrow,two\r\nrows.mp4",
    "quotes in its name": b"\"double\" 'single' `back` \\.mp4",
    "control characters in its name": bytes(range(1, 32)) + b"\x7f.mp4",
    "ANSI escapes in its name": b"\x1b[2J\x1b]0;title\x07\x1b[31mred.mp4",
    "formula as its name": b"=cmd|' &C calc'!A1.mp4",
    "function call as its name": b"=cmd().mp4",
    "HTML as its name": b"<script>alert(1)<script>&amp;.mp4",
    "right-to-left override in its name": "invoice\u202e4pm.mp4".encode(),
    "glob characters in its name": b"[a-z]*?.mp4",
    "console markup as its name": b"[red]all[bold] well[.mp4",
    "option as its name": b"--json.mp4",
    "spaces around its name": b"  .mp4",
    "format directives in its name": b"%s%n{0}{x}$(id).mp4",
    "name of 255 bytes": b"n" * 251 + b".mp4",
    "name that is not UTF-8": b"caf\xe9\xff\xfe.mp4",
    "name that is a lone surrogate": b"\xed\xa0\x80.mp4",
    "byte ff in its name": b"a\xff.mp4",  # with the next one a pair that must not be taken for one input
    "backslash x f f in its name": b"a\\xff.mp4",
}


def no_films(folder: Path) -> Iterator[Hostile]:
    """Paths at which there is nothing, or no regular file, or one that is no media."""
    yield hostile("nothing there", folder / "nothing.mp4", "unreadable")
    yield hostile("empty", _written(folder / "empty.mp4", b""), "corrupt")
    yield hostile("one byte", _written(folder / "byte.mp4", b"\x00"), "corrupt")
    yield hostile("random bytes", _written(folder / "random.mp4", np.random.default_rng(1).bytes(100_000)), "corrupt")
    yield hostile("zeros", _written(folder / "zeros.mp4", bytes(100_000)), "corrupt")
    yield hostile("zip", _zip(folder / "zip.mp4"), "corrupt")
    yield hostile("plain text", _written(folder / "text.mp4", b"Dear diary,\nnothing moved today.\n" * 100), "corrupt")

    directory = folder / "folder.mp4"
    directory.mkdir()
    yield hostile("directory", directory, "unreadable")
    (folder / "subfolder").mkdir()
    (folder / "subfolder" / "back").symlink_to("..")  # a walk that followed it would not end

    yield hostile("dangling link", _link(folder / "dangling.mp4", "nowhere.mp4"), "unreadable")
    _link(folder / "cycle-b.mp4", "cycle-a.mp4")
    yield hostile("link cycle, a", _link(folder / "cycle-a.mp4", "cycle-b.mp4"), "unreadable")
    yield hostile("link cycle, b", folder / "cycle-b.mp4", "unreadable")
    yield hostile("link to itself", _link(folder / "self.mp4", "self.mp4"), "unreadable")
    yield hostile("link to a device", _link(folder / "zero.mp4", "/dev/zero"), "refused", "unreadable")
    yield hostile("link to a folder", _link(folder / "linked-folder.mp4", "subfolder"), "unreadable")

    # What is at these is told apart before or after opening, and either word fits.
    for name, kind, device in (("named pipe", stat.S_IFIFO, 0), ("unix socket", stat.S_IFSOCK, 0), ("device", stat.S_IFCHR, _ZERO_DEVICE)):
        path = folder / f"{name.replace(' ', '-')}.mp4"
        try:
            os.mknod(path, kind | 0o600, device)
        except PermissionError:  # devices are root's to make
            continue
        yield hostile(name, path, "refused", "unreadable")


def films_out_of_reach(folder: Path, clip: Path) -> Iterator[Hostile]:
    """A film that may not be read, and two that have too many bytes."""
    unreadable = Path(shutil.copyfile(clip, folder / "unreadable.mp4"))
    unreadable.chmod(0)
    yield hostile("unreadable", unreadable, None if os.geteuid() == 0 else "unreadable")  # root may read everything
    yield hostile("1 TB of nothing", _stretched(_written(folder / "terabyte.mp4", b"")), "refused")
    yield hostile("1 TB behind a film", _stretched(_written(folder / "terabyte-film.mp4", clip.read_bytes())), "refused")


def odd_names(folder: Path, clip: Path) -> Iterator[Hostile]:
    """Films with nothing wrong but their names."""
    for name, raw in _NAMES.items():
        path = folder / os.fsdecode(raw)
        shutil.copyfile(clip, path)
        yield hostile(name, path, None)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _link(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


def _stretched(path: Path) -> Path:
    os.truncate(path, TERABYTE)
    return path


def _zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("film.mp4"), b"not one either" * 100)  # a ZipInfo has a fixed date
    return path
