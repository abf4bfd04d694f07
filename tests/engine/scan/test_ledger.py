"""The ledger and the sink: what is named is on disk, what is not named does not count."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dissonance.config import ExecutionConfig
from dissonance.engine.scan.ledger import Ledger, Stamp
from dissonance.engine.scan.rows import FILES
from dissonance.engine.scan.sink import Sink
from dissonance.engine.scan.sources import Input
from dissonance.engine.scan.verdict import FileVerdict
from dissonance.errors import UsageError

RUN = {"bundle": "b", "scan_config": "c"}
STAMP = Stamp(10, 20)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(tmp_path / "run.db", run=RUN) as ledger:
        yield ledger


def verdict(uri: str, **values: object) -> FileVerdict:
    row = {**dict.fromkeys(FILES.names), "uri": uri, "status": "scored", **values}
    return FileVerdict(row, [{"uri": uri, "track": 0}], [{"uri": uri, "track": 0, "window": number} for number in range(3)])


def add(ledger: Ledger, *names: str) -> int:
    return ledger.add_inputs(Input(name, "/p/" + name) for name in names)


def test_an_input_named_twice_is_one_input(ledger: Ledger) -> None:
    assert add(ledger, "a", "b", "a") == 1
    assert add(ledger, "b", "c") == 1
    assert [item.uri for _, item in ledger.pending()] == ["a", "b", "c"]
    assert ledger.counts() == {"inputs": 3, "scored": 0, "abstained": 0, "failed": 0, "pending": 3}


def test_pending_and_done_are_read_past_a_batch(ledger: Ledger) -> None:
    names = [f"{number:05d}" for number in range(2500)]
    add(ledger, *names)
    numbered = list(ledger.pending())
    assert [item.uri for _, item in numbered] == names
    ledger.commit_shard("s", [(number, "scored", STAMP, "h") for number, _ in numbered])
    assert [done.path for done in ledger.done()] == ["/p/" + name for name in names]
    assert list(ledger.pending()) == []


def test_resume_takes_only_the_same_run(ledger: Ledger, tmp_path: Path) -> None:
    add(ledger, "a")
    with Ledger.resume(tmp_path / "run.db", run=RUN) as again:
        assert again.counts()["inputs"] == 1
    with pytest.raises(UsageError, match="another scan config"):
        Ledger.resume(tmp_path / "run.db", run={**RUN, "scan_config": "other"})


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.db").write_bytes(b"not a database at all, whatever it is called")
    with pytest.raises(UsageError, match="not a ledger"):
        Ledger.resume(tmp_path / "run.db", run=RUN)


def test_a_shard_that_the_ledger_does_not_name_is_deleted_on_resume(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(ledger, "a", "b")
    (first, _), (second, _) = ledger.pending()
    sink = Sink(tmp_path, ledger, execution=ExecutionConfig())
    sink.add(first, verdict("a"), STAMP)
    sink.flush()
    sink.add(second, verdict("b"), STAMP)
    monkeypatch.setattr(Ledger, "commit_shard", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # killed between the rename and the transaction
    with pytest.raises(KeyboardInterrupt):
        sink.flush()
    monkeypatch.undo()
    assert len(list((tmp_path / "shards").iterdir())) == 6
    Sink(tmp_path, ledger, execution=ExecutionConfig()).merge()
    assert len(list((tmp_path / "shards").iterdir())) == 3
    assert pq.read_table(tmp_path / "files.parquet")["uri"].to_pylist() == ["a"]
    assert pq.read_table(tmp_path / "windows.parquet").num_rows == 3
    assert [item.uri for _, item in ledger.pending()] == ["b"]


def test_rows_of_an_input_done_again_replace_the_old_ones(ledger: Ledger, tmp_path: Path) -> None:
    add(ledger, "a", "b")
    numbers = [number for number, _ in ledger.pending()]
    sink = Sink(tmp_path, ledger, execution=ExecutionConfig())
    for number, name in zip(numbers, "ab", strict=True):
        sink.add(number, verdict(name, p_fake=0.1), STAMP)
    sink.flush()
    ledger.reopen(numbers[0])
    sink.add(numbers[0], verdict("a", p_fake=0.9), STAMP)
    sink.flush()
    sink.merge()
    rows = {row["uri"]: row["p_fake"] for row in pq.read_table(tmp_path / "files.parquet").to_pylist()}
    assert rows == {"a": 0.9, "b": 0.1}
    assert pq.read_table(tmp_path / "tracks.parquet").num_rows == 2
    assert (tmp_path / "files.jsonl").read_text().count("\n") == 2


def test_shards_are_written_when_full(ledger: Ledger, tmp_path: Path) -> None:
    add(ledger, *"abcde")
    sink = Sink(tmp_path, ledger, execution=ExecutionConfig(shard_files=2))
    for number, item in list(ledger.pending()):
        sink.add(number, verdict(item.uri), STAMP)
    assert len(ledger.shards()) == 2
    assert ledger.counts()["pending"] == 1


def test_the_ledger_is_ordinary_sqlite_that_others_can_read(ledger: Ledger, tmp_path: Path) -> None:
    add(ledger, "a")
    with sqlite3.connect(tmp_path / "run.db") as database:
        assert database.execute("SELECT value FROM meta WHERE key = 'bundle'").fetchone() == ("b",)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
