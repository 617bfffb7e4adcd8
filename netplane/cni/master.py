"""A macvlan's master: whether it can carry what is asked of it (pure)."""

from __future__ import annotations

from collections.abc import Iterable

from ..model.base import amend
from ..model.own import Attachment, AttachmentSpec
from .errors import CONFIG, LATER, Refused
from .ipam import describe


def under(spec: AttachmentSpec, asked: str, mtu: int, mac: str) -> AttachmentSpec:
    """The macvlan's record under its master, which has ``mtu`` (0: there is no such link) and ``mac``.

    A passthru has its master's MAC, whatever the kernel is asked for. Raises Refused.
    """
    passthru = _mode(spec) == "passthru"
    if not spec.bridge:
        raise Refused(CONFIG, "master: the node has no default route to take the link of; name one")
    if not mtu:
        raise Refused(CONFIG, f"master: there is no link {spec.bridge} on node {spec.node}")
    if spec.mtu > mtu:
        raise Refused(CONFIG, f"mtu: {spec.mtu} is more than {mtu}, the mtu of its master {spec.bridge}")
    if passthru and asked and asked != mac:
        raise Refused(CONFIG, f"mac: {asked}: in mode passthru it is the master's, {spec.bridge}: {mac}")
    made: AttachmentSpec = amend(spec, mac=mac) if passthru else spec
    return made


def refuse_taken(attachment: Attachment, records: Iterable[Attachment]) -> None:
    """After the kernel's EINVAL: a passthru has its master alone. Raises Refused with who is there."""
    spec = attachment.spec
    for other in records:
        same = other.spec.kind == "macvlan" and other.spec.bridge == spec.bridge
        if same and other.name != attachment.name and "passthru" in (_mode(spec), _mode(other.spec)):
            raise Refused(
                LATER,
                f"master: {spec.bridge} is held by {describe(other)} in mode {_mode(other.spec)};"
                " a passthru has its master alone",
            )


def _mode(spec: AttachmentSpec) -> str:
    return str(spec.config.get("mode", "bridge"))
