"""Worker messages: what goes in comes out, and nothing else is taken for a message."""

import dataclasses
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dissonance.engine.media.clip import Window
from dissonance.engine.scan.messages import Crashed, Failed, Heartbeat, Opened, ProtocolError, Ready, Task, decode, decode_task, encode, encode_task


@given(path=st.binary(min_size=1).map(os.fsdecode), number=st.integers(0, 2**40))
def test_a_task_survives_whatever_bytes_its_path_is_made_of(path: str, number: int) -> None:
    task = Task(number, path, "uri")
    assert decode_task(encode_task(task)) == task


@pytest.mark.parametrize("message", [Ready(("core",)), Heartbeat(2.5), Opened("ab", 3), Opened(None, None), Failed("corrupt", "x\ny"), Crashed("é")])
def test_plain_messages_survive(message: object) -> None:
    assert decode(encode(message)) == message  # type: ignore[arg-type]


@given(
    crops=hnp.arrays(np.uint8, st.tuples(st.integers(0, 3), st.just(2), st.just(2), st.just(3))),
    mel=st.none() | hnp.arrays(np.float32, (3, 4), elements=st.floats(-10, 10, width=32)),
    speech=hnp.arrays(np.bool_, st.integers(0, 5)),
)
def test_windows_survive_bit_for_bit(crops: np.ndarray, mel: np.ndarray | None, speech: np.ndarray) -> None:
    window = Window(
        track=2, index=7, first_frame=5, frames=4, start_s=0.2, end_s=0.36, new_crops=crops, mel=mel,
        boxes=np.zeros((4, 4), np.float32), speech=speech, mouth_motion=np.ones(4, np.float32),
    )  # fmt: skip
    copy = decode(encode(window))
    assert isinstance(copy, Window)
    for field in dataclasses.fields(Window):
        sent, received = getattr(window, field.name), getattr(copy, field.name)
        if isinstance(sent, np.ndarray):
            assert sent.dtype == received.dtype
            assert sent.shape == received.shape
            assert sent.tobytes() == received.tobytes()
        else:
            assert sent == received


@settings(max_examples=300)
@given(data=st.data())
def test_a_mutated_message_is_a_message_or_a_protocol_error(data: st.DataObject) -> None:
    good = bytearray(encode(Failed("corrupt", "detail")))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    try:
        message = decode(bytes(good[:cut]))
    except ProtocolError:
        return
    assert isinstance(message, Failed | Opened | Crashed | Heartbeat | Ready)


@pytest.mark.parametrize(
    "header",
    [
        b'{"kind": "Window", "fields": {}, "arrays": {"mel": ["float32", [1000000000, 1000000000]]}}',
        b'{"kind": "Window", "fields": {}, "arrays": {"mel": ["float32", [1000000000000000000000000000000]]}}',
        b'{"kind": "Window", "fields": {}, "arrays": {"mel": ["object", [1]]}}',
        b'{"kind": "Window", "fields": {}, "arrays": {"mel": ["float32", [-1]]}}',
        b'{"kind": "Popen", "fields": {}, "arrays": {}}',
        b'{"kind": "Failed", "fields": {"reason": "a", "detail": "b", "more": 1}, "arrays": {}}',
        b"[]",
    ],
)
def test_hostile_headers_are_refused(header: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(len(header).to_bytes(4, "little") + header)


def test_bytes_left_over_are_refused() -> None:
    with pytest.raises(ProtocolError, match="left over"):
        decode(encode(Failed("corrupt", "detail")) + b"x")
