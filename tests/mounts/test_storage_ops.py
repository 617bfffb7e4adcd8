"""Operating it: volumes with walls that grow, metrics, describe, and a node that is given up, for real."""

from __future__ import annotations

import errno
import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from netplane.model.base import Key, amend
from netplane.model.codec import parse
from netplane.store import open_store
from storageplane import agent, names
from storageplane.host import mountinfo
from storageplane.host.mounts import Mounts
from storageplane.metrics import Operations
from storageplane.pods import session
from storageplane.pods.publish import publish, unpublish

from ..csi.conftest import grows_ext4
from ..sequences.storage_world import pod, pv, pvc, storage_class
from .test_storage_cli import Machine, until

pytestmark = pytest.mark.root
MIB = 1 << 20
CLAIM = Key("PersistentVolumeClaim", "default", "c")


class Bench:
    """An agent in this process over a store in a file, and a pod with one claim of a class."""

    def __init__(self, base: Path, size: str, **parameters: str) -> None:
        self.root, self.target = agent.prepare_root(base / "root"), str(base / "target")
        self.store = open_store(f"sqlite://{base}/state.db")
        self.user = open_store(f"sqlite://{base}/state.db")
        cls = storage_class("d", names.LOCAL, parameters=parameters, allowVolumeExpansion=True)
        for doc in (cls, pvc(size=size, storageClassName="d"), pod(node="n1")):
            self.user.put(parse(doc))
        self.registry = CollectorRegistry()
        self.agent = agent.Agent(self.store, agent.Config("n1", self.root), self.registry)
        self.agent.start()

    def claim(self) -> Any:
        return self.user.get(CLAIM)

    def publish(self) -> Path:
        controllers = agent.controllers(self.agent.config)
        where = (self.agent.config.node, str(self.root))
        found = session.ready(self.user, Key("Pod", "default", "p"), *where, controllers, 30)
        publish(*found, "n1", Mounts(self.root), self.target)
        return Path(self.target) / "data"

    def unpublish(self) -> None:
        unpublish("default", "p", Mounts(self.root), self.target)

    def ask(self, size: str) -> None:
        claim = self.claim()
        resources = amend(claim.spec.resources, requests={"storage": size})
        self.user.put(amend(claim, spec=amend(claim.spec, resources=resources)))

    def metrics(self) -> dict[str, float]:
        from prometheus_client import generate_latest

        text = generate_latest(self.registry).decode()
        mine = (s for family in text_string_to_metric_families(text) for s in family.samples)
        return {s.name: s.value for s in mine if s.labels.get("persistentvolumeclaim", "c") == "c"}

    def stop(self) -> None:
        self.unpublish()
        self.agent.stop()
        self.store.close()
        self.user.close()


@pytest.fixture
def benches(tmp_path: Path) -> Iterator[Any]:
    made: list[Bench] = []

    def make(size: str, before: Callable[[Path], object] = lambda _: None, **parameters: str) -> Bench:
        before(agent.prepare_root(Path(os.path.realpath(tmp_path)) / "root"))
        made.append(Bench(Path(os.path.realpath(tmp_path)), size, **parameters))
        return made[-1]

    yield make
    for bench in made:
        bench.stop()
    left = [m.point for m in mountinfo.beneath(os.path.realpath(tmp_path))]
    for point in left:  # a tmpfs volume lives as long as its claim
        subprocess.run(["umount", point], check=True)
    assert all("/volumes/" in point for point in left)


def fill(place: Path, megabytes: int) -> int:
    """Write so much; the errno that stopped it, or 0."""
    with open(place / "filler", "wb") as file:
        try:
            for _ in range(megabytes):
                file.write(bytes(MIB))
            file.flush()
            os.fsync(file.fileno())
        except OSError as exc:
            return exc.errno or -1
    return 0


def size(bench: Bench) -> str:
    return str(bench.claim().status.capacity.get("storage"))


def pending(bench: Bench) -> bool:
    return "FileSystemResizePending" in [c.type for c in bench.claim().status.conditions]


def test_an_image_is_a_wall_and_grows_and_tells_how_large_it_is(benches: Any) -> None:
    bench = benches("64Mi", backend="image", fsType="ext4")
    place = bench.publish()
    (place / "kept").write_text("x")
    assert fill(place, 80) == errno.ENOSPC
    (place / "filler").unlink()
    assert until(lambda: 0 < bench.metrics().get("kubelet_volume_stats_capacity_bytes", 0) < 64 * MIB)
    bench.ask("192Mi")
    assert until(lambda: bench.claim().status.conditions or size(bench) == "192Mi")
    assert until(
        lambda: size(bench) == "192Mi" or bench.claim().status.conditions[0].type == "FileSystemResizePending"
    )
    if grows_ext4():
        assert until(lambda: size(bench) == "192Mi"), "it grows under its pod"
        assert not bench.claim().status.conditions and fill(place, 120) == 0
        (place / "filler").unlink()
    if (
        bench.claim().status.conditions
    ):  # ext4 grows mounted only with CAP_SYS_RESOURCE: the next stage does it
        bench.unpublish()
        place = bench.publish()
        bench.agent.grow_what_waits()
    assert until(lambda: size(bench) == "192Mi")
    assert bench.claim().status.conditions == ()
    assert (place / "kept").read_text() == "x"
    assert fill(place, 120) == 0
    found = bench.metrics()
    assert 150 * MIB < found["kubelet_volume_stats_capacity_bytes"] <= 192 * MIB
    assert found["kubelet_volume_stats_used_bytes"] >= 120 * MIB
    assert found["kubelet_volume_stats_inodes"] > found["kubelet_volume_stats_inodes_free"] > 0


def test_memory_is_a_wall_and_grows_under_its_pod(benches: Any) -> None:
    bench = benches("4Mi", backend="tmpfs")
    place = bench.publish()
    assert fill(place, 8) == errno.ENOSPC
    bench.ask("16Mi")
    assert until(lambda: size(bench) == "16Mi")
    assert until(lambda: os.statvfs(place).f_blocks * os.statvfs(place).f_frsize == 16 * MIB)
    assert fill(place, 12) == 0


def test_operations_and_objects_are_counted(benches: Any) -> None:
    bench = benches("4Mi", backend="directory")
    bench.publish()
    assert until(lambda: bench.metrics().get("storage_operation_duration_seconds_count", 0) >= 1)
    found = bench.metrics()
    assert (found["pv_collector_bound_pv_count"], found["pv_collector_bound_pvc_count"]) == (1, 1)
    assert found["pv_collector_total_pv_count"] == 1
    assert found["kubelet_volume_stats_health_status_abnormal"] == 0
    (bench.root / "volumes" / bench.claim().spec.volume_name).rename(bench.root / "volumes/away")
    assert bench.metrics()["kubelet_volume_stats_health_status_abnormal"] == 1
    (bench.root / "volumes/away").rename(bench.root / "volumes" / bench.claim().spec.volume_name)


def read_only(root: Path) -> None:
    (root / "volumes").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", root / "volumes"], check=True)


def test_an_operation_that_fails_is_counted_as_such_and_then_as_done(benches: Any) -> None:
    """Where the volumes are to be nothing can be written, and then it can."""

    def counted(status: str) -> float:
        labels = {
            "operation_name": "volume_provision", "volume_plugin": "directory", "status": status,
            "migrated": "false",
        }  # fmt: skip
        name = "storage_operation_duration_seconds_count"
        return bench.registry.get_sample_value(name, labels) or 0.0

    bench = benches("4Mi", read_only, backend="directory")
    assert until(lambda: counted("fail-unknown") >= 1)
    assert counted("success") == 0
    subprocess.run(["umount", bench.root / "volumes"], check=True)
    assert until(lambda: counted("success") == 1, 30)
    failures = counted("fail-unknown")
    bench.publish()
    assert (counted("success"), counted("fail-unknown")) == (1, failures)


def test_get_sc_prints_kubectls_table_and_marks_the_default(machine: Machine) -> None:
    more = {"allowVolumeExpansion": True, "reclaimPolicy": "Retain"}
    machine.store.put(parse(storage_class("plain", names.LOCAL, **more)))
    rows = [line.split() for line in netplane(machine, "get", "sc").splitlines()]
    titles = "NAME PROVISIONER RECLAIMPOLICY VOLUMEBINDINGMODE ALLOWVOLUMEEXPANSION AGE"
    assert rows[0] == titles.split()
    first = ["directory", "(default)", names.DIRECTORY, "Delete", "WaitForFirstConsumer", "false"]
    assert rows[1][:-1] == first
    assert rows[2][:-1] == ["plain", names.LOCAL, "Retain", "Immediate", "true"]


def test_what_there_is_no_room_for_is_not_provisioned(benches: Any) -> None:
    bench = benches("900Ti", backend="image", fsType="xfs")
    note = Key("Event", "default", "c.provision")
    assert until(lambda: bench.user.get(note) is not None)
    assert "ResourceExhausted" in bench.user.get(note).message
    assert not (bench.root / "volumes").exists()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(Path(os.path.realpath(tmp_path)))
    yield made
    for process in made.started:
        process.kill()
        process.communicate()
    made.store.close()


def netplane(machine: Machine, *words: str) -> str:
    command = [sys.executable, "-c", "from netplane.cli import main; main()", *words, "--store", machine.url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_describe_says_why_a_claim_waits_for_each_volume_in_matching_order(machine: Machine) -> None:
    machine.store.delete(Key("StorageClass", "", "directory"))
    machine.store.put(parse(pv("small", "1Ki")))
    text = netplane(machine, "describe", "pvc", "scratch")
    assert "Used By:         writer" in text
    told = [
        line.split(None, 1) for line in text.partition("Volumes:\n")[2].partition("Events")[0].splitlines()
    ]
    assert told[0] == ["small", "is too small: 1Ki of 1Gi"]
    assert told[1][0] == "archive" and told[1][1].startswith("its storage class is")


def test_a_claim_cannot_be_applied_smaller_than_it_is(machine: Machine) -> None:
    machine.publish()
    machine.unpublish()
    text = (machine.base / "smaller.yaml", netplane(machine, "get", "pvc", "scratch", "-o", "yaml"))
    text[0].write_text(text[1].replace("storage: 1Gi", "storage: 1Mi"))
    with pytest.raises(subprocess.CalledProcessError) as refused:
        netplane(machine, "apply", "-f", str(text[0]))
    assert "less than the 1Gi that it has; a volume never shrinks" in refused.value.stderr


def test_describe_says_of_volumes_and_classes_what_becomes_of_them(machine: Machine) -> None:
    machine.store.put(parse(pv("v", claim="gone:u", status={"phase": "Released"})))
    text = netplane(machine, "describe", "pv", "v")
    assert "default/gone is gone" in text
    assert "Reclaim:         kept; remove spec.claimRef to offer it again" in text
    text = netplane(machine, "describe", "sc", "directory")
    assert "IsDefaultClass:" in text and "Claims waiting:  default/scratch" in text


def test_a_node_is_given_up_only_when_it_does_not_live(machine: Machine) -> None:
    running = machine.agent()
    machine.publish()
    machine.unpublish()
    where = ("--store", machine.url)
    assert until(lambda: "is alive" in machine.run("node", "lost", "n1", *where, code=1).stderr)
    running.send_signal(signal.SIGTERM)
    assert running.wait(10) == 0
    assert "choose one" in machine.run("node", "lost", "n1", *where, "--rebind", "--retain", code=2).stderr
    kept = machine.run("node", "lost", "n1", *where, "--retain").stdout.splitlines()
    assert kept and all(line.startswith("volume pvc-") and line.endswith(" retained") for line in kept)
    said = machine.run("node", "lost", "n1", *where).stdout.splitlines()
    assert said[0] == "pod default/writer deleted" and said[-1].startswith("volume pvc-")
    assert machine.run("node", "lost", "n7", *where, code=1).stderr.count("\n") == 1
    machine.agent()
    scratch = Key("PersistentVolumeClaim", "default", "scratch")
    assert until(lambda: machine.store.get(scratch).status.phase == "Lost")  # type: ignore[union-attr]
    assert "ClaimLost" in netplane(machine, "describe", "pvc", "scratch")


def test_metrics_are_served_where_an_operator_asks(machine: Machine) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # of the test run's own namespace
    where = ("--root", str(machine.root), "--store", machine.url, "--run-dir", str(machine.base / "run"))
    command = machine.command("agent", "--node", "n1", *where, "--http-listen", "127.0.0.1:19107")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    machine.started.append(process)
    machine.run("status", "--run-dir", str(machine.base / "run"), "--wait", "20")
    asked = http.client.HTTPConnection("127.0.0.1", 19107, timeout=5)
    asked.request("GET", "/metrics")
    text = asked.getresponse().read().decode()
    assert "kubelet_volume_stats_capacity_bytes" in text and "pv_collector_total_pv_count" in text


def test_calls_of_csi_drivers_are_timed_by_driver_method_and_code(tmp_path: Path) -> None:
    from netplane.model.errors import NotFound
    from storageplane.csi.client import Clients
    from storageplane.csi.server import CsiServer, Options

    name, registry = "csi.storageplane.io", CollectorRegistry()
    (tmp_path / "plugins" / name).mkdir(parents=True)
    driver = CsiServer(f"unix://{tmp_path}/plugins/{name}/csi.sock", tmp_path / "data", Options("n1"))
    driver.start()
    client = Clients(tmp_path, Operations(registry).called).get(name)
    with pytest.raises(NotFound):
        client.call("NodeGetVolumeStats", volume_id="absent", volume_path="/nowhere")
    client.close()
    driver.stop()

    def counted(method: str, code: str) -> float | None:
        labels = {"driver_name": name, "method_name": method, "grpc_status_code": code, "migrated": "false"}
        return registry.get_sample_value("csi_operations_seconds_count", labels)

    assert counted("/csi.v1.Identity/GetPluginInfo", "OK") == 1
    assert counted("/csi.v1.Node/NodeGetVolumeStats", "NOT_FOUND") == 1
