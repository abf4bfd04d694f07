"""One worker, in this process: what it refuses before it decodes, and a file that changes while it is read."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from dissonance.bundle import open_bundle
from dissonance.config import ScanConfig
from dissonance.engine.media.clip import ClipSummary, Window
from dissonance.engine.scan.channel import send
from dissonance.engine.scan.messages import Opened, Task
from dissonance.engine.scan.worker import Worker
from dissonance.errors import MediaError

Make = Callable[..., Worker]


@pytest.fixture
def make() -> Iterator[Make]:
    """Workers under given limits."""
    ours, theirs = socket.socketpair()
    spec = open_bundle("demo").spec

    def worker(**limits: Any) -> Worker:
        scan = ScanConfig.model_validate({"limits": limits})
        parts = {"model": spec.model, "crop": spec.crop, "mel": spec.mel, "scan": scan}
        settings = {name: part.model_dump(mode="json") for name, part in parts.items()}
        send(ours, json.dumps({**settings, "decoder": "pyav"}).encode())
        return Worker(theirs)

    with ours, theirs:
        yield worker


def all_of(worker: Worker, path: Path) -> list[Opened | Window | ClipSummary]:
    return list(worker.read(Task(1, str(path), str(path))))


def refusal(worker: Worker, path: Path) -> tuple[str, str]:
    with pytest.raises(MediaError) as caught:
        all_of(worker, path)
    return caught.value.reason, caught.value.detail


def test_a_file_within_its_limits_is_read_to_its_end(make: Make, clips: list[Path]) -> None:
    size_gib = clips[0].stat().st_size / 2**30
    parts = all_of(make(max_size_gib=size_gib, max_duration_s=3.0, max_pixels=320 * 240, max_streams=2), clips[0])
    assert isinstance(parts[0], Opened)
    assert isinstance(parts[-1], ClipSummary)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"max_size_gib": 1e-6}, "1e-06 is the most (limits.max_size_gib)"),
        ({"max_duration_s": 2.0}, "2 is the most (limits.max_duration_s)"),
        ({"max_pixels": 320 * 240 - 1}, "its picture has 320 x 240 pixels; 76,799 is the most (limits.max_pixels)"),
        ({"max_streams": 1}, "it has 2 streams; 1 is the most (limits.max_streams)"),
    ],
)
def test_a_limit_names_itself(limits: dict[str, float], says: str, make: Make, clips: list[Path]) -> None:
    reason, detail = refusal(make(**limits), clips[0])
    assert reason == "refused"
    assert says in detail


def test_a_duration_that_no_header_tells_is_limited_as_it_is_read(make: Make, clips: list[Path], tmp_path: Path) -> None:
    """MPEG-TS has no duration, and its clock may jump."""
    path = tmp_path / "long.ts"
    with av.open(str(clips[0])) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert isinstance(all_of(make(max_duration_s=3.0), path)[-1], ClipSummary)
    assert refusal(make(max_duration_s=2.0), path) == ("refused", "it lasts 2 s or more; 2 is the most (limits.max_duration_s)")


def test_sound_that_never_ends_is_limited_too(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with av.open(str(path), "w") as target:
        stream = target.add_stream("pcm_s16le", rate=8000, layout="mono")
        for second in range(5):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 8000, 8000 * second
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    assert refusal(make(max_duration_s=4.0), path)[0] == "refused"


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_special_files_are_refused_unopened(kind: str, make: Make, tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    assert refusal(make(), path) == ("refused", "is not a regular file (pipe, socket or device)")


def _append(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"x")


def _overwrite(path: Path) -> None:
    with path.open("rb+") as stream:
        stream.write(b"x")


def _replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [_append, _overwrite, _replace, Path.unlink])
def test_a_file_that_changes_while_it_is_read_is_no_result(change: Callable[[Path], None], make: Make, clips: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(clips[0].read_bytes())
    os.utime(path, (1, 1))
    parts = make().read(Task(1, str(path), str(path)))
    found: list[object] = [next(parts), next(parts)]  # opened, and a window: all is read of so short a file but for its end
    change(path)
    with pytest.raises(MediaError, match="changed: the file changed while it was read"):
        found.extend(parts)
    assert not any(isinstance(part, ClipSummary) for part in found)


def test_a_file_that_grows_for_ever_is_hashed_up_to_its_first_size(make: Make, clips: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(clips[0].read_bytes())
    worker = make()
    beat = worker._heart.beat

    def beat_and_grow(media_s: float = 0.0, *, read_mib: float = 0.0) -> None:
        with path.open("ab") as stream:
            stream.write(bytes(1 << 20))
        beat(media_s, read_mib=read_mib)

    worker._heart.beat = beat_and_grow  # type: ignore[method-assign]
    opened = next(worker.read(Task(1, str(path), str(path))))
    assert isinstance(opened, Opened)
    assert opened.size_bytes is not None
    assert opened.size_bytes < clips[0].stat().st_size + (1 << 20)
