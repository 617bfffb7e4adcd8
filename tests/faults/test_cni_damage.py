"""A state file damaged here or there: refused with its name and what to do, then rebuilt from the spare.

pods a, b, c (ns)
  eth0
   │ veth
───┴── npbr0, br-own ── node (ns)     no agent, then one
"""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from netplane.kernel import netns
from netplane.store.sqlite import SqliteStore
from tests.faults.machine import Machine as AgentMachine
from tests.netns.test_cni_standalone import Machine, plain

pytestmark = pytest.mark.root
MakeNetns = Callable[[str], str]
OWN = {"name": "own", "bridge": "br-own", "ipam": {"ranges": [[{"subnet": "10.88.0.0/24"}]]}}
PAGE = 4096


def checkpointed(path: Path) -> bytearray:
    """The file with all that the WAL holds."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return bytearray(path.read_bytes())


def record(path: Path, change: str) -> str:
    """Change the bodies of the pod's Attachment and of no other; its name."""
    with closing(sqlite3.connect(path)) as db:
        (name,) = db.execute("SELECT name FROM objects WHERE kind = 'Attachment' ORDER BY rowid").fetchone()
        db.execute(f"UPDATE objects SET body = {change} WHERE kind = 'Attachment' AND name = ?", (name,))
        db.commit()
    return str(name)


def page_of(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()[0])


def cut_record(path: Path) -> str:
    return "Attachment " + record(path, "substr(body, 1, length(body) / 2)")


def no_record(path: Path) -> str:
    return "Attachment " + record(path, "7")


def strange_record(path: Path) -> str:
    return "Attachment " + record(path, "CAST(replace(CAST(body AS TEXT), 'containerID', 'x') AS BLOB)")


def objects_page(path: Path) -> str:
    page, data = page_of(path, "objects"), checkpointed(path)
    data[(page - 1) * PAGE : page * PAGE] = b"\xa5" * PAGE
    path.write_bytes(data)
    return str(path)


def index_page(path: Path) -> str:
    page, data = page_of(path, "sqlite_autoindex_objects_1"), checkpointed(path)
    data[(page - 1) * PAGE : page * PAGE] = b"\x00" * PAGE
    path.write_bytes(data)
    return str(path)


def cut_file(path: Path) -> str:
    data = checkpointed(path)
    path.write_bytes(data[: len(data) // 2 // PAGE * PAGE])
    return str(path)


PLACES = (cut_record, no_record, strange_record, objects_page, index_page, cut_file)


def test_without_an_agent_it_is_refused_and_rebuilt(make_netns: MakeNetns, tmp_path: Path) -> None:
    machine = Machine(make_netns("node"), tmp_path)
    a, b, c = make_netns("a"), make_netns("b"), make_netns("c")
    node, own = plain(machine("ADD", a))[0], plain(machine("ADD", b, **OWN))[0]
    path = machine.work / "state" / "state.db"
    whole = checkpointed(path)
    for damage in PLACES:
        for beside in path.parent.glob("state.db-*"):
            beside.unlink()
        path.write_bytes(whole)
        said = damage(path)
        for command, pod in (("DEL", a), ("CHECK", a), ("GC", a)):
            answer = machine(command, pod, **({"prevResult": {"ips": []}} if command == "CHECK" else {}))
            assert answer and answer["code"] == 7, (damage.__name__, command, answer)
            assert f"store {path} is damaged" in answer["msg"] and said in answer["msg"], answer
            assert "move it away and start again" in answer["msg"], answer
    netns.run(machine.at, "ping", "-c", "1", "-W", "2", node)
    path.rename(f"{path}.damaged")
    assert plain(machine("ADD", c, **OWN))[0] not in (own, node)
    netns.run(c, "ping", "-c", "1", "-W", "2", own)
    netns.run(machine.at, "ping", "-c", "1", "-W", "2", node)
    for pod, network in ((a, {}), (b, OWN), (c, OWN)):
        assert machine("DEL", pod, **network) == ""
    assert not machine.links() and not machine.attachments()


@pytest.mark.parametrize("damage", [cut_record, objects_page])
def test_an_agent_says_so_and_puts_back_what_the_spare_holds(
    make_netns: MakeNetns, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    machine = AgentMachine(make_netns("node"), tmp_path)
    a, b = make_netns("a"), make_netns("b")
    machine.start()
    try:
        address = plain(machine("ADD", a))[0]
        machine.stop(signal.SIGKILL)
        path = machine.state / "state.db"
        checkpointed(path)
        said = damage(path)
        machine.launch()
        assert machine.process is not None and machine.process.wait(30) == 1
        machine.process = None
        last = machine.log().splitlines()[-1]
        assert f"store {path} is damaged" in last and said in last and "move it away" in last
        assert "Traceback" not in machine.log()
        netns.run(machine.at, "ping", "-c", "1", "-W", "2", address)
        path.rename(f"{path}.damaged")
        machine.start()
        netns.run(machine.at, "ping", "-c", "1", "-W", "2", address)
        assert plain(machine("ADD", b))[0] != address
        assert machine("DEL", a) == "" == machine("DEL", b) and not machine.objects()
    finally:
        machine.stop(signal.SIGKILL)


def test_every_way_to_an_unreadable_object_names_it(tmp_path: Path) -> None:
    from netplane.model import codec
    from netplane.model.base import Key
    from netplane.model.errors import Invalid

    path = tmp_path / "state.db"
    store = SqliteStore(str(path))
    kept = store.put(codec.parse({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}))
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE objects SET body = substr(body, 1, 9)")
        db.execute("UPDATE log SET body = substr(body, 1, 9)")
        db.commit()
    for call in (
        store.list,
        lambda: store.get(kept.key),
        lambda: store.put(kept),
        lambda: store.delete(kept.key),
    ):
        with pytest.raises(
            Invalid, match=rf"store {path} is damaged: {Key('ConfigMap', 'default', 'a')}: .*move"
        ):
            call()
    with store.watch(0) as watch, pytest.raises(Invalid, match=rf"store {path} is damaged: change 1: .*move"):
        watch.next(1)
    store.close()
