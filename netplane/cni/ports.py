"""Host ports: who holds which, and the facts that lead them to pods.

    prerouting, output (nat): to an address of this node ─> cni-hostports:
        address . protocol . port  or  protocol . port  ─> the pod's address . port
    postrouting (nat): a pod that reached itself, a neighbour of its segment, and what came from
        127.0.0.0/8 leave with the node's address, so that replies come back here

Rule 1: one holder for each port, protocol and address; one for any address excludes all others.
Rule 2: the index is rebuilt from the records; a process that listens on the port is not asked for,
        because podman holds the ports of its containers so, and the map comes before it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

from ..model.base import amend
from ..model.errors import Unavailable
from ..model.facts import Chain, Element, Fact, Set
from ..model.flows import Flows
from ..model.own import Attachment, PortMapping
from .errors import CONFIG, Refused
from .ipam import describe
from .masquerade import FAMILIES, inside, inside_sets, localnet, version_of
from .together import is_any

Slot = tuple[str, int, int]  # protocol, port, IP version
_ANY = {4: "0.0.0.0", 6: "::"}
_GUARD = "meta l4proto { tcp, udp, sctp }"


def _dispatch() -> Iterator[str]:
    """127.0.0.1 works through route_localnet; for ::1 Linux has no such thing."""
    for v, ip, _, _ in FAMILIES:
        only = "ip6 daddr != ::1 " if v == 6 else ""
        exact = f"{ip} daddr . meta l4proto . th dport map @cni-hostports-at{v}"
        yield f"{only}{_GUARD} dnat {ip} to {exact}"
        yield f"{only}{_GUARD} dnat {ip} to meta l4proto . th dport map @cni-hostports{v}"


def _return() -> Iterator[str]:
    for v, ip, _, _ in FAMILIES:
        for name in ("hairpin", "inside"):
            yield f"ct status dnat {ip} saddr . {ip} daddr @cni-{name}{v} masquerade fully-random"
    yield "ct status dnat ip saddr 127.0.0.0/8 masquerade fully-random"


def _maps() -> Iterator[Set]:
    for v, _, kind, _ in FAMILIES:
        target = f"{kind} . inet_service"
        yield Set(f"cni-hostports{v}", (f"type inet_proto . inet_service : {target}",), map=True)
        key = f"{kind} . inet_proto . inet_service"
        yield Set(f"cni-hostports-at{v}", (f"type {key} : {target}",), map=True)
        yield Set(f"cni-hairpin{v}", (f"type {kind} . {kind}",))


BASE: tuple[Fact, ...] = (
    *inside_sets(),
    *_maps(),
    Chain("cni-hostports", tuple(_dispatch())),
    *(
        Chain(
            f"cni-hostports-{hook}",
            ("fib daddr type local jump cni-hostports",),
            type="nat",
            hook=hook,
            priority="dstnat",
        )
        for hook in ("prerouting", "output")
    ),
    Chain("cni-hostports-return", tuple(_return()), type="nat", hook="postrouting", priority="srcnat"),
)


def render_ports(attachment: Attachment, host_link: str) -> Iterator[Fact]:
    """``host_link``: the interface by which the node reaches the pod, when it is not known to be set up."""
    if not attachment.spec.ports:
        return
    yield from BASE
    if host_link:
        yield from localnet(host_link)
    for entry in attachment.spec.ips:
        plain = entry.address.partition("/")[0]
        yield Element(f"cni-hairpin{version_of(plain)}", (plain, plain))
        if not entry.address.endswith(("/32", "/128")):
            yield inside(entry)
    for port, version, target in targets(attachment):
        protocol = port.protocol.lower()
        value = (target, port.container_port)
        if is_any(port.host_ip):
            yield Element(f"cni-hostports{version}", (protocol, port.host_port), value)
        else:
            yield Element(f"cni-hostports-at{version}", (port.host_ip, protocol, port.host_port), value)


def targets(attachment: Attachment) -> Iterator[tuple[PortMapping, int, str]]:
    """(mapping, IP version, pod's address): of each family that both have, the pod's first address."""
    first: dict[int, str] = {}
    for entry in attachment.spec.ips:
        plain = entry.address.partition("/")[0]
        first.setdefault(version_of(plain), plain)
    for port in attachment.spec.ports:
        for version in versions(port):
            if version in first:
                yield port, version, first[version]


def versions(port: PortMapping) -> tuple[int, ...]:
    return (version_of(port.host_ip),) if port.host_ip else (4, 6)


def refuse_unreachable(attachment: Attachment) -> None:
    """Raises Refused for a mapping of a family in which the pod has no address."""
    served = {id(port) for port, _, _ in targets(attachment)}
    for port in attachment.spec.ports:
        if id(port) not in served:
            family = f"IPv{version_of(port.host_ip)}" if port.host_ip else "IP"
            raise Refused(
                CONFIG,
                f"portMappings: {port.protocol} {port.host_ip}:{port.host_port}:"
                f" the container has no {family} address in this network",
            )


def without_doubles(attachment: Attachment, others: Iterable[Attachment]) -> Attachment:
    """Without the ports that lead to the pod by one of its ``others``, in the families in which they do:
    a runtime asks for a container's ports in each of its networks."""
    theirs = {(*_asked(port), version) for other in others for port, version, _ in targets(other)}
    if theirs.isdisjoint((*_asked(p), v) for p in attachment.spec.ports for v in versions(p)):
        return attachment
    mine = {(*_asked(port), version) for port, version, _ in targets(attachment)}
    kept: list[PortMapping] = []
    for port in attachment.spec.ports:
        ways = {(*_asked(port), version) for version in versions(port)}
        if ways.isdisjoint(theirs):
            kept.append(port)
        else:
            kept += [amend(port, host_ip=_ANY[way[-1]]) for way in ways & mine - theirs]
    without: Attachment = amend(attachment, spec=amend(attachment.spec, ports=tuple(kept)))
    return without


def _asked(port: PortMapping) -> tuple[str, str, int, int]:
    host_ip = "" if is_any(port.host_ip) else port.host_ip
    return port.protocol.lower(), host_ip, port.host_port, port.container_port


def udp_flows(attachment: Attachment) -> list[Flows]:
    """What a UDP client goes on using past a pod that has come."""
    found = []
    for port, version, _ in targets(attachment):
        if port.protocol.lower() == "udp":
            host = "" if is_any(port.host_ip) else port.host_ip
            found.append(Flows("udp", version, host, port.host_port))
    return found


class HostPorts:
    """The node's port mappings by holder, from ``records`` when first asked. Thread-safe."""

    def __init__(self, records: Callable[[], Iterable[Attachment]]) -> None:
        self._lock = threading.Lock()
        self._records = records
        self._known = False
        self._held: dict[Slot, dict[str, str]] = {}  # slot -> address ("" any) -> holder
        self._by_name: dict[str, list[tuple[Slot, str]]] = {}

    def _know(self) -> None:
        if not self._known:
            for record in self._records():
                self._enter(record)
            self._known = True

    def claim(self, attachment: Attachment, elsewhere: Callable[[str, int], str]) -> None:
        """All ports of the attachment, or none. ``elsewhere`` names another holder of a port, or "".

        Raises Unavailable, naming who holds a port.
        """
        with self._lock:
            self._know()
            for port, version, _ in targets(attachment):
                protocol = port.protocol.lower()
                slot = (protocol, port.host_port, version)
                holder = _holder(self._held.get(slot, {}), port) or elsewhere(protocol, port.host_port)
                if holder:
                    at = f"{port.host_ip}:" if port.host_ip else ""
                    words = f"{protocol} port {at}{port.host_port} of this node is held by {holder}"
                    raise Unavailable(f"portMappings: {words}")
            self._enter(attachment)

    def _enter(self, attachment: Attachment) -> None:
        mine = self._by_name[attachment.name] = []
        for port, version, _ in targets(attachment):
            slot = (port.protocol.lower(), port.host_port, version)
            address = "" if is_any(port.host_ip) else port.host_ip
            self._held.setdefault(slot, {})[address] = describe(attachment)
            mine.append((slot, address))

    def release(self, name: str) -> None:
        with self._lock:
            self._know()
            for slot, address in self._by_name.pop(name, ()):
                held = self._held.get(slot, {})  # a record may name one slot twice
                held.pop(address, None)
                if not held:
                    self._held.pop(slot, None)


def _holder(held: dict[str, str], port: PortMapping) -> str:
    if is_any(port.host_ip):
        return next(iter(held.values()), "")
    return held.get("") or held.get(port.host_ip, "")
