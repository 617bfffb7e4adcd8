"""What the CNI server needs of the agent: the store, the kernel and this machine, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from ..model.base import Object
from ..model.changes import Write
from ..model.facts import Scope
from ..model.flows import Flows
from ..model.own import Attachment
from ..model.snapshot import Snapshot


class Seen(NamedTuple):
    """A link as the kernel has it now. ``addresses``: each with its length, and whether it bears our mark
    (Linux 5.18 and later)."""

    kind: str
    ours: bool
    up: bool
    promisc: bool
    mac: str
    addresses: dict[str, bool]


class Host(Protocol):
    """Thread-safe. A write is visible in `snapshot` when it returns; raises what the store raises."""

    node: str
    boot_id: str

    def snapshot(self) -> Snapshot: ...
    def put(self, obj: Object, expect: int | None = None) -> Object: ...

    def draft(self, record: Attachment) -> None:
        """Have `sync` see a record that is written when all is done. What a crash leaves of it in the kernel,
        the next start takes away. Raises Conflict where there is one."""

    def retract(self, record: Attachment) -> None:
        """The draft is not written after all; nothing when it is none."""

    def write(self, writes: Sequence[Write]) -> list[Object]:
        """All of these in order, in one transaction where the store has them; what was stored."""

    def sync(self, scopes: Iterable[Scope], before: Callable[[], object] | None = None) -> None:
        """Render, diff and apply in this thread, after the writes of ``before``. Raises the scope's error."""

    def withdraw(self, name: str) -> None:
        """Take everything of this attachment out of the kernel though its record stays, which the store
        does not let go now; until the record is put again. Raises the scope's error."""

    def verify(self, scopes: Iterable[Scope]) -> list[str]:
        """What the kernel holds otherwise than it should, in words."""

    def link_exists(self, netns: str, ifname: str) -> bool: ...

    def netns_exists(self, path: str, cookie: int = 0) -> bool:
        """Whether the path holds a namespace, and another than ours; with a cookie, the one that has it."""

    def netns_cookie(self, path: str) -> int:
        """By which a namespace is known again; 0 where the kernel has none (before 5.14)."""

    def mtu_and_mac(self, link: str) -> tuple[int, str]:
        """Of the node's link; (0, "") when there is none of this name."""

    def look(self, netns: str, ifname: str) -> Seen | None:
        """The link and its addresses; None when there is none. Raises KernelError without the namespace."""

    def peer(self, netns: str, ifname: str) -> str:
        """The node's end of a veth that another plugin made; "" when it is none, or elsewhere."""

    def towards(self, address: str) -> str:
        """The node's link on which the address is a neighbour; "" when there is none."""

    def localnet(self, link: str) -> bool:
        """Whether the node's link lets flows of 127.0.0.0/8 through (route_localnet)."""

    def redirects(self, link: str) -> bool:
        """Whether traffic control may take what comes in by the node's link past our guard of it."""

    def default_link(self) -> str:
        """The link of the node's default route; "" without one."""

    def raise_loopback(self, netns: str) -> None:
        """Set lo up there."""

    def forget(self, flows: Iterable[Flows]) -> None:
        """Let the kernel decide anew about these flows."""

    def forget_all(self, records: Sequence[Attachment]) -> None:
        """Leave no tracked flow of these attachments' addresses: of any protocol, either way, translated or
        not. The last that is done about them in the kernel."""
