"""The ledger: what a run was told to do and what it has done, in SQLite (`OUT/run.db`).

It names every input, and every shard whose rows count. A shard is named only after it is safely on disk, so whatever moment the run is killed at, an
input is either done, with its rows in a named shard, or still to do.
"""

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dissonance.engine.scan.sources import Input
from dissonance.errors import UsageError

SCHEMA_VERSION = "1"
_BATCH = 1000

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE inputs (
    id INTEGER PRIMARY KEY, uri TEXT NOT NULL UNIQUE, path BLOB NOT NULL,
    shard TEXT, status TEXT, size_bytes INTEGER, mtime_ns INTEGER, content_hash TEXT
);
CREATE INDEX pending ON inputs (id) WHERE shard IS NULL;
CREATE INDEX by_shard ON inputs (shard);
CREATE TABLE shards (id TEXT PRIMARY KEY) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Stamp:
    """What tells cheaply whether a file is still the same; all None where it cannot be read."""

    size_bytes: int | None
    mtime_ns: int | None

    @classmethod
    def of(cls, path: str) -> "Stamp":
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return cls(None, None)
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Done:
    """An input whose rows are in a shard."""

    id: int
    path: str
    stamp: Stamp
    content_hash: str | None


class Ledger:
    """One run's ledger. Opened with `create` or `resume`; a context manager that closes it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @classmethod
    def create(cls, path: Path, *, run: dict[str, str]) -> "Ledger":
        """A new ledger for the run that `run` describes. It appears whole or not at all."""
        partial = path.with_name(path.name + ".partial")
        for stale in (partial, partial.with_name(partial.name + "-journal")):
            stale.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(partial)) as database:
            database.executescript(_TABLES)
            database.executemany("INSERT INTO meta VALUES (?, ?)", [("schema_version", SCHEMA_VERSION), *run.items()])
            database.commit()
        partial.rename(path)
        return cls._open(path)

    @classmethod
    def resume(cls, path: Path, *, run: dict[str, str]) -> "Ledger":
        """The ledger of an earlier run, which must have been the same one. Raises UsageError."""
        ledger = cls._open(path)
        meta = dict(ledger._db.execute("SELECT key, value FROM meta"))
        for key, value in {"schema_version": SCHEMA_VERSION, **run}.items():
            if meta.get(key) != value:
                ledger._db.close()
                raise UsageError(
                    f"'{path.parent}' holds a run with another {key.replace('_', ' ')} ({meta.get(key)!r:.70}, now {value!r:.70}): "
                    "its rows would not compare. "
                    "Give another --out, or the same bundle, settings and release as before."
                )
        return ledger

    @classmethod
    def _open(cls, path: Path) -> "Ledger":
        try:
            connection = sqlite3.connect(path, isolation_level=None)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("SELECT count(*) FROM meta")
        except sqlite3.DatabaseError as error:
            raise UsageError(f"'{path}' is not a ledger that can be read: {error}. Give another --out.") from error
        return cls(connection)

    def discard(self) -> None:
        """Close and delete a ledger that was just created."""
        (path,) = [Path(file) for _, name, file in self._db.execute("PRAGMA database_list") if name == "main"]
        self._db.close()
        for part in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
            part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def add_inputs(self, inputs: Iterable[Input]) -> int:
        """Enter inputs, each once, however often it is named; returns how many were named before."""
        repeated = 0
        stream = iter(inputs)
        while batch := list(itertools.islice(stream, _BATCH)):
            with self._transaction() as database:
                rows = [(item.uri, os.fsencode(item.path)) for item in batch]
                added = database.executemany("INSERT OR IGNORE INTO inputs (uri, path) VALUES (?, ?)", rows).rowcount
            repeated += len(batch) - added
        return repeated

    def pending(self) -> Iterator[tuple[int, Input]]:
        """Inputs that are not done, in the order they were entered, read as they are asked for."""
        last = 0
        query = "SELECT id, uri, path FROM inputs WHERE shard IS NULL AND id > ? ORDER BY id LIMIT ?"
        while batch := self._db.execute(query, (last, _BATCH)).fetchall():
            for number, uri, path in batch:
                yield number, Input(uri, os.fsdecode(path))
            last = batch[-1][0]

    def done(self) -> Iterator[Done]:
        """Inputs that are done, read as they are asked for."""
        query = "SELECT id, path, size_bytes, mtime_ns, content_hash FROM inputs WHERE shard IS NOT NULL AND id > ? ORDER BY id LIMIT ?"
        last = 0
        while batch := self._db.execute(query, (last, _BATCH)).fetchall():
            for number, path, size, mtime, content_hash in batch:
                yield Done(number, os.fsdecode(path), Stamp(size, mtime), content_hash)
            last = batch[-1][0]

    def touch(self, number: int, stamp: Stamp) -> None:
        """An input whose content is the same has another time stamp now."""
        self._db.execute("UPDATE inputs SET size_bytes = ?, mtime_ns = ? WHERE id = ?", (stamp.size_bytes, stamp.mtime_ns, number))

    def reopen(self, number: int) -> None:
        """An input has changed since: its rows no longer count."""
        self._db.execute("UPDATE inputs SET shard = NULL, status = NULL WHERE id = ?", (number,))

    def reopen_failed(self) -> None:
        """Inputs that failed are to be tried again."""
        self._db.execute("UPDATE inputs SET shard = NULL, status = NULL WHERE status = 'failed'")

    def knows(self, uri: str) -> bool:
        """Whether an input of this name was entered."""
        return self._db.execute("SELECT 1 FROM inputs WHERE uri = ?", (uri,)).fetchone() is not None

    def commit_shard(self, shard: str, entries: list[tuple[int, str, Stamp, str | None]]) -> None:
        """Name a shard that is safely on disk, and the (input, status, stamp, content hash) it accounts for, in one transaction."""
        with self._transaction() as database:
            database.execute("INSERT INTO shards VALUES (?)", (shard,))
            database.executemany(
                "UPDATE inputs SET shard = ?, status = ?, size_bytes = ?, mtime_ns = ?, content_hash = ? WHERE id = ?",
                [(shard, status, stamp.size_bytes, stamp.mtime_ns, content_hash, number) for number, status, stamp, content_hash in entries],
            )

    def shards(self) -> list[str]:
        """The shards that count, in name order."""
        return [shard for (shard,) in self._db.execute("SELECT id FROM shards ORDER BY id")]

    def uris_of(self, shard: str) -> set[str]:
        """The inputs whose rows in this shard count."""
        return {uri for (uri,) in self._db.execute("SELECT uri FROM inputs WHERE shard = ?", (shard,))}

    def counts(self) -> dict[str, int]:
        """Inputs by status, `pending` for those not done, and their sum `inputs`."""
        counts = {"scored": 0, "abstained": 0, "failed": 0, "pending": 0}
        counts.update(self._db.execute("SELECT coalesce(status, 'pending'), count(*) FROM inputs GROUP BY 1"))
        return {"inputs": sum(counts.values()), **counts}
