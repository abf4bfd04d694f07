"""Clients of a served bundle: windows and videos in, scores out, over HTTP, gRPC or shared memory.

with Server("grpc://localhost:8001") as server:
    found = server.infer("dissonance_windows", {"crops": crops, "mel": mel, "mask": mask})
    verdict = server.score_video(Path("clip.mp4").read_bytes())
"""

import itertools
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from dissonance.engine.scan.verdict import FileVerdict
from dissonance.engine.serve.events import read_events
from dissonance.engine.serve.interface import Arrays
from dissonance.engine.serve.transports import Refused, Transport, Unavailable, open_transport
from dissonance.errors import ServerError, UsageError

Found = TypeVar("Found")
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0  # between two tries
ATTEMPT_S = 30.0


class Server:
    """One served bundle, on one server or several alike. May be used from any thread, and as a context manager.

    A call that finds a server overloaded, restarting or gone is tried again, on the next server where there are several, until `deadline_s`
    has passed. Every call can be tried again: none changes anything on the server.
    """

    def __init__(self, *urls: str, deadline_s: float = 120.0, shared_memory: bool = False, concurrency: int = 16) -> None:
        """`urls`: grpc://host:8001, http://host:8000, grpcs://, https://. `deadline_s`: of a call, all its tries together.

        `shared_memory`: inputs are handed over in the memory of this machine, on which the server must be. `concurrency`: of `submit`.
        Raises UsageError, EnvironmentMissingError.
        """
        if not urls:
            raise UsageError("A client needs the URL of a server, such as grpc://localhost:8001.")
        self.where = ", ".join(urls)
        self._deadline_s = deadline_s
        self._urls = urls
        self._transports: list[Transport] = [open_transport(url, timeout_s=min(ATTEMPT_S, deadline_s), shared_memory=shared_memory) for url in urls]
        self._turn = itertools.count(random.randrange(len(urls)))
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="client")

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for calls under way, then give connections and shared memory back."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for transport in self._transports:
            transport.close()

    def is_ready(self) -> bool:
        """Whether one of the servers says that all its models are ready. Asks once."""
        for transport in self._transports:
            try:
                if transport.ready():
                    return True
            except (Refused, Unavailable):
                continue
        return False

    def parameters(self, model: str) -> dict[str, str]:
        """What the repository says of a model: bundle_id, runtime, precision, max_batch, ... Raises ServerError."""
        config = self._try(lambda transport: transport.config(model))
        told = {name: str(value.get("string_value", "")) for name, value in config.get("parameters", {}).items()}
        return {**told, "max_batch": str(config.get("max_batch_size", 0))}

    def infer(self, model: str, inputs: Arrays, outputs: Sequence[str] = ()) -> Arrays:
        """Outputs of one request, by name; all of them where none is named. Names, types and shapes: `interface.py`.

        Raises ServerError where the request is refused, with what the server says, or not answered in time.
        """
        return self._try(lambda transport: transport.infer(model, inputs, outputs))

    def submit(self, model: str, inputs: Arrays, outputs: Sequence[str] = ()) -> Future[Arrays]:
        """`infer`, later: its answer or its error once it is there."""
        return self._pool.submit(self.infer, model, inputs, outputs)

    def score_video(self, video: bytes | str, *, on_event: Callable[[dict[str, Any]], None] | None = None) -> FileVerdict:
        """The rows of a video: of its bytes, or of the path or file:// URI of one that the server may read. Over gRPC, which can stream.

        `on_event` gets every event as it comes (see `events.py`); a try that is broken off begins again. Raises ServerError, also for a video that
        cannot be scored.
        """
        return self._try(lambda transport: read_events(transport.stream(video, self._deadline_s), on_event))

    def _try(self, call: Callable[[Transport], Found]) -> Found:
        end_s, wait_s = time.monotonic() + self._deadline_s, _FIRST_WAIT_S
        while True:
            place = next(self._turn) % len(self._transports)
            try:
                return call(self._transports[place])
            except Refused as error:
                raise ServerError(f"The server at {self._urls[place]} refused the request: {error}") from error
            except Unavailable as error:
                if time.monotonic() + wait_s >= end_s:
                    raise ServerError(
                        f"The server at {self._urls[place]} gave no answer within {self._deadline_s:g} s, at last: {error}. Is it running and ready?"
                    ) from error
            time.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
