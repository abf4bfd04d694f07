"""Every hostile input that a scan must survive, made anew in a folder: what is at a path, what is in a file, and what may come of it.

The media are made with PyAV or byte by byte, from fixed seeds: the same clip gives the same bytes. What needs a live process to go wrong (a file that
changes while it is read, a decoder that hangs) is not here.
"""

from pathlib import Path

from tests.hostile import damage, lists, paths, sounds, streams
from tests.hostile.member import Hostile

__all__ = ["Hostile", "make_hostile"]


def make_hostile(folder: Path, *, clip: Path, small: bool = False) -> list[Hostile]:
    """Fill `folder` with hostile inputs, in subfolders; `clip` is a sound MP4 of a talking face, from which the damaged ones are made.

    All but the playlists under their own suffixes have a listed extension, so a scan of the folder meets them too. Given on the command line,
    "directory" and "link to a folder" are folders to be walked and have no rows; in a manifest they have. `small` leaves out what takes more
    than a few seconds to scan: the faces that stay for 9 minutes and for 10 hours.
    """
    made: list[Hostile] = []

    def subfolder(name: str) -> Path:
        path = folder / name
        path.mkdir()
        return path

    made += paths.no_films(subfolder("paths"))
    made += paths.films_out_of_reach(folder / "paths", clip)
    made += paths.odd_names(subfolder("names"), clip)
    made += lists.playlists(subfolder("lists"), clip)
    made += lists.data_references(folder / "lists", clip)
    made += damage.truncations(subfolder("cut"), clip)
    made += damage.overwritten_films(subfolder("damaged"), clip)
    made += damage.lying_indices(folder / "damaged", clip)
    made += streams.odd_pictures(subfolder("streams"), clip)
    made += streams.changing_sizes(folder / "streams", clip)
    made += streams.odd_times(folder / "streams", clip)
    made += sounds.odd_sounds(folder / "streams", clip)
    made += streams.odd_containers(folder / "streams", clip)
    if not small:
        made += streams.long_stills(folder / "streams", clip)
    return made
