"""The file beneath SqliteStore: what is refused, what is survived, and what it costs."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from netplane.model import codec
from netplane.model.base import Object
from netplane.model.changes import Delete, Put
from netplane.model.errors import Conflict, Invalid, Unavailable
from netplane.store import sqlitefile
from netplane.store.sqlite import SqliteStore

from ..programs import program


def config(name: str, size: int = 1) -> Object:
    doc = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "x" * size}}
    return codec.parse(doc)


def test_a_new_store_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "state.db"
    store = SqliteStore(str(path))
    store.put(config("a"))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
    store.close()


def test_a_file_of_rubbish_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"not a database, but somebody's" * 100)
    with pytest.raises(Invalid, match=r"state\.db is damaged or not a netplane store .* move it away"):
        SqliteStore(str(path))
    assert path.read_bytes() == b"not a database, but somebody's" * 100


def test_another_programs_database_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (x)")
    db.commit()
    db.close()
    before = path.read_bytes()
    with pytest.raises(Invalid, match="another program's SQLite file"):
        SqliteStore(str(path))
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    SqliteStore(str(path)).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=7")
    db.close()
    with pytest.raises(Invalid, match="has schema 7, this netplane reads 1: upgrade netplane"):
        SqliteStore(str(path))


def test_a_directory_in_its_place_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=str(tmp_path)):
        SqliteStore(str(tmp_path))


@pytest.mark.root
def test_a_full_disk_is_unavailable_and_its_end_is_survived(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(disk)], check=True)
    try:
        store = SqliteStore(str(disk / "state.db"))
        kept = store.put(config("kept"))
        with pytest.raises(Unavailable, match="full"):
            _ = [store.put(config(f"big{i}", 20_000)) for i in range(1000)]
        assert store.get(kept.key) == kept
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert store.put(config("after", 20_000)).revision > kept.revision
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_many_processes_may_open_a_new_store_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from netplane.store.sqlite import SqliteStore; from netplane.model import codec\n"
        "s = SqliteStore(sys.argv[1]); doc = {'apiVersion': 'v1', 'kind': 'ConfigMap'}\n"
        "s.put(codec.parse({**doc, 'metadata': {'name': 'n' + sys.argv[2]}})); s.close()"
    )
    path = str(tmp_path / "new" / "state.db")
    crowd = [subprocess.Popen([sys.executable, "-c", code, path, str(i)]) for i in range(6)]
    assert [p.wait(60) for p in crowd] == [0] * 6
    store = SqliteStore(path)
    assert len(store.list()[0]) == 6
    store.close()


def test_a_writer_killed_at_any_point_leaves_whole_writes_only(tmp_path: Path) -> None:
    code = (
        "import sys; from netplane.store.sqlite import SqliteStore; from netplane.model import codec\n"
        "s = SqliteStore(sys.argv[1])\n"
        "for i in range(10**6):\n"
        "    doc = {'apiVersion': 'v1', 'kind': 'ConfigMap', 'metadata': {'name': f'n{i}'}}\n"
        "    s.put(codec.parse(doc)); print(i, flush=True)"
    )
    path = str(tmp_path / "state.db")
    for turn in (1, 2, 3):
        with program(sys.executable, "-c", code, path) as writer:
            assert writer.stdout
            told = [int(writer.stdout.readline()) for _ in range(100 * turn)][-1]
        store = SqliteStore(path)
        objects, revision = store.list()
        assert {o.revision for o in objects} == set(range(1, revision + 1)) and revision > told
        store.close()


def test_put_all_writes_all_or_none(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "state.db"))
    store.put(config("b"))
    with pytest.raises(Conflict):
        store.put_all([config("a"), config("b", 2)], [0, 0])
    assert [o.name for o in store.list()[0]] == ["b"]
    assert [o.revision for o in store.put_all([config("a"), config("b", 2)])] == [2, 3]
    store.close()


def test_bulk_is_quick(tmp_path: Path) -> None:
    """Wide margins over what was measured (docs/store.md), so that only a change of order fails."""
    store = SqliteStore(str(tmp_path / "state.db"))
    began = time.monotonic()
    for i in range(1000):
        store.put(config(f"one{i}"))
    single = time.monotonic() - began
    began = time.monotonic()
    store.put_all(config(f"all{i}") for i in range(30_000))
    batch = time.monotonic() - began
    began = time.monotonic()
    assert len(store.list()[0]) == 31_000
    listed = time.monotonic() - began
    store.close()
    assert (single < 2, batch < 10, listed < 2) == (True, True, True), (single, batch, listed)


def test_store_survives_losing_its_directory_for_good_until_someone_makes_it_anew(tmp_path: Path) -> None:
    home = tmp_path / "home"
    store = SqliteStore(str(home / "state.db"))
    store.put(config("a"))
    for file in home.iterdir():
        file.unlink()
    os.rmdir(home)
    with pytest.raises(Unavailable, match="No such file or directory; it is used again once it is back"):
        store.put(config("b"))
    SqliteStore(str(home / "state.db")).close()
    store.put(config("c"))
    assert [o.name for o in store.list()[0]] == ["c"]
    store.close()


def test_a_watcher_that_knows_its_own_writes_is_told_of_the_others(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    ours, theirs = SqliteStore(path), SqliteStore(path)
    with ours.watch(0) as watch:
        assert watch.skip(ours.put(config("a")).revision) == 1
        assert watch.next(0.3) == []
        theirs.put(config("b"))
        known = ours.put(config("c")).revision
        assert watch.skip(known) == 1  # 2 is not known yet
        brought = watch.next(5)
        assert [c.object.name for c in brought][:1] == ["b"]
        assert watch.next(0.3) == [] and watch.skip(known) == 3

        theirs.put(config("d"))
        assert [c.object.name for c in watch.next(5)] == ["d"]
    ours.close()
    theirs.close()


def test_what_a_watcher_has_in_hand_is_not_counted_as_known(tmp_path: Path) -> None:
    """It has got 1 and not taken it in: who hears that 2 needs no bringing must not believe that 1 is old."""
    ours, theirs = SqliteStore(str(tmp_path / "state.db")), SqliteStore(str(tmp_path / "state.db"))
    with ours.watch(0) as watch:
        theirs.put(config("a"))
        assert [c.revision for c in watch.next(5)] == [1]
        known = ours.put(config("b")).revision
        assert watch.skip(known) == 0
        assert watch.next(0) == [] and watch.skip(known) == 2
    for store in (ours, theirs):
        store.close()


def test_puts_and_deletes_of_one_write_are_one_transaction(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "state.db"))
    a = store.put(config("a"))
    with pytest.raises(Conflict):
        store.write([Delete(a.key), Put(config("b"), 0), Put(config("b"), 0)])
    assert [o.name for o in store.list()[0]] == ["a"]
    gone, made = store.write([Delete(a.key, a.revision), Put(config("b"), 0)])
    assert (gone.name, made.name, made.revision) == ("a", "b", 3)
    assert [o.name for o in store.list()[0]] == ["b"]
    store.close()


def test_writes_that_come_together_are_one_transaction_and_each_is_whole_or_nothing(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "state.db"))
    store.put(config("taken"))
    other = sqlite3.connect(str(tmp_path / "state.db"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # the first waits for this one, the others for the first
    wal = tmp_path / "state.db-wal"
    before = wal.stat().st_size
    refused: list[str] = []

    def write(name: str) -> None:
        try:
            store.write([Put(config(f"with-{name}")), Put(config(name), 0)])
        except Conflict:
            refused.append(name)

    threads = [threading.Thread(target=write, args=(n,)) for n in ("first", "a", "taken", "b", "c")]
    for i, thread in enumerate(threads):
        thread.start()
        while i and len(store.together) < i:
            pass
    other.execute("ROLLBACK")
    for thread in threads:
        thread.join(10)
    assert refused == ["taken"]
    names = ["a", "b", "c", "first", "taken", "with-a", "with-b", "with-c", "with-first"]
    objects, revision = store.list()
    assert sorted(o.name for o in objects) == names
    assert revision == 9 and sorted(o.revision for o in objects) == list(range(1, 10))
    frames = (wal.stat().st_size - before) // 4120
    assert frames < 12, frames  # five transactions would be fifteen pages at least
    other.close()
    store.close()


def test_a_file_with_rows_in_the_order_of_their_names_is_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As netplane made them before it kept rows in the order of their writing."""
    older = [table.replace("name))", "name)) WITHOUT ROWID") for table in sqlitefile.TABLES]
    older = [table.replace("PRIMARY KEY,", "PRIMARY KEY AUTOINCREMENT,") for table in older]
    assert all(a != b for a, b in zip(older[:2], sqlitefile.TABLES[:2], strict=True))
    path = str(tmp_path / "s.db")
    with monkeypatch.context() as patch:
        patch.setattr(sqlitefile, "TABLES", older)
        store = SqliteStore(path)
        first = store.put(config("a", 1))
        store.close()
    store = SqliteStore(path)
    with store.watch(first.revision) as watch:
        second = store.put(config("a", 2), first.revision)
        assert second.revision == first.revision + 1
        assert [change.object for change in watch.next(1)] == [second]
    store.delete(second.key)
    assert store.list() == ([], second.revision + 1)
    store.close()
