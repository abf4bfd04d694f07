"""Messages over a socket: whole, whatever pieces they come in, and no more than was agreed."""

import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dissonance.engine.scan.channel import Inbox, ProtocolError, receive, send


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@given(messages=st.lists(st.binary(min_size=1, max_size=50), max_size=5), cuts=st.lists(st.integers(1, 20), min_size=1))
def test_messages_come_whole_whatever_pieces_they_arrive_in(messages: list[bytes], cuts: list[int]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inbox = Inbox(ours, max_bytes=50)
        stream = b"".join(len(message).to_bytes(4, "little") + message for message in messages)
        found = []
        for turn in range(len(stream)):
            piece, stream = stream[: cuts[turn % len(cuts)]], stream[cuts[turn % len(cuts)] :]
            if not piece:
                break
            theirs.sendall(piece)
            while (message := inbox.read()) is not None:
                found.append(message)
        assert found == messages


def test_a_large_message_passes_through_a_small_buffer(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    message = bytes(range(256)) * 40_000
    inbox = Inbox(ours, max_bytes=len(message))
    sender = threading.Thread(target=send, args=(theirs, message))
    sender.start()
    found = None
    while found is None:
        found = inbox.read()
    sender.join()
    assert found == message


def test_the_blocking_end_reads_what_was_sent(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    send(ours, b"settings")
    send(ours, b"task")
    assert (receive(theirs), receive(theirs)) == (b"settings", b"task")
    ours.close()
    with pytest.raises(EOFError):
        receive(theirs)


def test_half_a_message_holds_up_nobody(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    inbox = Inbox(ours, max_bytes=100)
    theirs.sendall((10).to_bytes(4, "little") + b"half")
    assert inbox.read() is None  # at once: the socket does not block
    theirs.close()
    with pytest.raises(EOFError):
        inbox.read()


@pytest.mark.parametrize("size", [0, 101, 2**32 - 1])
def test_an_absurd_length_is_refused_before_it_is_reserved(size: int, ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.sendall(size.to_bytes(4, "little"))
    with pytest.raises(ProtocolError, match=f"a message of {size} bytes"):
        Inbox(ours, max_bytes=100).read()
