"""The real server under more than it can do, when it is asked to end, and when it is killed in the middle of a scan."""

import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bench._server import LocalServer, environment_is_there

from dissonance.bundle import Bundle
from dissonance.config import ScanConfig
from dissonance.engine.scan.pipeline import Scan
from dissonance.engine.serve.client import Server
from dissonance.engine.serve.interface import WINDOWS, Arrays
from dissonance.engine.serve.runtime import open_served_runtime
from dissonance.engine.serve.transports import Refused, Transport, Unavailable, open_transport
from dissonance.errors import BundleError, ServerError
from dissonance.synth.config import SynthConfig
from dissonance.synth.dataset import generate
from tests.engine.scan.runs import Silent, assert_same_rows, by_uri, run_scan

CLIENTS = 48  # twice what the queue of 24 holds


def one(feeds: Arrays) -> Arrays:
    return {name: array[:1] for name, array in feeds.items()}


def many_at_once(count: int, call: Callable[[], str]) -> Counter[str]:
    """What each of so many clients came to, all at work at the same time."""
    ends: Counter[str] = Counter()
    together = threading.Barrier(count)

    def work() -> None:
        together.wait()
        ends[call()] += 1

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def once(url: str, feeds: Arrays) -> Callable[[], str]:
    """A call without retries: answered, or why not."""
    transport = open_transport(url, timeout_s=60, shared_memory=False)

    def call() -> str:
        try:
            transport.infer(WINDOWS, one(feeds), ())
        except Unavailable as error:
            return "rejected" if "Exceeds maximum queue size" in str(error) else str(error)
        return "answered"

    return call


def test_more_than_the_queue_holds_is_rejected(server: LocalServer, feeds: Arrays) -> None:
    """The server's own counters agree about those that were answered. (Release 2.51 counts none that it rejects for a full queue.)"""
    name = 'nv_inference_request_success{model="dissonance_windows",version="1"}'
    before = server.metrics()[name]
    ends = many_at_once(2 * CLIENTS, once(server.grpc, feeds))
    assert set(ends) == {"answered", "rejected"}
    assert ends["answered"] >= 24
    assert ends.total() == 2 * CLIENTS
    assert server.metrics()[name] - before == ends["answered"]
    assert once(server.grpc, feeds)() == once(server.http, feeds)() == "answered"  # at once


def test_clients_that_try_again_are_all_answered(server: LocalServer, feeds: Arrays) -> None:
    with Server(server.grpc, deadline_s=120) as client:
        assert many_at_once(2 * CLIENTS, lambda: str(len(client.infer(WINDOWS, one(feeds))["p_fake"]))) == {"1": 2 * CLIENTS}


def test_videos_beyond_the_queue_are_tried_again(server: LocalServer, clips: list[Path]) -> None:
    """Two are read, four wait, and the rest is rejected until there is room."""
    video = clips[0].read_bytes()
    with Server(server.grpc, deadline_s=120) as client:
        assert many_at_once(12, lambda: str(client.score_video(video).file["status"])) == {"scored": 12}


@pytest.fixture
def own_server(repository: Path) -> Iterator[LocalServer]:
    """One that a test may end."""
    if not environment_is_there():
        pytest.skip("the server's environment is not there: make .venv-serve/.serve")
    with LocalServer(repository) as running:
        yield running


def test_sigterm_loses_no_request_that_was_accepted(own_server: LocalServer, feeds: Arrays, clips: list[Path]) -> None:
    """Windows over both protocols and videos are under way: each is answered or turned away, and none is cut off. Then the server ends by itself."""
    ends: Counter[str] = Counter()
    busy = threading.Event()

    def until_turned_away(what: str, call: Callable[[Transport], bool], url: str) -> None:
        transport = open_transport(url, timeout_s=60, shared_memory=False)
        while True:
            try:
                ends[what if call(transport) else f"{what} cut short"] += 1
                busy.set()
            except (Unavailable, Refused) as error:
                ends["turned away" if "has no available versions" in str(error) else f"{what} lost: {error}"] += 1
                return

    def window(transport: Transport) -> bool:
        return len(transport.infer(WINDOWS, one(feeds), ())["p_fake"]) == 1

    def video(transport: Transport) -> bool:
        *_, last = transport.stream(clips[0].read_bytes(), 60)
        return '"verdict"' in last

    jobs = [("windows", window, own_server.grpc)] * 6 + [("windows", window, own_server.http)] * 3 + [("videos", video, own_server.grpc)] * 2
    threads = [threading.Thread(target=until_turned_away, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    assert busy.wait(60)
    own_server.ask_to_end()
    for thread in threads:
        thread.join(timeout=90)
    assert own_server.wait() == 0
    assert set(ends) <= {"windows", "videos", "turned away"}, ends
    assert ends["turned away"] == len(threads)
    assert ends["windows"] > 0


def test_a_scan_through_a_server_that_is_killed_and_started_again(own_server: LocalServer, demo: Bundle, tmp_path: Path) -> None:
    """64 clips: the rows of a local scan, though the server dies in the middle."""
    config = SynthConfig(duration_s=1.5)
    clips = [tmp_path / "clips" / row.file for row in generate(tmp_path / "clips", count=64, seed=64, config=config)]
    run_scan(clips, tmp_path / "local")

    killed = threading.Event()

    class KillsAfter(Silent):
        done = 0

        def finished_file(self, row: dict[str, object]) -> None:  # noqa: ARG002
            self.done += 1
            if self.done == 16:
                own_server.kill()
                killed.set()
                threading.Thread(target=own_server.start).start()

    with Server(own_server.grpc, deadline_s=120) as client:
        summary = Scan(
            [str(clip) for clip in clips],
            out=tmp_path / "served",
            bundle=demo,
            runtime=open_served_runtime(client, demo),
            config=ScanConfig(),
            progress=KillsAfter(),
        ).run()
    assert killed.is_set()
    assert (summary.inputs, summary.scored, summary.retried) == (64, 64, 0)
    found = by_uri(tmp_path / "served")
    assert_same_rows(found, by_uri(tmp_path / "local"))
    assert {row["runtime"] for row in found.values()} == {"server-onnxruntime-cpu"}


def test_a_scan_by_the_command_line_and_two_servers(
    server: LocalServer, clips: list[Path], tmp_path: Path, cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    nobody = "grpc://127.0.0.1:1"
    done = cli("scan", *clips, "-o", tmp_path / "out", "--server", nobody, "--server", server.http)
    assert done.returncode == 0, done.stderr
    run_scan(clips, tmp_path / "local")
    assert_same_rows(by_uri(tmp_path / "out"), by_uri(tmp_path / "local"))


def test_a_server_of_another_bundle_is_refused(server: LocalServer, demo: Bundle) -> None:
    with Server(server.grpc) as client, pytest.raises(BundleError, match="Give --bundle the folder that its repository was made from"):
        open_served_runtime(client, replace(demo, id="0" * 64))


def test_a_server_that_is_not_there_is_told_by_its_name() -> None:
    with Server("http://127.0.0.1:1", deadline_s=1.0) as client, pytest.raises(ServerError, match=r"127\.0\.0\.1:1 gave no answer within 1 s"):
        client.parameters(WINDOWS)
    assert not Server("grpc://127.0.0.1:1", deadline_s=1.0).is_ready()
