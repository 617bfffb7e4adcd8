"""containerd with the plugin: `ctr run --cni`, and pod sandboxes over the CRI socket.

outside (ns) ── w0 machine ── npbr0 ── eth0 containers
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from netplane.lab.runner import until

from . import containerd, image
from .containerd import Ctr
from .cri import Cri, sandbox
from .machine import MACHINE, NETPLANE, OUTSIDE, Machine, url
from .peers import PORTS, program

pytestmark = [pytest.mark.root, pytest.mark.peer]


@pytest.fixture(scope="module")
def runtime(machine: Machine) -> Machine:
    containerd.start(machine)
    return machine


@pytest.fixture
def ctr(runtime: Machine) -> Ctr:
    rootfs = runtime.work / "rootfs"
    return Ctr(runtime, str(rootfs if rootfs.exists() else image.rootfs(rootfs)))


@pytest.fixture
def cri(runtime: Machine) -> Iterator[Cri]:
    archive = image.archive(runtime.work / "pause.tar", containerd.PAUSE)
    runtime.run(program("ctr"), "-n", "k8s.io", "images", "import", "--snapshotter", "native", str(archive))
    made = Cri(runtime.path(containerd.SOCKET))
    until(made.network_ready, "containerd's NetworkReady", 20)
    yield made
    made.close()


def pod(machine: Machine, namespace: str, name: str) -> dict[str, Any]:
    """The Pod object of this container; {} without."""
    words = ["get", "Pod", name, "-n", namespace, "-o", "json"]
    found: dict[str, Any] = json.loads(machine.run(NETPLANE, *words, check=False) or "{}")
    return found


def addresses(pod: dict[str, Any]) -> list[str]:
    return [ip["ip"] for ip in pod["status"]["podIPs"]]


def test_ctr_run_attaches_two_containers_and_del_leaves_nothing(ctr: Ctr) -> None:
    machine = ctr.machine
    server = ctr.popen("server", "/bin/httpd", "-f", "-h", "/www", "-p", "8080")
    found = until(lambda: pod(machine, "default", "default-server"), "the server's pod", 20)
    inside = ctr.run("look", "/bin/ip", "-o", "addr", "show", "eth0")
    assert "inet 10.244.0." in inside and "inet6 fd00:10:244::" in inside
    for address in addresses(found):
        assert machine.fetch(url(address)) == "hello\n"
        assert ctr.run("client", "/bin/wget", "-qO-", url(address)) == "hello\n"
    for address in OUTSIDE:
        assert " 0% packet loss" in ctr.run("pinger", "/bin/ping", "-c1", "-W2", address)
    assert len(machine.ports()) == 1  # the others' DEL is done
    ctr.kill("server")
    server.communicate(timeout=30)
    assert not machine.ports() and not machine.pods()


def test_a_pod_sandbox_has_its_pods_name_and_addresses(cri: Cri, runtime: Machine) -> None:
    ids = [cri.run(sandbox(name, "shop", f"uid-{name}")) for name in ("web", "db")]
    try:
        for name, made in zip(("web", "db"), ids, strict=True):
            found = pod(runtime, "shop", name)
            assert addresses(found) == cri.addresses(made)
            assert found["status"]["phase"] == "Running" and found["spec"]["nodeName"] == "n1"
            for address in addresses(found):
                assert runtime.fetch(url(address)) == "hello\n"
        attachments = json.loads(runtime.run(NETPLANE, "get", "Attachment", "-o", "json"))["items"]
        specs = {one["spec"]["podUID"]: one["spec"] for one in attachments}
        assert {uid: spec["containerID"] for uid, spec in specs.items()} == dict(
            zip(("uid-web", "uid-db"), ids, strict=True)
        )
    finally:
        for made in ids:
            cri.remove(made)
    assert not runtime.ports() and not runtime.pods()


@PORTS
def test_a_pod_sandboxs_host_port_is_reached_from_outside(cri: Cri, runtime: Machine) -> None:
    made = cri.run(sandbox("web", "shop", "uid", port=(18080, 8080)))
    try:
        for address in MACHINE:
            assert runtime.fetch_outside(url(address, 18080)) == "hello\n"
    finally:
        cri.remove(made)
    assert "18080" not in runtime.run("nft", "list", "ruleset")


def test_a_sandboxs_hostname_and_annotations(cri: Cri, runtime: Machine) -> None:
    """The bandwidth annotations are containerd's to read, and reach the plugin as its capability."""
    limits = {f"kubernetes.io/{way}-bandwidth": rate for way, rate in (("ingress", "8M"), ("egress", "16M"))}
    made = cri.run(sandbox("web", "shop", "uid", **limits))
    try:
        tasks = runtime.run(program("ctr"), "-n", "k8s.io", "task", "ls")
        pid = next(line.split()[1] for line in tasks.splitlines() if line.startswith(made))
        inside = ("nsenter", "-t", pid)
        assert runtime.run(*inside, "-u", "hostname").strip() == "host-web"
        (attachment,) = json.loads(runtime.run(NETPLANE, "get", "Attachment", "-o", "json"))["items"]
        given = attachment["spec"]["bandwidth"]
        assert (given["ingressRate"], given["egressRate"]) == (8_000_000, 16_000_000)
        assert "tbf" in runtime.run("tc", "qdisc", "show", "dev", attachment["spec"]["hostIfname"])
        assert "tbf" in runtime.run(*inside, "-n", "tc", "qdisc", "show", "dev", "eth0")
    finally:
        cri.remove(made)
    assert not runtime.ports() and "tbf" not in runtime.run("tc", "qdisc")
