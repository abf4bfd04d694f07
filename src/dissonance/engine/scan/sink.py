"""The sink: rows into shards, shards into the ledger, and at the end one table of each kind.

A shard is three Parquet files of one id. Each is written beside its place, synced, renamed; then the folder is synced; then one ledger transaction
names the id. Files of an id the ledger does not name are leftovers of a kill and are deleted on resume.
"""

import contextlib
import json
import time
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dissonance.config import ExecutionConfig
from dissonance.engine.scan.ledger import Ledger, Stamp
from dissonance.engine.scan.rows import TABLES, Row
from dissonance.engine.scan.verdict import FileVerdict
from dissonance.files import replacing


class Sink:
    """Takes verdicts; every one that `close` or an earlier flush has committed survives any kill."""

    def __init__(self, out: Path, ledger: Ledger, *, execution: ExecutionConfig) -> None:
        self._out = out
        self._shards = out / "shards"
        self._ledger = ledger
        self._execution = execution
        self._rows: dict[str, list[Row]] = {name: [] for name in TABLES}
        self._entries: list[tuple[int, str, Stamp, str | None]] = []
        self._opened_s = time.monotonic()
        self._shards.mkdir(parents=True, exist_ok=True)
        self._delete_unnamed()

    def _delete_unnamed(self) -> None:
        named = set(self._ledger.shards())
        for path in self._shards.iterdir():
            _, _, shard = path.name.removesuffix(".parquet").partition("-")
            if path.name.startswith(".") or shard not in named:
                path.unlink()

    def add(self, number: int, verdict: FileVerdict, stamp: Stamp) -> None:
        """Take one input's rows, and write a shard when one is full or old."""
        self._rows["files"].append(verdict.file)
        self._rows["tracks"].extend(verdict.tracks)
        self._rows["windows"].extend(verdict.windows)
        content_hash = verdict.file["content_hash"]
        assert content_hash is None or isinstance(content_hash, str)
        self._entries.append((number, str(verdict.file["status"]), stamp, content_hash))
        if len(self._entries) >= self._execution.shard_files:
            self.flush()

    def flush_if_old(self) -> None:
        """Write what there is if the shard has been open for long, so that a kill costs little."""
        if self._entries and time.monotonic() - self._opened_s >= self._execution.shard_interval_s:
            self.flush()

    def flush(self) -> None:
        """Write a shard of what there is."""
        self._opened_s = time.monotonic()
        if not self._entries:
            return
        shard = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        for name, schema in TABLES.items():
            with replacing(self._shards / f"{name}-{shard}.parquet") as partial:
                pq.write_table(pa.Table.from_pylist(self._rows[name], schema=schema), partial)
        self._ledger.commit_shard(shard, self._entries)
        self._entries.clear()
        for rows in self._rows.values():
            rows.clear()

    def merge(self) -> None:
        """Write OUT/{files,tracks,windows}.{parquet,jsonl} from the shards, one shard in memory at a time."""
        with contextlib.ExitStack() as stack:
            writers, lines = {}, {}
            for name, schema in TABLES.items():
                parquet = stack.enter_context(replacing(self._out / f"{name}.parquet"))
                writers[name] = stack.enter_context(pq.ParquetWriter(parquet, schema))
                jsonl = stack.enter_context(replacing(self._out / f"{name}.jsonl"))
                lines[name] = stack.enter_context(jsonl.open("w", encoding="utf-8"))
            for shard in self._ledger.shards():
                keep = pa.array(sorted(self._ledger.uris_of(shard)), pa.string())
                for name, schema in TABLES.items():
                    table = pq.read_table(self._shards / f"{name}-{shard}.parquet", schema=schema)
                    table = table.filter(pc.is_in(table["uri"], value_set=keep))
                    if table.num_rows:
                        writers[name].write_table(table)
                    lines[name].writelines(json.dumps(row) + "\n" for row in table.to_pylist())
