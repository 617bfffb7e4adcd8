"""Fuzzed requests to the socket of a real agent: an answer in CNI's words each time, nothing left at the end.

pod (ns)
  eth0, any name
   │ veth, macvlan
───┴── npbr0, br-f, w0 ── node (ns)
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netplane.cni import frame as wire
from netplane.kernel import netns

from .machine import Machine, plain
from .test_cni_fuzz import JSON, VERBS, configs, judge

pytestmark = pytest.mark.root
MakeNetns = Callable[[str], str]
PORTS = st.fixed_dictionaries(
    {"hostPort": st.integers(-1, 70000), "containerPort": st.sampled_from((0, 80, 65536))},
    optional={
        "protocol": st.sampled_from(("tcp", "UDP", "sctp", "icmp", 7)),
        "hostIP": st.sampled_from(("", "0.0.0.0", "::", "192.0.2.1", "::1", "x")),
    },
)
RATES = st.dictionaries(
    st.sampled_from(("ingressRate", "ingressBurst", "egressRate", "egressBurst")),
    st.sampled_from((0, 1, 8, 10**6, 2**62, -1)),
)
RANGES = ([[{"subnet": "10.88.0.0/29"}]], [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]])
ROUTES = (
    [],
    [{"dst": "0.0.0.0/0"}],
    [{"dst": "10.1.0.0/16", "gw": "10.99.0.1"}],
    [{"dst": "::/0", "mtu": 1}],
)
KEYS: dict[str, st.SearchStrategy[Any]] = {
    "kind": st.sampled_from(("bridge", "ptp", "macvlan", "loopback", "x")),
    "name": st.sampled_from(("net", "other", "", "a/b")),
    "cniVersion": st.sampled_from(("0.3.1", "0.4.0", "1.0.0", "1.1.0", "2")),
    "ipam": st.builds(
        lambda r, w: {"ranges": r, "routes": w}, st.sampled_from(RANGES), st.sampled_from(ROUTES)
    )
    | st.sampled_from(({"type": "host-local"}, {"type": "nobody"}))
    | st.builds(
        lambda r, f: {"ranges": r, "resolvConf": f, "dataDir": f},
        st.sampled_from(RANGES),
        st.sampled_from(("", "/etc/resolv.conf", "/none", "/", "here", "/a\0b", 7)) | JSON,
    )
    | JSON,
    "bridge": st.sampled_from(("br-f", "npbr0", "w0", "lo", "x" * 16)),
    "master": st.sampled_from(("w0", "nolink", "lo")),
    "mode": st.sampled_from(("bridge", "private", "passthru", "x")),
    "mtu": st.sampled_from((0, 1, 1280, 1400, 65535, 65536)),
    "sysctl": st.sampled_from(({"net.core.somaxconn": "99"}, {"net.core.somaxconn": "x"}, {"kernel.x": "1"})),
    "runtimeConfig": st.fixed_dictionaries(
        {},
        optional={
            "portMappings": st.lists(PORTS, max_size=2),
            "bandwidth": RATES,
            "ips": st.lists(st.sampled_from(("10.244.0.9", "10.88.0.2", "fd00:88::9", "x")), max_size=2),
            "mac": st.sampled_from(("02:00:00:00:00:07", "ff:ff:ff:ff:ff:ff", "x")),
        },
    ),
    "stateDir": st.sampled_from(("", "/run/x", "here", "/a\0b", 7)) | JSON,
    "socket": st.sampled_from(("", "/run/x", "here", "/a\0b", 7)) | JSON,
    "prevResult": st.just({"interfaces": [{"name": "lo", "sandbox": "/x"}], "ips": []}) | JSON,
    **dict.fromkeys(
        (
            "macspoofchk",
            "portIsolation",
            "promiscMode",
            "hairpinMode",
            "isGateway",
            "isDefaultGateway",
            "ipMasq",
            "forceAddress",
        ),
        st.booleans(),
    ),
}


@st.composite
def plausible(draw: st.DrawFn) -> bytes:
    """A configuration that ADD may well carry out."""
    doc: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "type": "netplane"}
    for key in draw(st.lists(st.sampled_from(sorted(KEYS)), max_size=5, unique=True)):
        doc[key] = draw(KEYS[key])
    return json.dumps(doc).encode()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    work = tmp_path_factory.mktemp("wire")
    for name in ("node", "pod"):
        netns.create(str(work / name))
    made = Machine(str(work / "node"), work)
    made.start()
    yield made
    made.stop(signal.SIGKILL)
    for name in ("node", "pod"):
        netns.delete(str(work / name))


def ask(machine: Machine, raw: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(30)
        connection.connect(str(machine.run_dir / "cni.sock"))
        with contextlib.suppress(OSError):  # it may have heard enough
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))
    return b""


def clear(machine: Machine) -> None:
    """DEL of every record that is there, by its key."""
    text = machine.netplane("get", "Attachment", "-o", "json", "--store", machine.store)
    for item in json.loads(text or "{}").get("items", ()):
        spec = item["spec"]
        config = json.dumps({"cniVersion": "1.1.0", "name": spec["network"], "type": "netplane"}).encode()
        frame = wire.Frame("DEL", spec["containerID"], "", spec["ifname"], "", "", config)
        assert wire.unpack(ask(machine, wire.request(frame))) == [b"0", b""]


def test_whatever_is_asked_is_answered_and_leaves_nothing(machine: Machine) -> None:
    pod, first = machine.work / "pod", {"cniVersion": "1.1.0", "name": "net", "type": "netplane"}
    warm = wire.Frame("ADD", "warm", str(pod), "warm0", "", "", json.dumps(first).encode())
    assert plain(json.loads(wire.unpack(ask(machine, wire.request(warm)))[1]))
    clear(machine)
    before, inside = machine.host(), netns.run(str(pod), "ip", "-o", "link")
    verbs = st.sampled_from(("ADD", "ADD", "CHECK", "DEL", "GC", "STATUS")) | st.sampled_from(VERBS)

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        verbs,
        st.sampled_from(("c1", "c2", "..", "")),
        st.sampled_from((str(pod), str(pod), str(pod) + "x", "/proc/self/ns/net", "")),
        st.sampled_from(("eth0", "eth1", "lo", "a/b", "x" * 16)),
        st.sampled_from(("", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web", "IP=10.244.0.9", "x")),
        plausible() | configs(),
    )
    def run(verb: str, container: str, path: str, ifname: str, args: str, config: bytes) -> None:
        frame = wire.Frame(verb, container, path, ifname, args, "/usr/lib/cni", config)
        status, text = wire.unpack(ask(machine, wire.request(frame)))
        if b"host-local: " not in text:  # a delegate's error keeps its code, and this one's is 999
            judge(text, int(status))

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=200))
    def noise(raw: bytes) -> None:
        answer = ask(machine, raw)
        if answer:
            status, text = wire.unpack(answer)
            judge(text, int(status))

    run()
    noise()
    clear(machine)
    assert machine.host() == before
    assert netns.run(str(pod), "ip", "-o", "link").count("\n") == inside.count("\n")
    assert "Traceback" not in machine.log() and "unexpectedly" not in machine.log()
    assert "ips" in machine("ADD", str(pod)) and machine("DEL", str(pod)) == ""
