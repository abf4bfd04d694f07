"""Messages over a local socket: four bytes of length (little-endian), then the message.

The worker's end blocks. The scan's end never does: a worker that stops in the middle of a message, or announces an absurd one, holds up nobody.
"""

import socket

_LENGTH_BYTES = 4
_READ_BYTES = 1 << 20


class ProtocolError(Exception):
    """A worker said something that is not a message, or not one that its file allows."""


def send(end: socket.socket, message: bytes) -> None:
    """Send one message; blocks until it is on its way. Raises OSError where the other end is gone."""
    end.sendall(len(message).to_bytes(_LENGTH_BYTES, "little"))
    end.sendall(message)


def receive(end: socket.socket) -> bytes:
    """Wait for one message. Raises EOFError where the other end closed."""
    return _exactly(end, int.from_bytes(_exactly(end, _LENGTH_BYTES), "little"))


def _exactly(end: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    got = 0
    while got < size:
        count = end.recv_into(memoryview(data)[got:])
        if count == 0:
            raise EOFError
        got += count
    return bytes(data)


class Inbox:
    """The scan's end: `read` after the socket became readable. Holds one message at most."""

    def __init__(self, end: socket.socket, *, max_bytes: int) -> None:
        end.setblocking(False)
        self._end = end
        self._max_bytes = max_bytes
        self._start()

    def _start(self) -> None:
        self._in_length = True
        self._data = bytearray(_LENGTH_BYTES)
        self._got = 0

    def read(self) -> bytes | None:
        """A message that is now complete, else None. Raises EOFError where the worker's end is closed, ProtocolError for an absurd length."""
        while True:
            try:
                count = self._end.recv_into(memoryview(self._data)[self._got : self._got + _READ_BYTES])
            except BlockingIOError:
                return None
            except ConnectionError as error:
                raise EOFError from error
            if count == 0:
                raise EOFError
            self._got += count
            if self._got < len(self._data):
                continue
            message = bytes(self._data) if not self._in_length else None
            if message is not None:
                self._start()
                return message
            size = int.from_bytes(self._data, "little")
            if not 0 < size <= self._max_bytes:
                raise ProtocolError(f"a message of {size} bytes")
            self._in_length, self._data, self._got = False, bytearray(size), 0
