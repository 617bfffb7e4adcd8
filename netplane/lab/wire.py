"""The wire of a lab: a bridge in a namespace of its own, and every machine on it by `eth0`.

         wire: br0
        /    |    \\
    eth0   eth0   eth0
   node-1 node-2 outside (also the internet and everybody's default route)

`plan_links` and `plan_addresses` are pure and yield lines for `ip -batch`; `lay` carries them out
in one `ip` process per namespace, so that a lab of ten nodes stands in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ..kernel import netns
from .settings import Plan


def plan_links(places: Mapping[str, Path], mtu: int) -> Iterator[str]:
    """Lines for the wire's own namespace: the bridge, and a veth pair to each place."""
    yield "link set lo up"
    yield f"link add br0 mtu {mtu} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
    yield "link set br0 up"
    for port, place in enumerate(places.values(), 1):
        peer = f"peer name eth0 mtu {mtu} netns {place}"
        yield f"link add port{port} mtu {mtu} master br0 type veth {peer}"
        yield f"link set port{port} up"


def plan_addresses(addresses: tuple[str, ...], plan: Plan, gateway: bool = False) -> Iterator[str]:
    """Lines for one machine on the wire. ``gateway``: it holds the internet's addresses too."""
    yield "link set lo up"
    yield "link set eth0 up"
    for address in addresses:
        yield f"address add {address}/{64 if ':' in address else 24} dev eth0{_nodad(address)}"
    for address in plan.internet if gateway else ():
        yield f"address add {address}/{128 if ':' in address else 32} dev lo{_nodad(address)}"
    for address in () if gateway else plan.outside:
        yield f"route add {'::/0' if ':' in address else '0.0.0.0/0'} via {address} dev eth0"


def lay(wire: Path, places: Mapping[str, Path], plan: Plan, mtu: int) -> None:
    """Make the wire at ``wire`` and put ``places`` (name → namespace) on it. Raises KernelError.

    A place named "outside" is the gateway; the others are the nodes, in order.
    """
    for path in (wire, *places.values()):
        netns.create(path)
        netns.call(path, _no_duplicate_address_detection)
    batch(wire, plan_links(places, mtu))
    nodes = [path for name, path in places.items() if name != "outside"]
    for index, path in enumerate(nodes):
        batch(path, plan_addresses(plan.node(index), plan))
    batch(places["outside"], plan_addresses(plan.outside, plan, gateway=True))


def batch(path: Path, lines: Iterator[str]) -> None:
    netns.run(path, "ip", "-batch", "-", input="\n".join(lines), stdin=None)


def _no_duplicate_address_detection() -> None:
    """A link-local address that is tentative for a second would delay a lab's first packets."""
    for which in ("default", "all"):
        knob = Path(f"/proc/sys/net/ipv6/conf/{which}/accept_dad")
        if knob.exists():
            knob.write_text("0")


def _nodad(address: str) -> str:
    return " nodad" if ":" in address else ""
