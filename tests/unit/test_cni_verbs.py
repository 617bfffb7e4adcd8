"""ADD is whole or leaves nothing; DEL needs nothing; a crash at any point is undone at the next start."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import msgspec
import pytest

from netplane.cni import frame as wire
from netplane.cni import turns
from netplane.cni.config import NetConf, parse_config
from netplane.cni.frame import Frame
from netplane.cni.render import BASE
from netplane.cni.server import CniServer
from netplane.model.base import ObjectMeta, amend
from netplane.model.errors import KernelError, Unavailable
from netplane.model.own import Allocation, Attachment, AttachmentIP, AttachmentSpec
from netplane.model.pods import Pod
from tests.cnihost import CONFIG, MemoryHost, no_fault, node

OWN_RANGE = {"type": "netplane", "ranges": [[{"subnet": "10.9.0.0/24"}]]}


def record(network: str, node: str) -> Attachment:
    """Of a network with ranges of its own."""
    ip = AttachmentIP(address="10.9.0.2/24")
    spec = AttachmentSpec(
        node=node, container_id="c", ifname="eth0", netns="/n/c", network=network, pod_namespace="default",
        pod_name="c", host_ifname="npv1", ipam="netplane", ips=(ip,),
    )  # fmt: skip
    return Attachment(metadata=ObjectMeta(name=f"c.{node}"), spec=spec)


class Runtime:
    """Calls the server as the binary would, without the socket."""

    def __init__(self, host: MemoryHost, recover: bool = True) -> None:
        self.host = host
        self.server = CniServer("/unused", host, CONFIG)
        if recover:
            self.server.verbs.recover()

    def __call__(
        self, command: str, container: str = "c1", pod: str = "", ifname: str = "eth0", **config: Any
    ) -> Any:
        """The decoded stdout ("" for nothing), an error as ``{"code": …}``."""
        doc = {"cniVersion": "1.1.0", "name": "net", "type": "netplane", **config}
        args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod}" if pod else ""
        frame = Frame(command, container, f"/n/{container}", ifname, args, "", json.dumps(doc).encode())
        status, text = wire.unpack(self.server.answer(wire.request(frame)))
        answer = msgspec.json.decode(text) if text else ""
        assert status == (b"1" if answer and "code" in answer else b"0")
        return answer

    def nothing_left(self) -> bool:
        snapshot = self.host.snapshot()
        return (
            not snapshot.count(Attachment)
            and not snapshot.count(Pod)
            and not self.host.kernel.keys() - {BASE}
            and all(": 0 of" in use for use in self.server.verbs.networks.node.usage())
        )


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(MemoryHost())


def test_add_writes_record_kernel_and_pod_and_del_takes_them_away(runtime: Runtime) -> None:
    result = runtime("ADD", pod="web", args={"cni": {"labels": {"app": "web"}}})
    assert [ip["address"] for ip in result["ips"]] == ["10.244.1.2/32", "fd00:10:244:1::2/128"]
    assert result["interfaces"][2]["mtu"] == 1450
    snapshot = runtime.host.snapshot()
    (record,) = snapshot.list(Attachment)
    assert (record.phase, record.spec.pod_name, record.spec.boot_id) == ("Ready", "web", "boot-1")
    pod = snapshot.get(Pod, "shop", "web")
    assert pod is not None and pod.ips == ("10.244.1.2", "fd00:10:244:1::2")
    assert pod.labels == {"app": "web"}
    assert runtime("DEL", pod="web") == ""
    assert runtime.nothing_left()


def test_a_networks_mtu_overrides_the_overlays(runtime: Runtime) -> None:
    assert runtime("ADD", mtu=1300)["interfaces"][2]["mtu"] == 1300


def test_a_previous_result_with_gos_empty_lists(runtime: Runtime) -> None:
    before = {"cniVersion": "1.1.0", "interfaces": None, "ips": None, "routes": None}
    assert len(runtime("ADD", prevResult=before)["ips"]) == 2


def test_an_mtu_below_what_ipv6_needs_is_refused_where_ipv6_is_assigned(runtime: Runtime) -> None:
    """Not before: a node may have pod CIDRs of IPv4 alone."""
    answer = runtime("ADD", mtu=500)
    assert answer["code"] == 7 and "1280" in answer["msg"] and "fd00:10:244:1::2" in answer["msg"]
    assert runtime.nothing_left()
    only4 = Runtime(MemoryHost(node("10.244.1.0/24")))
    assert only4("ADD", mtu=500)["interfaces"][2]["mtu"] == 500


def test_del_needs_nothing_of_the_nodes_base(runtime: Runtime) -> None:
    runtime("ADD")

    def fail(verb: str, scope: object) -> None:
        if verb == "sync" and scope == BASE:
            raise KernelError(1, "nft")

    again = Runtime(runtime.host)
    runtime.host.fail = fail
    assert again("ADD", container="c2")["code"] == 5
    assert again("DEL") == "" and again.nothing_left()


def test_del_is_idempotent_and_needs_no_add(runtime: Runtime) -> None:
    assert runtime("DEL") == ""
    runtime("ADD")
    runtime.host.gone.add("/n/c1")
    assert runtime("DEL") == "" == runtime("DEL")
    assert runtime.nothing_left()


def test_del_is_over_when_no_flow_of_the_pod_is_left(runtime: Runtime) -> None:
    """Its address goes to nobody before."""
    runtime("ADD")
    (record,) = runtime.host.snapshot().list(Attachment)

    def fail(verb: str, thing: object) -> None:
        assert thing
        if verb == "forget":
            raise KernelError(12, "forget flows")

    runtime.host.fail = fail
    assert runtime("DEL")["code"] == 5
    assert not runtime.host.left and not runtime.nothing_left()
    runtime.host.fail = no_fault
    assert runtime("DEL") == "" and runtime.host.left == [record.name]
    assert runtime.nothing_left()


def test_a_missing_namespace_and_an_existing_interface_are_refused(runtime: Runtime) -> None:
    runtime.host.gone.add("/n/c1")
    answer = runtime("ADD")
    assert answer["code"] == 4 and "CNI_NETNS" in answer["msg"]
    runtime.host.gone.clear()
    runtime("ADD")
    answer = runtime("ADD")
    assert answer["code"] == 4 and "eth0 exists already" in answer["msg"]
    assert runtime("DEL") == "" and runtime.nothing_left()


# What an ADD of the kind does: record and pod in the end, or a record in the beginning, too.
JOURNALED = {"kind": "macvlan", "master": "w0"}
FAULTS = [
    *(({}, verb, nth) for verb, nth in (("put", 1), ("sync", 1), ("put", 2))),
    *((JOURNALED, verb, nth) for verb, nth in (("put", 1), ("sync", 1), ("put", 2), ("put", 3))),
]


@pytest.mark.parametrize(("config", "verb", "nth"), FAULTS)
@pytest.mark.parametrize("error", [KernelError(12, "link add"), Unavailable("the store is away")])
def test_an_add_that_fails_anywhere_leaves_nothing(
    runtime: Runtime, config: dict[str, Any], verb: str, nth: int, error: Exception
) -> None:
    runtime.host.links.add(("", "w0"))
    seen = 0

    def fail(what: str, _: object) -> None:
        nonlocal seen
        seen += what == verb
        if what == verb and seen == nth:
            raise error

    runtime.host.fail = fail
    assert runtime("ADD", **config)["code"] in (5, 11)
    runtime.host.fail = no_fault
    assert runtime.nothing_left()
    runtime.host.links.add(("", "w0"))
    assert "ips" in runtime("ADD", **config)


@pytest.mark.parametrize("nth", [1, 2, 3, 4, 5])
def test_a_store_that_takes_nothing_from_some_write_on_leaves_the_kernel_clean(
    runtime: Runtime, nth: int
) -> None:
    """A disk that gets full between any two writes of ADD: what the record says is not in the kernel."""
    writes = 0

    def fail(what: str, _: object) -> None:
        nonlocal writes
        writes += what in ("put", "delete")
        if what in ("put", "delete") and writes >= nth:
            raise Unavailable("database or disk is full")

    runtime.host.fail = fail
    answer = runtime("ADD")
    assert "ips" in answer or answer["code"] == 11
    if "ips" not in answer:
        assert all(not scope.name for scope in runtime.host.kernel)
        assert runtime("ADD")["code"] == 11
        assert all(not scope.name for scope in runtime.host.kernel)
    runtime.host.fail = no_fault
    assert "ips" in answer or "ips" in runtime("ADD")
    assert runtime("DEL") == "" and runtime.nothing_left()


def test_what_could_not_be_undone_is_done_by_del_and_its_address_not_given_meanwhile(
    runtime: Runtime,
) -> None:
    def fail(verb: str, scope: object) -> None:
        if verb == "sync" and scope != BASE:
            raise KernelError(16, "link del")

    runtime.host.fail = fail
    assert runtime("ADD")["code"] == 5
    runtime.host.fail = no_fault
    assert runtime("ADD", container="c2")["ips"][0]["address"] == "10.244.1.3/32"
    assert runtime("DEL") == "" == runtime("DEL", container="c2")
    assert runtime.nothing_left()


class Killed(BaseException):
    """kill -9: nothing of the process runs afterwards, not even its undo."""


@pytest.mark.parametrize(("config", "verb", "nth"), [*FAULTS, ({}, "none", 0), (JOURNALED, "none", 0)])
def test_killed_anywhere_in_an_add_the_next_start_loses_no_address(
    config: dict[str, Any], verb: str, nth: int
) -> None:
    host = MemoryHost()
    host.links.add(("", "w0"))
    runtime = Runtime(host)
    seen = 0

    def kill(what: str, _: object) -> None:
        nonlocal seen
        seen += what == verb
        if (what == verb and seen >= nth) or seen > nth:
            raise Killed

    if verb == "none":
        runtime("ADD", **config)
    else:
        host.fail = kill
        runtime.server.verbs._undo = lambda _: None  # type: ignore[method-assign]
        with pytest.raises(Killed):
            runtime("ADD", **config)
    host.fail = no_fault
    host.restart()
    again = Runtime(host)
    whole = next(iter(host.snapshot().list(Attachment)), None)
    if whole is not None:
        assert whole.phase == "Ready"
        assert again("DEL", **config) == ""
    assert again.nothing_left()


@pytest.mark.parametrize("why", ["netns", "boot"])
def test_what_outlived_its_namespace_or_its_boot_is_released_at_start(runtime: Runtime, why: str) -> None:
    runtime("ADD")
    if why == "netns":
        runtime.host.gone.add("/n/c1")
    else:
        runtime.host.boot_id = "boot-2"
    assert Runtime(runtime.host).nothing_left()


def test_a_restart_keeps_what_is_alive(runtime: Runtime) -> None:
    runtime("ADD")
    again = Runtime(runtime.host)
    assert again("ADD", container="c2")["ips"][0]["address"] == "10.244.1.3/32"
    assert again("DEL") == "" and not again.nothing_left()


def test_a_record_without_its_interface_gives_way_to_a_new_add(runtime: Runtime) -> None:
    runtime("ADD")
    runtime.host.links.clear()
    assert "ips" in runtime("ADD")
    assert runtime.host.snapshot().count(Attachment) == 1
    assert "1 of" in runtime.server.verbs.networks.node.usage()[0]


def test_of_two_adds_of_one_interface_one_wins(runtime: Runtime) -> None:
    barrier = threading.Barrier(8)
    answers = []

    def add() -> None:
        barrier.wait()
        answers.append(runtime("ADD"))

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted("ips" in a for a in answers) == [False] * 7 + [True]
    assert {a["code"] for a in answers if "code" in a} == {4}
    assert "1 of" in runtime.server.verbs.networks.node.usage()[0]


def test_adds_in_parallel_get_different_addresses(runtime: Runtime) -> None:
    answers: dict[int, Any] = {}

    def add(i: int) -> None:
        answers[i] = runtime("ADD", container=f"p{i}")

    threads = [threading.Thread(target=add, args=(i,)) for i in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({a["ips"][0]["address"] for a in answers.values()}) == 40


def test_exhaustion_is_11_on_add_and_50_on_status() -> None:
    runtime = Runtime(MemoryHost(node("10.244.1.0/30")))
    assert runtime("STATUS") == ""
    runtime("ADD")
    add, status = runtime("ADD", container="c2"), runtime("STATUS")
    assert (add["code"], status["code"]) == (11, 50)
    for answer in (add, status):
        assert "range 10.244.1.0/30: 1 of 1 addresses in use" in answer["msg"]
    runtime("DEL")
    assert runtime("STATUS") == ""


def test_a_record_deleted_by_hand_gives_its_address_back_when_it_is_needed() -> None:
    runtime = Runtime(MemoryHost(node("10.244.1.0/30")))
    runtime("ADD")
    (record,) = runtime.host.snapshot().list(Attachment)
    runtime.host.delete(record.key)
    assert runtime("STATUS") == ""
    assert "ips" in runtime("ADD", container="c2")


def test_before_the_store_is_read_everything_waits() -> None:
    runtime = Runtime(MemoryHost(synced=False), recover=False)
    assert [runtime(c)["code"] for c in ("ADD", "DEL", "STATUS")] == [11, 11, 50]


def test_without_a_range_add_waits_and_says_why() -> None:
    bare = node()
    runtime = Runtime(MemoryHost(amend(bare, spec=amend(bare.spec, pod_cidr="", pod_cidrs=()))))
    answer = runtime("ADD")
    assert answer["code"] == 11 and "no pod CIDR" in answer["msg"]
    assert runtime("DEL") == ""
    runtime.host.put(node())
    assert "ips" in runtime("ADD")


def test_check_finds_what_is_there_and_says_what_is_not(runtime: Runtime) -> None:
    result = runtime("ADD")
    assert runtime("CHECK", prevResult=result) == ""
    other = {**result, "ips": []}
    assert runtime("CHECK", prevResult=other)["code"] == 7
    runtime.host.kernel.pop(BASE)
    assert runtime("CHECK", prevResult=result)["code"] == 100
    assert runtime("CHECK", container="never", prevResult=result)["code"] == 3


def test_a_pods_interfaces_come_one_after_the_other(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """go-cni attaches a container to all its networks at once: each must see what the others have taken."""
    verbs, said = runtime.server.verbs, list[Any]()
    beside = threading.Thread(target=lambda: said.append(runtime("ADD", ifname="eth1", name="second")))
    claim = verbs._claim_ports

    def meanwhile(attachment: Attachment) -> None:
        if beside.ident is None:
            beside.start()
            beside.join(0.2)  # it waits for us
        claim(attachment)

    monkeypatch.setattr(verbs, "_claim_ports", meanwhile)
    assert not any("priority" in route for route in runtime("ADD")["routes"])
    beside.join(10)
    assert [route["priority"] for route in said[0]["routes"]] == [1, 1025]


def test_networks_that_come_and_go_are_not_remembered_without_end(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "MOST", 3)
    host, other = runtime.host, turns.keep(None, record("elsewhere", node="n2"))
    assert other is not None
    host.put(other)
    runtime("ADD")
    assert runtime("DEL") == ""  # the node's own network
    for name in ("a", "b", "a", "c", "d"):
        network = {"name": name, "ipam": OWN_RANGE, "bridge": "br-own"}
        assert "ips" in runtime("ADD", **network) and runtime("DEL", **network) == ""
    left = {one.spec.holder_name: one.spec.value for one in host.snapshot().list(Allocation)}
    assert left.keys() == {"elsewhere", "n1", "a", "c", "d"}, "b is the one that rests longest"
    assert left["a"].startswith("10.9.0.3@"), "its second turn"


def test_a_declared_pod_stays_and_its_labels_win(runtime: Runtime) -> None:
    meta = ObjectMeta(name="web", namespace="shop", labels={"app": "declared"})
    runtime.host.put(Pod(metadata=meta))
    runtime("ADD", pod="web", args={"cni": {"labels": {"app": "ours"}}})
    pod = runtime.host.snapshot().get(Pod, "shop", "web")
    assert pod is not None and pod.labels == {"app": "declared"} and pod.ips
    runtime("DEL", pod="web")
    pod = runtime.host.snapshot().get(Pod, "shop", "web")
    assert pod is not None and not pod.ips


def test_a_mistake_of_ours_is_an_answer_too(runtime: Runtime) -> None:
    def fail(_verb: str, _what: object) -> None:
        raise ZeroDivisionError("a bug")

    runtime.host.fail = fail
    assert runtime("ADD")["code"] == 999


def test_ten_thousand_leases_cost_no_more_than_ten() -> None:
    """ADD and DEL in networks of 10 and of 10,000 addresses, with their records; all in memory."""

    def seconds(held: int) -> float:
        host = MemoryHost(node("10.0.0.0/16"))
        runtime = Runtime(host)
        network = {"ipam": {"ranges": [[{"subnet": "10.9.0.0/16"}]]}, "bridge": "br9"}
        for name, config in (("many", network), ("node", {})):
            runtime("ADD", container=f"first-{name}", name=name, **config)
            index = runtime.server.verbs.networks
            ipam = index.node if not config else index.own(name, parse(name, config).leases.sets)
            for i in range(held):
                ips = ipam.take(f"{name}{i}", "somebody")
                spec = AttachmentSpec(
                    node="n1", container_id=f"{name}{i}", ifname="eth0", netns="/held", network=name,
                    host_ifname=f"h{i}", ips=tuple(ips),
                )  # fmt: skip
                host.put(Attachment(metadata=ObjectMeta(name=f"{name}{i}"), spec=spec, phase="Ready"))
        assert len(host.snapshot().by(Attachment, "node", "n1")) == 2 * held + 2
        best = []
        for i in range(30):
            begin = time.perf_counter()
            for name, config in (("many", network), ("node", {})):
                assert "ips" in runtime("ADD", container=f"c{i}", name=name, **config)
                assert runtime("DEL", container=f"c{i}", name=name, **config) == ""
            best.append(time.perf_counter() - begin)
        return min(best)

    def parse(name: str, config: dict[str, Any]) -> NetConf:
        doc = {"cniVersion": "1.1.0", "name": name, "type": "netplane", **config}
        return parse_config(json.dumps(doc).encode())

    few, many = seconds(10), seconds(10_000)
    assert many < 2 * few, f"{few * 1e3:.2f} ms with 10 leases, {many * 1e3:.2f} ms with 10,000"


@pytest.mark.parametrize("config", [b"[" * 100_000, b'{"cniVersion": {"a": 1}}', b"\xff", b"", b"7"])
def test_an_error_is_answered_in_whatever_version_can_be_read(runtime: Runtime, config: bytes) -> None:
    frame = Frame("ADD", "c1", "/n/c1", "eth0", "", "", config)
    status, text = wire.unpack(runtime.server.answer(wire.request(frame)))
    answer = msgspec.json.decode(text)
    assert (status, answer["cniVersion"]) == (b"1", "1.1.0") and answer["code"]
