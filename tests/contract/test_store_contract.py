"""One suite over every store: the rules of netplane/store/base.py, as a user of it would see them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netplane.model import codec
from netplane.model.base import Key, Object, amend
from netplane.model.errors import Conflict, Expired, Invalid, NotFound, Unavailable
from netplane.store import Change, Store, open_store
from netplane.store.sqlite import SqliteStore

Opener = Callable[[], Any]


@pytest.fixture(params=["sqlite", "dir"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    home = tmp_path / "home"
    return f"sqlite://{home}/state.db" if request.param == "sqlite" else f"dir://{home}"


@pytest.fixture
def reopen(url: str) -> Iterator[Opener]:
    """Opens the store again, as another process or the next start would."""
    opened: list[Store] = []

    def make() -> Store:
        opened.append(open_store(url))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(reopen: Opener) -> Store:
    found: Store = reopen()
    return found


def config(name: str = "a", **data: str) -> Object:
    return codec.parse(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data or {"k": "v"}}
    )


def meta(obj: Object, **changes: Any) -> Object:
    changed: Object = amend(obj, metadata=amend(obj.metadata, **changes))
    return changed


def key(name: str = "a") -> Key:
    return Key("ConfigMap", "default", name)


def collect(watch: Any, count: int, seconds: float = 10) -> list[Change]:
    deadline = time.monotonic() + seconds
    found: list[Change] = []
    while len(found) < count and time.monotonic() < deadline:
        found += watch.next(deadline - time.monotonic())
    return found


# --- rule 1, 2, 5, 6: writes --------------------------------------------------------------------


def test_a_put_object_comes_back_from_get_and_list_with_a_revision(store: Store) -> None:
    stored = store.put(config())
    objects, revision = store.list()
    assert store.get(key()) == stored and objects == [stored]
    assert stored.revision == revision > 0


def test_revisions_grow_store_wide_and_over_a_restart(store: Store, reopen: Opener) -> None:
    seen = [store.put(config(n)).revision for n in "abc"]
    seen.append(store.delete(key("a")).revision)
    store.close()
    again = reopen()
    assert again.list()[1] == seen[-1]
    seen.append(again.put(config("a")).revision)
    assert seen == sorted(set(seen))


def test_list_takes_kinds(store: Store) -> None:
    store.put(config())
    namespace = store.put(
        codec.parse({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
    )
    assert store.list(["Namespace"])[0] == [namespace]
    assert store.list([])[0] == []


def test_expect_zero_creates_once(store: Store) -> None:
    store.put(config(), expect=0)
    with pytest.raises(Conflict, match="ConfigMap default/a: exists already, at revision 1"):
        store.put(config(k="other"), expect=0)


def test_expect_a_revision_writes_only_onto_it(store: Store) -> None:
    first = store.put(config())
    second = store.put(config(k="2"), expect=first.revision)
    with pytest.raises(Conflict, match=f"is at revision {second.revision}, the write expected"):
        store.put(config(k="3"), expect=first.revision)
    with pytest.raises(Conflict):
        store.delete(key(), expect=first.revision)
    assert store.delete(key(), expect=second.revision).key == key()
    with pytest.raises(NotFound):
        store.put(config(k="4"), expect=second.revision)


def test_delete_of_nothing_is_not_found_and_names_it(store: Store) -> None:
    with pytest.raises(NotFound, match="ConfigMap default/a"):
        store.delete(key())


def test_a_write_that_changes_nothing_makes_no_revision_and_no_event(store: Store) -> None:
    first = store.put(config())
    with store.watch(first.revision) as watch:
        assert store.put(config()) == first
        assert store.put(first, expect=first.revision) == first
        store.put(config(k="end"))
        assert [c.object.data for c in collect(watch, 1)] == [{"k": "end"}]  # type: ignore[attr-defined]
    assert store.list()[1] == first.revision + 1


def test_uid_and_creation_time_are_set_once_and_kept(store: Store) -> None:
    first = store.put(config())
    assert len(first.metadata.uid) == 36 and first.metadata.creation_timestamp.endswith("Z")
    changed = store.put(meta(config(k="2"), uid="mine", creation_timestamp="1999-01-01T00:00:00Z"))
    assert changed.metadata.uid == first.metadata.uid
    assert changed.metadata.creation_timestamp == first.metadata.creation_timestamp
    store.delete(key())
    assert store.put(config()).metadata.uid != first.metadata.uid


def test_a_bad_object_is_refused_and_nothing_is_written(store: Store) -> None:
    with pytest.raises(Invalid, match=r"metadata\.name"):
        store.put(meta(config(), name=""))
    assert store.list() == ([], 0)


def test_finalizers_hold_a_deleted_object_until_the_last_is_removed(store: Store) -> None:
    held = store.put(meta(config(), finalizers=("one", "two")))
    marked = store.delete(key())
    assert marked.deleting and marked.revision > held.revision and store.get(key()) == marked
    assert store.delete(key()) == marked, "a second delete changes nothing"
    with pytest.raises(Invalid, match="finalizers"):
        store.put(meta(marked, finalizers=("one", "three")))
    fewer = store.put(meta(marked, finalizers=("two",), deletion_timestamp=""))
    assert fewer.deleting and store.get(key()) == fewer
    with store.watch(fewer.revision) as watch:
        store.put(meta(fewer, finalizers=()))
        assert [(c.key, c.deleted) for c in collect(watch, 1)] == [(key(), True)]
    assert store.get(key()) is None


# --- rule 3: watches ------------------------------------------------------------------------------


def test_a_watch_sees_every_change_in_order(store: Store) -> None:
    start = store.list()[1]
    with store.watch(start) as watch:
        store.put(config("a"))
        store.put(config("b"))
        store.put(config("a", k="2"))
        store.delete(key("b"))
        changes = collect(watch, 4)
        assert [(c.object.name, c.deleted) for c in changes] == [
            ("a", False), ("b", False), ("a", False), ("b", True),
        ]  # fmt: skip
        assert [c.revision for c in changes] == list(range(start + 1, start + 5))
        assert all(c.revision == c.object.revision for c in changes)
        assert watch.next(0) == []


def test_a_watch_of_kinds_leaves_the_others_out(store: Store) -> None:
    with store.watch(0, ["Namespace"]) as watch:
        store.put(config())
        store.put(codec.parse({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}))
        assert [c.object.KIND for c in collect(watch, 1)] == ["Namespace"]


def test_a_watch_starts_in_the_past(store: Store) -> None:
    first = store.put(config("a"))
    store.put(config("b"))
    with store.watch(first.revision) as watch:
        assert [c.object.name for c in collect(watch, 1)] == ["b"]


def test_next_waits_no_longer_than_asked(store: Store) -> None:
    with store.watch(0) as watch:
        began = time.monotonic()
        assert watch.next(0.05) == []
        assert 0.05 <= time.monotonic() - began < 1


@pytest.mark.parametrize("what", ["watch", "store"])
def test_close_from_another_thread_ends_a_waiting_watch(store: Store, what: str) -> None:
    watch = store.watch(0)
    answers: list[Any] = []

    def wait() -> None:
        try:
            answers.append(watch.next())
        except Unavailable:
            answers.append("unavailable")

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive(), "it waits while nothing happens"
    (watch if what == "watch" else store).close()
    thread.join(5)
    assert answers == ([[]] if what == "watch" else ["unavailable"])


def test_a_revision_that_the_store_never_had_expires(store: Store) -> None:
    store.put(config())
    with pytest.raises(Expired, match="list again"), store.watch(99) as watch:
        watch.next(1)


def test_history_is_bounded_and_a_watch_from_before_it_expires(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "s.db"), keep=50)
    for i in range(300):
        store.put(config(k=str(i)))
    with pytest.raises(Expired, match="list again"), store.watch(1) as watch:
        watch.next(1)
    with store.watch(store.list()[1] - 1) as watch:
        assert len(watch.next(1)) == 1
    store.close()


# --- several threads and processes ----------------------------------------------------------------


def run_python(code: str, *args: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", textwrap.dedent(code), *args]
    return subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


COUNT_UP = """
    import sys
    from netplane.model import codec
    from netplane.model.base import Key, amend
    from netplane.model.errors import Conflict
    from netplane.store import open_store
    store = open_store(sys.argv[1])
    for _ in range(int(sys.argv[2])):
        while True:
            now = store.get(Key("ConfigMap", "default", "n"))
            try:
                store.put(amend(now, data={"n": str(int(now.data["n"]) + 1)}), now.revision)
                break
            except Conflict:
                pass
    store.close()
"""


def test_two_processes_and_a_thread_lose_no_write_and_a_watch_sees_each(store: Store, url: str) -> None:
    start = store.put(config("n", n="0")).revision
    with store.watch(start) as watch:
        others = [run_python(COUNT_UP, url, "100") for _ in range(2)]
        for _ in range(50):
            while True:
                now: Any = store.get(key("n"))
                try:
                    store.put(amend(now, data={"n": str(int(now.data["n"]) + 1)}), now.revision)
                    break
                except Conflict:
                    continue
        assert [p.wait(30) for p in others] == [0, 0]
        seen = [(c.revision, c.object.data["n"]) for c in collect(watch, 250)]  # type: ignore[attr-defined]
    assert seen == [(start + i, str(i)) for i in range(1, 251)]


def test_threads_share_a_store(store: Store) -> None:
    def write(name: str) -> None:
        for i in range(40):
            store.put(config(name, k=str(i)))

    threads = [threading.Thread(target=write, args=(n,)) for n in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.list()[1] == 160 and len(store.list()[0]) == 4


def test_a_watch_that_never_sleeps_loses_nothing_between_two_looks(store: Store, url: str) -> None:
    start = store.put(config("n", n="0")).revision
    with store.watch(start) as watch:
        other = run_python(COUNT_UP, url, "1500")
        seen: list[int] = []
        while len(seen) < 1500 and other.poll() in (None, 0):
            seen += [c.revision for c in watch.next(0)]
        assert other.wait(30) == 0
    assert seen == list(range(start + 1, start + 1501))


STAMP = """
    import sys, time
    from netplane.model import codec
    from netplane.store import open_store
    store = open_store(sys.argv[1])
    print("ready", flush=True)
    for i, _ in enumerate(sys.stdin):
        doc = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "t"}}
        store.put(codec.parse({**doc, "data": {"i": str(i), "t": str(time.monotonic())}}))
    store.close()
"""


def test_a_watch_hears_of_another_process_within_50_ms(store: Store, url: str) -> None:
    other = run_python(STAMP, url)
    assert other.stdin and other.stdout and other.stdout.readline() == "ready\n"
    late: list[float] = []
    with store.watch(store.list()[1]) as watch:
        for _ in range(100):
            other.stdin.write("\n")
            other.stdin.flush()
            (change,) = collect(watch, 1)
            late.append(time.monotonic() - float(change.object.data["t"]))  # type: ignore[attr-defined]
    other.stdin.close()
    assert other.wait(10) == 0
    assert sorted(late)[98] < 0.05, f"p99 {sorted(late)[98] * 1000:.1f} ms"


def test_a_waiting_watch_costs_no_cpu(store: Store) -> None:
    with store.watch(0) as watch:
        before = time.thread_time(), time.process_time()
        assert watch.next(1.5) == []
        assert time.process_time() - before[1] < 0.03


# --- rule 4: outages ------------------------------------------------------------------------------


def test_an_outage_is_unavailable_and_its_end_is_survived(store: Store, tmp_path: Path) -> None:
    kept = store.put(config())
    watch = store.watch(kept.revision)
    home, away = tmp_path / "home", tmp_path / "away"
    home.rename(away)
    for verb in (
        store.list,
        lambda: store.get(key()),
        lambda: store.put(config("b")),
        lambda: store.delete(key()),
        lambda: watch.next(5),
    ):
        with pytest.raises(Unavailable, match="home"):
            verb()
    assert not home.exists(), "no empty store takes the place of the one that is away"
    away.rename(home)
    assert store.get(key()) == kept
    store.put(config("b"))
    assert [c.object.name for c in collect(watch, 1)] == ["b"]
    watch.close()


def test_a_watch_that_waits_learns_of_an_outage(store: Store, tmp_path: Path) -> None:
    watch = store.watch(store.put(config()).revision)
    answer: list[str] = []

    def wait() -> None:
        try:
            watch.next(10)
        except Unavailable as exc:
            answer.append(str(exc))

    thread = threading.Thread(target=wait)
    thread.start()
    (tmp_path / "home").rename(tmp_path / "away")
    thread.join(5)
    (tmp_path / "away").rename(tmp_path / "home")
    assert len(answer) == 1 and "home" in answer[0]


def test_another_store_in_its_place_expires_every_watch(store: Store, tmp_path: Path) -> None:
    store.put(config("old"))
    watch = store.watch(store.list()[1])
    (tmp_path / "home").rename(tmp_path / "away")
    name = "home/.netplane/state.db" if store.url.startswith("dir") else "home/state.db"
    other = SqliteStore(str(tmp_path / name))
    for i in range(3):
        other.put(config(f"new{i}"))
    other.close()
    with pytest.raises(Expired):
        watch.next(5)
    assert {o.name for o in store.list()[0]} == {"new0", "new1", "new2"}
