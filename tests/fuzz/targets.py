"""What the parser fuzzer calls: each reader of outside bytes, with the only errors it may raise and what must hold of what it accepts."""

import dataclasses
import hashlib
import io
import json
import math
import os
import random
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError

from dissonance.bundle import REQUIRED_FILES, BundleSpec, CropSpec, open_bundle
from dissonance.config import Frozen, ModelConfig, ScanConfig, load_config, load_preset, parse_config
from dissonance.engine.media.boxes import BoxFile
from dissonance.engine.media.clip import ClipSummary, Window
from dissonance.engine.media.probe import AudioStream, MediaInfo, VideoStream
from dissonance.engine.scan.messages import Crashed, Failed, Heartbeat, Message, Opened, ProtocolError, Ready, decode, encode
from dissonance.engine.scan.sources import read_manifest
from dissonance.errors import BundleError, ConfigError, UsageError
from tests.fuzz.trees import mutate_json

Mutation = Callable[[bytes, random.Random], bytes | None]


@dataclass(frozen=True)
class Target:
    """One reader. `check` raises whatever should not have come out; `mutate` keeps an input well-formed, or returns None where it is not."""

    name: str
    check: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[str, ...]
    share: int  # of the executions, as a weight
    mutate: Mutation | None = None
    longest: int = 4096  # bytes of an input


MEMORY = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None  # a folder in memory, where there is one
# Where inputs are written. Whoever sets the variable deletes the folder: libFuzzer ends its process without a farewell.
_OWN = None if "DISSONANCE_FUZZ_SCRATCH" in os.environ else tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY)
SCRATCH = Path(os.environ["DISSONANCE_FUZZ_SCRATCH"] if _OWN is None else _OWN.name)


def _readable(error: Exception) -> None:
    """A message is one that a person can read."""
    assert 0 < len(str(error)) < 20_000, f"a message of {len(str(error))} characters"


# ------------------------------------------------------------------------------------------------------------ manifests


def _manifest(suffix: str) -> Callable[[bytes], None]:
    path = SCRATCH / f"manifest{suffix}"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        try:
            for item in read_manifest(path):
                item.uri.encode("utf-8")
                assert b"\0" not in os.fsencode(item.path)
        except UsageError as error:
            _readable(error)

    return check


def _parquet(table: pa.Table, **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    return stream.getvalue()


def _parquet_seeds() -> tuple[bytes, ...]:
    uris = ["a.mp4", "sub/b.mov", "\u00e9.mkv"]
    columns = [
        pa.array(uris), pa.array(uris, pa.large_string()), pa.array(uris).dictionary_encode(), pa.array([u.encode() for u in uris]),
        pa.array([1, 2, 3]), pa.array([[u] for u in uris]), pa.array([{"uri": u} for u in uris]), pa.array(["a", None, "b"]), pa.nulls(3),
        pa.array([{}, {}, {}], pa.struct([])),
    ]  # fmt: skip
    tables = [pa.table({"uri": column}) for column in columns if not (pa.types.is_struct(column.type) and column.type.num_fields == 0)]
    two = pa.Table.from_arrays([pa.array(uris), pa.array(uris)], ["uri", "uri"])
    wide = pa.table({"label": pa.array([True, False, None]), "uri": pa.array(uris), "x": pa.array([1.5, None, 2.5])})
    return (
        *(_parquet(table, compression="none") for table in [*tables, wide, pa.table({"uri": pa.array([], pa.string())})]),
        _parquet(two, compression="none"),
        _parquet(tables[0], compression="snappy"),
        _parquet(wide, compression="zstd", data_page_version="2.0", use_dictionary=False),
        _parquet(tables[0], compression="none", store_schema=False),
    )


# ---------------------------------------------------------------------------------------------------------------- boxes


def _boxes(suffix: str) -> Callable[[bytes], None]:
    path = SCRATCH / f"boxes{suffix}"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        try:
            file = BoxFile(path)
        except ConfigError as error:
            _readable(error)
            return
        for tracks in file._tracks.values():
            assert [track.track for track in tracks] == sorted({track.track for track in tracks})
            for track in tracks:
                first, last = track.times_s[0], track.times_s[-1]
                assert list(track.times_s) == sorted(set(track.times_s))
                for time_s in (first, last, first / 2 + last / 2):
                    box = track.box_at(time_s)
                    assert box is not None
                    assert all(map(math.isfinite, box)), box

    return check


_BOX_ROWS = [("a.mp4", 0, 0.0, 1, 2, 11, 22), ("a.mp4", 0, 1.5, 3, 4, 13, 24.5), ("b, c.mp4", 3, 0.04, -5, 0, 60, 48), ("a.mp4", 1, 1e2, 0, 0, 9, 9)]
_BOX_COLUMNS = ("uri", "track", "time_s", "x0", "y0", "x1", "y1")


# -------------------------------------------------------------------------------------------------------------- configs


def _hold(config: Frozen) -> None:
    """An accepted configuration survives the trip through JSON that takes it to a worker."""
    again = type(config).model_validate(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert again == config
    if isinstance(config, ScanConfig):
        try:
            config.fingerprint()
        except ConfigError as error:
            _readable(error)


def _kind(data: bytes) -> type[ScanConfig] | type[ModelConfig]:
    return ModelConfig if b"hidden_size" in data or b"preset" in data else ScanConfig


def _config_yaml(data: bytes) -> None:
    path = SCRATCH / "config.yaml"
    path.write_bytes(data)
    try:
        _hold(load_config(_kind(data), path))
    except ConfigError as error:
        _readable(error)


def _config_tree(data: bytes) -> None:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        _hold(parse_config(_kind(data), tree, origin="here"))
    except ConfigError as error:
        _readable(error)


_MODEL = load_preset("demo").model_dump(mode="json")
_SCAN = ScanConfig().model_dump(mode="json")
_YAML = (
    b"detector: {kind: haar, every_frames: 12}\n", b"speech:\n  min_snr_db: 9.0\n  min_level_dbfs: -55.\n", b"extensions: ['.mp4', .mov]\n",
    b"limits: &l\n  min_frames: 0x0a\nexecution:\n  <<: *l\n", b"a: &a [1, 1]\nb: [*a, *a]\n", b"extensions: !!set {? .mp4}\n",
    b"x: 2020-01-02 03:04:05\n", b"execution: {shard_interval_s: 1:30.5, workers: 0b11, threads: 0o7, batch_frames: 1_000}\n",
    b"detector: !!map {kind: !!str boxes, boxes_file: !!binary aGk=}\n", b"speech: {min_fraction: .5, min_snr_db: .inf, min_mouth_motion: 1e3}\n",
    b"%YAML 1.1\n---\nlimits: null\n...\n", b"? |\n  x\n: >-\n  \"\\ud800\"\n",
)  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- bundles

_BUNDLE_FILES = {name: name.encode() for name in REQUIRED_FILES}
_SPEC = BundleSpec(
    model=load_preset("demo"),
    crop=CropSpec(size_px=load_preset("demo").visual.image_size),
    trained=True,
    trained_on="synthetic",
    parameters={"visual": 3},
    parity={"visual": 1e-6},
    versions={"torch": "2"},
    sha256={name: hashlib.sha256(data).hexdigest() for name, data in _BUNDLE_FILES.items()},
)
_BUNDLE = SCRATCH / "bundle"


def _bundle_folder(data: bytes) -> None:
    """`open_bundle` on a folder whose files are as its first bundle.json says."""
    if not _BUNDLE.is_dir():
        _BUNDLE.mkdir()
        for name, content in _BUNDLE_FILES.items():
            (_BUNDLE / name).write_bytes(content)
    (_BUNDLE / "bundle.json").write_bytes(data)
    try:
        bundle = open_bundle(_BUNDLE)
    except BundleError as error:
        _readable(error)
        return
    assert bundle.id == hashlib.sha256(data).hexdigest()
    assert set(bundle.spec.sha256) >= set(REQUIRED_FILES)


def _bundle_spec(data: bytes) -> None:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        spec = BundleSpec.model_validate(tree)
    except ValidationError:
        return
    _hold(spec)
    assert spec.crop.size_px == spec.model.visual.image_size
    assert set(spec.calibration) == {"av", "v", "a"}


# ------------------------------------------------------------------------------------------------------------- messages


def _examples() -> list[Message]:
    video = VideoStream(0, "h264", 64, 48, 90, "yuv420p", 1.0, 25.0, 0.0, 1.0)
    info = MediaInfo("mov", 1.0, video, AudioStream(1, "aac", 48000, 2, 0.0, None), 1, 1, "video #0, the only one; audio #1, the only one")
    window = Window(
        track=2, index=7, first_frame=5, frames=4, start_s=0.2, end_s=0.36, new_crops=np.zeros((2, 2, 2, 3), np.uint8),
        mel=np.zeros((2, 16), np.float32), boxes=np.ones((4, 4), np.float32), speech=np.zeros(4, bool), mouth_motion=np.ones(4, np.float32),
    )  # fmt: skip
    summary = ClipSummary(
        info=info, origin_s=0.0, duration_s=1.0, frames=25, frames_decoded=25, frames_dropped=0, variable_frame_rate=False, speech_fraction=0.5,
        speech=True, faces=1, decode_errors=0, picture_error=None, sound_error="corrupt: x",
    )  # fmt: skip
    return [
        Ready(("a",)), Heartbeat(1.5), Opened("ab" * 32, 3), Opened(None, None), Failed("corrupt", "x\ny"), Crashed("Traceback \u00e9", "timeout"),
        window, dataclasses.replace(window, mel=None), summary,
        dataclasses.replace(summary, info=dataclasses.replace(info, video=None), speech_fraction=None),
    ]  # fmt: skip


_KINDS = (Ready, Opened, Heartbeat, Window, ClipSummary, Failed, Crashed)


def _message(data: bytes) -> None:
    try:
        message = decode(data)
    except ProtocolError as error:
        _readable(error)
        return
    assert isinstance(message, _KINDS)
    assert encode(decode(encode(message))) == encode(message)


def _mutate_message(data: bytes, rng: random.Random) -> bytes | None:
    """Change the JSON header and put its right length in front again; the arrays' bytes stay, but for a cut or an addition now and then."""
    end = 4 + int.from_bytes(data[:4], "little")
    header = mutate_json(data[4:end], rng)
    if header is None:
        return None
    payload = data[end:]
    if rng.random() < 0.2:
        payload = rng.choice([payload[: rng.randint(0, len(payload))], payload + bytes(rng.randint(1, 16)), payload * 2])
    return len(header).to_bytes(4, "little") + header + payload


# -------------------------------------------------------------------------------------------------------------- targets


def _json_lines(data: bytes, rng: random.Random) -> bytes | None:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    changed = mutate_json(lines[at], rng)
    if changed is None:
        return None
    lines[at] = changed
    return b"\n".join(lines)


def _lines(rows: Iterable[Iterable[object]]) -> bytes:
    return "".join(",".join(f'"{value}"' if "," in str(value) else str(value) for value in row) + "\n" for row in rows).encode()


def _dump(tree: object) -> bytes:
    return json.dumps(tree).encode()


_SCALARS = (
    "null", "true", "false", "-1", "1e999", "nan", "NaN", "-Infinity", "\\ud800", "\\u0000", "18446744073709551616", "\u0661", "\ufeff", '""',
    "[[[[", "{}",
)  # fmt: skip
_CSV_WORDS = ('"', '""', ",", "\r\n", "\n", "\r", "\0", "\ufeff", "uri", "nan", "inf", "1e999", "-1", "0x1", "1_0", "\u0661", "file://", "../")
_YAML_WORDS = (
    "&a ", "*a", "<<: ", "!!int ", "!!float ", "!!bool ", "!!null ", "!!set ", "!!omap ", "!!pairs ", "!!binary ", "!!timestamp ",
    "!!python/name:os ", "!!str ", "!!seq ", "!!map ", "!x ", "%YAML 9.9\n", "---\n", "...\n", "|\n", ">+2\n", "? ", ": ", "- ", "{", "}", "[", "]",
    "\\ud800", "\\x00", "2020-13-45", "1:60", "0b_", "0x_", ".inf", ".nan", "-.inf", "~", "'", '"', "\t", "\ufeff", "\x85", "=",
)  # fmt: skip
_MODEL_KEYS = tuple({*_MODEL, *_MODEL["visual"], *_MODEL["audio"], *_MODEL["head"], *_MODEL["visual"]["prompts"], *_MODEL["audio"]["prompts"]})
_SCAN_KEYS = tuple({key for value in _SCAN.values() if isinstance(value, dict) for key in value} | set(_SCAN))

TARGETS = {
    target.name: target
    for target in (
        Target(
            name="manifest.csv",
            check=_manifest(".csv"),
            seeds=(
                _lines([("uri",), ("a.mp4",), ("/b/c.mov",)]),
                _lines([("id", "uri"), (1, "a, b.mp4"), (2, "s3://b/c")]),
                b'\xef\xbb\xbfuri,uri\r\n"a\r\nb",""\r\n',
            ),
            words=_CSV_WORDS,
            share=100,
        ),
        Target(
            name="manifest.jsonl",
            check=_manifest(".jsonl"),
            seeds=(b'{"uri": "a.mp4"}\n\n{"uri": "/b/\\u00e9.mov", "label": [1, null]}\n', b'{"uri": null}\n', b'{"uri": "\\ud800"}'),
            words=("uri", '{"uri": ', *_SCALARS),
            share=100,
            mutate=_json_lines,
        ),
        Target(
            name="manifest.parquet",
            check=_manifest(".parquet"),
            seeds=_parquet_seeds(),
            words=("PAR1", "uri", "ARROW:schema", "\x15\x00", "\x18\x03uri", "\x19\x1c"),
            share=60,
            longest=8192,
        ),
        Target(
            name="boxes.csv",
            check=_boxes(".csv"),
            seeds=(_lines([_BOX_COLUMNS, *_BOX_ROWS]), _lines([(*_BOX_COLUMNS, "note"), (*_BOX_ROWS[0], "x")])),
            words=(*_CSV_WORDS, *_BOX_COLUMNS, ",".join(_BOX_COLUMNS)),
            share=120,
        ),
        Target(
            name="boxes.jsonl",
            check=_boxes(".jsonl"),
            seeds=(
                b"\n".join(_dump(dict(zip(_BOX_COLUMNS, row, strict=True))) for row in _BOX_ROWS),
                _dump(dict(zip(_BOX_COLUMNS, _BOX_ROWS[0], strict=True))),
            ),
            words=(*_BOX_COLUMNS, *_SCALARS),
            share=120,
            mutate=_json_lines,
        ),
        Target(
            name="config.yaml",
            check=_config_yaml,
            seeds=(*_YAML, yaml.safe_dump({"preset": "x", "visual": {"hidden_size": 64, "layers": 1, "heads": 2, "intermediate_size": 8}}).encode()),
            words=(*_YAML_WORDS, *_SCAN_KEYS),
            share=40,
            longest=512,
        ),
        Target(
            name="config.tree",
            check=_config_tree,
            seeds=(_dump(_SCAN), _dump(_MODEL), *(_dump({key: value}) for key, value in _SCAN.items())),
            words=(*_SCALARS, *_SCAN_KEYS, *_MODEL_KEYS),
            share=120,
            mutate=mutate_json,
        ),
        Target(
            name="bundle.folder",
            check=_bundle_folder,
            seeds=(_dump(_SPEC.model_dump(mode="json")),),
            words=(*_SCALARS, "sha256", "schema_version", "calibration", "../x", "/etc/passwd"),
            share=60,
            mutate=mutate_json,
        ),
        Target(
            name="bundle.spec",
            check=_bundle_spec,
            seeds=(_dump(_SPEC.model_dump(mode="json")),),
            words=(*_SCALARS, "sha256", "calibration", *_MODEL_KEYS),
            share=80,
            mutate=mutate_json,
        ),
        Target(
            name="messages",
            check=_message,
            seeds=tuple(map(encode, _examples())),
            words=(*_SCALARS, *(kind.__name__ for kind in _KINDS), "kind", "fields", "arrays", "uint8", "float32", "bool", "object"),
            share=200,
            mutate=_mutate_message,
        ),
    )
}
