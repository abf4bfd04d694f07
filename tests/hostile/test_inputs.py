"""The hostile inputs are what their names say, and the same every time."""

import io
import itertools
import os
import re
import stat
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import av.error
import pytest

from dissonance.config import ScanConfig
from dissonance.synth.config import SynthConfig
from dissonance.synth.dataset import generate
from tests.hostile.boxes import box, spliced, walk
from tests.hostile.damage import boundaries, index_first
from tests.hostile.inputs import Hostile, make_hostile

MIB = 1 << 20


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    (row,) = generate(folder, count=1, seed=5, config=SynthConfig(duration_s=2.4, two_person_share=0))
    return folder / row.file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def members(folder: Path, clip: Path) -> dict[str, Hostile]:
    made = make_hostile(folder, clip=clip)
    assert max(Counter(member.name for member in made).values()) == 1, "names are unique"
    return {member.name: member for member in made}


def test_every_member_lies_in_the_folder_under_a_path_of_its_own_and_all_but_one_exist(members: dict[str, Hostile], folder: Path) -> None:
    paths = [os.fsencode(member.path) for member in members.values()]
    assert len(set(paths)) == len(paths)
    assert all(path.startswith(os.fsencode(folder) + b"/") for path in paths)
    assert [name for name, member in members.items() if not os.path.lexists(member.path)] == ["nothing there"]


def test_a_scan_of_the_folder_meets_all_but_the_playlists_under_their_own_suffixes(members: dict[str, Hostile]) -> None:
    listed = ScanConfig().extensions
    missed = [name for name, member in members.items() if member.path.suffix.lower() not in listed]
    assert all(re.search(r"as \.(m3u8|ffconcat|sdp|mpd)$", name) for name in missed)
    assert len(missed) == 30


def test_every_outcome_is_one_that_a_row_can_have(members: dict[str, Hostile]) -> None:
    for member in members.values():
        assert member.statuses
        assert member.statuses <= {"scored", "abstained", "failed"}
        assert ("scored" in member.statuses) == (None in member.reasons)
        assert "decoder_crash" not in member.reasons


def content(root: Path) -> dict[str, tuple[int, int, bytes | str]]:
    """Of everything below `root`: kind, size, and the first MiB or where a link leads."""
    found: dict[str, tuple[int, int, bytes | str]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            what: bytes | str = path.readlink().as_posix()
        elif stat.S_ISREG(status.st_mode):
            path.chmod(0o600)
            with path.open("rb") as file:
                what = file.read(MIB)
            path.chmod(stat.S_IMODE(status.st_mode))
        else:
            what = ""
        found[str(path.relative_to(root))] = (status.st_mode, 0 if stat.S_ISDIR(status.st_mode) else status.st_size, what)
    return found


def test_two_runs_make_the_same_bytes_and_small_leaves_out_the_long_ones_only(
    members: dict[str, Hostile], folder: Path, clip: Path, tmp_path: Path
) -> None:
    again = make_hostile(tmp_path, clip=clip, small=True)
    long = {"a face that stays for 9 minutes in two packets", "10 hours in three packets, mp4"}
    assert {member.name for member in again} == members.keys() - long
    first, second = content(folder), content(tmp_path)
    for member in (members[name] for name in long):
        del first[str(member.path.relative_to(folder))]
    assert first.keys() == second.keys()
    neighbour = "lists/alis-a-neighbour.mov"  # holds the folder's own name
    assert [name for name in first if first[name] != second[name]] == [neighbour]


def test_all_of_it_is_small_on_disk_terabytes_included(members: dict[str, Hostile], folder: Path) -> None:
    assert sum(path.lstat().st_blocks for path in folder.rglob("*")) * 512 < 60 * MIB
    assert {members[name].path.stat().st_size for name in ("1 TB of nothing", "1 TB behind a film")} == {1 << 40}


def test_what_lies_at_the_paths(members: dict[str, Hostile], folder: Path) -> None:
    def kind(name: str) -> int:
        return stat.S_IFMT(members[name].path.lstat().st_mode)

    assert kind("directory") == stat.S_IFDIR
    assert kind("named pipe") == stat.S_IFIFO
    assert kind("unix socket") == stat.S_IFSOCK
    assert "device" not in members or kind("device") == stat.S_IFCHR
    assert stat.S_ISCHR(members["link to a device"].path.stat().st_mode)
    assert stat.S_IMODE(members["unreadable"].path.stat().st_mode) == 0
    for name in ("link cycle, a", "link cycle, b", "link to itself"):
        with pytest.raises(OSError, match="symbolic links"):
            members[name].path.stat()
    assert (folder / "paths" / "subfolder" / "back").resolve() == (folder / "paths").resolve()


def test_names_hold_what_they_should(members: dict[str, Hostile]) -> None:
    def name(member: str) -> bytes:
        return os.fsencode(members[member].path.name)

    assert (name("byte ff in its name"), name("backslash x f f in its name")) == (b"a\xff.mp4", b"a\\xff.mp4")
    assert len(name("name of 255 bytes")) == 255
    assert b"\n" in name("newline in its name")
    assert b"\x1b[" in name("ANSI escapes in its name")
    with pytest.raises(UnicodeDecodeError):
        name("name that is not UTF-8").decode()


# ---------------------------------------------------------------------------------------------------------------------- boxes


def test_the_walker_finds_the_boxes_of_a_file_put_together_by_hand() -> None:
    data = box(b"ftyp", b"isom") + box(
        b"moov", box(b"mvhd", b"12") + box(b"trak", box(b"tkhd", b"")) + box(b"udta", box(b"meta", bytes(4) + box(b"ilst", b"")))
    )
    assert [(item.path, item.start, item.body, item.end) for item in walk(data)] == [
        ("ftyp", 0, 8, 12),
        ("moov", 12, 20, 74),
        ("moov/mvhd", 20, 28, 30),
        ("moov/trak", 30, 38, 46),
        ("moov/trak/tkhd", 38, 46, 46),
        ("moov/udta", 46, 54, 74),
        ("moov/udta/meta", 54, 62, 74),
        ("moov/udta/meta/ilst", 66, 74, 74),
    ]


def test_the_walker_finds_every_box_that_a_search_for_known_names_finds(clip: Path) -> None:
    data = clip.read_bytes()
    index = data.index(b"moov") - 4
    names = b"ftyp|moov|mvhd|trak|tkhd|edts|elst|mdia|mdhd|hdlr|minf|vmhd|smhd|dinf|dref|stbl|stsd|avc1|avcC|mp4a|esds|stts|stss|ctts|stsc|stsz|stco"
    starts = {index + match.start() - 4 for match in re.finditer(names, data[index:])}
    assert len(starts) > 40
    assert starts <= {item.start for item in walk(data)}


def test_a_size_that_does_not_add_up_is_an_error() -> None:
    with pytest.raises(ValueError, match="says 9 bytes, and 8 are left"):
        list(walk(b"\0\0\0\x09free"))


def test_splicing_puts_the_sizes_around_right(clip: Path) -> None:
    data = clip.read_bytes()
    (meta,) = [item for item in walk(data) if item.path == "moov/udta/meta"]
    longer = spliced(data, meta, meta.end, meta.end, box(b"free", b"abc"))
    before, after = ([item.path for item in walk(film)] for film in (data, longer))
    assert Counter(after) - Counter(before) == {"moov/udta/meta/free": 1}
    assert len(longer) == len(data) + 11


def test_there_is_a_truncation_at_every_boundary(members: dict[str, Hostile], clip: Path) -> None:
    data = clip.read_bytes()
    cut = {member.path.stat().st_size for name, member in members.items() if name.startswith("truncated at ")}
    assert cut == boundaries(data).keys()
    assert cut >= {item.start for item in walk(data) if item.start} | {item.body for item in walk(data) if item.body < len(data)}
    assert all(data.startswith(member.path.read_bytes()) for name, member in members.items() if name.startswith("truncated at "))


def streams_of(data: bytes | Path) -> list[str]:
    """The kinds of stream that PyAV finds, [] where it cannot open it."""
    try:
        with av.open(io.BytesIO(data) if isinstance(data, bytes) else os.fspath(data)) as container:
            return [stream.type for stream in container.streams]
    except (av.error.FFmpegError, OSError):
        return []


def test_truncations_that_must_be_corrupt_hold_neither_stream_and_those_that_must_be_scored_hold_both(members: dict[str, Hostile]) -> None:
    for name, member in members.items():
        if name.startswith("truncated at ") and member.reasons in ({"corrupt"}, {None}):
            found = sorted({"audio", "video"}.intersection(streams_of(member.path)))
            assert found == ([] if "corrupt" in member.reasons else ["audio", "video"]), name


def packets(path: Path | bytes) -> list[bytes]:
    with av.open(io.BytesIO(path) if isinstance(path, bytes) else str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def test_an_index_moved_to_the_front_finds_the_same_packets(clip: Path) -> None:
    moved = index_first(clip.read_bytes())
    assert [item.path for item in walk(moved) if item.path in ("moov", "mdat")] == ["moov", "mdat"]
    assert packets(moved) == packets(clip)


# -------------------------------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize(("name", "fps"), [("1 fps", 1), ("240 fps", 240)])
def test_rates_read_back(members: dict[str, Hostile], name: str, fps: int) -> None:
    with av.open(str(members[name].path)) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0) if frame.pts is not None and frame.time_base is not None]
    assert len(times) > 10
    assert {after - before for before, after in itertools.pairwise(times)} == {Fraction(1, fps)}


def test_no_frame_a_second_means_that_all_times_are_one(members: dict[str, Hostile]) -> None:
    with av.open(str(members["0 fps: all times equal"].path)) as container:
        assert {packet.pts for packet in container.demux(video=0) if packet.size} == {0}


@pytest.mark.parametrize(("name", "size"), [("1x1", (1, 1)), ("1x1 H.264", (1, 1)), ("8192x8192", (8192, 8192))])
def test_sizes_are_announced(members: dict[str, Hostile], name: str, size: tuple[int, int]) -> None:
    with av.open(str(members[name].path)) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == size


def test_a_size_changes_amid_the_stream(members: dict[str, Hostile]) -> None:
    for name in ("size halves, raw H.264", "size halves, MPEG-TS"):
        with av.open(str(members[name].path)) as container:
            widths = [frame.width for frame in container.decode(video=0)]
        assert (widths[0], len(set(widths)), widths[-1]) == (320, 2, 320), name


@pytest.mark.parametrize("count", [64, 300])
def test_there_are_so_many_streams(members: dict[str, Hostile], count: int) -> None:
    assert len(streams_of(members[f"{count} streams"].path)) == count


def test_streams_that_cannot_be_scored_are_all_there_is(members: dict[str, Hostile]) -> None:
    assert streams_of(members["subtitles only"].path) == ["subtitle"]
    assert streams_of(members["data stream only, MPEG-TS"].path) == ["data"]


def test_cover_art_is_the_only_picture(members: dict[str, Hostile]) -> None:
    for kind in ("m4a", "mp3"):
        with av.open(str(members[f"cover art as the only picture, {kind}"].path)) as container:
            assert [stream.type for stream in container.streams] == ["audio", "video"]
            assert container.streams.video[0].disposition.name == "attached_pic"
            assert next(container.decode(video=0)).width == 320


def test_sound_is_of_an_unusual_kind(members: dict[str, Hostile]) -> None:
    with av.open(str(members["8 channels of sound"].path)) as container:
        assert container.streams.audio[0].channels == 8
    with av.open(str(members["192 kHz sound"].path)) as container:
        assert container.streams.audio[0].rate == 192_000


def test_ten_hours_and_nine_minutes_are_in_few_packets(members: dict[str, Hostile]) -> None:
    for name, count, length_s in (
        ("10 hours in three packets, mkv", 3, 36_000),
        ("10 hours in three packets, mp4", 3, 36_000),
        ("a face that stays for 9 minutes in two packets", 2, 540),
    ):
        with av.open(str(members[name].path)) as container:
            times = [packet.pts * packet.time_base for packet in container.demux(video=0) if packet.size and packet.pts is not None]
        assert (len(times), max(times) - min(times)) == (count, length_s), name


def test_the_clock_falls_back_and_jumps(members: dict[str, Hostile]) -> None:
    def steps(name: str) -> list[float]:
        with av.open(str(members[name].path)) as container:
            times = [packet.pts * packet.time_base for packet in container.demux(video=0) if packet.pts is not None and packet.time_base is not None]
        return [float(after - before) for before, after in itertools.pairwise(times)]

    assert min(steps("MPEG-TS twice over: the clock falls back")) < -1
    assert max(steps("MPEG-TS jumps by 20 hours")) > 71_000
    assert max(steps("times jump by 3 days")) > 259_000
