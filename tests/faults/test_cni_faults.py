"""What goes wrong around ADD and DEL: a full disk, two at once, a stopped agent, strangers.

pod, other (ns)
  eth0
   │ veth
───┴── npbr0 ── node (ns)      the agent's state may lie on a tmpfs of its own
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from netplane.cni.pods import pod_down, pod_up
from netplane.commands.install import BINARY
from netplane.kernel import netns
from netplane.model.base import ObjectMeta
from netplane.model.own import Attachment, AttachmentIP, AttachmentSpec

from .machine import NETPLANE, Machine, plain

pytestmark = pytest.mark.root
MakeNetns = Callable[[str], str]


@pytest.fixture
def machine(make_netns: MakeNetns, tmp_path: Path) -> Iterator[Machine]:
    made = Machine(make_netns("node"), tmp_path)
    made.start()
    yield made
    made.stop(signal.SIGKILL)


@pytest.fixture
def small(make_netns: MakeNetns, tmp_path: Path) -> Iterator[Machine]:
    """The agent's state lies on a tmpfs of 1 MiB that only the agent sees; it sees no later namespaces."""
    script = f'mount -t tmpfs -o size=1m none {tmp_path}/state && exec "$@"'
    made = Machine(make_netns("node"), tmp_path, ("unshare", "-m", "sh", "-c", script, "sh"))
    yield made
    made.stop(signal.SIGKILL)


def room(machine: Machine, free: int | None) -> None:
    """Leave ``free`` KiB on the agent's disk, or all that a filler took."""
    assert machine.process is not None
    fill(Path(f"/proc/{machine.process.pid}/root{machine.state}"), free)


def fill(inside: Path, free: int | None) -> None:
    filler = inside / "filler"
    filler.unlink(missing_ok=True)
    if free is None:
        return
    left = os.statvfs(inside).f_bavail * os.statvfs(inside).f_frsize // 1024 - free
    filler.write_bytes(b"x" * 1024 * max(0, left))


def kernel(machine: Machine) -> dict[str, object]:
    """The host without the store, which only the agent sees."""
    machine.objects = lambda: []  # type: ignore[method-assign]
    return machine.host()


def test_an_agent_in_sync_answers_the_next_request(make_netns: MakeNetns, tmp_path: Path) -> None:
    """However late its socket opens, and though a killed one's is still there."""
    pod, machine = make_netns("pod"), Machine(make_netns("node"), tmp_path)
    machine.fate = "tests.faults.late"
    machine.death.write_text("0.2")
    try:
        machine.start()
        assert plain(machine("ADD", pod))
        machine.stop(signal.SIGKILL)
        machine.start()
        assert machine("DEL", pod) == ""
    finally:
        machine.stop(signal.SIGKILL)


def test_a_full_disk_is_an_error_that_says_so_and_leaves_nothing(
    small: Machine, make_netns: MakeNetns
) -> None:
    pod, first = make_netns("pod"), make_netns("first")
    small.start()
    assert "ips" in small("ADD", first)
    before, refused = kernel(small), 0
    for free in (0, 4, 8, 12, 16, 20, 24, 32, 48):
        room(small, free)
        answer = small("ADD", pod)
        if "code" in answer:
            refused += 1
            assert answer["code"] == 11 and "full" in answer["msg"], answer
            assert kernel(small) == before and "eth0" not in netns.run(pod, "ip", "link")
            assert "ips" not in small("ADD", pod)  # not half there, as if it were whole
        deleted = small("DEL", pod)
        assert deleted == "" or (deleted["code"] == 11 and "full" in deleted["msg"])
        room(small, None)
        assert small("DEL", pod) == "" and kernel(small) == before, free
    assert refused
    room(small, None)
    assert "ips" in small("ADD", pod)
    room(small, 0)
    stuck = small("DEL", pod)
    assert stuck == "" or stuck["code"] == 11
    room(small, None)
    assert small("DEL", pod) == "" and kernel(small) == before


def test_a_full_disk_without_an_agent(make_netns: MakeNetns, tmp_path: Path) -> None:
    """The same for the process that serves a machine without a daemon: its state and its journal."""
    state = tmp_path / "state"
    machine = Machine(make_netns("node"), tmp_path, standalone=True, stateDir=str(state))
    machine.config["ipam"] = {"ranges": [[{"subnet": "10.88.0.0/24"}]]}
    machine.netplane("install", "--cni-bin-dir", f"{tmp_path}/bin", "--cni-conf-dir", f"{tmp_path}/conf")
    machine.binary = f"{tmp_path}/bin/netplane"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", state], check=True)
    try:
        pod, first = make_netns("pod"), make_netns("first")
        assert "ips" in machine("ADD", first)
        before, refused = machine.host(), 0
        for free in (0, 16, 40):
            fill(state, free)
            answer = machine("ADD", pod)
            if "code" in answer:
                refused += 1
                assert answer["code"] == 11 and "full" in answer["msg"].lower(), answer
                assert kernel(machine) == {**before, "objects": []}
            machine("DEL", pod)
            fill(state, None)
            assert machine("DEL", pod) == ""
            vars(machine).pop("objects", None)
            assert machine.host() == before, free
        assert refused
    finally:
        subprocess.run(["umount", state], check=True)


def test_of_adds_of_one_interface_at_once_one_wins(machine: Machine, make_netns: MakeNetns) -> None:
    pod, warm = make_netns("pod"), make_netns("warm")
    machine("ADD", warm)
    before = machine.host()
    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: machine("ADD", pod), range(8)))
        assert sorted("ips" in a for a in answers) == [False] * 7 + [True]
        assert {a["code"] for a in answers if "code" in a} == {4}
        assert "eth0" in netns.run(pod, "ip", "link")
        assert machine("DEL", pod) == "" and machine.host() == before


def test_a_stopped_agent_is_an_error_in_time_and_is_asked_again(
    machine: Machine, make_netns: MakeNetns
) -> None:
    pod = make_netns("pod")
    assert machine.process is not None
    machine.process.send_signal(signal.SIGSTOP)
    environment = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c",
        "CNI_NETNS": pod,
        "CNI_IFNAME": "eth0",
        "NETPLANE_CNI_TIMEOUT": "1",
    }
    began = time.monotonic()
    config = b'{"cniVersion":"1.1.0","name":"net","type":"netplane","socket":"%b"}' % (
        os.fsencode(machine.run_dir / "cni.sock")
    )
    done = subprocess.run([BINARY], env=environment, input=config, capture_output=True, check=False)
    assert time.monotonic() - began < 5
    assert done.returncode == 1 and b'"code":11' in done.stdout and b"did not answer in 1 s" in done.stdout
    machine.process.send_signal(signal.SIGCONT)
    assert machine("DEL", pod) == ""  # of another container: nothing to do
    environment["CNI_COMMAND"] = "DEL"
    subprocess.run([BINARY], env=environment, input=config, check=True, stdout=subprocess.DEVNULL)
    assert "eth0" not in netns.run(pod, "ip", "link") and not machine.objects()


def test_another_user_is_refused(machine: Machine, make_netns: MakeNetns) -> None:
    """By the socket's mode; and should that be changed, by who the kernel says is speaking."""
    path, pod = machine.run_dir / "cni.sock", make_netns("pod")
    config = b'{"cniVersion":"1.1.0","name":"net","type":"netplane","socket":"%b"}' % os.fsencode(path)
    environment = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": pod, "CNI_IFNAME": "eth0"}

    def as_nobody() -> bytes:
        binary = Path("/proc/self/fd") / str(os.open(BINARY, os.O_PATH))
        return subprocess.run(
            [str(binary)], env=environment, input=config, capture_output=True, check=False,
            user=65534, group=65534, extra_groups=(), pass_fds=(int(binary.name),), cwd="/",
        ).stdout  # fmt: skip

    assert b"Permission denied" in as_nobody()
    for directory in (*path.parents[: len(path.parents) - 2],):
        directory.chmod(directory.stat().st_mode | 0o011)
    path.chmod(0o666)
    answer = as_nobody()
    assert b'"code":4' in answer and b"not user 65534" in answer
    assert not machine.objects()


def damage(machine: Machine) -> Path:
    """Break the state file as a bad disk might; its path."""
    path = machine.state / "state.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    for name in ("state.db-wal", "state.db-shm"):
        (machine.state / name).unlink(missing_ok=True)
    path.write_bytes(b"garbage!" * 512 + path.read_bytes()[4096:])
    return path


MAPPED = {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}}


def test_a_damaged_state_file_is_refused_and_the_pods_outlive_it(
    machine: Machine, make_netns: MakeNetns
) -> None:
    """That done, no packet is lost, no address is given twice, and DEL takes all away."""
    first = make_netns("first")
    machine("ADD", first)
    machine("DEL", first)
    clean = machine.host()
    a, b, gone = make_netns("a"), make_netns("b"), make_netns("gone")
    results = {
        pod: machine("ADD", pod, **MAPPED) if pod == a else machine("ADD", pod) for pod in (a, b, gone)
    }
    whole = machine.host()
    ping = netns.popen(b, ["ping", "-i", "0.02", "-w", "60", plain(results[a])[0]], stdout=subprocess.PIPE)
    machine.stop()
    path = damage(machine)
    argv = [NETPLANE, "agent", "--node", "n1", "--store", machine.store, "--run-dir", str(machine.run_dir)]
    argv += ["--state-dir", str(machine.state), "--node-ip", "192.0.2.1"]
    refused = netns.run(machine.at, "sh", "-c", 'exec "$@" 2>&1', "sh", *argv, check=False)
    assert "damaged" in refused and "move it away and start again" in refused
    assert "Traceback" not in refused
    path.rename(f"{path}.damaged")
    machine.start()
    ping.send_signal(signal.SIGINT)
    assert " 0% packet loss" in ping.communicate(timeout=10)[0].decode()
    assert {**machine.host(), "flows": []} == whole  # there is the ping's own
    for pod, result in results.items():
        more = MAPPED if pod == a else {}
        assert machine("CHECK", pod, prevResult=result, **more) == ""
    late = make_netns("late")
    assert "held by pod" in machine("ADD", late, **MAPPED)["msg"]
    assert not set(plain(machine("ADD", late))) & {ip for r in results.values() for ip in plain(r)}
    machine.stop()
    damage(machine).unlink()
    netns.delete(gone)  # while nobody looks
    machine.start()
    assert len([o for o in machine.objects() if o.startswith("Attachment")]) == 3
    for pod in (a, b, late):
        assert machine("DEL", pod) == ""
    assert machine.host() == clean


def test_a_record_that_was_deleted_stays_deleted(machine: Machine, make_netns: MakeNetns) -> None:
    """The same store without the record: somebody wanted it so, and nothing of it is put back."""
    a, b = make_netns("a"), make_netns("b")
    machine("ADD", a)
    before = machine.host()
    machine("ADD", b)
    machine.stop()
    (name,) = (o.split()[1] for o in machine.objects() if o.startswith("Att") and o not in before["objects"])
    machine.netplane("delete", "Attachment", name, "--store", machine.store)
    machine.netplane("delete", "Pod", "ns-b", "--store", machine.store)
    machine.start()
    assert machine.host() == before


def test_a_reboot_frees_every_address_and_a_restart_none(machine: Machine, make_netns: MakeNetns) -> None:
    """Of another boot: the records say so, though a runtime may have made a namespace of that name again."""
    clean, pod = machine.host(), make_netns("pod")
    address = plain(machine("ADD", pod))
    machine.stop()
    machine.start()
    other = make_netns("other")
    assert plain(machine("ADD", other)) != address
    machine.stop()
    netns.run(machine.at, "ip", "link", "del", "npbr0")  # what the reboot takes
    for at in (pod, other):
        netns.run(at, "ip", "link", "del", "eth0")
    text = machine.netplane("get", "Attachment", "-o", "json", "--store", machine.store)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert text.count(boot) == 2
    (machine.work / "old.json").write_text(text.replace(boot, "another"))
    machine.netplane("apply", "--store", machine.store, "-f", str(machine.work / "old.json"))
    machine.start()
    assert not machine.objects() and "eth0" not in netns.run(pod, "ip", "link")
    assert machine.host() == clean


def test_a_clock_that_goes_back_does_not_make_an_old_sandbox_the_newest() -> None:
    def attachment(container: str, revision: int, created: str) -> Attachment:
        spec = AttachmentSpec(
            node="n1", container_id=container, ifname="eth0", netns="/n", network="net",
            host_ifname="npv", ips=(AttachmentIP(address=f"10.244.1.{revision}/32"),),
            pod_name="web", pod_namespace="default",
        )  # fmt: skip
        meta = ObjectMeta(name=container, resource_version=str(revision), creation_timestamp=created)
        return Attachment(metadata=meta, spec=spec, phase="Ready")

    old = attachment("a", 2, "2026-01-01T12:00:00Z")
    new = attachment("b", 3, "2026-01-01T09:00:00Z")  # added later, by a clock that went back
    gone = attachment("c", 4, "2026-01-01T09:00:05Z")
    left = pod_down(pod_up(None, gone, {}, ()), gone, (old, new, gone), ())
    assert left is not None and list(left.ips) == ["10.244.1.3"]
