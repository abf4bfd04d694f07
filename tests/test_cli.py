"""The command line as a user meets it: what it prints, where, and how it exits."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from dissonance.bundle import open_bundle
from dissonance.synth.config import SynthConfig
from dissonance.synth.dataset import generate
from dissonance.synth.mux import write_clip

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    (row,) = generate(folder, count=1, seed=9, config=SynthConfig(duration_s=2.0, two_person_share=0))
    return folder / row.file


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


COMMANDS = [[], *([name] for name in ("scan", "inspect", "synth", "train", "evaluate", "ablate", "export", "doctor", "bench")), ["bench", "run"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(cli: Cli, command: list[str]) -> None:
    done = cli(*command, "--help")
    assert done.returncode == 0
    if command and command != ["bench"]:
        assert "Example: dissonance " + " ".join(command) in " ".join(done.stdout.split())
    if command == ["synth"]:
        assert "[default: mostly 1]" in " ".join(done.stdout.split())  # our own words are no markup


def picture(value: int = 90) -> np.ndarray:
    return np.full((96, 128, 3), value, np.uint8)


def tone(seconds: float, level: float) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 440 * np.arange(int(16000 * seconds)) / 16000)).astype(np.float32)


def write_silent_film(path: Path, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(), format="rgb24")))
        container.mux(stream.encode(None))


def write_sound(path: Path, samples: np.ndarray) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for start in range(0, len(samples) - 1023, 1024):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="session")
def bad_folder(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> tuple[Path, dict[str, tuple[str, str | None]]]:
    """A folder of everything that goes wrong, with two good files among it; and what is expected of each."""
    folder = tmp_path_factory.mktemp("bad")
    content = clip.read_bytes()
    shutil.copy(clip, folder / "aa_good.mp4")
    (folder / "empty.mp4").touch()
    (folder / "truncated.mp4").write_bytes(content[: len(content) // 2])
    (folder / "random.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "text.mp4").write_text("Dear diary,\n" * 100)
    (folder / "folder.mp4").mkdir()
    (folder / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    (folder / "playlist.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n")
    write_silent_film(folder / "no_face_no_sound.mp4", 30)
    write_clip(folder / "no_face_quiet.mp4", [picture()] * 30, np.zeros(19200, np.float32), sample_rate_hz=16000)
    write_sound(folder / "no_picture_no_speech.m4a.mp4", tone(2.0, 0.2))
    write_silent_film(folder / "too_short.mp4", 3)
    shutil.copy(clip, folder / "zz_good.mp4")
    return folder, {
        "aa_good.mp4": ("scored", None),
        "empty.mp4": ("failed", "corrupt"),
        "truncated.mp4": ("failed", "corrupt"),
        "random.mp4": ("failed", "corrupt"),
        "text.mp4": ("failed", "corrupt"),
        "folder.mp4": ("failed", "unreadable"),
        "dangling.mp4": ("failed", "unreadable"),
        "playlist.mp4": ("failed", "refused"),
        "no_face_no_sound.mp4": ("abstained", "no_face_and_no_sound"),
        "no_face_quiet.mp4": ("abstained", "no_face"),
        "no_picture_no_speech.m4a.mp4": ("abstained", "no_speech"),
        "too_short.mp4": ("abstained", "too_short"),
        "zz_good.mp4": ("scored", None),
    }


def test_bad_files_have_a_row_each_and_change_nothing_else(cli: Cli, bad_folder: tuple[Path, dict[str, Any]], clip: Path, tmp_path: Path) -> None:
    folder, expected = bad_folder
    done = cli("scan", folder, "-o", tmp_path / "out", "--json")
    assert done.returncode == 3, done.stderr
    rows = {Path(row["uri"]).name: row for row in lines(done.stdout)}
    assert {name: (row["status"], row["reason"]) for name, row in rows.items()} == expected
    assert all(row["detail"] for row in rows.values() if row["status"] != "scored")
    assert all(row["p_fake"] is None and row["label"] is None for row in rows.values() if row["status"] != "scored")
    alone = lines(cli("scan", clip, "-o", tmp_path / "alone", "--json").stdout)[0]
    for name in ("aa_good.mp4", "zz_good.mp4"):
        assert rows[name]["p_fake"] == pytest.approx(alone["p_fake"], abs=1e-5)
        assert rows[name]["content_hash"] == alone["content_hash"]
    assert "trained on synthetic clips only" in done.stderr
    assert "13 inputs = 2 scored + 4 abstained + 7 failed" in done.stderr


def test_failures_can_be_allowed(cli: Cli, bad_folder: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    done = cli("scan", bad_folder[0] / "empty.mp4", "-o", tmp_path / "out", "--max-failures", 1)
    assert done.returncode == 0
    assert "corrupt" in done.stdout


@pytest.mark.parametrize(("allowed", "code"), [("1", 3), ("2", 0), ("66%", 3), ("66.7%", 0), ("29%", 3), ("100%", 0)])
def test_failures_are_allowed_as_a_number_or_a_share(allowed: str, code: int, cli: Cli, clip: Path, tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    assert cli("scan", clip, tmp_path / "a.mp4", tmp_path / "b.mp4", "-o", tmp_path / "out", "--max-failures", allowed).returncode == code


@pytest.mark.parametrize("wrong", ["-1", "1.5", "101%", "-1%", "nan%", "many", "%", ""])
def test_a_wrong_allowance_is_told_before_anything_is_done(wrong: str, cli: Cli, clip: Path, tmp_path: Path) -> None:
    done = cli("scan", clip, "-o", tmp_path / "out", f"--max-failures={wrong}")
    assert done.returncode == 2
    assert f"Invalid --max-failures '{wrong}'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_scan_runs_no_code_from_the_folder_it_is_started_in(clip: Path, tmp_path: Path) -> None:
    for name in ("numpy", "json", "cv2", "socket"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('code from the current folder')")
    command = [Path(sys.executable).with_name("dissonance"), "scan", clip, "-o", tmp_path / "out", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert lines(done.stdout)[0]["status"] == "scored"


def test_a_path_longer_than_any_system_allows_has_its_row(cli: Cli, clip: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps({"uri": "x" * 3_000_000}) + "\n" + json.dumps({"uri": str(clip)}) + "\n")
    done = cli("scan", manifest, "-o", tmp_path / "out", "--json")
    assert done.returncode == 3, done.stderr
    assert [row["reason"] for row in lines(done.stdout)] == ["unreadable", None]


@pytest.mark.skipif(sys.platform != "linux", reason="drops a capability of Linux")
def test_a_file_that_may_not_be_read_has_its_row(cli: Cli, clip: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(clip.read_bytes())
    secret.chmod(0)
    done = cli("scan", secret, clip, "-o", tmp_path / "out", "--json", preexec_fn=_without_the_rights_of_root)
    assert done.returncode == 3, done.stderr
    rows = {Path(row["uri"]).name: row for row in lines(done.stdout)}
    assert (rows["secret.mp4"]["reason"], rows["secret.mp4"]["detail"]) == ("unreadable", "Permission denied")
    assert rows[clip.name]["status"] == "scored"


def _without_the_rights_of_root() -> None:
    """What is started next may not read everything, whoever we are: linux/prctl.h, linux/capability.h."""
    drop_from_bounding_set, dac_override, dac_read_search = 24, 1, 2
    libc = ctypes.CDLL(None)
    for capability in (dac_override, dac_read_search):
        libc.prctl(drop_from_bounding_set, capability, 0, 0, 0)


def test_real_clips_with_ffmpegs_own_counts(cli: Cli, shared: Path, tmp_path: Path) -> None:
    done = cli("scan", shared / "media", "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    rows = {Path(row["uri"]).name: row for row in lines(done.stdout)}
    # ffprobe -v error -count_frames -select_streams v -show_entries stream=codec_name,nb_read_frames FILE
    assert {name: (row["video_codec"], row["frames_decoded"]) for name, row in rows.items()} == {
        "av1_video.mkv": ("av1", 125),
        "bt709_full_range.mp4": ("h264", 30),
        "h264_10bits.mp4": ("h264", 30),
        "h265_10bits.mp4": ("hevc", 30),
        "h265_video.mp4": ("hevc", 10),
        "nasa_13013.mp4": ("h264", 390),
    }
    assert {row["status"] for row in rows.values()} <= {"abstained", "scored"}
    assert all(row["modalities"] in (None, "a") for row in rows.values())
    again = cli("scan", shared / "media", "-o", tmp_path / "out", "--json", "--resume")
    assert again.returncode == 0
    assert again.stdout == done.stdout
    assert json.loads((tmp_path / "out" / "run.json").read_text())["summary"]["decoded"] == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("detector: {kind: cascade}", "detector.kind"),
        ("detektor: {kind: haar}", "detektor: unknown key"),
        ("limits: {min_frames: -1}", "limits.min_frames"),
        ("- a list", "not a mapping"),
        ("a: [", "not YAML"),
        ("detector: {kind: yunet}", "yunet_model"),
        ("detector: {kind: yunet, yunet_model: nowhere.onnx}", "nowhere.onnx"),
    ],
)
def test_bad_configs_are_one_clear_message(cli: Cli, clip: Path, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "scan.yaml").write_text(text)
    done = cli("scan", clip, "-o", tmp_path / "out", "--config", tmp_path / "scan.yaml")
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_changed_byte_in_a_bundle_is_refused(cli: Cli, clip: Path, tmp_path: Path) -> None:
    import dissonance

    bundle = tmp_path / "bundle"
    shutil.copytree(Path(dissonance.__path__[0]) / "bundles" / "demo", bundle)
    data = bytearray((bundle / "visual.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "visual.onnx").write_bytes(data)
    done = cli("scan", clip, "-o", tmp_path / "out", "--bundle", bundle)
    assert done.returncode == 5
    assert "visual.onnx" in done.stderr
    assert "was changed" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_bundle_that_is_not_the_one_asked_for_is_refused(cli: Cli, clip: Path, tmp_path: Path) -> None:
    done = cli("scan", clip, "-o", tmp_path / "out", "--bundle-sha256", "0" * 64)
    assert done.returncode == 5
    assert f"is {open_bundle('demo').id}, not {'0' * 64}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_tensorrt_without_a_gpu_names_what_to_use_instead(cli: Cli, clip: Path, tmp_path: Path) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU")
    done = cli("scan", clip, "-o", tmp_path / "out", "--runtime", "tensorrt")
    assert done.returncode == 4
    assert "--runtime tensorrt needs an NVIDIA GPU: no NVIDIA driver" in done.stderr
    assert "Use --runtime onnxruntime" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_named(cli: Cli, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError(\"No module named 'onnxruntime'\")\n")
    done = cli("scan", clip, "-o", tmp_path / "out", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 4
    assert "pip install 'dissonance[cpu]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_inspect_shows_streams_tracks_and_the_same_numbers_as_a_scan(cli: Cli, clip: Path, tmp_path: Path) -> None:
    shown = cli("inspect", clip)
    assert shown.returncode == 0, shown.stderr
    for part in ("h264 320x240", "aac 16000 Hz", "track 0", "lag", "trained on synthetic clips only"):
        assert part in shown.stdout
    found = json.loads(cli("inspect", clip, "--json").stdout)
    row = lines(cli("scan", clip, "-o", tmp_path / "out", "--json").stdout)[0]
    assert found["file"]["p_fake"] == pytest.approx(row["p_fake"], abs=1e-5)
    assert len(found["windows"]) == row["windows"]


def test_inspect_of_what_cannot_be_read_is_one_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_text("no")
    done = cli("inspect", tmp_path / "x.mp4")
    assert done.returncode == 3
    assert "corrupt" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_says_what_is_usable(cli: Cli) -> None:
    done = cli("doctor", "--json")
    assert done.returncode == 0
    found = {finding["name"]: finding["verdict"] for finding in json.loads(done.stdout)}
    assert found["isolation"] == found["pyav"] == found["haar"] == found["onnxruntime"] == found["bundle demo"] == "ok"


def test_doctor_looks_for_both_flavours_of_tensorrt_as_build_does(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("__version__ = '10.12.0'\n")
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name}')\n")
    found = {
        row["name"]: row
        for row in json.loads(
            cli("doctor", "--json", env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}).stdout
        )
    }
    assert found["tensorrt"]["verdict"] == "broken"
    assert "works with 10.13 or later, below 12.0" in found["tensorrt"]["detail"]
    assert found["tensorrt_rtx"]["verdict"] == "missing"
    assert "pip install 'dissonance[rtx]'" in found["tensorrt_rtx"]["detail"]


def test_doctor_runs_where_a_library_is_missing(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "av.py").write_text("raise ModuleNotFoundError(\"No module named 'av'\")\n")
    done = cli("doctor", "--json", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert {finding["name"]: finding["verdict"] for finding in json.loads(done.stdout)}["pyav"] == "missing"


def test_a_file_option_chooses_its_detector_and_must_not_contradict(cli: Cli, clip: Path, tmp_path: Path) -> None:
    boxes = tmp_path / "boxes.jsonl"
    rows = [{"uri": str(clip), "track": 4, "time_s": time, "x0": 100, "y0": 60, "x1": 200, "y1": 160} for time in (0, 2)]
    boxes.write_text("\n".join(json.dumps(row) for row in rows))
    done = cli("scan", clip, "-o", tmp_path / "out", "--boxes", boxes, "--json")
    assert done.returncode == 0, done.stderr
    assert lines(done.stdout)[0]["detector"] == "boxes"
    assert "calibrated on faces that 'haar' found; this scan finds them by 'boxes'" in " ".join(done.stderr.split())
    assert lines((tmp_path / "out" / "tracks.jsonl").read_text())[0]["track"] == 4
    wrong = cli("scan", clip, "-o", tmp_path / "other", "--boxes", boxes, "--detector", "haar")
    assert wrong.returncode == 2
    assert "--boxes" in wrong.stderr


def test_a_name_too_long_for_the_disk_has_its_row(cli: Cli, tmp_path: Path) -> None:
    done = cli("scan", "x" * 300 + ".mp4", "-o", tmp_path / "out", "--json")
    assert done.returncode == 3
    assert lines(done.stdout)[0]["reason"] == "unreadable"


def test_names_cannot_write_to_the_terminal(cli: Cli, tmp_path: Path) -> None:
    evil = tmp_path / "\x1b[2J[red]\n.mp4"
    evil.touch()
    done = cli("scan", evil, "-o", tmp_path / "out")
    assert done.returncode == 3
    assert "\x1b" not in done.stdout + done.stderr
    assert "\\x1b[2J[red]\\n.mp4" in "".join(done.stdout.split())


def test_synth_makes_what_scan_reads(cli: Cli, tmp_path: Path) -> None:
    made = cli("synth", tmp_path / "c", "--count", 2, "--seed", 3, "--people", 2, "--duration", 1, "--json")
    assert made.returncode == 0, made.stderr
    assert all(Path(row["file"]).is_file() for row in lines(made.stdout))
    assert cli("synth", tmp_path / "c", "--count", 1).returncode == 2
    assert cli("synth", tmp_path / "d", "--size", "wide").returncode == 2
