"""Damage to a media file: what a bad disk, a cut transfer or somebody with a hex editor leaves behind. All of it follows from a number."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.fuzz.seeds import Seed

LARGEST_BYTES = 400_000
# Names in front of (or behind) a length or a count, in the containers' own spelling.
_BIG_ENDIAN = (
    *b"ftyp moov mdat mvhd trak tkhd edts elst mdia mdhd hdlr minf stbl stsd stts ctts stsc stsz stco co64 stss avcC hvcC av1C".split(),
    *b"esds wave chan moof traf tfhd tfdt trun mfra udta FORM COMM SSND caff desc pakt kuki .snd FLV .RMF PROP MDPR DATA fLaC ID3".split(),
    b"\x06\x0e\x2b\x34",
)
_LITTLE_ENDIAN = (
    *b"RIFF LIST hdrl avih strl strh strf movi idx1 indx 00dc 01wb WAVE fmt data fact OggS DKIF wvpk TTA1 riff vorbis OpusHead".split(),
    b"\x75\xb2\x26\x30",
    b"\x66\xcf\x11",
)
_EBML = (
    b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x11\x4d\x9b\x74", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", b"\x1f\x43\xb6\x75", b"\x1c\x53\xbb\x6b",
    b"\x12\x54\xc3\x67", b"\x63\xa2", b"\x2a\xd7\xb1", b"\x44\x89", b"\x86", b"\xae", b"\xe0", b"\xe1", b"\xb0", b"\xba", b"\xe7", b"\xa3", b"\xa0",
)  # fmt: skip
_BYTES = (0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 47, 63, 64, 71, 127, 128, 129, 192, 224, 240, 254, 255)
_WORDS = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    255,
    256,
    1000,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0xFFFFFF,
    0x3FFFFFFF,
    0x7FFFFFFE,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFE,
    0xFFFFFFFF,
)
_LENGTHS = (
    b"\xff",
    b"\x80",
    b"\x81",
    b"\x40\x00",
    b"\x7f\xff",
    b"\x01" + b"\xff" * 7,
    b"\x01" + b"\x00" * 7,
    b"\x01\x7f" + b"\xff" * 6,
    b"\x08\xff\xff\xff\xff",
    b"\x00",
)

Sources = Sequence[bytes]
_Mutation = Callable[[bytearray, random.Random, Sources], None]


@dataclass(frozen=True)
class Damaged:
    """One file: the seed it came from, the names of the mutations, and its bytes."""

    seed: Seed
    mutations: list[str]
    data: bytes


class Damage:
    """The files of run `seed`, by their numbers. Every container has the same share of them, however many codecs it holds."""

    def __init__(self, seeds: Sequence[Seed], *, seed: int) -> None:
        self._seed = seed
        self._containers: dict[str, list[Seed]] = {}
        for one in seeds:
            self._containers.setdefault(one.container, []).append(one)
        self._sources = [one.data for one in seeds]

    def file(self, number: int, *, without: frozenset[int] = frozenset()) -> Damaged:
        """`without` leaves out mutations by their place; the others stay as they are."""
        rng = random.Random(f"{self._seed}.{number}")
        seed = rng.choice(rng.choice(list(self._containers.values())))
        data = bytearray(seed.data)
        names = []
        for place in range(rng.choice((1, 1, 2, 2, 3, 4, 6, 10))):
            own = random.Random(f"{self._seed}.{number}.{place}")
            mutation = own.choices(list(_MUTATIONS), weights=list(_MUTATIONS.values()))[0]
            if place not in without and data:
                mutation(data, own, self._sources)
            names.append(mutation.__name__.lstrip("_"))
        return Damaged(seed, names, bytes(data[:LARGEST_BYTES]))


def _place(data: bytearray, rng: random.Random) -> int:
    """Headers are where the decisions fall: half of all damage is near the beginning, some near the end."""
    size = len(data)
    choice = rng.random()
    if choice < 0.5:
        return rng.randrange(min(size, 2048))
    return rng.randrange(max(0, size - 2048), size) if choice < 0.65 else rng.randrange(size)


def _span(data: bytearray, rng: random.Random) -> slice:
    start = _place(data, rng)
    return slice(start, min(len(data), start + rng.choice((1, 2, 4, 8, 16, 64, 188, 256, 1024, 4096))))


def _flip_bits(data: bytearray, rng: random.Random, _: Sources) -> None:
    for _ in range(rng.choice((1, 1, 2, 4, 16, 64))):
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _set_bytes(data: bytearray, rng: random.Random, _: Sources) -> None:
    start = _place(data, rng)
    for at in range(start, min(len(data), start + rng.choice((1, 1, 2, 4)))):
        data[at] = rng.choice(_BYTES) if rng.random() < 0.8 else rng.randrange(256)


def _set_number(data: bytearray, rng: random.Random, _: Sources) -> None:
    _write_number(data, _place(data, rng), rng, "big" if rng.random() < 0.5 else "little")


def _set_field(data: bytearray, rng: random.Random, _: Sources) -> None:
    """A number near a name that the container's format knows."""
    names = [(name, order) for order, known in (("big", _BIG_ENDIAN), ("little", _LITTLE_ENDIAN)) for name in known if name in data]
    if not names:
        return _set_number(data, rng, ())
    name, order = rng.choice(names)
    at = data.find(name, rng.randrange(len(data)) if rng.random() < 0.3 else 0)
    _write_number(data, max(at, 0) + rng.choice((-4, -8, 4, 8, 12, 16, 20, 24, 28, 32, len(name))), rng, order)
    return None


def _set_ebml_length(data: bytearray, rng: random.Random, _: Sources) -> None:
    known = [name for name in _EBML if name in data] if data.startswith(_EBML[0]) else []
    if not known:
        return _set_field(data, rng, ())
    name = rng.choice(known)
    at = max(data.find(name, rng.randrange(len(data)) if rng.random() < 0.5 else 0), 0) + len(name)
    length = rng.choice(_LENGTHS)
    data[at : at + (len(length) if rng.random() < 0.7 else 1)] = length
    return None


def _write_number(data: bytearray, at: int, rng: random.Random, order: str) -> None:
    width = rng.choice((2, 4, 4, 4, 8))
    if not 0 <= at <= len(data) - width:
        return
    if rng.random() < 0.6:
        value = rng.choice(_WORDS)
    else:  # near what it was
        value = int.from_bytes(data[at : at + width], "big" if order == "big" else "little") + rng.choice((-1, 1, -16, 16, 256, -256, 65536))
    data[at : at + width] = (value % (1 << (8 * width))).to_bytes(width, "big" if order == "big" else "little")


def _delete(data: bytearray, rng: random.Random, _: Sources) -> None:
    del data[_span(data, rng)]


def _duplicate(data: bytearray, rng: random.Random, _: Sources) -> None:
    part = data[_span(data, rng)]
    at = _place(data, rng)
    data[at:at] = part * rng.choice((1, 1, 1, 2, 16))


def _insert(data: bytearray, rng: random.Random, _: Sources) -> None:
    at = _place(data, rng)
    size = rng.choice((1, 2, 4, 16, 100, 1000))
    data[at:at] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))


def _swap(data: bytearray, rng: random.Random, _: Sources) -> None:
    a, b = _span(data, rng), _span(data, rng)
    data[a], data[b] = bytes(data[b]), bytes(data[a])


def _overwrite(data: bytearray, rng: random.Random, _: Sources) -> None:
    span = _span(data, rng)
    size = span.stop - span.start
    data[span] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))


def _splice(data: bytearray, rng: random.Random, sources: Sources) -> None:
    """The beginning of one file and the end of another, or a part of another in the middle."""
    other = sources[rng.randrange(len(sources))]
    if rng.random() < 0.5:
        data[_place(data, rng) :] = other[rng.randrange(len(other)) :]
    else:
        start = rng.randrange(len(other))
        at = _place(data, rng)
        data[at : at + rng.choice((0, 188, 1024))] = other[start : start + rng.choice((64, 188, 1024, 8192))]


def _truncate(data: bytearray, rng: random.Random, _: Sources) -> None:
    del data[_place(data, rng) if rng.random() < 0.3 else rng.randrange(len(data)) :]


_MUTATIONS: dict[_Mutation, int] = {
    _flip_bits: 5, _set_bytes: 5, _set_number: 4, _set_field: 6, _set_ebml_length: 4, _delete: 2, _duplicate: 2, _insert: 2, _swap: 2, _overwrite: 2,
    _splice: 2, _truncate: 1,
}  # fmt: skip
