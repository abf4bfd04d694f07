"""Whatever clients send, they get an error that says what is wrong, and the next good request is answered."""

import hashlib
import json
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import tritonclient.grpc
from bench._server import LocalServer
from tritonclient.utils import InferenceServerException

from dissonance.engine.serve.client import Server
from dissonance.engine.serve.interface import AUDIO, HEAD, VIDEO, VISUAL, WINDOWS, Arrays, interfaces
from dissonance.errors import ServerError

MIB = 1 << 20


@pytest.fixture
def good(server: LocalServer, feeds: Arrays, clips: list[Path]) -> Any:
    """Afterwards good requests are answered."""
    yield
    with Server(server.grpc, deadline_s=30) as client:
        assert len(client.infer(WINDOWS, one(feeds))["p_fake"]) == 1
        assert client.score_video(clips[0].read_bytes()).file["status"] == "scored"


def one(feeds: Arrays) -> Arrays:
    return {name: array[:1] for name, array in feeds.items()}


def with_nan(array: Any) -> Any:
    return np.where(np.arange(array.size).reshape(array.shape) == 7, np.float32(np.nan), array)


WINDOW_CASES: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "dtype": (lambda f: {**f, "crops": f["crops"].astype(np.float32)}, "data-type is 'FP32', but model 'dissonance_windows' expects 'UINT8'"),
    "shape": (lambda f: {**f, "crops": f["crops"][:, :, :32]}, "unexpected shape for input 'crops'"),
    "window length": (lambda f: {**f, "crops": f["crops"][:, :31]}, "unexpected shape for input 'crops'"),
    "length of the sound": (lambda f: {**f, "mel": f["mel"][:, :, :100]}, "unexpected shape for input 'mel'"),
    "NaN": (lambda f: {**f, "mel": with_nan(f["mel"])}, "input 'mel' holds 1 values that are not finite numbers, the first at"),
    "infinity": (lambda f: {**f, "mel": f["mel"] + np.float32(np.inf)}, "input 'mel' holds 10240 values"),
    "a missing input": (lambda f: {"crops": f["crops"], "mel": f["mel"]}, "missing required input"),
    "an unknown input": (lambda f: {**f, "extra": f["mask"]}, "extra"),
    "no rows": (lambda f: {name: array[:0] for name, array in f.items()}, "input byte size mismatch"),
    "too many rows": (lambda f: {name: np.repeat(array, 9, axis=0) for name, array in f.items()}, "batch-size must be <= 8"),
}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("case", WINDOW_CASES)
@pytest.mark.usefixtures("good")
def test_impossible_windows_are_refused(server: LocalServer, feeds: Arrays, protocol: str, case: str) -> None:
    change, says = WINDOW_CASES[case]
    with Server(getattr(server, protocol), deadline_s=30) as client, pytest.raises(ServerError, match="refused the request") as error:
        client.infer(WINDOWS, change(one(feeds)))
    assert says in str(error.value)


def test_only_the_request_with_the_nan_is_refused_of_those_that_share_a_batch(server: LocalServer, feeds: Arrays) -> None:
    with Server(server.grpc, concurrency=8) as client:
        poisoned = {**one(feeds), "mel": with_nan(one(feeds)["mel"])}
        asked = [client.submit(WINDOWS, poisoned if number % 2 else one(feeds)) for number in range(8)]
        for number, answer in enumerate(asked):
            if number % 2:
                with pytest.raises(ServerError, match="not finite"):
                    answer.result()
            else:
                assert len(answer.result()["p_fake"]) == 1


@pytest.mark.parametrize(("model", "name"), [(AUDIO, "mel"), (HEAD, "visual")])
def test_networks_refuse_what_is_not_finite(server: LocalServer, demo: Any, model: str, name: str) -> None:
    arrays = {each.name: np.zeros((2, *each.shape), each.dtype) for each in interfaces(demo.spec)[model].inputs}
    arrays[name][1, 0, 0] = np.nan
    with Server(server.http) as client, pytest.raises(ServerError, match=f"input '{name}' holds 1 values"):
        client.infer(model, arrays)


VIDEO_CASES: dict[str, tuple[bytes | str, str]] = {
    "empty bytes": (b"", "'video' is empty"),
    "text": (b"this is not a video" * 100, "corrupt: "),
    "a playlist": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "refused: 'hls' is a list of other files"),
    "too large": (b"\0" * (8 * MIB + 1), "has 8.0 MiB; 8 is the most (max_upload_mib)"),
    "an unknown scheme": ("https://example.com/a.mp4", "is of a scheme that this server does not read"),
    "a file elsewhere": ("/etc/passwd", "is not in a folder whose files this server may read (allowed_folders)"),
    "a way out": ("file:///{folder}/../../../../etc/passwd", "allowed_folders"),
    "a relative path": ("clip.mp4", "is not an absolute path"),
    "a zero byte": ("/tmp/a\0b", "is not an absolute path"),
    "no such file": ("{folder}/none.mp4", "unreadable: No such file or directory"),
    "a folder": ("{folder}", "unreadable: is a directory"),
}


@pytest.mark.parametrize("case", VIDEO_CASES)
@pytest.mark.usefixtures("good")
def test_impossible_videos_are_refused(server: LocalServer, folder_of_clips: Path, case: str) -> None:
    video, says = VIDEO_CASES[case]
    sent = video.replace("{folder}", str(folder_of_clips)) if isinstance(video, str) else video
    with Server(server.grpc, deadline_s=30) as client, pytest.raises(ServerError, match="INVALID_ARGUMENT") as error:
        client.score_video(sent)
    assert says in str(error.value)


@pytest.mark.usefixtures("good")
def test_a_cut_video_is_an_error_or_a_verdict(server: LocalServer, clips: list[Path]) -> None:
    """Hostile media: every cut of a real file, and a byte changed every so often."""
    data = clips[0].read_bytes()
    ends = set()
    with Server(server.grpc, deadline_s=60) as client:
        for cut in range(0, len(data), len(data) // 8):
            spoilt = bytearray(data)
            spoilt[cut::997] = b"\xff" * len(spoilt[cut::997])
            for sent in (data[:cut], bytes(spoilt)):
                try:
                    ends.add(client.score_video(sent).file["status"])
                except ServerError as error:
                    ends.add("INVALID_ARGUMENT" if "INVALID_ARGUMENT" in str(error) else str(error))
    assert "INVALID_ARGUMENT" in ends
    assert ends <= {"INVALID_ARGUMENT", "scored", "abstained"}


@pytest.mark.usefixtures("good")
def test_neither_input_nor_both_is_an_error(server: LocalServer) -> None:
    client = tritonclient.grpc.InferenceServerClient(server.grpc.removeprefix("grpc://"))
    heard: list[Any] = []
    done = threading.Event()
    both = []
    for name in ("video", "uri"):
        both.append(tritonclient.grpc.InferInput(name, [1], "BYTES"))
        both[-1].set_data_from_numpy(np.array([b"x"], np.object_))
    client.start_stream(lambda result, error: (heard.append(error or result), done.set()))
    client.async_stream_infer(VIDEO, both)
    assert done.wait(30)
    client.stop_stream()
    assert isinstance(heard[0], InferenceServerException)
    assert "give one of the inputs video and uri, not 2" in str(heard[0])


@pytest.mark.usefixtures("good")
def test_clients_that_go_away_cost_nothing(server: LocalServer, clips: list[Path]) -> None:
    """They end in the middle of a video and of a request. (A server of release 2.51 may crash over the first; `serve` starts it again.)"""
    for _ in range(3):
        client = tritonclient.grpc.InferenceServerClient(server.grpc.removeprefix("grpc://"))
        heard = threading.Event()
        asked = tritonclient.grpc.InferInput("video", [1], "BYTES")
        asked.set_data_from_numpy(np.array([clips[0].read_bytes()], np.object_))
        client.start_stream(lambda result, error, heard=heard: heard.set())  # noqa: ARG005
        client.async_stream_infer(VIDEO, [asked])
        assert heard.wait(30)
        client.stop_stream(cancel_requests=True)
        client.close()
    host, port = server.http.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"POST /v2/models/{WINDOWS}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n{{".encode())


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", json.dumps({"inputs": [{"name": "crops", "shape": [-1], "datatype": "UINT8", "data": []}]}).encode()]
)
@pytest.mark.usefixtures("good")
def test_what_is_no_request_is_refused(server: LocalServer, body: bytes) -> None:
    with pytest.raises(HTTPError) as error:
        urlopen(Request(f"{server.http}/v2/models/{VISUAL}/infer", body, {"Content-Type": "application/json"}), timeout=30)
    assert error.value.code in (400, 500)  # Triton's own words for what is no JSON
    assert json.loads(error.value.read())["error"]


def test_a_changed_file_keeps_the_server_from_becoming_ready(repository: Path, server: LocalServer, tmp_path: Path) -> None:
    """`serve` refuses it before the server starts; so does the model, where the server was started otherwise."""
    copy = tmp_path / "models"
    shutil.copytree(repository, copy)
    graph = copy / VISUAL / "1" / "visual.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(RuntimeError, match=r"'dissonance_visual/1/visual\.onnx' was changed"), LocalServer(copy):
        pass
    manifest = json.loads((copy / "repository.json").read_text())
    manifest["sha256"][f"{VISUAL}/1/visual.onnx"] = hashlib.sha256(data).hexdigest()
    (copy / "repository.json").write_text(json.dumps(manifest))
    with pytest.raises(RuntimeError, match=r"BundleError: .*'visual\.onnx' was changed"), LocalServer(copy):
        pass
    assert server.is_ready()
