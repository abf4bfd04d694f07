"""A scan's promises: every input accounted for, scores that depend on nothing but the file, resumable after any kill."""

import fcntl
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import av
import pyarrow.parquet as pq
import pytest

from dissonance.config import LimitsConfig, ScanConfig
from dissonance.engine.scan.confine import EVERYTHING
from dissonance.engine.scan.rows import TABLES
from dissonance.errors import OutputError, UsageError
from tests.engine.scan.runs import Rows, assert_same_rows, by_uri, read_rows, run_scan


def test_every_clip_is_scored_with_where_and_how(clips: list[Path], reference: Rows) -> None:
    for clip in clips:
        row = reference[str(clip)]
        with av.open(str(clip)) as container:
            frames = sum(1 for _ in container.decode(video=0))
        assert row["status"] == "scored"
        assert row["frames_decoded"] == frames
        assert (row["video_codec"], row["audio_codec"], row["decoder"]) == ("h264", "aac", "pyav")
        assert 0 <= row["p_fake"] <= 1
        assert row["modalities"] == "av"
        assert row["trained_on"] == json.loads((Path(__file__).parents[3] / "src/dissonance/bundles/demo/bundle.json").read_text())["trained_on"]
    assert reference[str(clips[-1])]["tracks"] == 2
    assert all(reference[str(clip)]["tracks"] == 1 for clip in clips[:-1])


@pytest.mark.parametrize(
    ("execution", "backwards"),
    [
        ({"workers": 1, "batch_frames": 1, "batch_windows": 1}, False),
        ({"workers": 2, "batch_frames": 16, "batch_windows": 16}, True),
        ({"workers": 2, "batch_frames": 500, "batch_windows": 7, "shard_files": 1}, False),
    ],
)
def test_scores_do_not_depend_on_how_the_work_is_laid_out(
    clips: list[Path], reference: Rows, tmp_path: Path, execution: dict[str, int], backwards: bool
) -> None:
    run_scan(clips[::-1] if backwards else clips, tmp_path / "out", **execution)
    assert_same_rows(by_uri(tmp_path / "out"), reference)


def test_the_torch_runtime_gives_the_same_rows(clips: list[Path], reference: Rows, tmp_path: Path) -> None:
    run_scan(clips, tmp_path / "out", runtime="torch")
    found = by_uri(tmp_path / "out")
    assert_same_rows(found, reference)
    assert {row["runtime"] for row in found.values()} == {"torch"}
    assert {row["runtime"] for row in reference.values()} == {"onnxruntime-cpu"}


def test_the_three_tables_agree_in_both_formats(clips: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_scan(clips[-2:], out)
    for table, schema in TABLES.items():
        rows = pq.read_table(out / f"{table}.parquet")
        assert rows.schema == schema
        assert rows.to_pylist() == read_rows(out, table)
    files, tracks, windows = (read_rows(out, table) for table in TABLES)
    for row in files:
        mine = [window for window in windows if window["uri"] == row["uri"]]
        assert len(mine) == row["windows"]
        assert {window["track"] for window in mine} == {track["track"] for track in tracks if track["uri"] == row["uri"]}
        deciding = [track["p_fake"] for track in tracks if track["uri"] == row["uri"] and (track["speaker"] or row["offscreen_voice"])]
        assert row["p_fake"] == max(deciding)
    assert not list(out.glob(".*"))
    manifest = json.loads((out / "run.json").read_text())
    assert manifest["summary"]["inputs"] == 2
    assert "trained on synthetic clips only" in manifest["warning"]


def test_resume_decodes_nothing_again_and_finds_what_changed(clips: list[Path], tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    names = ["a.mp4", "b.mp4", "c.mp4"]
    for name, clip in zip(names, clips, strict=False):
        shutil.copy(clip, folder / name)
    assert run_scan([folder], out).decoded == 3
    first = by_uri(out)
    with pytest.raises(UsageError, match="--resume"):
        run_scan([folder], out)

    again = run_scan([folder], out, resume=True)
    assert (again.inputs, again.decoded, again.resumed) == (3, 0, 3)
    assert by_uri(out) == first

    os.utime(folder / "a.mp4")  # another time stamp, the same content
    shutil.copy(clips[3], folder / "b.mp4")  # other content
    shutil.copy(clips[4], folder / "d.mp4")  # a new file
    changed = run_scan([folder], out, resume=True)
    assert (changed.inputs, changed.decoded, changed.resumed) == (4, 2, 2)
    rows = by_uri(out)
    assert rows[str(folder / "a.mp4")] == first[str(folder / "a.mp4")]
    assert rows[str(folder / "b.mp4")]["content_hash"] != first[str(folder / "b.mp4")]["content_hash"]
    assert len(rows) == 4


def test_a_resume_while_the_source_is_away_keeps_what_was_found(clips: list[Path], tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    shutil.copy(clips[0], folder / "a.mp4")
    run_scan([folder], out)
    first = by_uri(out)
    folder.rename(tmp_path / "away")
    with pytest.raises(UsageError, match="mounted"):
        run_scan([folder], out, resume=True)
    folder.mkdir()  # the mount point, empty
    assert run_scan([folder], out, resume=True).resumed == 1
    assert by_uri(out) == first


def test_two_scans_in_one_out_are_refused(clips: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (out / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="Another scan"):
            run_scan(clips[:1], out)
    run_scan(clips[:1], out)


def test_a_kill_while_the_ledger_was_made_leaves_an_out_that_works(clips: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.db.partial").write_bytes(b"half a ledger")
    assert run_scan(clips[:1], out, resume=True).scored == 1


def test_a_usage_error_leaves_no_run_behind(clips: list[Path], tmp_path: Path) -> None:
    out, manifest = tmp_path / "out", tmp_path / "list.jsonl"
    manifest.write_text(json.dumps({"uri": str(clips[0])}) + "\nnot json\n")
    with pytest.raises(UsageError, match="line 2"):
        run_scan([manifest], out)
    assert run_scan(clips[:1], out).inputs == 1


def test_a_full_disk_is_a_clear_error_and_resumable(clips: list[Path], reference: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "out"
    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OutputError, match="No space left"):
        run_scan(clips[:2], out)
    monkeypatch.undo()
    run_scan(clips[:2], out, resume=True)
    assert_same_rows(by_uri(out), {str(clip): reference[str(clip)] for clip in clips[:2]})


def test_another_configuration_is_another_run(clips: list[Path], tmp_path: Path) -> None:
    run_scan(clips[:1], tmp_path / "out")
    with pytest.raises(UsageError, match="another scan config"):
        run_scan(clips[:1], tmp_path / "out", resume=True, config=ScanConfig(limits=LimitsConfig(min_frames=11)))


def test_a_limit_can_be_raised_for_what_failed_by_it(clips: list[Path], reference: Rows, tmp_path: Path) -> None:
    out = tmp_path / "out"
    small = ScanConfig(limits=LimitsConfig(max_pixels=1000))
    assert run_scan(clips[:2], out, config=small).failed == 2
    assert "limits.max_pixels" in by_uri(out)[str(clips[0])]["detail"]
    assert run_scan(clips[:2], out, resume=True).decoded == 0
    assert run_scan(clips[:2], out, retry_failed=True).scored == 2
    assert_same_rows(by_uri(out), {str(clip): reference[str(clip)] for clip in clips[:2]})


def test_the_manifest_says_what_workers_gave_up(clips: list[Path], tmp_path: Path) -> None:
    run_scan(clips[:1], tmp_path / "out", workers=1)
    found = json.loads((tmp_path / "out" / "run.json").read_text())
    assert set(found["worker_confinement"]) <= set(EVERYTHING)
    assert {"core", "file_size"} <= set(found["worker_confinement"])


def test_out_must_be_new_or_a_run(clips: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").touch()
    with pytest.raises(UsageError, match="not empty"):
        run_scan(clips[:1], tmp_path / "out")


def test_an_input_named_twice_has_one_row(clips: list[Path], tmp_path: Path) -> None:
    summary = run_scan([clips[0], clips[0], clips[0].parent], tmp_path / "out")
    assert summary.repeated == 2
    assert len(by_uri(tmp_path / "out")) == summary.inputs == 1


def start_scan(sources: list[Path], out: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dissonance", "scan", *map(str, sources), "-o", str(out), *options]
    # As from a terminal: a shell's background job, which these tests may be part of, is born ignoring Ctrl-C.
    as_in_front = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=as_in_front)


def test_ten_kills_at_random_moments_lose_and_double_nothing(clips: list[Path], reference: Rows, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    expected = {}
    for copy in range(4):
        for number, clip in enumerate(clips):
            name = folder / f"{copy}{number}.mp4"
            name.symlink_to(clip)
            expected[str(name)] = {**reference[str(clip)], "uri": str(name)}
    config = tmp_path / "scan.yaml"
    config.write_text("execution: {workers: 2, threads: 1, shard_files: 1}\n")
    moments = random.Random(11)
    kills = 0
    for turn in range(40):
        process = start_scan([folder], out, "--config", str(config), "--resume")
        try:
            process.communicate(timeout=moments.uniform(0.5, 4.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            if kills == 10:
                break
        else:  # it was done before it could be killed: that run must be right, and the next one starts anew
            assert_same_rows(by_uri(out), expected)
            out = tmp_path / f"out{turn}"
    assert kills == 10
    run_scan([folder], out, resume=True)
    assert_same_rows(by_uri(out), expected)
    assert pq.read_table(out / "windows.parquet").num_rows == sum(row["windows"] for row in expected.values())


def test_ctrl_c_ends_cleanly_and_can_be_resumed(clips: list[Path], reference: Rows, tmp_path: Path) -> None:
    config = tmp_path / "scan.yaml"
    config.write_text("execution: {workers: 1, threads: 1}\n")
    out = tmp_path / "out"
    more = [tmp_path / f"{number}.mp4" for number in range(40)]  # so that it is still at work when the signal comes
    for path in more:
        os.link(clips[0], path)
    process = start_scan([*clips, *more], out, "--config", str(config))
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(b"scanning"):
            break
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert b"Traceback" not in stderr
    with pytest.raises(ProcessLookupError):  # no worker outlives the scan
        os.killpg(process.pid, 0)
    assert run_scan([*clips, *more], out, resume=True).scored == len(clips) + len(more)
    rows = by_uri(out)
    assert_same_rows({uri: rows[uri] for uri in reference}, reference)
