"""What a decoder that fails, or that a file has taken over, can and cannot do. The faults are injected: see faulty_worker.py."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dissonance.config import LimitsConfig, ScanConfig
from dissonance.engine.scan import workers
from dissonance.errors import MediaError
from tests.engine.scan.runs import Rows, by_uri, run_scan, scored_alone

ROOT = Path(__file__).resolve().parents[3]
MEMORY_MIB = 700
LIMITS = LimitsConfig(max_memory_mib=MEMORY_MIB, stall_timeout_s=15)


@pytest.fixture(autouse=True)
def _faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WORKER_MODULE", "tests.engine.scan.faulty_worker")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def scan_with(fault: str, clips: list[Path], folder: Path, *, limits: LimitsConfig = LIMITS) -> tuple[dict[str, object], Rows]:
    """The row of one faulty clip, and those of two good ones scanned beside it by one worker."""
    bad = folder / f"bad.fault-{fault}.mp4"
    shutil.copy(clips[0], bad)
    run_scan([clips[1], bad, clips[2]], folder / "out", config=ScanConfig(limits=limits), workers=1)
    rows = by_uri(folder / "out")
    return rows.pop(str(bad)), rows


FATES = {
    "abort": ("decoder_crash", "was killed by SIGABRT"),
    "segv": ("decoder_crash", "was killed by SIGSEGV"),
    "exit": ("decoder_crash", "ended with exit status 7"),
    "shout": ("decoder_crash", "last words"),
    "raise": ("decoder_crash", "RuntimeError"),
    "garbage": ("decoder_crash", "what is not a message"),
    "announce": ("decoder_crash", "a message of 3221225472 bytes"),
    "liar": ("decoder_crash", "a window whose index cannot be"),
    "decline": ("decoder_crash", "declined a file that it was to read with PyAV"),
    "contradict": ("decoder_crash", "nothing in its windows bears out its modalities 'av'"),
    "eat": ("out_of_memory", "limits.max_memory_mib"),
    "share": ("out_of_memory", "limits.max_memory_mib"),
}


@pytest.mark.parametrize("fault", FATES)
def test_a_fault_costs_its_own_file_only_after_a_second_try(fault: str, clips: list[Path], reference: Rows, tmp_path: Path) -> None:
    row, others = scan_with(fault, clips, tmp_path)
    reason, detail = FATES[fault]
    assert (row["status"], row["reason"], row["p_fake"], row["windows"]) == ("failed", reason, None, 0)
    assert detail in str(row["detail"])
    assert str(row["fallback_cause"]).startswith(f"{reason}: ")  # the first try
    for uri, other in others.items():
        assert other["p_fake"] == pytest.approx(reference[uri]["p_fake"], abs=1e-5)


def test_decoders_that_fall_silent_are_given_up(clips: list[Path], tmp_path: Path) -> None:
    """Two at the same time, for each is waited for, twice."""
    bad = [tmp_path / f"bad.fault-{fault}.mp4" for fault in ("hang", "stutter")]
    for path in bad:
        shutil.copy(clips[0], path)
    run_scan([clips[1], *bad, clips[2]], tmp_path / "out", config=ScanConfig(limits=LIMITS), workers=2)
    rows = by_uri(tmp_path / "out")
    for path in bad:
        row = rows.pop(str(path))
        assert (row["status"], row["reason"]) == ("failed", "timeout"), path
        assert "no sign of life for 15 s (limits.stall_timeout_s)" in str(row["detail"])
    assert {uri: row["status"] for uri, row in rows.items()} == {str(clip): "scored" for clip in clips[1:3]}


def test_a_decoder_that_gets_nowhere_is_given_up(clips: list[Path], tmp_path: Path) -> None:
    row, others = scan_with("slow", clips, tmp_path, limits=LIMITS.model_copy(update={"timeout_s": 10.0, "timeout_per_media_s": 0.0}))
    assert (row["status"], row["reason"]) == ("failed", "timeout")
    assert "took more than 10 s for its first 2 s (limits.timeout_s, limits.timeout_per_media_s)" in str(row["detail"])
    assert all(other["status"] == "scored" for other in others.values())


def test_time_is_allowed_for_as_far_as_a_file_was_read(clips: list[Path], tmp_path: Path) -> None:
    """Sound is read after the picture, from 0 on again."""
    limits = LIMITS.model_copy(update={"timeout_s": 6.0, "timeout_per_media_s": 10.0})
    row, _ = scan_with("late", clips, tmp_path, limits=limits)
    assert (row["status"], row["fallback_cause"]) == ("scored", None)


def test_a_contradiction_in_the_last_file_of_all_is_tried_again_too(clips: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.fault-contradict.mp4"
    shutil.copy(clips[0], bad)
    summary = run_scan([bad], tmp_path / "out", workers=1)
    assert (summary.failed, summary.retried) == (1, 1)


def test_memory_stays_below_its_limit(clips: list[Path], tmp_path: Path) -> None:
    row, _ = scan_with("eat", clips, tmp_path)
    peak = row["peak_memory_mib"]
    assert isinstance(peak, int)
    assert MEMORY_MIB / 2 < peak <= MEMORY_MIB


def test_a_good_file_tells_its_own_peak(clips: list[Path], tmp_path: Path) -> None:
    _, others = scan_with("eat", clips, tmp_path)
    for other in others.values():  # though the same pool had one that ate all it could
        peak = other["peak_memory_mib"]
        assert isinstance(peak, int)
        assert 50 < peak < MEMORY_MIB / 2


def test_texts_from_a_worker_are_printable_and_valid(clips: list[Path], tmp_path: Path) -> None:
    row, _ = scan_with("raise", clips, tmp_path)
    detail = str(row["detail"])
    detail.encode()  # no lone surrogate
    assert "\\ud800" in detail


SECRETS = {"AWS_SECRET_ACCESS_KEY": "x", "HTTPS_PROXY": "http://127.0.0.1:9", "LD_PRELOAD_NOTE": "x", "PASSWORD": "x"}


def test_a_worker_sees_no_secret_of_the_environment(clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    row, _ = scan_with("env", clips, tmp_path)
    seen = set(str(row["detail"]).split())
    assert "PYTHONPATH" in seen
    assert seen <= {*workers.PASSED_ON, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ORT_DISABLE_TELEMETRY"}


@pytest.mark.parametrize("attempt", ["socket", "write", "exec"])
@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64"), reason="no system call filter on this machine")
def test_a_worker_may_neither_connect_nor_write_nor_start_a_program(attempt: str, clips: list[Path], tmp_path: Path) -> None:
    row, _ = scan_with(attempt, clips, tmp_path)
    assert row["detail"] == f"{attempt}: {os.strerror(1)}"
    assert not list(tmp_path.glob("*.written"))


def test_inspect_survives_the_same(clips: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.fault-abort.mp4"
    shutil.copy(clips[0], bad)
    with pytest.raises(MediaError, match="SIGABRT"):
        scored_alone(bad)


def test_workers_end_with_a_scan_that_is_killed(clips: list[Path], tmp_path: Path) -> None:
    """Even one that hangs, which would never notice that its socket closed."""
    psutil = pytest.importorskip("psutil")
    bad = tmp_path / "bad.fault-hang.mp4"
    shutil.copy(clips[0], bad)
    code = (
        "import sys; from pathlib import Path; from dissonance.engine.scan import workers; from tests.engine.scan.runs import run_scan; "
        "workers.WORKER_MODULE = 'tests.engine.scan.faulty_worker'; run_scan([sys.argv[1]], Path(sys.argv[2]), workers=1)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(bad), str(tmp_path / "out")], cwd=ROOT) as scan:
        children: list[object] = []
        deadline_s = time.monotonic() + 120
        while not children or "fault-hang" not in str(_open_files(children[0])):
            assert scan.poll() is None
            assert time.monotonic() < deadline_s
            children = psutil.Process(scan.pid).children()
        scan.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def _open_files(process: object) -> object:
    try:
        return process.open_files()  # type: ignore[attr-defined]
    except Exception:
        return ""
