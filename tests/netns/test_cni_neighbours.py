"""macspoofchk and IPv6's neighbour discovery: a pod speaks for its own addresses and its own MAC alone.

node-1 (ns) ── npbr0, br-own, or none (ptp) ── pods a (protected or not), b (ns)
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

from netplane.cni.shaping import link_local
from netplane.kernel import netns
from netplane.lab import Lab
from netplane.lab.runner import until
from tests.cnirun import OWN, Cni, plain
from tests.netns.test_cni_features import BRIDGED, arp, frame, heard, ipv4, lab, pings

__all__ = ["lab"]  # the fixture
pytestmark = pytest.mark.root
MakeNetns = Callable[[str], str]
FALSE = "02:00:00:00:66:66"
SOLICIT, ADVERT, ROUTERS, ROUTER, REDIRECT = 135, 136, 133, 134, 137
SOURCE, TARGET, NONCE = 1, 2, 14
PTP = {"kind": "ptp", "ipam": {**OWN, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}


def six(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, address)


def option(kind: int, mac: str) -> bytes:
    return bytes((kind, 1)) + bytes.fromhex(mac.replace(":", ""))


def nd(src: str, dst: str, kind: int, about: str = "", options: bytes = b"", **wrapped: int) -> bytes:
    """An IPv6 packet; ``behind=60`` puts an extension header before ICMPv6."""
    flags = b"\xa0\0\0\0" if kind == ADVERT else bytes(4)  # router and override
    body = bytes((kind, 0, 0, 0)) + flags + (six(about) if about else b"") + options
    pseudo = six(src) + six(dst) + struct.pack(">II", len(body), 58)
    words = struct.unpack(f">{len(pseudo + body) // 2}H", pseudo + body)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + struct.pack(">H", ~total & 0xFFFF) + body[4:]
    behind = wrapped.get("behind", 0)
    if behind:  # 60: destination options (PadN); 44: a fragment, the only one
        body = bytes((58, 0)) + (b"\1\4\0\0\0\0" if behind == 60 else b"\0\0\0\0\0\7") + body
    return struct.pack(">IHBB", 6 << 28, len(body), behind or 58, 255) + six(src) + six(dst) + body


@pytest.mark.parametrize("network", [{}, BRIDGED], ids=["node", "own"])
@pytest.mark.parametrize("protected", [True, False])
def test_neighbour_discovery_is_about_the_pod_itself(
    lab: Lab, make_netns: MakeNetns, network: dict[str, Any], protected: bool
) -> None:
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    result, other = cni.add(a, {**network, "macspoofchk": protected}), cni.add(b, network)
    mac, hers = result["interfaces"][2]["mac"], other["interfaces"][2]["mac"]
    (mine4, mine), (to4, to) = plain(result), plain(other)
    gateway, local = result["ips"][1]["gateway"], link_local(mac)
    foreign = link_local(FALSE)
    truths = [
        nd(mine, to, ADVERT, mine, option(TARGET, mac)),
        nd(mine, to, ADVERT, mine),
        nd(local, to, ADVERT, local, option(TARGET, mac)),
        nd(mine, to, SOLICIT, to, option(SOURCE, mac)),
        nd(local, to, SOLICIT, gateway),
        nd("::", to, SOLICIT, mine, option(NONCE, FALSE)),
        nd("::", to, SOLICIT, local),
        nd(local, to, ROUTERS, "", option(SOURCE, mac)),
        nd("::", to, ROUTERS),
    ]
    lies = [
        nd(mine, to, ADVERT, gateway, option(TARGET, mac)),
        nd(mine, to, ADVERT, gateway),
        nd(mine, to, ADVERT, mine, option(TARGET, FALSE)),
        nd(foreign, to, ADVERT, foreign, option(TARGET, mac)),
        nd(mine, to, ADVERT, foreign, option(TARGET, mac)),
        nd(mine, to, SOLICIT, to, option(SOURCE, FALSE)),
        nd(foreign, to, SOLICIT, to, option(SOURCE, mac)),
        nd("::", to, SOLICIT, to),
        nd("::", to, SOLICIT, mine, option(SOURCE, FALSE)),
        nd("::", to, ADVERT, mine),
        nd(mine, to, SOLICIT, to, option(NONCE, mac) + option(SOURCE, FALSE)),
        nd(mine, to, ADVERT, gateway, option(TARGET, mac), behind=60),
        nd(mine, to, ADVERT, gateway, option(TARGET, mac), behind=44),
        nd(local, to, ROUTERS, "", option(SOURCE, FALSE)),
        nd(local, to, ROUTER, "", bytes(8)),
        nd(local, to, REDIRECT, gateway, six(to)),
        nd("::", to, 128, "", b"ping"),
    ]
    tagged = struct.pack(">HHH", 0, 0x8100, 0) + b"\x08\x06" + arp(mac, "10.88.0.1", to4)
    # on the way a fragment loses its header
    told = [words[40:] if words[6] == 58 else words[48:] for words in lies] + [tagged[-24:]]
    with heard(b) as ears:
        for words in truths:
            frame(a, hers, mac, 0x86DD, words)
            assert ears.hear(words)
        for words in lies:
            frame(a, hers, mac, 0x86DD, words)
        frame(a, hers, mac, 0x8100, tagged)  # which Linux reads as if no tag were there
        frame(a, hers, mac, 0x0800, ipv4(mine4, to4, b"AFTER"))
        assert ears.hear(b"AFTER")
        came = [one.hex() for one in told if ears.hear(one, 0.02)]
        assert came == ([] if protected else [one.hex() for one in told])
    for pod in (a, b):
        cni.delete(pod, network)


def entry(at: str, dev: str, address: str) -> str:
    return netns.run(at, "ip", "-6", "neigh", "show", address, "dev", dev, check=False)


@pytest.mark.parametrize("network", [{}, BRIDGED, PTP], ids=["node", "own", "ptp"])
@pytest.mark.parametrize("protected", [True, False])
def test_nobodys_neighbour_entry_becomes_the_pods(
    lab: Lab, make_netns: MakeNetns, network: dict[str, Any], protected: bool
) -> None:
    """The victim is the other pod; with ptp the node, which alone hears the pod."""
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    result, other = cni.add(a, {**network, "macspoofchk": protected}), cni.add(b, network)
    mine, mac = plain(result)[1], next(i["mac"] for i in result["interfaces"] if i["name"] == "eth0")
    if network is PTP:
        victim, dev = str(lab.nodes[0].netns), result["interfaces"][0]["name"]
        to, hers = "fd00:88::1", json.loads(netns.run(victim, "ip", "-j", "link", "show", dev))[0]["address"]
        about = "fd00:88::77"
    else:
        victim, dev, to = b, "eth0", plain(other)[1]
        about, hers = result["ips"][1]["gateway"], other["interfaces"][2]["mac"]
    known = ("ip", "-6", "neigh", "replace", about, "dev", dev, "lladdr", "02:00:00:00:00:99", "nud", "stale")
    netns.run(victim, *known)
    for words in (
        nd(mine, to, ADVERT, about, option(TARGET, mac)),
        nd(about, to, SOLICIT, to, option(SOURCE, mac)),
    ):

        def poisoned(words: bytes = words) -> bool:
            frame(a, hers, mac, 0x86DD, words)
            return mac in entry(victim, dev, about)

        if protected:
            assert not poisoned()
        else:
            until(poisoned, "the entry is the attacker's")
            netns.run(victim, *known)
    frame(a, hers, mac, 0x86DD, nd(mine, to, SOLICIT, to, option(SOURCE, mac)))
    until(lambda: mac in entry(victim, dev, mine), "what was sent before has come by now")
    assert not protected or "00:99" in entry(victim, dev, about)
    netns.run(victim, "ip", "-6", "neigh", "del", about, "dev", dev)
    for pod in (a, b):
        cni.delete(pod, network)


@pytest.mark.parametrize("network", [{}, BRIDGED, PTP], ids=["node", "own", "ptp"])
def test_a_protected_pod_finds_its_neighbours_and_is_found(
    lab: Lab, make_netns: MakeNetns, network: dict[str, Any]
) -> None:
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    safe = {**network, "macspoofchk": True}
    result, other = cni.add(a, safe), cni.add(b, safe)
    (mine4, mine), (to4, to) = plain(result), plain(other)
    mac = next(i["mac"] for i in result["interfaces"] if i["name"] == "eth0")
    local = netns.run(a, "ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "link")
    assert f" {link_local(mac)}/64 " in local
    until(
        lambda: "tentative" not in netns.run(a, "ip", "-6", "addr", "show", "dev", "eth0"),
        "the DAD of a is over",
    )
    for pod in (a, b):
        netns.run(pod, "ip", "-6", "neigh", "flush", "dev", "eth0")
    assert pings(a, to) and pings(b, mine) and pings(a, to4) and pings(b, mine4)
    assert "dadfailed" not in netns.run(a, "ip", "-6", "addr")
    if network is BRIDGED:
        assert pings(a, f"{link_local(other['interfaces'][2]['mac'])}%eth0")
    for pod in (a, b):
        cni.delete(pod, safe)
