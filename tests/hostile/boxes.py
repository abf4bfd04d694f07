"""The boxes of an MP4 or MOV file (ISO/IEC 14496-12): finding them, nested ones included, and putting other bytes in their place."""

from collections.abc import Iterator
from dataclasses import dataclass

# Boxes that hold boxes, and the bytes of their own that come before those.
_FIELDS_BEFORE_CHILDREN = {
    **dict.fromkeys(("moov", "trak", "edts", "mdia", "minf", "dinf", "stbl", "udta", "ilst", "mvex", "moof", "traf"), 0),
    "meta": 4,
    "dref": 8,
    "stsd": 8,
    "avc1": 78,
    "mp4a": 28,
}


@dataclass(frozen=True)
class Box:
    """data[start:end] is the box, data[body:end] what is in it."""

    path: str  # from the outermost: "moov/trak/tkhd"
    start: int
    body: int
    end: int


def walk(data: bytes, start: int = 0, end: int | None = None, *, inside: str = "") -> Iterator[Box]:
    """Every box between `start` and `end`, each before those in it. Raises ValueError where the sizes do not add up."""
    end = len(data) if end is None else end
    while start < end:
        size, kind, header = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8].decode("latin-1"), 8
        if size == 1:
            size, header = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        elif size == 0:
            size = end - start
        if size < header or start + size > end:
            raise ValueError(f"box '{inside}{kind}' at {start} says {size} bytes, and {end - start} are left")
        box = Box(inside + kind, start, start + header, start + size)
        yield box
        if (fields := _FIELDS_BEFORE_CHILDREN.get(kind)) is not None:
            yield from walk(data, box.body + fields, box.end, inside=f"{box.path}/")
        start = box.end


def track(data: bytes, handler: bytes) -> Box:
    """The `trak` of the first track of this kind: b"vide" or b"soun"."""
    traks = [box for box in walk(data) if box.path == "moov/trak"]
    return next(box for box in traks if handler == _handler(data, box))


def _handler(data: bytes, trak: Box) -> bytes:
    hdlr = inside(data, trak, "mdia/hdlr")
    return data[hdlr.body + 8 : hdlr.body + 12]


def inside(data: bytes, outer: Box, path: str) -> Box:
    """The box at `path` below `outer`."""
    return next(box for box in walk(data) if box.path == f"{outer.path}/{path}" and outer.start <= box.start and box.end <= outer.end)


def spliced(data: bytes, parent: Box, start: int, end: int, new: bytes) -> bytes:
    """`data` with [start, end), which is in `parent`, replaced, and the sizes of `parent` and of the boxes around it put right.

    Only for places behind all media data: the tables that say where that lies are left as they are.
    """
    out = bytearray(data)
    for box in walk(data):
        if box.start <= parent.start and parent.end <= box.end:
            out[box.start : box.start + 4] = (box.end - box.start + len(new) - (end - start)).to_bytes(4, "big")
    return bytes(out[:start]) + new + bytes(out[end:])


def overwritten(data: bytes, at: int, new: bytes) -> bytes:
    """`data` with the bytes from `at` on replaced, its length kept."""
    if at + len(new) > len(data):
        raise ValueError(f"{len(new)} bytes do not fit at {at} of {len(data)}")
    return data[:at] + new + data[at + len(new) :]


def box(kind: bytes, body: bytes) -> bytes:
    """A box as bytes."""
    return (8 + len(body)).to_bytes(4, "big") + kind + body
