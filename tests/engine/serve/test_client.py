"""The client without a server: when it tries again and when not, what it says, and what it does with shared memory."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from tritonclient.utils import InferenceServerException

from dissonance.bundle import CalibrationSpec, ModalityCase, open_bundle
from dissonance.engine.runtime import open_runtime
from dissonance.engine.serve import client as client_module
from dissonance.engine.serve import transports
from dissonance.engine.serve.client import Server
from dissonance.engine.serve.events import read_events
from dissonance.engine.serve.interface import Arrays, interfaces, not_finite, probabilities
from dissonance.engine.serve.runtime import ServedRuntime
from dissonance.engine.serve.transports import Refused, Transport, Unavailable, parse_url
from dissonance.errors import ServerError, UsageError

FEEDS: Arrays = {"crops": np.zeros((1, 2), np.uint8)}


class Scripted(Transport):
    """Answers as it was told, in turn; the last answer for ever."""

    def __init__(self, *answers: Exception | Arrays) -> None:
        self.answers, self.asked = list(answers), 0
        self.closed = False

    def infer(self, model: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:  # noqa: ARG002
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ready(self) -> bool:
        self.infer("", {}, ())
        return True

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client waited between tries, on a clock that only these waits move."""
    found: list[float] = []
    monkeypatch.setattr(client_module.time, "monotonic", lambda: sum(found))
    monkeypatch.setattr(client_module.time, "sleep", found.append)
    return found


def server_of(monkeypatch: pytest.MonkeyPatch, *scripted: Scripted, deadline_s: float = 10.0) -> Server:
    given = iter(scripted)
    monkeypatch.setattr(client_module, "open_transport", lambda *_, **__: next(given))
    return Server(*(f"grpc://host{number}:1" for number in range(len(scripted))), deadline_s=deadline_s)


def test_a_busy_server_is_asked_again_ever_later(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    busy = Scripted(*[Unavailable("Exceeds maximum queue size")] * 5, FEEDS)
    with server_of(monkeypatch, busy) as server:
        assert server.infer("m", FEEDS) is FEEDS
    assert busy.asked == 6
    assert busy.closed
    for number, wait_s in enumerate(waits):
        assert 0.025 * 2**number <= wait_s <= 0.05 * 2**number


def test_the_deadline_ends_it_with_what_was_last_heard(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    gone = Scripted(Unavailable("connection refused"))
    with server_of(monkeypatch, gone, deadline_s=7.0) as server, pytest.raises(ServerError) as error:
        server.infer("m", FEEDS)
    assert "grpc://host0:1 gave no answer within 7 s, at last: connection refused" in str(error.value)
    assert error.value.exit_code == 4
    assert sum(waits) <= 7.0
    assert max(waits) <= 2.0


def test_a_refused_request_is_not_sent_again(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    refusing = Scripted(Refused("unexpected shape for input 'crops'"))
    with server_of(monkeypatch, refusing) as server, pytest.raises(ServerError, match="refused the request: unexpected shape for input 'crops'"):
        server.infer("m", FEEDS)
    assert (refusing.asked, waits) == (1, [])


def test_where_one_server_is_gone_the_next_is_asked(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    gone, there = Scripted(Unavailable("gone")), Scripted(FEEDS)
    with server_of(monkeypatch, gone, there) as server:
        for _ in range(6):
            assert server.infer("m", FEEDS) is FEEDS
        assert server.is_ready()
    assert there.asked == 7
    assert len(waits) == gone.asked - 1  # but for the question whether it is ready, which is not asked again


def test_answers_can_be_had_later(monkeypatch: pytest.MonkeyPatch) -> None:
    with server_of(monkeypatch, Scripted(Refused("no"), FEEDS)) as server:
        first, second = server.submit("m", FEEDS), None
        with pytest.raises(ServerError):
            first.result()
        second = server.submit("m", FEEDS)
        assert second.result() is FEEDS


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("grpc://host", ("grpc", "host:8001")),
        ("http://host", ("http", "host:80")),
        ("https://a.b:8443/", ("https", "a.b:8443")),
        ("grpcs://[::1]:9", ("grpcs", "[::1]:9")),
    ],
)
def test_urls_name_a_protocol_and_a_place(url: str, expected: tuple[str, str]) -> None:
    assert parse_url(url) == expected


@pytest.mark.parametrize("url", ["host:8001", "ftp://host", "grpc://", "grpc://host:port", "http://host/v2", "http://me@host", "http://host?x", ""])
def test_urls_that_name_none_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="Give one such as grpc://host:8001"):
        parse_url(url)


def test_no_url_is_an_error() -> None:
    with pytest.raises(UsageError, match="needs the URL of a server"):
        Server()


def test_videos_need_grpc() -> None:
    with Server("http://127.0.0.1:1", deadline_s=1) as server, pytest.raises(UsageError, match="give a grpc:// URL"):
        server.score_video(b"x")


def test_an_answer_that_is_broken_off_is_no_verdict() -> None:
    with pytest.raises(Unavailable, match="broken off before the verdict"):
        read_events(['{"event": "window"}', '{"event": "rows", "tracks": []}'], None)


# ---------------------------------------------------------------------------------------------------------- what is said of errors


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InferenceServerException("[x] Exceeds maximum queue size", "503"), Unavailable),
        (InferenceServerException("Exceeds maximum queue size"), Unavailable),  # as streams say it
        (InferenceServerException("Request timeout expired", "StatusCode.UNAVAILABLE"), Unavailable),
        (InferenceServerException("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED"), Unavailable),
        (InferenceServerException("Request for unknown model: 'm' has no available versions", "404"), Unavailable),
        (InferenceServerException("Request for unknown model: 'm' is not found", "404"), Refused),
        (InferenceServerException("Unable to find shared memory region: 'r'", "400"), Unavailable),
        (InferenceServerException("unexpected shape", "400"), Refused),
        (InferenceServerException("failed", "StatusCode.INTERNAL"), Refused),
        (InferenceServerException("This protocol is restricted, expecting header 'x'", "StatusCode.UNAVAILABLE"), Refused),
        (ConnectionRefusedError(111, "Connection refused"), Unavailable),
        (TimeoutError("timed out"), Unavailable),
    ],
)
def test_what_can_pass_is_told_from_what_cannot(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind), transports._told():
        raise error


def test_our_own_bugs_stay_what_they_are() -> None:
    with pytest.raises(ZeroDivisionError), transports._told():
        raise ZeroDivisionError


# ------------------------------------------------------------------------------------------------------------------ shared memory


class Registry:
    """The server's side of shared memory: what is registered with it."""

    def __init__(self) -> None:
        self.regions: dict[str, int] = {}

    def register_system_shared_memory(self, name: str, key: str, size: int) -> None:
        assert key == f"/{name}"
        self.regions[name] = size

    def unregister_system_shared_memory(self, name: str) -> None:
        del self.regions[name]


@pytest.fixture
def regions() -> Iterator[tuple[Registry, transports._Regions]]:
    registry = Registry()
    yield registry, (found := transports._Regions(registry))
    found.close()


def test_a_region_is_used_again_and_given_back(regions: tuple[Registry, transports._Regions]) -> None:
    registry, mine = regions
    names = set()
    for size in (64, 32, 64):
        with mine.holding([np.zeros(size, np.uint8)]) as name:
            names.add(name)
    assert len(names) == len(registry.regions) == 1
    with mine.holding([np.zeros(64, np.uint8)]), mine.holding([np.zeros(65, np.uint8)]):
        assert sorted(registry.regions.values()) == [64, 65]
    mine.close()
    assert registry.regions == {}


def test_a_region_of_a_failed_request_is_kept_and_never_taken_from_the_server(regions: tuple[Registry, transports._Regions]) -> None:
    """It may still be read: to unregister it then ends a server with a segmentation fault."""
    registry, mine = regions
    with pytest.raises(InferenceServerException), mine.holding([np.zeros(8, np.uint8)]) as name:
        raise InferenceServerException("input 'mel' holds 1 values that are not finite numbers", "400")
    with mine.holding([np.zeros(8, np.uint8)]) as again:
        assert again == name
    mine.close()
    assert set(registry.regions) == {name}


def test_a_region_that_a_new_server_does_not_know_is_replaced(regions: tuple[Registry, transports._Regions]) -> None:
    registry, mine = regions
    with pytest.raises(InferenceServerException), mine.holding([np.zeros(8, np.uint8)]) as name:
        raise InferenceServerException(f"Unable to find shared memory region: '{name}'", "400")
    registry.regions.clear()
    with mine.holding([np.zeros(8, np.uint8)]) as again:
        assert again != name
        assert set(registry.regions) == {again}


# ------------------------------------------------------------------------------------------------------------- tensors and runtime


def test_probabilities_are_the_calibrated_sigmoid() -> None:
    logits = {name: np.array([-1000.0, -2.5, 0.0, 3.0, 1000.0], np.float32) for name in ("logit_fused", "logit_visual", "logit_audio")}
    calibration: dict[ModalityCase, CalibrationSpec] = {case: CalibrationSpec(scale=1.5, bias=0.25) for case in ("av", "v", "a")}
    for found in probabilities(logits, calibration).values():
        np.testing.assert_allclose(found, expit(1.5 * logits["logit_fused"].astype(np.float64) + 0.25), atol=1e-7)


@pytest.mark.parametrize(("value", "says"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_what_is_not_finite_is_named_with_its_place(value: float, says: str) -> None:
    array = np.zeros((2, 3), np.float32)
    assert not_finite({"mel": array, "mask": np.ones(3, bool)}) is None
    array[1, 2] = value
    assert not_finite({"mel": array}) == f"input 'mel' holds 1 values that are not finite numbers, the first at (1, 2): {says}"


def test_a_served_runtime_splits_what_is_larger_than_the_servers_batch() -> None:
    bundle = open_bundle("demo")
    real, sizes = open_runtime(bundle, threads=1), []
    methods: dict[str, Callable[..., Any]] = {"dissonance_visual": lambda crops: real.encode_frames(crops, np.zeros(len(crops), np.int64))}

    def infer(model: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        sizes.append(len(next(iter(inputs.values()))))
        assert {name: array.shape[1:] for name, array in inputs.items()} == {each.name: each.shape for each in interfaces(bundle.spec)[model].inputs}
        return {outputs[0]: methods[model](**inputs)}

    served = ServedRuntime(infer, spec=bundle.spec, name="x", precision="float32", max_batch=4)
    crops = np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)
    np.testing.assert_allclose(served.encode_frames(crops, np.arange(10)), real.encode_frames(crops, np.arange(10)), atol=1e-5)
    assert sizes == [4, 4, 2]


def test_one_client_serves_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = Scripted(FEEDS)
    with server_of(monkeypatch, scripted) as server:
        threads = [threading.Thread(target=server.infer, args=("m", FEEDS)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert scripted.asked == 20
