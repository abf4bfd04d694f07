"""What a decode worker can do wrong, and that it costs its own file only."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dissonance.bundle import open_bundle
from dissonance.config import LimitsConfig, ScanConfig
from dissonance.engine.scan import workers
from dissonance.engine.scan.messages import Message, Opened, ProtocolError
from dissonance.engine.scan.workers import Event, WorkerPool
from dissonance.errors import EnvironmentMissingError
from tests.engine.scan.runs import Rows, assert_same_rows, by_uri, run_scan


def disturb(monkeypatch: pytest.MonkeyPatch, victim: Path, do: Callable[[workers._Worker], None], *, times: int) -> None:
    """Do something to the worker that has just opened `victim`, so many times."""
    receive = WorkerPool._receive
    left = [times]

    def disturbed(self: WorkerPool, worker: workers._Worker) -> Iterator[Event]:
        for event in receive(self, worker):
            if isinstance(event.message, Opened) and event.task.path == str(victim) and left[0]:
                left[0] -= 1
                do(worker)
            yield event

    monkeypatch.setattr(WorkerPool, "_receive", disturbed)


def kill(worker: workers._Worker) -> None:
    worker.process.kill()


def test_a_file_whose_worker_dies_once_is_tried_again(clips: list[Path], reference: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disturb(monkeypatch, clips[2], kill, times=1)
    summary = run_scan(clips, tmp_path / "out", workers=2)
    assert (summary.scored, summary.retried) == (6, 1)
    assert_same_rows(by_uri(tmp_path / "out"), reference)


def test_a_file_whose_worker_dies_twice_fails_alone(clips: list[Path], reference: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disturb(monkeypatch, clips[2], kill, times=2)
    out = tmp_path / "out"
    summary = run_scan(clips, out, workers=2)
    assert (summary.scored, summary.failed, summary.retried) == (5, 1, 1)
    rows = by_uri(out)
    victim = rows.pop(str(clips[2]))
    assert (victim["status"], victim["reason"], victim["p_fake"], victim["windows"]) == ("failed", "decoder_crash", None, 0)
    assert "SIGKILL" in victim["detail"]
    assert_same_rows(rows, {uri: row for uri, row in reference.items() if uri != str(clips[2])})
    monkeypatch.undo()
    assert run_scan(clips, out, resume=True).decoded == 0
    assert run_scan(clips, out, retry_failed=True).decoded == 1
    assert_same_rows(by_uri(out), reference)


def test_a_worker_that_falls_silent_is_replaced(clips: list[Path], reference: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disturb(monkeypatch, clips[0], lambda worker: worker.process.send_signal(signal.SIGSTOP), times=1)
    config = ScanConfig(limits=LimitsConfig(stall_timeout_s=15))
    run_scan(clips[:3], tmp_path / "out", config=config, workers=1)
    rows = by_uri(tmp_path / "out")
    assert "timeout: the decoder gave no sign of life for 15 s" in rows[str(clips[0])]["fallback_cause"]
    assert_same_rows(rows, {str(clip): reference[str(clip)] for clip in clips[:3]})


def test_a_worker_that_sends_garbage_is_replaced(clips: list[Path], reference: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = workers.decode
    seen = []

    def garbled(data: bytes) -> Message:
        seen.append(len(data))
        if len(seen) == 4:  # after Ready, Opened and a window
            raise ProtocolError("not a message")
        return decode(data)

    monkeypatch.setattr(workers, "decode", garbled)
    summary = run_scan(clips[:2], tmp_path / "out", workers=1)
    assert summary.retried == 1
    assert_same_rows(by_uri(tmp_path / "out"), {str(clip): reference[str(clip)] for clip in clips[:2]})


def test_workers_that_cannot_start_end_the_run_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    pool = WorkerPool(count=1, spec=open_bundle("demo").spec, scan=ScanConfig())
    tasks = iter([workers.Task(1, "x", "x")])
    with pool, pytest.raises(EnvironmentMissingError, match="before it could start"):
        list(pool.run(lambda: next(tasks, None), poll=lambda: 1.0))
