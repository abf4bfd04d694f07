"""One connection to one server: HTTP or gRPC, by tritonclient. What they raise becomes `Refused` or `Unavailable`."""

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np

from dissonance.engine.serve.interface import EVENT, TRITON_TYPES, VIDEO, VIDEO_INPUTS, Arrays
from dissonance.errors import UsageError, require_extra

_UNAVAILABLE = frozenset({"503", "StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED"})
# How servers say it where no status comes with it: a full queue, too long in it, a model that the server knows and is about to end with.
_LATER = ("Exceeds maximum queue size", "Request timeout expired", "has no available versions")
_MICROSECONDS = 1_000_000
SCHEMES = {"http": 80, "https": 443, "grpc": 8001, "grpcs": 8001}


class Refused(Exception):  # noqa: N818  # what a server answers is not an error of this program
    """The server answered that it does not do this; asking again changes nothing."""


class Unavailable(Exception):  # noqa: N818
    """The server is not there, not ready or overloaded just now."""


class Transport(Protocol):
    """Calls of one server, from any thread. They raise Refused and Unavailable."""

    def infer(self, model: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        """One inference request."""
        ...

    def stream(self, video: bytes | str, deadline_s: float) -> Iterator[str]:
        """What the video endpoint says of a video's bytes or URI, piece by piece."""
        ...

    def config(self, model: str) -> dict[str, Any]:
        """The model's configuration as JSON has it."""
        ...

    def ready(self) -> bool:
        """Whether the server says that all its models are."""
        ...

    def close(self) -> None:
        """Give connections and shared memory back."""
        ...


def open_transport(url: str, *, timeout_s: float, shared_memory: bool) -> Transport:
    """By the URL's scheme; `timeout_s` is of each call. Raises UsageError, EnvironmentMissingError."""
    scheme, address = parse_url(url)
    require_extra("serve", "Talking to an inference server", "tritonclient.grpc", "tritonclient.http")
    kind = HttpTransport if scheme.startswith("http") else GrpcTransport
    return kind(address, ssl=scheme.endswith("s"), timeout_s=timeout_s, shared_memory=shared_memory)


def parse_url(url: str) -> tuple[str, str]:
    """Scheme and host:port. Raises UsageError."""
    try:
        parts = urlsplit(url)
        port = parts.port or SCHEMES.get(parts.scheme, 0)
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme not in SCHEMES or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment or parts.username:
        raise UsageError(f"Invalid server URL '{url}'. Give one such as grpc://host:8001 or http://host:8000; schemes are {', '.join(SCHEMES)}.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return parts.scheme, f"{host}:{port}"


class GrpcTransport(Transport):
    """gRPC: one channel for all threads."""

    def __init__(self, address: str, *, ssl: bool, timeout_s: float, shared_memory: bool) -> None:
        import tritonclient.grpc as library

        self._library, self._timeout_s = library, timeout_s
        self._open: Callable[[], Any] = lambda: library.InferenceServerClient(address, ssl=ssl)
        self._client = self._open()
        self._regions = _Regions(self._client) if shared_memory else None

    def infer(self, model: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        with _told(), _inputs(self._library, inputs, self._regions) as asked:
            wanted = [self._library.InferRequestedOutput(name) for name in outputs]
            timeout_us = int(self._timeout_s * _MICROSECONDS)
            result = self._client.infer(model, asked, outputs=wanted or None, client_timeout=self._timeout_s, timeout=timeout_us)
            return {name: result.as_numpy(name) for name in outputs or [each.name for each in result.get_response().outputs]}

    def stream(self, video: bytes | str, deadline_s: float) -> Iterator[str]:
        name, value = (VIDEO_INPUTS[0], video) if isinstance(video, bytes) else (VIDEO_INPUTS[1], video.encode())
        from tritonclient.utils import InferenceServerException

        asked = self._library.InferInput(name, [1], "BYTES")
        asked.set_data_from_numpy(np.array([value], np.object_))
        heard: SimpleQueue[tuple[Any, Any]] = SimpleQueue()
        with _told(), contextlib.closing(self._open()) as client:  # a client has one stream
            client.start_stream(lambda result, error: heard.put((result, error)), stream_timeout=deadline_s, headers={"triton_grpc_error": "true"})
            over = False
            try:
                with contextlib.suppress(InferenceServerException):  # where the stream has failed already; why comes by the callback
                    client.async_stream_infer(VIDEO, [asked], enable_empty_final_response=True)
                while not over:
                    try:
                        result, error = heard.get(timeout=deadline_s)
                    except Empty:
                        raise Unavailable(f"nothing was heard for {deadline_s:g} s") from None
                    over = error is not None or result.get_response().parameters["triton_final_response"].bool_param
                    if error is not None:
                        raise error
                    event = result.as_numpy(EVENT)
                    if event is not None and event.size:
                        yield event.reshape(-1)[0].decode()
            finally:
                client.stop_stream(cancel_requests=not over)  # what is over is not cancelled: servers have crashed over that

    def config(self, model: str) -> dict[str, Any]:
        with _told():
            found: dict[str, Any] = self._client.get_model_config(model, as_json=True, client_timeout=self._timeout_s)["config"]
            return found

    def ready(self) -> bool:
        with _told():
            return bool(self._client.is_server_ready(client_timeout=self._timeout_s))

    def close(self) -> None:
        if self._regions is not None:
            self._regions.close()
        self._client.close()


class HttpTransport(Transport):
    """HTTP: a client for each thread, because tritonclient's belongs to the thread that made it."""

    def __init__(self, address: str, *, ssl: bool, timeout_s: float, shared_memory: bool) -> None:
        import tritonclient.http as library

        self._library, self._timeout_s = library, timeout_s
        self._open: Callable[[], Any] = lambda: library.InferenceServerClient(
            address, ssl=ssl, connection_timeout=timeout_s, network_timeout=timeout_s
        )
        self._own = threading.local()
        self._with_regions = shared_memory
        self._regions: list[_Regions] = []

    def _client(self) -> Any:
        if not hasattr(self._own, "client"):
            self._own.client, self._own.regions = self._open(), None
            if self._with_regions:
                self._own.regions = _Regions(self._own.client)
                self._regions.append(self._own.regions)
        return self._own.client

    def infer(self, model: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        client = self._client()
        with _told(), _inputs(self._library, inputs, self._own.regions) as asked:
            wanted = [self._library.InferRequestedOutput(name) for name in outputs]
            result = client.infer(model, asked, outputs=wanted or None, timeout=int(self._timeout_s * _MICROSECONDS))
            return {name: result.as_numpy(name) for name in outputs or [each["name"] for each in result.get_response()["outputs"]]}

    def stream(self, video: bytes | str, deadline_s: float) -> Iterator[str]:  # noqa: ARG002
        raise UsageError("The video endpoint answers piece by piece, which HTTP clients of the server cannot read: give a grpc:// URL.")

    def config(self, model: str) -> dict[str, Any]:
        with _told():
            found: dict[str, Any] = self._client().get_model_config(model)
            return found

    def ready(self) -> bool:
        with _told():
            return bool(self._client().is_server_ready())

    def close(self) -> None:
        for regions in self._regions:
            regions.close()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turns what tritonclient and what is below it raise into `Refused` and `Unavailable`."""
    from tritonclient.utils import InferenceServerException

    try:
        yield
    except InferenceServerException as error:
        message = str(error.message())
        status = "" if error.status() is None else str(error.status())
        if "restricted" not in message and (status in _UNAVAILABLE or is_unregistered(message) or any(words in message for words in _LATER)):
            raise Unavailable(f"{message} ({status})" if status else message) from error
        raise Refused(f"{message} ({status})" if status else message) from error
    except OSError as error:  # refused, reset, timed out
        raise Unavailable(f"{type(error).__name__}: {error}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("gevent", "geventhttpclient"):  # a connection that closed in the middle of an answer
            raise Unavailable(f"{type(error).__name__}: {error}") from error
        raise


@dataclass(eq=False)
class _Region:
    name: str
    handle: Any
    size_bytes: int
    failed: bool = False  # a request that used it was not answered with its outputs


class _Regions:
    """System shared memory that a client has registered with its server: a region for each call under way, kept for the next one.

    A server ends with a segmentation fault where memory is taken from it that it still reads, as it may after an error or a timeout. A region of a
    request that failed is therefore used again, and at last left to the server, but never unregistered.
    """

    def __init__(self, client: Any) -> None:
        import tritonclient.utils.shared_memory as library

        self._client, self._library = client, library
        self._lock = threading.Lock()
        self._free: list[_Region] = []

    @contextlib.contextmanager
    def holding(self, arrays: Sequence[Any]) -> Iterator[str]:
        """The name of a region that holds these arrays one after the other."""
        region = self._take(sum(array.nbytes for array in arrays))
        try:
            self._library.set_shared_memory_region(region.handle, arrays)
            yield region.name
        except BaseException as error:
            region.failed = True
            if is_unregistered(str(error)):
                self._drop(region)
                raise
            self._give_back(region)
            raise
        self._give_back(region)

    def _give_back(self, region: _Region) -> None:
        with self._lock:
            self._free.append(region)

    def _take(self, size_bytes: int) -> _Region:
        with self._lock:
            fitting = next((each for each in self._free if each.size_bytes >= size_bytes), None)
            if fitting is not None:
                self._free.remove(fitting)
                return fitting
        name = f"dissonance_{uuid.uuid4().hex}"
        region = _Region(name, self._library.create_shared_memory_region(name, f"/{name}", size_bytes), size_bytes, failed=True)
        try:
            self._client.register_system_shared_memory(name, f"/{name}", size_bytes)
        except BaseException:
            self._drop(region)
            raise
        region.failed = False
        return region

    def _drop(self, region: _Region) -> None:
        if not region.failed:
            with contextlib.suppress(Exception):  # the server may be gone, and the registration with it
                self._client.unregister_system_shared_memory(region.name)
        self._library.destroy_shared_memory_region(region.handle)

    def close(self) -> None:
        """Give all regions back that no call is using."""
        with self._lock:
            regions, self._free = self._free, []
        for region in regions:
            self._drop(region)


def is_unregistered(message: str) -> bool:
    """Whether a server says that it does not know a region: it was started again since."""
    return "Unable to find shared memory region" in message


@contextlib.contextmanager
def _inputs(library: Any, arrays: Arrays, regions: _Regions | None) -> Iterator[list[Any]]:
    """A request's inputs: in its own bytes, or in shared memory for as long as the call lasts."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    asked = [library.InferInput(name, list(array.shape), TRITON_TYPES[array.dtype.name]) for name, array in contiguous.items()]
    if regions is None:
        for each, array in zip(asked, contiguous.values(), strict=True):
            each.set_data_from_numpy(array)
        yield asked
        return
    with regions.holding(list(contiguous.values())) as name:
        offset = 0
        for each, array in zip(asked, contiguous.values(), strict=True):
            each.set_shared_memory(name, array.nbytes, offset=offset)
            offset += array.nbytes
        yield asked
