"""The video endpoint's work without a server around it: retries, limits, and which files it may read."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dissonance.bundle import Bundle
from dissonance.config import ServeConfig
from dissonance.engine.runtime import open_runtime
from dissonance.engine.runtime.base import Runtime
from dissonance.engine.scan.scoring import WindowScore
from dissonance.engine.serve.events import read_events, verdict_events, window_event
from dissonance.engine.serve.video import Stopped, VideoService, allowed_path, as_file
from dissonance.errors import MediaError
from tests.engine.scan.runs import by_uri, read_rows, run_scan

MIB = 1 << 20


@pytest.fixture(scope="module")
def runtime(demo: Bundle) -> Runtime:
    return open_runtime(demo, threads=1)


@pytest.fixture
def service(demo: Bundle, runtime: Runtime) -> Iterator[VideoService]:
    with VideoService(demo, runtime, ServeConfig()) as running:
        yield running


def worker_of(service: VideoService) -> int:
    (worker,) = service._pool._workers
    return worker.process.pid


def test_files_one_after_the_other_give_a_scans_rows(service: VideoService, demo: Bundle, clips: list[Path], tmp_path: Path) -> None:
    run_scan(clips, tmp_path / "out")
    rows, windows, tracks = by_uri(tmp_path / "out"), read_rows(tmp_path / "out", "windows"), read_rows(tmp_path / "out", "tracks")
    workers = set()
    for clip in clips:
        scores: list[WindowScore] = []
        found = service.score(str(clip), str(clip), on_score=scores.append)
        workers.add(worker_of(service))
        told = [*(window_event(score, demo.spec) for score in scores), *verdict_events(found)]
        again = read_events(told, None)
        assert (again.file, again.tracks, again.windows) == (found.file, found.tracks, found.windows)
        assert found.file["p_fake"] == pytest.approx(rows[str(clip)]["p_fake"], abs=1e-5)
        assert len(scores) == len(found.windows) == sum(window["uri"] == str(clip) for window in windows)
        assert len(found.tracks) == sum(track["uri"] == str(clip) for track in tracks)
    assert len(workers) == 1


def test_a_worker_that_dies_costs_a_second_try(service: VideoService, clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []

    take = service._pool._take

    def die_first(worker: Any, task: Any, message: Any) -> Any:
        if not killed:
            killed.append(worker.process.pid)
            os.kill(worker.process.pid, signal.SIGKILL)
        yield from take(worker, task, message)

    monkeypatch.setattr(service._pool, "_take", die_first)
    found = service.score(str(clips[0]), "x")
    assert found.file["status"] == "scored"
    assert "killed by SIGKILL" in str(found.file["fallback_cause"])
    assert worker_of(service) not in killed


def test_a_worker_that_dies_twice_is_the_files_fault(service: VideoService, clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    take = service._pool._take

    def die(worker: Any, task: Any, message: Any) -> Any:
        os.kill(worker.process.pid, signal.SIGKILL)
        yield from take(worker, task, message)

    with monkeypatch.context() as patched:
        patched.setattr(service._pool, "_take", die)
        with pytest.raises(MediaError, match=r"decoder_crash: .*killed by SIGKILL"):
            service.score(str(clips[0]), "x")
    assert service.score(str(clips[0]), "x").file["status"] == "scored"


def test_nobody_waits_any_more(service: VideoService, clips: list[Path]) -> None:
    before = worker_of(service)
    with pytest.raises(Stopped, match="nobody waits"):
        service.score(str(clips[0]), "x", gone=lambda: True)
    assert service.score(str(clips[0]), "x").file["status"] == "scored"
    assert worker_of(service) != before  # the other one was at work on it


def test_a_video_has_its_time(demo: Bundle, runtime: Runtime, clips: list[Path]) -> None:
    with VideoService(demo, runtime, ServeConfig(video_timeout_s=1e-6)) as service, pytest.raises(Stopped, match=r"took longer than 1e-06 s"):
        service.score(str(clips[0]), "x")


def test_what_cannot_be_read_is_told(service: VideoService, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video")
    for path, reason in ((tmp_path / "text.mp4", "corrupt"), (tmp_path / "none.mp4", "unreadable"), (tmp_path, "unreadable")):
        with pytest.raises(MediaError, match=f"{reason}: "):
            service.score(str(path), "x")


def test_uploads_are_files_for_as_long_as_they_are_needed() -> None:
    config = ServeConfig(max_upload_mib=1)
    with as_file(b"x" * MIB, config) as path:
        assert Path(path).read_bytes() == b"x" * MIB
        assert Path(path).stat().st_mode & 0o077 == 0  # nobody else's
    assert not Path(path).exists()
    for data, says in ((b"", "'video' is empty"), (b"x" * (MIB + 1), r"1 is the most \(max_upload_mib\)")):
        with pytest.raises(MediaError, match=says), as_file(data, config):
            pass


def test_only_files_in_allowed_folders_are_read(tmp_path: Path) -> None:
    allowed, other = tmp_path / "allowed", tmp_path / "allowed-not"
    for folder in (allowed, other):
        folder.mkdir()
        (folder / "a b.mp4").write_bytes(b"x")
    (allowed / "link.mp4").symlink_to(other / "a b.mp4")
    (tmp_path / "way in").symlink_to(allowed)
    config = ServeConfig(allowed_folders=(allowed,))
    good = str(allowed / "a b.mp4")
    assert allowed_path(good, config) == (good, good)
    assert allowed_path((allowed / "a b.mp4").as_uri(), config) == (good, good)  # with %20
    assert allowed_path(f"file://localhost{good}", config) == (good, good)
    assert allowed_path(f"{tmp_path}/way in/a b.mp4", config) == (good, f"{tmp_path}/way in/a b.mp4")
    for bad in (str(other / "a b.mp4"), str(allowed / "link.mp4"), f"{allowed}/../allowed-not/a b.mp4", "/etc/passwd", "file:///etc/passwd"):
        with pytest.raises(MediaError, match="not in a folder whose files this server may read"):
            allowed_path(bad, config)
    for bad in ("a b.mp4", "", f"{good}\0", "file:a"):
        with pytest.raises(MediaError, match="is not an absolute path"):
            allowed_path(bad, config)
    for bad in ("http://x/a.mp4", "s3://b/a.mp4", "file://elsewhere/a.mp4", "concat://a", "FILE2://x"):
        with pytest.raises(MediaError, match="is of a scheme that this server does not read"):
            allowed_path(bad, config)
    with pytest.raises(MediaError, match="allowed_folders is empty"):
        allowed_path(good, ServeConfig())
