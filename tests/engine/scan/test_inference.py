"""Inference beside the scan: what overlaps, in which order results come, how much may wait, and a GPU that is lost in the middle."""

import contextlib
import os
import select
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest

from dissonance.bundle import open_bundle
from dissonance.config import ExecutionConfig, ScanConfig
from dissonance.engine.media.clip import Window
from dissonance.engine.runtime import open_runtime
from dissonance.engine.runtime.base import Runtime
from dissonance.engine.scan import stages
from dissonance.engine.scan.inference import Inference
from dissonance.engine.scan.pipeline import Progress, Scan
from dissonance.engine.scan.scoring import Scorer
from dissonance.errors import EnvironmentMissingError
from tests.engine.scan.runs import Rows, assert_same_rows, by_uri, run_scan
from tests.engine.scan.test_scoring import FRAMES, Arithmetic, tiny_model, track_windows, window

PATIENCE_S = 60.0  # a wait that takes so long never ends


class Watched(Runtime):
    """A real runtime that tells when frames are encoded."""

    def __init__(self) -> None:
        self.real = open_runtime(open_bundle("demo"), threads=1)
        self.name, self.precision, self.calls = self.real.name, self.real.precision, 0

    def before_frames(self) -> None:
        """To be overridden."""

    def encode_frames(self, crops: Any, frame_index: Any) -> Any:
        self.calls += 1
        self.before_frames()
        return self.real.encode_frames(crops, frame_index)

    def encode_sound(self, mel: Any, mask: Any) -> Any:
        return self.real.encode_sound(mel, mask)

    def run_head(self, visual: Any, audio: Any, mask: Any) -> Any:
        return self.real.run_head(visual, audio, mask)


def readable(descriptor: int, *, within_s: float) -> bool:
    return bool(select.select([descriptor], [], [], within_s)[0])


# ------------------------------------------------------------------------------------------------------------------ calls


def test_without_threads_a_call_is_over_at_once() -> None:
    with Inference() as inference:
        assert (inference.wake, inference.most) == (None, 0)
        assert inference.start(threading.get_ident).result(timeout=0) == threading.get_ident()
        assert isinstance(inference.start(int, "x").exception(timeout=0), ValueError)
        inference.heed()


def test_a_call_wakes_who_waits_each_time_one_is_over() -> None:
    with Inference(threads=1) as inference:
        assert inference.wake is not None
        assert not readable(inference.wake, within_s=0)
        for _ in range(2):
            future = inference.start(threading.get_ident)
            assert readable(inference.wake, within_s=PATIENCE_S)
            assert future.result() != threading.get_ident()
            inference.heed()
            assert not readable(inference.wake, within_s=0)
        failed = inference.start(int, "x")
        assert readable(inference.wake, within_s=PATIENCE_S)
        assert isinstance(failed.exception(), ValueError)


def test_leaving_ends_what_runs_and_drops_what_waits() -> None:
    running, released = threading.Event(), threading.Event()

    def call() -> None:
        running.set()
        assert released.wait(PATIENCE_S)

    with Inference(threads=1) as inference:
        first, second = inference.start(call), inference.start(call)
        second.add_done_callback(lambda _: released.set())
        assert running.wait(PATIENCE_S)
    assert first.result(timeout=0) is None
    assert second.cancelled()
    assert inference.wake is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.eventfd_read(inference.wake)


# ----------------------------------------------------------------------------------------------------------------- scorer


class Patient(Inference):
    """Calls that are made only once somebody waits for the oldest: as slow as a device can be. Counts how many are under way."""

    def __init__(self, *, most: int) -> None:
        super().__init__()
        self.most, self.under_way, self.largest = most, list[Future[Any]](), 0

    def start(self, call: Any, *arguments: Any) -> Future[Any]:
        inference = self

        class Lazy(Future[Any]):
            def result(self, timeout: float | None = None) -> Any:
                assert inference.under_way[0] is self, "waited for another than the oldest"
                if not self.done():
                    self.set_result(call(*arguments))
                    inference.under_way.pop(0)
                return super().result(timeout)

        lazy = Lazy()
        self.under_way.append(lazy)
        self.largest = max(self.largest, len(self.under_way))
        return lazy


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_batches_are_under_way_than_the_runtime_takes(most: int) -> None:
    """However slow it is: who adds windows waits, so that no more than a batch of them is queued beside those under way."""
    inference, execution = Patient(most=most), ExecutionConfig(batch_frames=FRAMES, batch_windows=1)
    scorer = Scorer(Arithmetic(), model=tiny_model(), execution=execution, inference=inference)
    values = list(range(1, 240))
    found = {}
    for item in track_windows(values, track=0, sound=1.0):
        scorer.add(0, item)
        found.update({score.window.index: score for _, score in scorer.run()})
        assert len(scorer._frames) + len(scorer._sounds) + len(scorer._ready) < 2 * FRAMES
    assert inference.largest == most + 1
    found.update({score.window.index: score for _, score in scorer.flush()})
    assert not inference.under_way
    for index, score in found.items():
        part = values[score.window.first_frame : score.window.first_frame + FRAMES]
        assert score.matched is not None
        assert score.matched.tolist() == part, index
    assert sorted(found) == list(range(len(track_windows(values, track=0, sound=1.0))))


def test_windows_are_added_while_a_batch_is_under_way() -> None:
    inside, released = threading.Event(), threading.Event()

    class Held(Arithmetic):
        def encode_frames(self, crops: Any, frame_index: Any) -> Any:
            inside.set()
            assert released.wait(PATIENCE_S)
            return super().encode_frames(crops, frame_index)

    with Inference(threads=1) as inference:
        scorer = Scorer(Held(), model=tiny_model(), execution=ExecutionConfig(batch_frames=2, batch_windows=1), inference=inference)
        scorer.add(0, window([1, 2], new=2))
        assert list(scorer.run()) == []
        assert inside.wait(PATIENCE_S)
        scorer.add(1, window([3], new=1))
        assert list(scorer.run()) == []
        released.set()
        assert sorted(clip for clip, _ in scorer.flush()) == [0, 1]


def test_a_clip_that_is_forgotten_while_its_batch_is_under_way_has_no_score() -> None:
    inference = Patient(most=5)
    scorer = Scorer(Arithmetic(), model=tiny_model(), execution=ExecutionConfig(batch_frames=2, batch_windows=2), inference=inference)
    for clip in (0, 1, 2):
        scorer.add(clip, window([5 + clip, 6 + clip], new=2, sound=1.0))
    assert list(scorer.run()) == []  # three batches of frames, one of sounds
    scorer.forget(1)
    assert sorted(clip for clip, _ in scorer.flush()) == [0, 2]
    scorer.add(3, window([1, 2], new=2))
    assert list(scorer.run()) == []
    assert list(scorer._take(0)) == []  # its frames are encoded
    assert list(scorer.run(partial=True)) == []  # its head is under way
    scorer.forget(3)
    assert list(scorer.flush()) == []


# ------------------------------------------------------------------------------------------------------------------- scan


def test_videos_are_read_while_frames_are_encoded(clips: list[Path], reference: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch is not over before a window was received that had not been when the batch was started."""
    more, received, started_at = threading.Event(), 0, list[int]()

    class First(Watched):
        def before_frames(self) -> None:
            assert self.calls > 1 or more.wait(PATIENCE_S), "nothing was read meanwhile"

    def on_event(scan: Scan, clip: Any, event: Any, sink: Any) -> None:
        nonlocal received
        received += isinstance(event.message, Window)
        if started_at and received > started_at[0]:
            more.set()
        take_event(scan, clip, event, sink)

    def encode_frames(scorer: Scorer) -> Any:
        started_at.append(received)
        return start_frames(scorer)

    take_event, start_frames = Scan._on_event, Scorer._encode_frames
    monkeypatch.setattr(Scan, "_on_event", on_event)
    monkeypatch.setattr(Scorer, "_encode_frames", encode_frames)
    run_scan(clips, tmp_path / "out", runtime=First(), workers=2, batch_frames=64)
    assert_same_rows(by_uri(tmp_path / "out"), reference)


def test_a_runtime_with_two_lanes_is_called_from_two_threads(clips: list[Path], reference: Rows, tmp_path: Path) -> None:
    class TwoLanes(Watched):
        lanes = 2
        barrier = threading.Barrier(2, timeout=PATIENCE_S)

        def before_frames(self) -> None:
            if self.calls <= 2:  # the first waits for the second
                self.barrier.wait()

    run_scan(clips, tmp_path / "out", runtime=TwoLanes(), workers=2, batch_frames=8)
    assert_same_rows(by_uri(tmp_path / "out"), reference)


def test_a_gpu_that_is_lost_ends_the_run_which_goes_on_where_it_was(clips: list[Path], reference: Rows, tmp_path: Path) -> None:
    """What was finished is kept; the rest is done by the next run."""

    class Lost(Watched):
        def before_frames(self) -> None:
            if self.calls == 20:
                raise EnvironmentMissingError("The GPU failed (an illegal memory access). Continue with --resume.")

    out, lost = tmp_path / "out", Lost()
    with pytest.raises(EnvironmentMissingError, match="The GPU failed"):
        run_scan(clips, out, runtime=lost, workers=1, batch_frames=8, batch_windows=1, shard_files=1)
    summary = run_scan(clips, out, resume=True)
    assert 0 < summary.resumed < len(clips)
    assert summary.decoded == len(clips) - summary.resumed
    assert_same_rows(by_uri(out), reference)


def test_partial_batches_run_when_workers_are_silent_not_whenever_a_batch_is_over(tmp_path: Path) -> None:
    bundle = open_bundle("demo")
    scan = Scan([], out=tmp_path, bundle=bundle, runtime=Arithmetic(), config=ScanConfig(), progress=cast(Progress, None))
    scan._heard_s, scan._flushed_s = 100.0, 99.5
    assert not scan._partial_batches_are_due(200.0), "no file waits"
    scan._clips[1] = cast(Any, SimpleNamespace(summary="read to its end"))
    assert not scan._partial_batches_are_due(100.01), "a worker has just said something: batches that are over wake the scan far more often"
    assert scan._partial_batches_are_due(100.06)
    scan._heard_s = 101.05
    assert not scan._partial_batches_are_due(101.06)
    scan._heard_s = 101.1
    assert scan._partial_batches_are_due(101.11), "workers that never fall silent do not keep a file waiting"


def test_every_stage_is_a_range_in_a_profiler(clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges, main = dict[str, set[bool]](), threading.get_ident()

    @contextlib.contextmanager
    def annotate(message: str, *, domain: str) -> Iterator[None]:
        assert domain == "dissonance"
        ranges.setdefault(message, set()).add(threading.get_ident() == main)
        yield

    monkeypatch.setattr(stages, "_nvtx", SimpleNamespace(annotate=annotate))
    run_scan(clips[:1], tmp_path / "out")
    assert set(ranges) == set(get_args(stages.Stage))
    assert {name for name, here in ranges.items() if here == {False}} == {"encode frames", "encode sound", "match and fuse"}


def test_a_bug_in_a_runtime_is_not_hidden(clips: list[Path], tmp_path: Path) -> None:
    class Broken(Watched):
        def before_frames(self) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_scan(clips[:1], tmp_path / "out", runtime=Broken())
