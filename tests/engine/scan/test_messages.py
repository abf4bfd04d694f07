"""Worker messages: what goes in comes out, and nothing else is taken for a message."""

import dataclasses
import json
import os
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dissonance.bundle import CropSpec, MelSpec
from dissonance.config import LimitsConfig, ScanConfig, load_preset
from dissonance.engine.media.clip import Window
from dissonance.engine.scan.channel import ProtocolError
from dissonance.engine.scan.messages import (
    Crashed,
    Failed,
    Heartbeat,
    Opened,
    Ready,
    Task,
    WindowCheck,
    decode,
    decode_task,
    encode,
    encode_task,
)


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


SCAN = ScanConfig(limits=LimitsConfig(max_duration_s=100))
CHECK = WindowCheck(model=load_preset("demo"), crop=CropSpec(size_px=2), mel=MelSpec(bins=3), scan=SCAN)
T = load_preset("demo").frames
GOOD = Window(
    track=0, index=0, first_frame=0, frames=T, start_s=0.0, end_s=1.28, new_crops=np.zeros((T, 2, 2, 3), np.uint8),
    mel=np.zeros((3, 4 * T), np.float32), boxes=np.zeros((T, 4), np.float32), speech=np.ones(T, bool), mouth_motion=np.zeros(T, np.float32),
)  # fmt: skip
ALONE = dataclasses.replace(GOOD, track=-1, new_crops=GOOD.new_crops[:0], boxes=GOOD.boxes[:0])


@pytest.mark.parametrize("window", [GOOD, ALONE, dataclasses.replace(GOOD, mel=None), dataclasses.replace(GOOD, new_crops=GOOD.new_crops[:1])])
def test_windows_as_they_are_made_pass(window: Window) -> None:
    CHECK.new_file()(window)
    assert len(encode(window)) <= CHECK.max_message_bytes


@pytest.mark.parametrize(
    ("window", "wrong"),
    [
        (dataclasses.replace(GOOD, track=-2), "track"),
        (dataclasses.replace(GOOD, track=2**31), "track"),
        (dataclasses.replace(GOOD, index=-1), "index"),
        (dataclasses.replace(GOOD, frames=0), "frames"),
        (dataclasses.replace(GOOD, frames=T + 1), "frames"),
        (dataclasses.replace(GOOD, first_frame=-1), "first_frame"),
        (dataclasses.replace(GOOD, first_frame=100 * 25 + T + 1), "first_frame"),
        (dataclasses.replace(GOOD, new_crops=GOOD.new_crops[:0]), "new_crops"),
        (dataclasses.replace(GOOD, new_crops=GOOD.new_crops[:, :1]), "new_crops"),
        (dataclasses.replace(GOOD, new_crops=np.zeros((T + 1, 2, 2, 3), np.uint8)), "new_crops"),
        (dataclasses.replace(GOOD, new_crops=np.array(3, np.uint8)), "new_crops"),
        (dataclasses.replace(ALONE, new_crops=GOOD.new_crops), "new_crops"),
        (dataclasses.replace(ALONE, mel=None), "mel"),
        (dataclasses.replace(GOOD, mel=np.zeros((3, 4), np.float32)), "mel"),
        (dataclasses.replace(GOOD, mel=np.full((3, 4 * T), 3e38, np.float32)), "mel"),
        (dataclasses.replace(GOOD, boxes=GOOD.boxes - np.float32(3e38)), "boxes"),
        (dataclasses.replace(GOOD, index=1), "index"),
        (dataclasses.replace(GOOD, track=ScanConfig().tracking.max_tracks + 1), "track"),
        (dataclasses.replace(GOOD, boxes=GOOD.boxes[1:]), "boxes"),
        (dataclasses.replace(GOOD, speech=GOOD.speech[1:]), "speech"),
        (dataclasses.replace(GOOD, mouth_motion=GOOD.mouth_motion[None]), "mouth_motion"),
    ],
)
def test_a_window_that_the_preset_does_not_make_is_refused(window: Window, wrong: str) -> None:
    with pytest.raises(ProtocolError, match=wrong):
        CHECK.new_file()(window)


def test_windows_of_one_file_come_in_turn() -> None:
    check = CHECK.new_file()
    for track in (2, 0, 1):  # numbered as they became certain, but a short one is over first
        check(dataclasses.replace(GOOD, track=track))
    check(dataclasses.replace(GOOD, index=1, first_frame=T))
    with pytest.raises(ProtocolError, match="index"):
        check(dataclasses.replace(GOOD, index=1, first_frame=2 * T))
    with pytest.raises(ProtocolError, match="first_frame"):
        check(dataclasses.replace(GOOD, index=2, first_frame=T - 1))
    most = SCAN.tracking.max_tracks * ((100 * 25 + T) // SCAN.tracking.min_track_frames + 2)
    alone = [dataclasses.replace(ALONE, index=index) for index in range(most + 1)]
    for window in alone[: most // 2]:
        check(window)
    with pytest.raises(ProtocolError, match="number"):
        deque(map(check, alone[most // 2 :]), maxlen=0)


def raw(kind: str, fields: object, arrays: object = None, payload: bytes = b"") -> bytes:
    header = json.dumps({"kind": kind, "fields": fields, "arrays": arrays or {}}).encode()
    return len(header).to_bytes(4, "little") + header + payload


@pytest.mark.parametrize(
    "data",
    [
        raw("Heartbeat", {"media_s": "1"}),
        raw("Heartbeat", {"media_s": float("nan")}),
        raw("Heartbeat", {"media_s": True}),
        raw("Heartbeat", []),
        raw("Heartbeat", {"media_s": 1.0, "more": 1}),
        raw("Opened", {"content_hash": 5, "size_bytes": 5}),
        raw("Opened", {"content_hash": "5", "size_bytes": 10**30}),
        raw("Opened", {"content_hash": "5", "size_bytes": 5.5}),
        raw("Failed", {"reason": "scored", "detail": ""}),
        raw("Crashed", {"detail": "", "reason": "no_face"}),
        raw("ClipSummary", {"info": 5}),
        raw("ClipSummary", {"info": {"video": []}}),
        raw("Heartbeat", {"media_s": 1.0}, {"media_s": ["float32", [1]]}, bytes(4)),
        raw("Opened", {"content_hash": None}, {"size_bytes": ["uint8", [1]]}, bytes(1)),
        raw("Window", {}, {"mel": ["float64", [1]]}, bytes(8)),
        raw("Window", {}, {"mel": ["float32", [2**40, 0]]}),
        raw("Window", {}, {"boxes": ["float32", [1]]}, np.array([np.inf], np.float32).tobytes()),
        raw("Window", {}, {"__class__": ["uint8", [1]]}, bytes(1)),
    ],
)
def test_a_field_of_another_type_or_size_is_no_message(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


def test_texts_are_made_valid_and_cut() -> None:
    message = decode(raw("Failed", {"reason": "corrupt", "detail": "\ud800" + "x" * 10_000}))
    assert isinstance(message, Failed)
    assert message.detail.startswith("\\ud800xxx")
    assert len(message.detail.encode()) == 2000


def test_whatever_a_byte_of_a_bool_holds_it_is_0_or_1() -> None:
    good = bytearray(encode(GOOD))
    start = good.rindex(b"\x01" * T)
    good[start : start + 2] = b"\xff\x00"
    window = decode(bytes(good))
    assert isinstance(window, Window)
    assert int(window.speech.sum()) == T - 1
