"""Where the packet path's programs sit: at pods' host ends, their bridges, the tunnel's device, the uplink.

Rule 1: the path only repeats what the kernel path does, so nothing waits for it: a pod is attached
        when its ADD is over (phase Ready), and until then its packets take the kernel path.
Rule 2: what the programs would pass by keeps a port out: a guard at its ingress bars it: it has no
        program. A queue at its root is gone through. Pods that are not routed by way of one of the node's
        bridges have no hook.
Rule 3: the hook of the node's first bridge is there always, that of another with its pods.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from ..model.facts import Fact, Facts, FastPath, Hook, Scope, Sysctl
from ..model.nodes import Node
from ..model.own import Attachment
from ..model.snapshot import Snapshot

ROOM = "datapath"
# conntrack sees one packet a second of a flow, whose sequence number is far beyond those it knows
LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"
BASE = Scope(ROOM)


class PathConfig(msgspec.Struct, frozen=True):
    """``uplinks``: the links that hold the node's addresses; ``bridge``: the first of the node's pods."""

    uplinks: tuple[str, ...]
    path: FastPath
    bridge: str = ""
    boot_id: str = ""


class PathRoom:
    """A Room; ``config`` None: no packet takes the fast path, and no hook stays."""

    name = ROOM
    kinds = frozenset((Attachment.KIND, Node.KIND))

    def __init__(self, node: str, config: PathConfig | None) -> None:
        self.node = node
        self.config = config

    def scopes(self, event: object, snapshot: Snapshot) -> Iterable[Scope]:
        if event is None:
            return [BASE, *(Scope(ROOM, a.name) for a in snapshot.by(Attachment, "node", self.node))]
        old, new = getattr(event, "old", None), getattr(event, "new", None)
        if not self.config or not (_matters(old) or _matters(new)):
            return []
        return list(dict.fromkeys(scope for obj in (old, new) for scope in self._touched(obj)))

    def _touched(self, obj: object) -> Iterator[Scope]:
        if isinstance(obj, Attachment) and obj.spec.node == self.node:
            yield Scope(ROOM, obj.name)
        elif isinstance(obj, Node) and obj.name == self.node:
            yield BASE

    def render(self, scope: Scope, snapshot: Snapshot) -> Facts:
        if self.config is None:
            return ()
        if not scope.name:
            node = snapshot.get(Node, "", self.node)
            return tuple(_base(self.config)) if node is not None and node.pod_cidrs else ()
        attachment = snapshot.get(Attachment, "", scope.name)
        if attachment is None or attachment.spec.node != self.node or attachment.phase != "Ready":
            return ()
        if attachment.spec.boot_id not in ("", self.config.boot_id):
            return ()
        return tuple(_port(attachment, self.config.bridge))

    def why_not(self, attachment: Attachment) -> str:
        """Why what this pod sends always takes the kernel path; "" when it need not."""
        assert self.config is not None
        if _elsewhere(attachment):
            return "the pod is not on the node's own network, which alone has the fast path"
        if guard := _guarded(attachment):
            return f"the pod has {guard}, which every one of its packets must meet"
        return "" if attachment.phase == "Ready" else "the pod's ADD is not over"


def _matters(obj: object) -> bool:
    """An attachment under way has nothing to attach to."""
    return isinstance(obj, Node) or (isinstance(obj, Attachment) and obj.phase == "Ready")


def _base(config: PathConfig) -> Iterator[Fact]:
    yield Sysctl(name=LIBERAL, value="1")
    yield config.path
    if config.bridge:
        yield Hook(link=config.bridge, place="bridge")
    if config.path.tunnel:
        yield Hook(link=config.path.tunnel, place="tunnel")
    for uplink in config.uplinks:
        yield Hook(link=uplink, place="wire")


def _port(attachment: Attachment, first: str) -> Iterator[Fact]:
    if _elsewhere(attachment):
        return
    spec = attachment.spec
    shaped = bool(spec.bandwidth and spec.bandwidth.ingress_rate)
    guarded = bool(_guarded(attachment))
    bridge = spec.bridge or first
    if bridge != first:
        yield Hook(link=bridge, place="bridge")
    yield Hook(spec.host_ifname, "pod", barred=guarded, shaped=shaped, mac=spec.mac, bridge=bridge)


def _elsewhere(attachment: Attachment) -> bool:
    """Networks with addresses of their own have a segment of their own."""
    return attachment.spec.kind != "bridge" or bool(attachment.spec.ipam)


def _guarded(attachment: Attachment) -> str:
    """What stands at the ingress of the host end, behind the packet path's program; "": nothing."""
    spec = attachment.spec
    if spec.config.get("macspoofchk"):
        return "macspoofchk"
    return "an egress bandwidth" if spec.bandwidth and spec.bandwidth.egress_rate else ""
