"""What a packet says of itself, without being decoded: may decoding begin with it, and is it coded as those before were?

A container's word is not enough for either. Files without a table of keyframes have all packets flagged, recovery points are flagged and mend only in
time, and a decoder that was set up for one size of picture makes pictures of another from stale memory.
"""

from collections.abc import Iterator
from typing import Any

CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "mjpeg"})  # that are looked into
_ENOUGH_BYTES = 512  # of a NAL unit, to know it by
_H264_IDR, _H264_PARAMETERS = 5, (7, 8)  # nal_unit_type, ITU-T H.264 table 7-1: SPS, PPS
_HEVC_IRAP, _HEVC_PARAMETERS, _HEVC_SKIPPED = range(16, 22), (32, 33, 34), (8, 9)  # ITU-T H.265 table 7-1: BLA, IDR, CRA; VPS, SPS, PPS; RASL
_JPEG_SIZES = (0xC0, 0xC1, 0xC2)  # SOF0 to SOF2, ITU-T T.81 table B.1


class UnsuitableError(Exception):
    """Why a stream is left to PyAV."""


class Bitstream:
    """One stream's packets, told of in order of decoding."""

    def __init__(self, codec: str, extradata: bytes) -> None:
        """Raises UnsuitableError for a codec that is not in CODECS."""
        if codec not in CODECS:
            raise UnsuitableError(f"{codec} is not looked into")
        self._codec = codec
        self._length_bytes = length_bytes(codec, extradata)
        self._known: set[Any] = set()  # parameter sets and sizes
        self._frozen = False

    def enters(self, packet: Any) -> bool:
        """Whether decoding may begin with this packet. Raises UnsuitableError where the size of its pictures, or what they are coded by, changes."""
        if packet.has_sidedata("new_extradata"):
            raise UnsuitableError("its parameters change in mid-stream")
        data = bytes(packet)
        if self._codec in ("h264", "hevc"):
            found, told = self._nal_units(data)
        elif self._codec == "vp8":
            found, told = _vp8(data)
        elif self._codec == "vp9":
            found, told = _vp9(data)
        else:
            found, told = _jpeg(data)
        if self._frozen and not told <= self._known:
            raise UnsuitableError("the size of its pictures, or what they are coded by, changes in mid-stream")
        self._known |= told
        self._frozen |= found
        return found and bool(packet.is_keyframe)

    def is_skipped_at_the_start(self, packet: Any) -> bool:
        """Whether every decoder that begins with the keyframe before it leaves this packet out."""
        return self._codec == "hevc" and any(unit[0] >> 1 & 0x3F in _HEVC_SKIPPED for unit in nal_units(bytes(packet), self._length_bytes))

    @property
    def may_lead(self) -> bool:
        """Whether pictures may follow a keyframe at which decoding may begin, and be shown before it."""
        return self._codec == "hevc"

    def _nal_units(self, data: bytes) -> tuple[bool, set[Any]]:
        found, told = False, set()
        for unit in nal_units(data, self._length_bytes):
            kind = unit[0] & 0x1F if self._codec == "h264" else unit[0] >> 1 & 0x3F
            found |= kind == _H264_IDR if self._codec == "h264" else kind in _HEVC_IRAP
            if kind in (_H264_PARAMETERS if self._codec == "h264" else _HEVC_PARAMETERS):
                told.add(unit.rstrip(b"\0"))
        return found, told


def length_bytes(codec: str, extradata: bytes) -> int:
    """How long the length before each NAL unit is (ISO/IEC 14496-15, 5.3.3.1 and 8.3.3.1), 0 where there are start codes (ITU-T H.264, annex B)."""
    place = {"h264": 4, "hevc": 21}.get(codec)
    return 0 if place is None or len(extradata) <= place or extradata[0] != 1 else (extradata[place] & 3) + 1


def nal_units(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """The start of each NAL unit of a packet."""
    if not length_bytes:
        start = data.find(b"\0\0\1")
        while start >= 0:
            end = data.find(b"\0\0\1", start + 3)
            unit = data[start + 3 : end if end >= 0 else None][:_ENOUGH_BYTES]
            if unit:
                yield unit
            start = end
        return
    place = 0
    while place + length_bytes < len(data):
        size, place = int.from_bytes(data[place : place + length_bytes], "big"), place + length_bytes
        if size:
            yield data[place : place + min(size, _ENOUGH_BYTES)]
        place += size


def _vp8(data: bytes) -> tuple[bool, set[Any]]:
    """RFC 6386, section 9.1: only keyframes have a size, of 14 bits each way."""
    if len(data) < 10 or data[0] & 1 or data[3:6] != b"\x9d\x01\x2a":
        return False, set()
    return True, {tuple(int.from_bytes(data[place : place + 2], "little") & 0x3FFF for place in (6, 8))}


def _vp9(data: bytes) -> tuple[bool, set[Any]]:
    """VP9 Bitstream Specification 0.7, section 6.2 (profiles 0 and 2) and annex B: the frames of a packet, each with its size where it says one."""
    found, told = False, set()
    for number, frame in enumerate(_vp9_frames(data)):
        bits = _Bits(frame)
        marker, profile = bits.take(2), bits.take(1) + 2 * bits.take(1)
        if marker != 2 or profile not in (0, 2):
            raise UnsuitableError("it is not VP9 of profile 0 or 2")
        if bits.take(1):  # an earlier one is shown
            continue
        inter, shown, resilient = bits.take(1), bits.take(1), bits.take(1)
        intra_only = inter and not shown and bits.take(1)
        if inter and not resilient:
            bits.take(2)
        if not inter:
            bits.take(24 + (1 if profile else 0))  # sync code, depth
            if bits.take(3) != 7:  # colour space
                bits.take(1)
            told.add((bits.take(16) + 1, bits.take(16) + 1))
            found |= number == 0
        elif intra_only:
            bits.take(24 + (1 + 3 + 1 if profile else 0) + 8)
            told.add((bits.take(16) + 1, bits.take(16) + 1))
        else:
            bits.take(8 + 3 * 4)
            if not (bits.take(1) or bits.take(1) or bits.take(1)):  # as one of the frames that it refers to
                told.add((bits.take(16) + 1, bits.take(16) + 1))
    return found, told


def _vp9_frames(data: bytes) -> Iterator[bytes]:
    marker = data[-1] if data else 0
    if marker >> 5 == 0b110:
        count, size_bytes = (marker & 7) + 1, (marker >> 3 & 3) + 1
        index = data[-(2 + count * size_bytes) :]
        if index[0] == marker and len(index) == 2 + count * size_bytes:
            place = 0
            for number in range(count):
                size = int.from_bytes(index[1 + number * size_bytes : 1 + (number + 1) * size_bytes], "little")
                if size:
                    yield data[place : place + size]
                place += size
            return
    yield data


class _Bits:
    """Bits, the highest of a byte first; zeros beyond the end."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data[:32].ljust(32, b"\0"), "big"), 256

    def take(self, count: int) -> int:
        """The next `count` bits as a number."""
        self._left -= count
        return self._value >> self._left & ((1 << count) - 1)


def _jpeg(data: bytes) -> tuple[bool, set[Any]]:
    """ITU-T T.81, annex B: segments up to the frame header, which has height and width."""
    place = 2
    while data[:2] == b"\xff\xd8" and place + 9 <= len(data) and data[place] == 0xFF:
        kind, size = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if kind in _JPEG_SIZES:
            return True, {tuple(int.from_bytes(data[at : at + 2], "big") for at in (place + 5, place + 7))}
        place += 2 + size
    raise UnsuitableError("a packet is not a JPEG picture")
