"""Files that name other files or addresses, none of which may be opened: playlists, session descriptions, references inside MOV and Matroska."""

from collections.abc import Iterator
from pathlib import Path

from tests.hostile.boxes import box, inside, overwritten, spliced, track
from tests.hostile.member import Hostile, hostile

_M3U8 = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n"
_M3U8_KEY = '#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n#EXTINF:10,\nplain.mp4\n#EXT-X-ENDLIST\n'
_FFCONCAT = "ffconcat version 1.0\nfile '{target}'\n"
_SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\na=control:{target}\r\n"
    "m=video 9 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:{target}\r\n"
)
_MPD = (
    '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT10S" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1000" '
    'codecs="avc1.64000d" width="320" height="240"><BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>\n'
)
_LISTS = {"m3u8": _M3U8, "m3u8 key": _M3U8_KEY, "ffconcat": _FFCONCAT, "sdp": _SDP, "mpd": _MPD}
_TARGETS = {
    "a path": "/etc/passwd",
    "a neighbour": "plain.mp4",
    "file:": "file:///etc/passwd",
    "http:": "http://127.0.0.1:9/x",
    "rtsp:": "rtsp://127.0.0.1:9/x",
    "udp:": "udp://127.0.0.1:9",
}


def playlists(folder: Path, clip: Path) -> Iterator[Hostile]:
    """Every kind of list with every target, under its own suffix and under .mp4; and the film that some of them name."""
    (folder / "plain.mp4").write_bytes(clip.read_bytes())
    yield hostile("plain film", folder / "plain.mp4", None)
    for kind, text in _LISTS.items():
        for number, (where, target) in enumerate(_TARGETS.items()):
            for suffix in (kind.split()[0], "mp4"):
                path = folder / f"{kind.replace(' ', '-')}-{number}.{suffix}"
                path.write_text(text.format(target=target))
                yield hostile(f"{kind} to {where} as .{suffix}", path, "refused")


def data_references(folder: Path, clip: Path) -> Iterator[Hostile]:
    """A film whose tracks say that their samples are in another file (ISO/IEC 14496-12, 8.7.2; `alis` is QuickTime's)."""
    for where, target in {"/etc/passwd": "/etc/passwd", "a neighbour": str(folder / "plain.mp4")}.items():
        path = folder / f"alis-{where.rpartition('/')[2].replace(' ', '-')}.mov"
        path.write_bytes(_with_references(clip.read_bytes(), box(b"alis", bytes(4) + _alias(target))))
        yield hostile(f"MOV whose samples are in {where}", path, "corrupt", "refused")
    for number, target in enumerate(("file:///etc/passwd", "http://127.0.0.1:9/x")):
        path = folder / f"url-{number}.mov"
        path.write_bytes(_with_references(clip.read_bytes(), box(b"url ", bytes(4) + target.encode() + b"\0")))
        yield hostile(f"MOV whose samples are at {target}", path, None, "corrupt", "refused")  # FFmpeg knows no `url `, and reads the file's own


def _with_references(data: bytes, entry: bytes) -> bytes:
    """`data` with `entry` as the one data reference of both tracks, no longer the file itself."""
    for handler in (b"vide", b"soun"):
        dref = inside(data, track(data, handler), "mdia/minf/dinf/dref")
        data = spliced(data, dref, dref.body + 8, dref.end, entry)
        dref = inside(data, track(data, handler), "mdia/minf/dinf/dref")
        data = overwritten(data, dref.body + 4, (1).to_bytes(4, "big"))
    return data


def _alias(target: str) -> bytes:
    """A Mac OS alias record, as far as FFmpeg reads it: volume and file name, then the absolute path (type 2) and 0, 1 levels up or down."""
    name = target.rpartition("/")[2].encode()
    record = bytearray(150)
    record[10:38] = bytes([4]) + b"root".ljust(27, b"\0")  # volume
    record[50:114] = bytes([len(name)]) + name.ljust(63, b"\0")
    record[130:134] = b"\x00\x01\x00\x01"  # levels from and to
    path = target.encode()
    return bytes(record) + (2).to_bytes(2, "big") + len(path).to_bytes(2, "big") + path + bytes(len(path) % 2) + b"\xff\xff\x00\x00"
