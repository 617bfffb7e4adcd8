"""Why a packet passes or not, in words, and who may reach whom. Pure: snapshot in, answers out."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..model.errors import Invalid
from ..model.facts import FactKey, Mark, Scope
from ..model.pods import Pod
from ..model.services import Service
from ..model.snapshot import Snapshot
from .flows import Flows
from .index import Index, is_peer, pod_at
from .room import ADDRESS, GROUP, PolicyRoom
from .rules import EGRESS, INGRESS, groups
from .verdict import Packet, Ruling, judge


class End(NamedTuple):
    """One end of a flow: a pod of the cluster, or an address that is none (``pod`` None)."""

    name: str
    addresses: tuple[str, ...]
    pod: Pod | None


class Answer(NamedTuple):
    source: End
    target: End
    packet: Packet
    egress: Ruling
    ingress: Ruling

    @property
    def allowed(self) -> bool:
        return self.egress.allowed and self.ingress.allowed


def end(text: str, namespace: str, snapshot: Snapshot) -> End:
    """What a user's word names: an address, "pod" or "namespace/pod". Raises Invalid."""
    try:
        address = str(ipaddress.ip_address(text))
    except ValueError:
        pass
    else:
        pod = pod_at(snapshot, address)
        return End(f"{pod.namespace}/{pod.name}" if pod else address, (address,), pod)
    space, slash, name = text.rpartition("/")
    found = snapshot.get(Pod, space if slash else namespace, name)
    if found is None:
        raise Invalid(f"there is no pod {space if slash else namespace}/{name}, and {text!r} is no address")
    if not found.ips:
        raise Invalid(f"pod {found.namespace}/{found.name} has no address yet")
    return End(f"{found.namespace}/{found.name}", found.ips, found)


def destination(text: str) -> tuple[str, int, str]:
    """("x/b", 80, "tcp") of "x/b:80/TCP", "[fd00::1]:53/UDP"; port 0 and protocol icmp without a port."""
    rest, slash, protocol = text.rpartition("/")
    if not slash or protocol.lower() not in ("tcp", "udp", "sctp", "icmp"):
        rest, protocol = text, "tcp"
    host, colon, port = rest.rpartition(":")
    if not colon or (rest.count(":") > 1 and not host.endswith("]")):
        return rest.strip("[]"), 0, "icmp" if protocol == "tcp" else protocol.lower()
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise Invalid(f"{text!r}: the port is a number from 1 to 65535, as in x/web:80 or [fd00::1]:53/UDP")
    return host.strip("[]"), int(port), protocol.lower()


def answers(source: End, target: End, protocol: str, port: int, snapshot: Snapshot) -> list[Answer]:
    """One answer for each family that both ends have. Raises Invalid when there is none."""
    index = Index(snapshot)
    found = []
    for theirs in target.addresses:
        for mine in source.addresses:
            if (":" in mine) == (":" in theirs):
                packet = Packet(mine, theirs, protocol, port)
                rulings = (_ruling(end, packet, d, index, snapshot) for end, d in _ends(source, target))
                found.append(Answer(source, target, packet, *rulings))
                break
    if not found:
        raise Invalid(f"{source.name} and {target.name} have no address family in common")
    return found


def straight(source: str, text: str, snapshot: Snapshot) -> list[Answer]:
    """What policy says of a flow straight to a pod or an address ("x/b:80", "[fd00::1]:53/UDP").

    Empty when ``text`` names no pod, or a Service too: that one goes first. Raises Invalid.
    """
    try:
        host, port, protocol = destination(text)
        target = end(host, "default", snapshot)
    except Invalid:
        return []  # a service, or a port by its name
    space, _, name = host.rpartition("/")
    if not port or snapshot.get(Service, space or "default", name) is not None:
        return []
    return answers(end(source, "default", snapshot), target, protocol, port, snapshot)


def _ends(source: End, target: End) -> tuple[tuple[End, str], tuple[End, str]]:
    return (source, EGRESS), (target, INGRESS)


def _ruling(one: End, packet: Packet, direction: str, index: Index, snapshot: Snapshot) -> Ruling:
    own, peer = packet.ends(direction)
    if own == peer:
        return Ruling(True, "a pod may always reach itself")
    if one.pod is None:
        return Ruling(True, f"{own} is no pod: no policy selects it")
    if one.pod.spec.host_network:
        return Ruling(True, f"{one.name} uses its node's network: no policy selects it")
    return judge(index.selecting(one.pod, snapshot), snapshot, one.pod, packet, direction)


def lines(answer: Answer) -> Iterator[str]:
    """An answer for people."""
    packet = answer.packet
    what = f"port {packet.port}/{packet.protocol.upper()}" if packet.port else packet.protocol.upper()
    word = "allowed" if answer.allowed else "denied"
    yield f"{answer.source.name} ({packet.source}) → {answer.target.name} ({packet.target}) {what}: {word}"
    sides = (("egress", answer.source, answer.egress), ("ingress", answer.target, answer.ingress))
    for direction, one, ruling in sides:
        where = f" at {one.pod.spec.node_name}" if one.pod and one.pod.spec.node_name else ""
        yield f"  {direction} of {one.name}{where}: {ruling.why}"
        others = [str(key) for key in ruling.policies if key != ruling.by]
        if others:
            yield f"    also selected by {', '.join(others)}"
    if answer.source.pod is None and answer.target.pod is not None:
        yield f"  the pod's own node, {answer.target.pod.spec.node_name}, is always allowed"


def matrix(
    sources: Iterable[Pod], targets: Iterable[Pod], ports: tuple[tuple[str, int], ...], snapshot: Snapshot
) -> list[list[str]]:
    """Rows of a table: "yes", "no", or the ports that are allowed; ``ports`` (): those a target declares."""
    index, targets = Index(snapshot), [p for p in targets if is_peer(p) and p.ips]
    table = [["FROM \\ TO", *(p.name for p in targets)]]
    for pod in sources:
        if not is_peer(pod) or not pod.ips:
            continue
        row = [f"{pod.namespace}/{pod.name}"]
        row += (_cell(pod, target, ports or _declared(target), index, snapshot) for target in targets)
        table.append(row)
    return table


def _declared(pod: Pod) -> tuple[tuple[str, int], ...]:
    ports = ((p.protocol.lower(), p.container_port) for c in pod.spec.containers for p in c.ports)
    return tuple(dict.fromkeys(ports)) or (("tcp", 1),)


def _cell(
    source: Pod, target: Pod, ports: tuple[tuple[str, int], ...], index: Index, snapshot: Snapshot
) -> str:
    ends = (End("", source.ips, source), End("", target.ips, target))
    passing = []
    for protocol, port in ports:
        packet = Packet(*_addresses(source, target), protocol, port)
        if all(_ruling(one, packet, d, index, snapshot).allowed for one, d in _ends(*ends)):
            passing.append(f"{port}/{protocol}")
    return "yes" if len(passing) == len(ports) else ",".join(passing) or "no"


def _addresses(source: Pod, target: Pod) -> tuple[str, str]:
    pairs = ((a, b) for b in target.ips for a in source.ips if (":" in a) == (":" in b))
    return next(pairs, (source.ips[0], target.ips[0]))


def differences(
    room: PolicyRoom, addresses: Iterable[str], snapshot: Snapshot, held: dict[FactKey, Mark]
) -> Iterator[str]:
    """How the kernel of the room's node differs from what these addresses need, in words."""
    keys = {g.key for policy in room.index(snapshot).policies for g in groups(policy)}
    names = [*(ADDRESS + a for a in addresses), *(GROUP + key for key in sorted(keys))]
    for name in names:
        for fact in room.render(Scope(room.name, name), snapshot):
            if not isinstance(fact, Flows) and held.get(fact.key, room) != fact.mark:
                verb = "differs" if fact.key in held else "is missing"
                yield f"{' '.join(map(str, fact.key))} {verb}"
