"""Rung `serve`: a served bundle under load, and a load generator for any server.

The rung starts the demo bundle behind a server on this machine's CPU and drives it from the same cores: throughput and latency by the number of
clients (closed loop), what that is beside the networks called without a server, how many requests share a batch, and a minute of requests that arrive
twice as fast as it can answer (open loop): those are to be answered in time or rejected, and nothing else.

`python -m bench.serve --url grpc://host:8001 --clients 1 4 16 64` draws the saturation curve of a server that is there already;
`python -m bench.serve --url grpc://host:8001 --rate 200 --seconds 60` sends it 200 requests a second, whether it answers or not.
"""

import argparse
import json
import math
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench._rows import Row, at_least, at_most, measured, tell
from bench._server import LocalServer, demo_repository
from dissonance.bundle import open_bundle
from dissonance.config import ServeConfig
from dissonance.engine.runtime import open_runtime
from dissonance.engine.serve.interface import WINDOWS, Arrays
from dissonance.engine.serve.transports import Refused, Transport, Unavailable, open_transport

CLIENTS = (1, 2, 4, 8, 16, 32)
SECONDS = 10.0
OVERLOAD, OVERLOAD_S = 2.0, 60.0  # times the saturation rate
DEADLINE_S = 5.0  # of an accepted request under overload
QUEUE = 32
MOST_AT_ONCE = 512  # requests of the open loop
TIMEOUT_S = 60.0
_NUMPY = {"TYPE_UINT8": np.uint8, "TYPE_FP32": np.float32, "TYPE_BOOL": np.bool_}


@dataclass
class Load:
    """What requests came to."""

    seconds: float
    latencies_s: list[float] = field(default_factory=list)  # of those that were answered
    ends: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies_s) / self.seconds

    def percentile(self, share: float) -> float:
        """Of the latency, in seconds; nan where nothing was answered."""
        return float(np.percentile(self.latencies_s, share)) if self.latencies_s else math.nan

    def __str__(self) -> str:
        others = ", ".join(f"{count} {end}" for end, count in self.ends.items() if end != "answered")
        shares = ", ".join(f"p{share:g} {1000 * self.percentile(share):.0f} ms" for share in (50, 95, 99))
        return f"{self.rate:.1f} windows/s, {shares}" + (f"; {others}" if others else "")


def random_window(transport: Transport) -> Arrays:
    """One window of noise, in the shapes that the server's model takes."""
    random_numbers = np.random.default_rng(0)
    feeds: Arrays = {}
    for each in transport.config(WINDOWS)["input"]:
        shape, dtype = (1, *map(int, each["dims"])), _NUMPY[each["data_type"]]
        feeds[each["name"]] = np.ones(shape, dtype) if dtype is np.bool_ else random_numbers.integers(0, 255, shape).astype(dtype)
    feeds["mel"] /= 255
    return feeds


def request(transport: Transport, feeds: Arrays, load: Load) -> None:
    """One request without a second try; what it came to is noted."""
    started_s = time.monotonic()
    try:
        transport.infer(WINDOWS, feeds, ())
    except Unavailable as error:
        load.ends["rejected" if "queue" in str(error) or "timeout expired" in str(error) else f"lost ({error})"] += 1
    except Refused as error:
        load.ends[f"refused ({error})"] += 1
    else:
        load.ends["answered"] += 1
        load.latencies_s.append(time.monotonic() - started_s)


def closed_loop(transport: Transport, feeds: Arrays, *, clients: int, seconds: float) -> Load:
    """So many clients, each with its next request as soon as the last is answered."""
    load, started_s = Load(seconds), time.monotonic()

    def client() -> None:
        while time.monotonic() - started_s < seconds:
            request(transport, feeds, load)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.seconds = time.monotonic() - started_s  # with what was under way at the end
    return load


def open_loop(transport: Transport, feeds: Arrays, *, rate: float, seconds: float, watch: Callable[[], None] = lambda: None) -> Load:
    """Requests that arrive at random, `rate` a second, whether earlier ones are answered or not. `watch` is called once a second."""
    load, arrivals = Load(seconds), random.Random(0)
    begin_s = next_s = watched_s = time.monotonic()
    with ThreadPoolExecutor(MOST_AT_ONCE) as pool:
        while next_s - begin_s < seconds:
            time.sleep(max(0.0, next_s - time.monotonic()))
            pool.submit(request, transport, feeds, load)
            next_s += arrivals.expovariate(rate)
            if time.monotonic() - watched_s > 1:
                watched_s = time.monotonic()
                watch()
    load.seconds = time.monotonic() - begin_s
    return load


def curve(transport: Transport, feeds: Arrays, clients: tuple[int, ...], seconds: float) -> dict[int, Load]:
    """The closed loop, by the number of clients."""
    closed_loop(transport, feeds, clients=1, seconds=1.0)
    found = {}
    for count in clients:
        found[count] = closed_loop(transport, feeds, clients=count, seconds=seconds)
        tell(f"{count} clients: {found[count]}")
    return found


def direct_rate(feeds: Arrays, seconds: float) -> float:
    """Windows a second of the networks called in this process, eight windows a batch, on as many threads as there are cores."""
    bundle = open_bundle("demo")
    runtime = open_runtime(bundle)
    crops, mel, mask = (np.repeat(feeds[name], 8, axis=0) for name in ("crops", "mel", "mask"))
    windows, frames = crops.shape[:2]
    done, started_s = 0, time.monotonic()
    while time.monotonic() - started_s < seconds:
        visual = runtime.encode_frames(crops.reshape(-1, *crops.shape[2:]), np.tile(np.arange(frames), windows))
        runtime.run_head(visual.reshape(windows, frames, -1), runtime.encode_sound(mel, mask), mask)
        done += windows
    return done / (time.monotonic() - started_s)


def run() -> list[Row]:
    """Measure everything; about four minutes."""
    with tempfile.TemporaryDirectory(prefix="dissonance-bench-") as folder:
        config = ServeConfig(max_queue=QUEUE, queue_timeout_s=DEADLINE_S)
        with LocalServer(demo_repository(Path(folder), config)) as server:
            transport = open_transport(server.grpc, timeout_s=TIMEOUT_S, shared_memory=False)
            feeds = random_window(transport)
            before = server.metrics()
            loads = curve(transport, feeds, CLIENTS, SECONDS)
            names = {what: f'nv_inference_{what}{{model="dissonance_windows",version="1"}}' for what in ("request_success", "exec_count")}
            answered, batches = (server.metrics()[name] - before[name] for name in names.values())
            direct = direct_rate(feeds, SECONDS)
            tell(f"without a server: {direct:.1f} windows/s")
            rows = [measured(f"windows/s at {count} clients", load.rate, str(load)) for count, load in loads.items()]
            rows.append(at_least("throughput at 16 clients / at 1 client", loads[16].rate / loads[1].rate, 1.0, "closed loop, gRPC"))
            rows.append(measured("throughput at 16 clients / networks called directly", loads[16].rate / direct, f"{direct:.1f} windows/s directly"))
            rows.append(measured("batches / requests", batches / answered, f"{batches:.0f} executions of {answered:.0f} requests, of all the above"))
            return [*rows, *overload(server, transport, feeds, max(load.rate for load in loads.values()))]


def overload(server: LocalServer, transport: Transport, feeds: Arrays, saturation: float) -> list[Row]:
    """A minute of twice as many requests as it answers."""
    memory = [server.memory_mib()]
    calm = closed_loop(transport, feeds, clients=1, seconds=3.0)
    load = open_loop(transport, feeds, rate=OVERLOAD * saturation, seconds=OVERLOAD_S, watch=lambda: memory.append(server.memory_mib()))
    after = closed_loop(transport, feeds, clients=1, seconds=3.0)
    tell(f"{OVERLOAD:g} x saturation ({OVERLOAD * saturation:.1f} requests/s): {load}; memory {memory[0]:.0f} to {max(memory):.0f} MiB")
    others = sum(count for end, count in load.ends.items() if end not in ("answered", "rejected"))
    how = f"{load.ends.total()} requests in {OVERLOAD_S:g} s: {load.ends['answered']} answered, {load.ends['rejected']} rejected, {others} otherwise"
    return [
        measured("twice the saturation: share rejected", load.ends["rejected"] / load.ends.total(), how),
        at_most("twice the saturation: neither answered nor rejected", others, 0, how),
        at_most("twice the saturation: p99 of accepted requests / deadline", load.percentile(99) / DEADLINE_S, 1.0, f"{load}; {DEADLINE_S:g} s"),
        at_most("twice the saturation: most memory / before", max(memory) / memory[0], 1.5, f"{memory[0]:.0f} to {max(memory):.0f} MiB"),
        at_most("median latency of one client, after / before", after.percentile(50) / calm.percentile(50), 1.5, "in the three seconds after it"),
    ]


def main() -> None:
    """The rung, or the load generator where a server is named."""
    parser = argparse.ArgumentParser(prog="python -m bench.serve", description="A load generator for a served bundle.")
    parser.add_argument("--url", help="grpc://host:8001 or http://host:8000; none: the rung, with a server of its own")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS, help="closed loop: how many at once, one after the other")
    parser.add_argument("--rate", type=float, help="open loop instead: requests a second")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each load")
    given = parser.parse_args()
    if given.url is None:
        rows = run()
    else:
        transport = open_transport(given.url, timeout_s=TIMEOUT_S, shared_memory=False)
        feeds = random_window(transport)
        if given.rate:
            loads = {f"{given.rate:g} requests a second": open_loop(transport, feeds, rate=given.rate, seconds=given.seconds)}
        else:
            loads = {f"{count} clients": load for count, load in curve(transport, feeds, tuple(given.clients), given.seconds).items()}
        rows = [measured(f"windows/s, {what}", load.rate, str(load)) for what, load in loads.items()]
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
