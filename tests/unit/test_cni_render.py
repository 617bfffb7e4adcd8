"""Objects into facts and results: what the kernel must hold, and what the runtime is told."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from netplane.cni import names
from netplane.cni.config import parse_config
from netplane.cni.pods import CREATED, pod_down, pod_up
from netplane.cni.render import BASE, CniConfig, CniRoom
from netplane.cni.result import add_result
from netplane.model.base import ObjectMeta, amend
from netplane.model.facts import Address, Chain, Element, Link, Neighbour, Route, Scope, Sysctl
from netplane.model.own import Attachment, AttachmentIP, AttachmentRoute, AttachmentSpec
from netplane.model.pods import Pod, PodSpec
from netplane.model.snapshot import Snapshot
from netplane.reconcile.base import Event, Room
from tests.cnihost import CONFIG, node


def attachment(container: str = "c1", ifname: str = "eth0", suffix: str = "5", **changes: Any) -> Attachment:
    spec = AttachmentSpec(
        node="n1", container_id=container, ifname=ifname, netns=f"/n/{container}", network="net",
        pod_namespace="default", pod_name="web", mac="02:00:00:00:00:05", mtu=1450,
        host_ifname=names.host_ifname(container, ifname, "net"),
        ips=(
            AttachmentIP(address=f"10.244.1.{suffix}/32", gateway="10.244.1.1"),
            AttachmentIP(address=f"fd00:10:244:1::{suffix}/128", gateway="fd00:10:244:1::1"),
        ),
        routes=(
            AttachmentRoute(dst="0.0.0.0/0", gw="10.244.1.1"),
            AttachmentRoute(dst="::/0", gw="fd00:10:244:1::1"),
        ),
    )  # fmt: skip
    name = names.attachment_name("n1", container, ifname, "net")
    made: Attachment = amend(
        Attachment(metadata=ObjectMeta(name=name), spec=spec, phase="Ready"), spec=amend(spec, **changes)
    )
    return made


def facts(*objects: Any, scope: Scope = BASE, config: CniConfig = CONFIG) -> list[Any]:
    return list(CniRoom("n1", config).render(scope, Snapshot.of(objects)))


FORWARD = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")


def forwards(found: list[Any]) -> list[str]:
    return [fact.name for fact in found if isinstance(fact, Sysctl) and fact.name in FORWARD]


def test_the_room_is_a_room() -> None:
    room: Room = CniRoom("n1", CONFIG)
    assert room.name == "cni"


def test_the_base_holds_the_bridge_with_the_gateway_of_each_family() -> None:
    found = facts(node())
    (bridge,) = [f for f in found if isinstance(f, Link)]
    assert (bridge.name, bridge.kind, bridge.alias, bridge.mtu) == ("npbr0", "bridge", "netplane:cni", 1450)
    assert {f.address for f in found if isinstance(f, Address)} == {
        "10.244.1.1/24",
        "fd00:10:244:1::1/64",
    }


def test_a_node_with_a_tunnel_has_a_port_that_asks_for_its_headers_room() -> None:
    """The kernel's figure cannot be read back; that the port does no harm, every test of an agent shows."""
    plain, tunnelled = facts(node()), facts(node(), config=msgspec.structs.replace(CONFIG, tunnel=True))
    (port,) = [fact for fact in tunnelled if fact not in plain]
    assert (port.name, port.kind, port.master, port.up) == ("nphr0", "vxlan", "npbr0", False)
    assert port.mtu == CONFIG.pod_mtu


def test_masquerade_is_for_what_leaves_the_cluster() -> None:
    (chain,) = [f for f in facts(node()) if isinstance(f, Chain) and f.name == "cni-masquerade"]
    assert (chain.type, chain.hook, chain.priority) == ("nat", "postrouting", "srcnat")
    assert chain.rules == (
        "ip saddr @cni-unmasked4 return",
        "ip saddr { 10.244.1.0/24 } ip daddr != { 10.244.0.0/16, 224.0.0.0/4 } masquerade fully-random",
        "ip6 saddr @cni-unmasked6 return",
        "ip6 saddr { fd00:10:244:1::/64 } ip6 daddr != { fd00:10:244::/48, ff00::/8 }"
        " masquerade fully-random",
    )


def test_without_masquerade_there_is_neither_chain_nor_set() -> None:
    found = facts(node(), config=CniConfig(ip_masq=False))
    assert not [f for f in found if "mask" in getattr(f, "name", "") or "masq" in getattr(f, "name", "")]


@pytest.mark.parametrize("cidr", ["10.244.1.0/24", "fd00:10:244:1::/64"])
def test_one_family_alone_is_complete(cidr: str) -> None:
    found = facts(node(cidr))
    assert len([f for f in found if isinstance(f, Address)]) == 1
    (chain,) = [f for f in found if isinstance(f, Chain) and f.name == "cni-masquerade"]
    assert sum("masquerade" in rule for rule in chain.rules) == 1
    assert forwards(found) == [FORWARD[":" in cidr]]


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
@pytest.mark.parametrize("address", ["10.88.0.2", "fd00:88::2"])
def test_a_network_of_one_family_forwards_no_other(kind: str, address: str) -> None:
    """A node that forwards IPv6 listens to no router: it would lose the default route that one gave it."""
    ips = (
        AttachmentIP(
            address=f"{address}/64" if ":" in address else f"{address}/24", gateway=address[:-1] + "1"
        ),
    )
    one = attachment(kind=kind, ipam="netplane", bridge="br-own", ips=ips, config={"isGateway": True})
    assert forwards(facts(one, scope=Scope("cni", one.name))) == [FORWARD[":" in address]]


def test_a_node_without_ranges_has_no_base() -> None:
    assert facts() == []
    assert facts(amend(node(), spec=amend(node().spec, pod_cidr="", pod_cidrs=()))) == []


def test_an_attachment_is_a_veth_addresses_routes_and_neighbours() -> None:
    one = attachment()
    found = facts(node(), one, scope=Scope("cni", one.name))
    (veth,) = [f for f in found if isinstance(f, Link) and f.kind == "veth"]
    assert (veth.name, veth.master, veth.alias) == (
        one.spec.host_ifname,
        "npbr0",
        f"netplane:cni:{one.name}",
    )
    assert dict(veth.options) == {
        "bcast_flood": 0,
        "mcast_flood": 0,
        "hairpin": 1,
        "peer": "eth0",
        "peer_mac": "02:00:00:00:00:05",
        "peer_mtu": 1450,
        "peer_netns": "/n/c1",
    }
    assert list(veth.options) == sorted(veth.options)
    assert {(f.dst, f.via, f.netns) for f in found if isinstance(f, Route)} == {
        ("10.244.1.1/32", "", "/n/c1"),
        ("0.0.0.0/0", "10.244.1.1", "/n/c1"),
        ("fd00:10:244:1::1/128", "", "/n/c1"),
        ("::/0", "fd00:10:244:1::1", "/n/c1"),
    }
    assert {(f.link, f.address, f.mac) for f in found if isinstance(f, Neighbour)} == {
        ("npbr0", "10.244.1.5", "02:00:00:00:00:05"),
        ("npbr0", "fd00:10:244:1::5", "02:00:00:00:00:05"),
    }
    assert ("link", "/n/c1", "lo") in {f.key for f in found}


def test_a_pod_on_a_further_bridge_wants_that_bridge_and_its_own_route() -> None:
    first, one = attachment(), attachment(bridge="npbr3")
    config = msgspec.structs.replace(CONFIG, tunnel=True)
    plain, found = (facts(node(), a, scope=Scope("cni", a.name), config=config) for a in (first, one))
    more = [fact for fact in found if fact not in plain]
    bridge, room, veth = (fact for fact in more if isinstance(fact, Link))
    (own,) = (f for f in facts(node(), config=config) if isinstance(f, Link) and f.kind == "bridge")
    assert bridge == msgspec.structs.replace(own, name="npbr3")  # its MAC, too
    assert (room.name, room.master, dict(room.options)["id"]) == ("nphr3", "npbr3", 0xFFFFFF - 3)
    assert veth.master == "npbr3" and dict(veth.options)["mcast_flood"] == 0
    assert {f.address for f in more if isinstance(f, Address)} == {"10.244.1.1/32", "fd00:10:244:1::1/128"}
    assert {(f.dst, f.link, f.scope) for f in more if isinstance(f, Route)} == {
        ("10.244.1.5/32", "npbr3", "link"),
        ("fd00:10:244:1::5/128", "npbr3", "link"),
    }
    assert {f.link for f in found if isinstance(f, Neighbour)} == {"npbr3"}
    assert Sysctl("net/ipv4/conf/npbr3/route_localnet", "1") in more
    assert Element(of="cni-localnet", item=("npbr3",)) in more


def test_ports_of_a_bridge_share_a_mac_and_routed_ends_do_not() -> None:
    def macs(kind: str) -> set[str]:
        ends = (attachment(c, kind=kind) for c in ("c1", "c2"))
        found = [f for a in ends for f in facts(node(), a, scope=Scope("cni", a.name)) if isinstance(f, Link)]
        return {f.mac for f in found if f.kind == "veth"}

    assert (len(macs("bridge")), len(macs("ptp"))) == (1, 2)


def test_a_pod_without_masquerade_is_an_element() -> None:
    one = attachment(config={"ipMasq": False})
    scope = Scope("cni", one.name)
    assert {(f.of, f.item) for f in facts(node(), one, scope=scope) if isinstance(f, Element)} == {
        ("cni-unmasked4", ("10.244.1.5",)),
        ("cni-unmasked6", ("fd00:10:244:1::5",)),
    }
    assert not [f for f in facts(node(), attachment(), scope=scope) if isinstance(f, Element)]


def test_scopes_follow_this_node_and_its_attachments_alone() -> None:
    room = CniRoom("n1", CONFIG)
    mine, theirs = attachment(), attachment("c2", node="n2")
    snapshot = Snapshot.of([node(), mine, theirs])
    assert set(room.scopes(None, snapshot)) == {BASE, Scope("cni", mine.name)}
    assert room.scopes(Event(None, mine), snapshot) == [Scope("cni", mine.name)]
    assert room.scopes(Event(mine, None), snapshot) == [Scope("cni", mine.name)]
    assert room.scopes(Event(None, theirs), snapshot) == []
    assert room.scopes(Event(node(), node()), snapshot) == [BASE]
    assert room.scopes(Event(None, node(name="n2")), snapshot) == []
    assert facts(theirs, scope=Scope("cni", theirs.name)) == []


def test_what_another_boot_recorded_is_not_rendered() -> None:
    config = CniConfig(boot_id="now")
    for boot, rendered in (("now", True), ("before", False), ("", True)):
        one = attachment(boot_id=boot)
        assert bool(facts(one, scope=Scope("cni", one.name), config=config)) is rendered


# --- results -----------------------------------------------------------------------------------


def result(version: str, **config: Any) -> dict[str, Any]:
    doc = {"cniVersion": version, "name": "net", "type": "netplane", **config}
    found = add_result(attachment(), parse_config(json.dumps(doc).encode()))
    on_stdout: dict[str, Any] = json.loads(msgspec.json.encode(found))
    return on_stdout


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_a_result_names_bridge_host_end_and_container(version: str) -> None:
    found = result(version)
    assert found["cniVersion"] == version
    assert [i["name"] for i in found["interfaces"]] == ["npbr0", attachment().spec.host_ifname, "eth0"]
    assert [i.get("sandbox", "") for i in found["interfaces"]] == ["", "", "/n/c1"]
    assert [ip["interface"] for ip in found["ips"]] == [2, 2]
    assert [ip.get("version") for ip in found["ips"]] == (
        ["4", "6"] if version.startswith("0.") else [None, None]
    )
    assert found["interfaces"][2].get("mtu") == (1450 if version == "1.1.0" else None)
    assert {"dst": "0.0.0.0/0", "gw": "10.244.1.1"} in found["routes"]


def test_dns_is_the_networks_unless_the_runtime_asks() -> None:
    assert result("1.1.0", dns={"nameservers": ["10.96.0.10"]})["dns"] == {"nameservers": ["10.96.0.10"]}
    asked = {"dns": {"servers": ["10.96.0.11"], "searches": ["a.b"]}}
    assert result("1.1.0", dns={"domain": "x"}, runtimeConfig=asked)["dns"] == {
        "nameservers": ["10.96.0.11"],
        "domain": "x",
        "search": ["a.b"],
    }


def test_a_chain_before_us_is_echoed_and_our_index_moves() -> None:
    before = {"interfaces": [{"name": "x0"}], "ips": [{"address": "192.0.2.5/24", "interface": 0}]}
    found = result("1.0.0", prevResult=before)
    assert [i["name"] for i in found["interfaces"]][:2] == ["x0", "npbr0"]
    assert [ip["interface"] for ip in found["ips"]] == [0, 3, 3]


# --- pods --------------------------------------------------------------------------------------


def test_a_pod_that_nobody_declared_comes_and_goes() -> None:
    pod = pod_up(None, attachment(), {"app": "web"}, ("192.0.2.1",))
    assert (pod.labels, pod.ips, pod.status.phase) == (
        {"app": "web"},
        ("10.244.1.5", "fd00:10:244:1::5"),
        "Running",
    )
    assert (pod.spec.node_name, pod.status.host_ip, pod.ready) == ("n1", "192.0.2.1", True)
    assert pod.metadata.annotations == {CREATED: "cni"}
    assert pod_down(pod, attachment(), (), ()) is None


def test_a_declared_pod_keeps_its_labels_and_loses_only_its_addresses() -> None:
    declared = Pod(
        metadata=ObjectMeta(name="web", namespace="default", labels={"app": "theirs"}),
        spec=PodSpec(hostname="h"),
    )
    up = pod_up(declared, attachment(), {"app": "ours"}, ())
    assert (up.labels, up.spec.hostname, up.spec.node_name) == ({"app": "theirs"}, "h", "n1")
    down = pod_down(up, attachment(), (), ())
    assert down is not None
    assert (down.ips, down.status.phase, down.labels) == ((), "Pending", {"app": "theirs"})


def test_a_late_del_of_an_old_sandbox_leaves_the_new_ones_addresses() -> None:
    old, new = attachment("c1", suffix="5"), attachment("c2", suffix="6")
    pod = pod_up(pod_up(None, old, {}, ()), new, {}, ())
    assert pod_down(pod, old, (old, new), ()) is pod
    back = pod_down(pod, new, (old, new), ())
    assert back is not None and back.ips == ("10.244.1.5", "fd00:10:244:1::5")


@pytest.mark.parametrize(
    ("container", "pod"),
    [("abc123", "abc123"), ("0123", "0123"), ("cnitool-1a", "cnitool-1a"), ("A_b", None), ("x--", None)],
)
def test_a_container_without_a_pod_name_gets_a_valid_one(container: str, pod: str | None) -> None:
    name = names.pod_name(container)
    assert name == pod if pod else name.startswith("cni-")
    assert not list(Pod(metadata=ObjectMeta(name=name)).check())


def test_names_fit_their_limits() -> None:
    host = names.host_ifname("c" * 200, "eth0", "net")
    assert len(host) == 14 and host.startswith("npv")
    assert int(names.pod_mac("c", "eth0", "net")[:2], 16) & 3 == 2
