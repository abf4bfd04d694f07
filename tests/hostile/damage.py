"""A sound film, cut short, overwritten, or with an index that lies."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.hostile.boxes import Box, box, inside, overwritten, spliced, track, walk
from tests.hostile.member import Hostile, hostile

_TABLES = ("stsd", "stts", "ctts", "stss", "stsc", "stsz", "stco")
_HANDLERS = {"picture": b"vide", "sound": b"soun"}
_HUGE = 0xFFFF_FFFF
_ALLOCATED = 0x07FF_FFFF  # FFmpeg believes in, and makes room for, this many entries
_DEEP, _FLAT = 5_000, 100_000
_TEN_HOURS_S = 36_000
# Damage whose outcome is FFmpeg's to choose: any but a hang, a crash or a file that could not be opened.
_ANYTHING_SAID = (None, "corrupt", "unsupported_codec", "too_short", "no_face", "no_face_and_no_sound", "no_speech")


def truncations(folder: Path, clip: Path) -> Iterator[Hostile]:
    """Cut at the start of every box and of what is in it, wherever the boxes are nested; and amid the media data, with and without an index."""
    data = clip.read_bytes()
    for at, where in sorted(boundaries(data).items()):
        path = folder / f"cut-{at}.mp4"
        path.write_bytes(data[:at])
        yield hostile(f"truncated at {where}@{at}", path, *_of_cut(data, at))
    mdat = next(item for item in walk(data) if item.path == "mdat")
    middle = (mdat.body + mdat.end) // 2
    (folder / "cut-amid-mdat.mp4").write_bytes(data[:middle])
    yield hostile(f"truncated amid mdat@{middle}", folder / "cut-amid-mdat.mp4", "corrupt")
    indexed = index_first(data)
    mdat = next(item for item in walk(indexed) if item.path == "mdat")
    for quarters in (0, 1, 2, 3):
        at = mdat.body + (mdat.end - mdat.body) * quarters // 4
        path = folder / f"cut-indexed-{quarters}.mp4"
        path.write_bytes(indexed[:at])
        reasons = {0: ("corrupt",), 1: (None, "too_short")}.get(quarters, (None,))
        yield hostile(f"truncated behind its index and {quarters} quarters of mdat@{at}", path, *reasons)


def boundaries(data: bytes) -> dict[int, str]:
    """Every offset inside `data` at which a box, or the content of one, begins or ends: which box that is. The innermost names it."""
    found: dict[int, str] = {}
    for item in walk(data):
        found[item.start] = found[item.body] = item.path
        found.setdefault(item.end, f"end of {item.path}")
    return {at: where for at, where in found.items() if 0 < at < len(data)}


def _of_cut(data: bytes, at: int) -> tuple[str | None, ...]:
    """What a cut at `at` may lead to: the index is at the end of a film, and what FFmpeg has read of it is what there is."""
    first, second = (item for item in walk(data) if item.path == "moov/trak")
    if at < inside(data, first, "mdia/hdlr").end:  # FFmpeg knows of no stream
        return ("corrupt",)
    if at <= inside(data, first, "mdia/minf/stbl/stsd").body:  # of one, but not what it is
        return ("corrupt", "unsupported_codec")
    return (None,) if at >= second.end else _ANYTHING_SAID


def index_first(data: bytes) -> bytes:
    """The same film with its index before the media data, as for streaming."""
    moov = next(item for item in walk(data) if item.path == "moov")
    mdat = next(item for item in walk(data) if item.path == "mdat")
    if moov.start < mdat.start:
        return data
    index = bytearray(data[moov.start : moov.end])
    for stco in (item for item in walk(bytes(index)) if item.path.endswith("stco")):
        offsets = np.frombuffer(bytes(index[stco.body + 8 : stco.end]), ">u4") + len(index)
        index[stco.body + 8 : stco.end] = offsets.astype(">u4").tobytes()
    return data[: mdat.start] + bytes(index) + data[mdat.start : moov.start] + data[moov.end :]


def overwritten_films(folder: Path, clip: Path) -> Iterator[Hostile]:
    """Damage in the sample tables and in the media data."""
    data = clip.read_bytes()
    rng = np.random.default_rng(2)
    for stream, handler in _HANDLERS.items():
        trak = track(data, handler)
        for kind in _TABLES:
            table = next(
                (item for item in walk(data) if item.path == f"moov/trak/mdia/minf/stbl/{kind}" and trak.start < item.start < trak.end), None
            )
            if table is None:
                continue
            flipped = np.frombuffer(data, np.uint8).copy()
            places = rng.choice(np.arange(table.body, table.end), size=min(8, table.end - table.body), replace=False)
            flipped[places] ^= rng.integers(1, 256, len(places), dtype=np.uint8)
            path = folder / f"flipped-{stream}-{kind}.mp4"
            path.write_bytes(flipped.tobytes())
            yield hostile(f"bytes flipped in the {stream}'s {kind}", path, *_ANYTHING_SAID)
    mdat = next(item for item in walk(data) if item.path == "mdat")
    path = folder / "garbage.mp4"
    path.write_bytes(overwritten(data, (mdat.body + mdat.end) // 2, rng.bytes(1024)))
    yield hostile("1 KB of garbage in mdat", path, None)
    path = folder / "all-garbage.mp4"
    path.write_bytes(overwritten(data, mdat.body, rng.bytes(mdat.end - mdat.body)))
    yield hostile("nothing but garbage in mdat", path, *_ANYTHING_SAID)


def lying_indices(folder: Path, clip: Path) -> Iterator[Hostile]:
    """Sizes, counts and times that are not so."""
    data = clip.read_bytes()
    moov, mdat = (next(item for item in walk(data) if item.path == path) for path in ("moov", "mdat"))
    picture, sound = track(data, b"vide"), track(data, b"soun")

    def table(trak: Box, kind: str) -> Box:
        return inside(data, trak, f"mdia/minf/stbl/{kind}")

    def made(name: str, film: bytes, *reasons: str | None) -> Hostile:
        path = folder / f"{name.replace(' ', '-').replace('/', '-')}.mp4"
        path.write_bytes(film)
        return hostile(name, path, *reasons)

    def patched(at: int, *values: int) -> bytes:
        return overwritten(data, at, b"".join(value.to_bytes(4, "big") for value in values))

    yield made("moov says 4 GB", patched(moov.start, _HUGE), None, "corrupt")
    endless = (1).to_bytes(4, "big") + b"moov" + (2**63 - 1).to_bytes(8, "big")
    yield made("moov says 8 EB", data[: moov.start] + endless + data[moov.body :], None, "corrupt")
    yield made("mdat says 4 GB", patched(mdat.start, _HUGE), "corrupt")
    yield made("box of 7 bytes", patched(moov.start, 7), "corrupt")

    size = table(picture, "stsz")
    yield made("stsz counts 4294967295", patched(size.body + 8, _HUGE), *_ANYTHING_SAID)
    yield made("stsz counts 134217727", patched(size.body + 8, _ALLOCATED), *_ANYTHING_SAID)
    yield made("stsz counts 4294967295 samples of 1 byte", patched(size.body + 4, 1, _HUGE), *_ANYTHING_SAID)
    yield made("stts counts 4294967295", patched(table(picture, "stts").body + 4, _HUGE), *_ANYTHING_SAID)
    yield made("stco counts 4294967295", patched(table(sound, "stco").body + 4, _HUGE), *_ANYTHING_SAID)
    yield made("chunks of 4294967295 samples", patched(table(picture, "stsc").body + 12, _HUGE), *_ANYTHING_SAID)
    yield made("timescale 0", patched(inside(data, picture, "mdia/mdhd").body + 12, 0), *_ANYTHING_SAID)

    times = table(picture, "stts")
    yield made("0 fps: stts deltas of 0", patched(times.body + 12, 0), None, "too_short")
    yield made("stts deltas of 4294967295", patched(times.body + 12, _HUGE), *_ANYTHING_SAID)

    entry = table(picture, "stsd/avc1")
    wide = overwritten(data, entry.body + 24, 2 * (60_000).to_bytes(2, "big"))
    tkhd = inside(data, picture, "tkhd")
    wide = overwritten(wide, tkhd.end - 8, 2 * (60_000 << 16).to_bytes(4, "big"))
    yield made("header of 60000x60000 on a small picture", wide, None, "refused", "corrupt")

    edits = inside(data, picture, "edts/elst")
    late = (2).to_bytes(4, "big") + _edit(_TEN_HOURS_S * 1000, -1) + data[edits.body + 8 : edits.end]
    yield made("picture 10 hours late", spliced(data, edits, edits.body + 4, edits.end, late), *_ANYTHING_SAID)

    nested = b""
    for _ in range(_DEEP):
        nested = box(b"udta", nested)
    yield made(f"{_DEEP} boxes in each other", data + nested, *_ANYTHING_SAID)
    yield made(f"{_DEEP} boxes in each other inside moov", spliced(data, moov, moov.body, moov.body, nested), *_ANYTHING_SAID)
    yield made(f"{_FLAT} boxes in a row", data[: moov.start] + box(b"free", b"") * _FLAT + data[moov.start :], None)


def _edit(duration: int, media_time: int) -> bytes:
    return duration.to_bytes(4, "big") + media_time.to_bytes(4, "big", signed=True) + (1 << 16).to_bytes(4, "big")
