"""What the real server answers is what a scan finds, by every way there is to ask it."""

import json
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import tritonclient.grpc
from bench._server import LocalServer
from scipy.special import expit

from dissonance.bundle import Bundle
from dissonance.config import ServeConfig
from dissonance.engine.runtime import open_runtime
from dissonance.engine.runtime.base import HEAD_OUTPUTS
from dissonance.engine.scan.verdict import FileVerdict
from dissonance.engine.serve.client import Server
from dissonance.engine.serve.interface import HEAD, PROBABILITIES, VIDEO, VISUAL, WINDOWS, Arrays, interfaces
from dissonance.engine.serve.runtime import open_served_runtime
from dissonance.export.make import export_bundle
from dissonance.export.repository import make_repository
from dissonance.model.checkpoint import save_checkpoint
from tests.engine.scan.runs import Rows, by_uri, read_rows, run_scan
from tests.model.tiny import tiny_network

NOT_THE_SAME = ("uri", "runtime", "elapsed_s", "peak_memory_mib")  # by where and when it was scored


def test_all_five_models_are_ready(server: LocalServer) -> None:
    client = tritonclient.grpc.InferenceServerClient(server.grpc.removeprefix("grpc://"))
    names = ("dissonance", "dissonance_audio", "dissonance_head", "dissonance_visual", "dissonance_windows")
    assert {name: client.is_model_ready(name) for name in names} == dict.fromkeys(names, True)
    assert client.is_server_ready()
    assert client.get_server_metadata().name == "triton"


@pytest.fixture(scope="module")
def expected(feeds: Arrays, demo: Bundle) -> Arrays:
    """What ONNX Runtime says of the windows in this process, one window at a time."""
    runtime = open_runtime(demo, threads=1)
    found: dict[str, list[Any]] = {}
    for crops, mel, mask in zip(*feeds.values(), strict=True):
        visual = runtime.encode_frames(crops, np.arange(len(crops)))
        output = runtime.run_head(visual[None], runtime.encode_sound(mel[None], mask[None]), mask[None])
        for name in HEAD_OUTPUTS:
            found.setdefault(name, []).append(getattr(output, name)[0])
    arrays = {name: np.stack(values) for name, values in found.items()}
    for name, (logit, case) in PROBABILITIES.items():
        calibration = demo.spec.calibration[case]
        arrays[name] = expit(calibration.scale * arrays[logit] + calibration.bias)
    return arrays


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("shared_memory", [False, True], ids=["", "shared memory"])
def test_windows_are_scored_as_without_a_server(
    server: LocalServer, feeds: Arrays, expected: Arrays, demo: Bundle, protocol: str, shared_memory: bool
) -> None:
    with Server(getattr(server, protocol), shared_memory=shared_memory) as client:
        together = client.infer(WINDOWS, {name: array[:8] for name, array in feeds.items()})
        alone = client.infer(WINDOWS, {name: array[:1] for name, array in feeds.items()})
        later = [client.submit(WINDOWS, {name: array[row : row + 1] for name, array in feeds.items()}) for row in range(6)]
        one_by_one = {name: np.concatenate([each.result()[name] for each in later]) for name in together}
    assert set(together) == {each.name for each in interfaces(demo.spec)[WINDOWS].outputs}
    for name, array in expected.items():
        for found in (together, alone, one_by_one):
            rows = len(found[name])
            np.testing.assert_allclose(found[name].reshape(rows, *array.shape[1:]), array[:rows], atol=1e-5, err_msg=name)


def assert_same_verdict(found: FileVerdict, row: dict[str, Any], windows: list[dict[str, Any]]) -> None:
    """The file's row and its windows', as a scan wrote them."""
    columns = set(row) - set(NOT_THE_SAME)
    assert {name: found.file[name] for name in columns} == {name: approximately(row[name]) for name in columns}
    assert len(found.windows) == len(windows)
    for mine, scanned in zip(found.windows, windows, strict=True):
        assert {name: mine[name] for name in scanned if name != "uri"} == {
            name: approximately(value) for name, value in scanned.items() if name != "uri"
        }


def approximately(value: Any) -> Any:
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


@pytest.fixture(scope="module")
def scanned(clips: list[Path], shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Rows, list[dict[str, Any]]]:
    """A scan's rows of the synthetic clips and of real media."""
    out = tmp_path_factory.mktemp("scanned") / "out"
    run_scan([*clips, *sorted((shared / "media").glob("*.m[pk][4v]"))], out)
    return by_uri(out), read_rows(out, "windows")


def test_the_video_endpoint_gives_the_rows_of_a_scan(server: LocalServer, scanned: tuple[Rows, list[dict[str, Any]]]) -> None:
    rows, windows = scanned
    assert {row["status"] for row in rows.values()} == {"scored", "abstained"}
    with Server(server.grpc) as client:
        for uri, row in rows.items():
            events: list[dict[str, Any]] = []
            found = client.score_video(Path(uri).read_bytes(), on_event=events.append)
            assert_same_verdict(found, row, [window for window in windows if window["uri"] == uri])
            assert found.file["uri"] == f"upload:{row['content_hash']}"
            assert sum(event["event"] == "window" for event in events) == (row["windows"] if row["status"] == "scored" else len(found.windows))
            assert [event["event"] for event in events][-1] == "verdict"


def test_a_file_that_the_server_may_read_is_named_as_in_a_scan(
    server: LocalServer, clips: list[Path], scanned: tuple[Rows, list[dict[str, Any]]]
) -> None:
    rows, windows = scanned
    with Server(server.grpc) as client:
        for name in (str(clips[0]), clips[0].as_uri()):
            found = client.score_video(name)
            assert found.file["uri"] == str(clips[0])
            assert_same_verdict(found, rows[str(clips[0])], [window for window in windows if window["uri"] == str(clips[0])])


def test_rows_of_many_requests_become_few_batches(server: LocalServer, feeds: Arrays) -> None:
    client = tritonclient.grpc.InferenceServerClient(server.grpc.removeprefix("grpc://"))

    def counts(model: str) -> tuple[int, int]:
        stats = client.get_inference_statistics(model).model_stats[0]
        return stats.inference_stats.success.count, stats.execution_count

    before = {model: counts(model) for model in (VISUAL, HEAD)}
    requests = 128
    with Server(server.grpc, concurrency=16) as many:
        crops = feeds["crops"].reshape(-1, *feeds["crops"].shape[2:])
        features = [many.submit(VISUAL, {"crops": crops[number : number + 1]}) for number in range(requests)]
        assert all(len(each.result()["features"]) == 1 for each in features)
    answered, executions = (now - then for now, then in zip(counts(VISUAL), before[VISUAL], strict=True))
    assert answered == requests
    assert executions <= requests // 3, f"{executions} executions of {requests} requests"


def test_what_the_endpoint_counts_is_among_the_servers_metrics(server: LocalServer, clips: list[Path]) -> None:
    before = server.metrics()
    with Server(server.grpc) as client:
        row = client.score_video(clips[0].read_bytes()).file
        with pytest.raises(Exception, match="corrupt"):
            client.score_video(b"not a video")
    found = {name: value - before[name] for name, value in server.metrics().items() if name.startswith("dissonance_")}
    assert found['dissonance_videos_total{end="scored"}'] == found['dissonance_videos_total{end="failed"}'] == 1
    assert found["dissonance_windows_total"] == row["windows"]
    assert found["dissonance_media_seconds_total"] == pytest.approx(row["duration_s"], abs=1e-3)
    assert any(name.startswith("nv_inference_request_success") and VIDEO in name for name in before)


def test_the_verdict_can_be_had_as_json_over_http(server: LocalServer, clips: list[Path], scanned: tuple[Rows, list[dict[str, Any]]]) -> None:
    """Triton's own extension for models that answer in pieces: what a browser or a script without tritonclient uses."""
    asked = Request(
        f"{server.http}/v2/models/{VIDEO}/generate_stream", json.dumps({"uri": str(clips[0])}).encode(), {"Content-Type": "application/json"}
    )
    with urlopen(asked, timeout=60) as answer:
        lines = [line.removeprefix("data: ") for line in answer.read().decode().splitlines() if line]
    events = [json.loads(json.loads(line)["event"]) for line in lines]
    assert events[-1]["file"]["p_fake"] == pytest.approx(scanned[0][str(clips[0])]["p_fake"], abs=1e-5)


def test_a_network_with_prompts_per_frame_is_served(tmp_path: Path, server: LocalServer) -> None:  # noqa: ARG001  # skips where there is none
    """Its visual encoder has one input more, overlapping windows of six frames, and batches that are smaller than what is sent."""
    checkpoint = save_checkpoint(tiny_network(layers=2, prompts={"count": 2, "per_frame": True}), tmp_path / "checkpoint", trained_on="synthetic")
    bundle = export_bundle(checkpoint=checkpoint, random_weights=False, preset=None, seed=0, out=tmp_path / "bundle", overwrite=False)
    made = make_repository(bundle, tmp_path / "models", backend="python", config=ServeConfig(max_batch=7, threads=1)).path
    random_numbers = np.random.default_rng(0)
    crops = random_numbers.integers(0, 256, (1, 6, 16, 16, 3), dtype=np.uint8)
    mel, mask = random_numbers.standard_normal((1, 10, 24)).astype(np.float32), np.arange(6)[None] < 5
    local = open_runtime(bundle, threads=1)
    visual = local.encode_frames(crops[0], np.arange(6))
    with LocalServer(made) as own, Server(own.grpc) as client:
        served = open_served_runtime(client, bundle)
        found = client.infer(WINDOWS, {"crops": crops, "mel": mel, "mask": mask})
        np.testing.assert_allclose(
            served.encode_frames(np.tile(crops[0], (3, 1, 1, 1)), np.tile(np.arange(6), 3)), np.tile(visual, (3, 1)), atol=1e-5
        )
    expected = local.run_head(visual[None], local.encode_sound(mel, mask), mask)
    for name in HEAD_OUTPUTS:
        np.testing.assert_allclose(found[name].reshape(getattr(expected, name).shape), getattr(expected, name), atol=1e-5, err_msg=name)
    assert np.abs(local.encode_frames(crops[0], np.zeros(6, np.int64)) - visual).max() > 0.01  # the place of a frame does count
