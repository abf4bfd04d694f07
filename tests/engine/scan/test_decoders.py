"""Scans whose pictures DALI decodes, by its CPU operators, beside PyAV's; and what of them is left to PyAV."""

import shutil
from pathlib import Path
from typing import Any

import av
import pytest

from dissonance.bundle import open_bundle
from dissonance.config import LimitsConfig, ScanConfig
from dissonance.engine.runtime import open_runtime
from dissonance.engine.scan import workers
from dissonance.engine.scan.scoring import WindowScore
from dissonance.engine.scan.verdict import VerdictBuilder
from tests.engine.scan.runs import FACTS, SCORES, Rows, assert_same_rows, by_uri, run_scan

pytest.importorskip("nvidia.dali", reason="needs DALI: pip install nvidia-dali-cuda130")

ROOT = Path(__file__).resolve().parents[3]
DALI = ScanConfig(decoder="dali-cpu", limits=LimitsConfig(stall_timeout_s=15))


@pytest.fixture(scope="module")
def vp9(clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two of the clips, their pictures as VP9, which DALI's CPU operators decode."""
    folder = tmp_path_factory.mktemp("vp9")
    return [_as_vp9(path, folder / f"{path.stem}.mkv") for path in clips[:2]]


@pytest.fixture(scope="module")
def plain(vp9: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Rows:
    out = tmp_path_factory.mktemp("plain") / "out"
    run_scan(vp9, out, workers=1)
    return by_uri(out)


def _as_vp9(source: Path, target: Path) -> Path:
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        pictures, sound = given.streams.video[0], given.streams.audio[0]
        coded = made.add_stream("libvpx-vp9", rate=25, options={"g": "20", "deadline": "realtime", "cpu-used": "8"})
        coded.width, coded.height, coded.pix_fmt, coded.bit_rate = pictures.width, pictures.height, "yuv420p", 2_000_000
        copied = made.add_stream_from_template(sound)
        for packet in given.demux(pictures, sound):
            if packet.stream is pictures:
                for frame in packet.decode():
                    made.mux(coded.encode(frame))
            elif packet.dts is not None:
                packet.stream = copied
                made.mux(packet)
        made.mux(coded.encode())
    return target


def _copy(packet: Any, stream: Any, *, spoilt: bool) -> av.Packet:
    copy = av.Packet(bytes(255 for _ in bytes(packet)) if spoilt else bytes(packet))
    copy.stream, copy.time_base, copy.pts, copy.dts, copy.is_keyframe = stream, packet.time_base, packet.pts, packet.dts, packet.is_keyframe
    return copy


def test_scores_are_those_of_pyav_s_pictures(vp9: list[Path], plain: Rows, tmp_path: Path) -> None:
    summary = run_scan(vp9, tmp_path / "out", config=DALI, workers=1)
    assert (summary.scored, summary.decoded, summary.retried, summary.lost) == (2, 2, 0, {})
    for uri, row in by_uri(tmp_path / "out").items():
        assert (row["decoder"], row["fallback_cause"]) == ("dali-cpu", None)
        assert plain[uri]["decoder"] == "pyav"
        assert {name: row[name] for name in FACTS} == {name: plain[uri][name] for name in FACTS}
        for name in SCORES:
            assert row[name] == pytest.approx(plain[uri][name], abs=0.02), name


def test_what_dali_does_not_decode_pyav_does(clips: list[Path], vp9: list[Path], reference: Rows, tmp_path: Path) -> None:
    """In a worker of PyAV's own, and the file counts once."""
    summary = run_scan([clips[2], vp9[0]], tmp_path / "out", config=DALI, workers=1)
    assert (summary.scored, summary.decoded, summary.retried, summary.lost) == (2, 2, 0, {})
    rows = by_uri(tmp_path / "out")
    h264 = rows[str(clips[2])]
    assert (h264["decoder"], h264["fallback_cause"]) == ("pyav", "dali-cpu: it does not decode h264")
    assert_same_rows({str(clips[2]): h264}, {str(clips[2]): reference[str(clips[2])]})


def test_a_packet_that_is_none_of_its_codec_s_is_left_to_pyav(vp9: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.mkv"
    with av.open(str(vp9[0])) as given, av.open(str(bad), "w") as made:
        copies = {stream.index: made.add_stream_from_template(stream, opaque=True) for stream in given.streams}
        pictures = 0
        for packet in given.demux():
            if packet.dts is not None:
                pictures += packet.stream.type == "video"
                made.mux(_copy(packet, copies[packet.stream_index], spoilt=packet.stream.type == "video" and pictures == 45))
    run_scan([bad], tmp_path / "plain", workers=1)
    run_scan([bad], tmp_path / "out", config=DALI, workers=1)
    found = by_uri(tmp_path / "out")
    assert (found[str(bad)]["decoder"], found[str(bad)]["decode_errors"]) == ("pyav", 1)
    assert found[str(bad)]["fallback_cause"] == "dali-cpu: it is not VP9 of profile 0 or 2"
    assert_same_rows(found, by_uri(tmp_path / "plain"))


def test_a_file_that_dali_stumbles_over_in_the_middle_is_read_again_from_its_beginning(
    vp9: list[Path], plain: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window was scored by then: it is not left in the row."""
    monkeypatch.setattr(workers, "WORKER_MODULE", "tests.engine.scan.faulty_worker")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    scored, add = list[VerdictBuilder](), VerdictBuilder.add

    def noted(builder: VerdictBuilder, score: WindowScore) -> None:
        scored.append(builder)
        add(builder, score)

    monkeypatch.setattr(VerdictBuilder, "add", noted)
    at_once = open_runtime(open_bundle("demo"), threads=1)
    at_once.lanes = 0  # a batch is over when it is started
    bad = tmp_path / "bad.fault-dali.fault-decline.mkv"
    shutil.copy(vp9[0], bad)
    summary = run_scan([bad], tmp_path / "out", config=DALI, runtime=at_once, workers=1, batch_windows=1, batch_frames=1)
    assert (summary.decoded, summary.retried, summary.lost) == (1, 0, {})
    assert len({id(builder) for builder in scored}) == 2
    (row,) = by_uri(tmp_path / "out").values()
    assert (row["decoder"], row["fallback_cause"]) == ("pyav", "dali-cpu: too hard for this decoder")
    assert_same_rows({str(vp9[0]): row}, {str(vp9[0]): plain[str(vp9[0])]})


def test_a_file_over_which_dali_dies_is_pyav_s(vp9: list[Path], plain: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WORKER_MODULE", "tests.engine.scan.faulty_worker")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    bad = tmp_path / "bad.fault-dali.fault-abort.mkv"
    shutil.copy(vp9[0], bad)
    summary = run_scan([bad, vp9[1]], tmp_path / "out", config=DALI, workers=1)
    rows = by_uri(tmp_path / "out")
    assert (summary.decoded, summary.retried, summary.lost) == (2, 1, {"decoder_crash": 1})
    assert rows[str(bad)]["decoder"] == "pyav"
    assert rows[str(bad)]["fallback_cause"].startswith("decoder_crash: ")
    assert rows[str(vp9[1])]["decoder"] == "dali-cpu"
    assert_same_rows({str(vp9[0]): rows[str(bad)]}, {str(vp9[0]): plain[str(vp9[0])]})


def test_a_run_is_not_resumed_with_another_decoder() -> None:
    assert len({ScanConfig(decoder=decoder).fingerprint() for decoder in ("pyav", "dali", "dali-cpu")}) == 3
