"""Calls of a runtime, made in threads of their own while the scan reads on, decides and writes."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


class Inference:
    """Runs calls in the order in which they are started, up to `threads` of them at the same time. Use as a context manager.

    Without threads a call is made at once, and is over when `start` returns.
    """

    def __init__(self, *, threads: int = 0) -> None:
        self.most = threads + 1 if threads else 0  # calls under way: those that are made, and one that waits, so that no thread does
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="inference") if threads else None
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if threads else None  # readable once a call is over

    def __enter__(self) -> "Inference":
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for calls that are being made, drop those that are not yet, and their results."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self.wake is not None:
            os.close(self.wake)

    def start(self, call: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """What the call returns or raises, once it is over."""
        if self._pool is None or self.wake is None:
            done: Future[Result] = Future()
            try:
                done.set_result(call(*arguments))
            except Exception as error:
                done.set_exception(error)
            return done
        wake = self.wake
        future = self._pool.submit(call, *arguments)
        future.add_done_callback(lambda _: os.eventfd_write(wake, 1))
        return future

    def heed(self) -> None:
        """Forget that calls were over: `wake` becomes readable when the next one is."""
        if self.wake is not None:
            try:
                os.eventfd_read(self.wake)
            except BlockingIOError:
                return
