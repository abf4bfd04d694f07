"""Clips drawn by several processes: the same files as one makes, the same errors, and nobody left behind, however it ends."""

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psutil
import pytest

from dissonance.errors import EnvironmentMissingError, UsageError
from dissonance.synth import ClipPlan, SynthConfig, describe, generate, plan_clip
from dissonance.synth.drawing import AHEAD, draw_clips

COUNT = 7
SHORT = SynthConfig(width=96, height=96, duration_s=0.4, two_person_share=0)
LONG = SHORT.model_copy(update={"duration_s": 60.0})  # never finished here


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def drawing() -> list[psutil.Process]:
    """This process's children that draw: all but Python's own keeper of shared resources."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]


@pytest.fixture(autouse=True)
def _nobody_is_left() -> Iterator[None]:
    yield
    assert drawing() == []


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "out"
    list(generate(out, count=COUNT, seed=4, config=SHORT))
    return out


@pytest.mark.parametrize("workers", [2, 3])
def test_files_and_rows_are_those_of_one_process_byte_for_byte(alone: Path, tmp_path: Path, workers: int) -> None:
    rows = list(generate(tmp_path / "out", count=COUNT, seed=4, config=SHORT, workers=workers))
    assert rows == [describe(plan_clip(4, index, SHORT)) for index in range(COUNT)]
    assert files(tmp_path / "out") == files(alone)


def test_a_row_comes_once_its_file_is_there_from_processes_of_one_thread(tmp_path: Path) -> None:
    drawn = draw_clips((plan_clip(4, index, SHORT) for index in count()), lambda plan: tmp_path / f"{plan.index}.mp4", SHORT, workers=2)
    for index in range(4):
        assert next(drawn).index == index
        assert (tmp_path / f"{index}.mp4").is_file()
        assert [child.environ()["OMP_NUM_THREADS"] for child in drawing()] == ["1", "1"]
    drawn.close()
    assert not list(tmp_path.glob(".*.partial"))


def test_a_slow_clip_is_waited_for_before_many_are_drawn_ahead_of_it(tmp_path: Path) -> None:
    asked: list[ClipPlan] = []

    def plans() -> Iterator[ClipPlan]:
        slow = min(drawing(), key=lambda process: process.pid)  # the first to be given a clip
        slow.suspend()
        for index in count():
            if index == AHEAD * 2 - 1:
                slow.resume()  # it has not even loaded its libraries
            asked.append(plan_clip(4, index, SHORT))
            yield asked[-1]

    drawn = draw_clips(plans(), lambda plan: tmp_path / f"{plan.index}.mp4", SHORT, workers=2)
    assert next(drawn) == asked[0]
    assert len(asked) == AHEAD * 2
    drawn.close()


def test_our_own_environment_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    before = dict(os.environ)
    list(generate(tmp_path / "out", count=2, seed=4, config=SHORT, workers=2))
    assert dict(os.environ) == before


def test_ctrl_c_is_not_for_the_processes_that_draw(tmp_path: Path) -> None:
    def plans() -> Iterator[ClipPlan]:
        for child in drawing():  # which begin to load their libraries
            child.send_signal(signal.SIGINT)
        yield from (plan_clip(4, index, SHORT) for index in range(4))

    assert len(list(draw_clips(plans(), lambda plan: tmp_path / f"{plan.index}.mp4", SHORT, workers=2))) == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_that_cannot_be_written_is_the_same_error(tmp_path: Path, workers: int) -> None:
    out = tmp_path / "out"
    clips = generate(out, count=6, seed=4, config=SHORT, workers=workers)
    last = describe(plan_clip(4, 3, SHORT)).file
    (out / last.parent).parent.mkdir(parents=True)
    (out / last.parent).write_text("in the way")
    finished = []
    with pytest.raises(UsageError) as caught:
        finished.extend(row.file for row in clips)
    assert str(caught.value) == f"Cannot write '{out}': File exists. Free some space, or choose another folder."
    assert not (out / "meta_data.csv").exists()
    assert not list(out.rglob("*.mp4.partial"))


def test_clips_before_the_one_that_fails_have_their_rows(tmp_path: Path) -> None:
    (tmp_path / "3").write_text("in the way")
    drawn = draw_clips((plan_clip(4, index, SHORT) for index in range(6)), lambda plan: tmp_path / str(plan.index) / "a.mp4", SHORT, workers=2)
    assert [next(drawn).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(FileExistsError):
        next(drawn)


def test_our_bug_says_where_it_is(tmp_path: Path) -> None:
    broken = SHORT.model_copy(update={"sample_rate_hz": -1})
    with pytest.raises(RuntimeError, match=r'(?s)Traceback.*drawing\.py", line \d+, in draw_clip'):
        list(draw_clips([plan_clip(4, 0, SHORT)], lambda _: tmp_path / "a.mp4", broken, workers=2))
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_killed_is_an_error_and_ends_the_others(tmp_path: Path) -> None:
    def plans() -> Iterator[ClipPlan]:
        yield plan_clip(4, 0, LONG)
        while not (tmp_path / ".0.mp4.partial").exists():  # it is at work
            assert len(drawing()) == 2
        min(drawing(), key=lambda process: process.pid).kill()
        yield plan_clip(4, 1, LONG)

    with pytest.raises(EnvironmentMissingError, match=r"status -9 .*memory.*fewer workers"):
        list(draw_clips(plans(), lambda plan: tmp_path / f"{plan.index}.mp4", LONG, workers=2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [0, -2])
def test_a_wrong_number_of_workers_is_refused_before_anything_is_written(tmp_path: Path, workers: int) -> None:
    with pytest.raises(UsageError, match="workers"):
        generate(tmp_path / "out", count=1, seed=1, workers=workers)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------ on the command line


@pytest.fixture
def command(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """`dissonance synth` with two processes at work on more clips than it will make, in a process group of its own."""
    arguments = [
        "synth",
        str(tmp_path / "out"),
        "--count",
        "5000",
        "--size",
        "96x96",
        "--people",
        "1",
        "--duration",
        "0.4",
        "--workers",
        "2",
        "--json",
    ]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "dissonance", *arguments, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background job is born ignoring Ctrl-C
    )
    assert process.stdout is not None
    assert "RealVideo" in process.stdout.readline(), process.communicate()
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_ctrl_c_ends_all_and_keeps_what_is_finished(command: "subprocess.Popen[str]", tmp_path: Path) -> None:
    os.killpg(command.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, errors = command.communicate(timeout=60)  # ends when nobody holds the pipes: nobody is left
    assert command.returncode == 130
    assert "interrupted; what is finished is kept" in errors
    assert "Traceback" not in errors
    assert list((tmp_path / "out").rglob("*.mp4"))
    assert not list((tmp_path / "out").rglob("*.mp4.partial"))
    assert not (tmp_path / "out" / "meta_data.csv").exists()


def test_killed_outright_it_leaves_nobody(command: "subprocess.Popen[str]") -> None:
    command.kill()
    _, errors = command.communicate(timeout=60)
    assert command.returncode == -9
    assert "Traceback" not in errors
