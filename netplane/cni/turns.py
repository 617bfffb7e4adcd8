"""Whose turn it is: the address last given of each range, when its record is gone (pure).

An address rests as long as possible before it is given again. While the record of the last one given is
there, it says where to go on; when it goes, its place is kept in an Allocation that stays, written in the
transaction of the DEL. So an ADD writes nothing for it, and of many DELs the one whose turn it was.

Rule 1: one object for the addresses of a node, and one for each network with ranges of its own; its value
        has an entry for each subnet: address@revision, the revision at which the address was given.
Rule 2: an entry yields to a newer one only, so records may go in any order.
Rule 3: of networks that come and go there is no end, so a node remembers the last `MOST` that were in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_interface

from ..model.base import ObjectMeta, amend
from ..model.changes import Delete
from ..model.own import Allocation, AllocationSpec, Attachment, AttachmentIP
from .names import turn_name
from .ranges import OURS

Turn = tuple[str, int]  # an address, and the revision at which it was given
HOLDER = "Network"
MOST = 256


def network_of(record: Attachment) -> str | None:
    """Whose addresses it has: its network's, "" the node's; None when they are not of our giving."""
    return {"": "", OURS: record.spec.network}.get(record.spec.ipam)


def kept(found: Allocation | None) -> list[Turn]:
    """What the object says; what somebody else wrote into it is left out."""
    return list(_entries(found.spec.value)) if found is not None else []


def _entries(value: str) -> Iterator[Turn]:
    for word in value.split():
        address, _, revision = word.partition("@")
        try:
            yield str(ip_address(address)), int(revision)
        except ValueError:
            continue


def of_records(records: Iterable[Attachment]) -> Iterator[Turn]:
    for record in records:
        for entry in record.spec.ips:
            yield entry.address.partition("/")[0], record.revision


def keep(found: Allocation | None, record: Attachment) -> Allocation | None:
    """The object with the place of a record about to go; None when a newer one is known."""
    network = network_of(record)
    if network is None or not record.spec.ips:
        return None
    turns = kept(found)
    for entry in record.spec.ips:
        turns = _with(turns, entry, record.revision)
    if found is not None and turns == kept(found):
        return None
    value = " ".join(f"{address}@{revision}" for address, revision in turns)
    if found is not None:
        more: Allocation = amend(found, spec=amend(found.spec, value=value))
        return more
    spec = AllocationSpec(value=value, holder_kind=HOLDER, holder_name=network or record.spec.node)
    meta = ObjectMeta(name=turn_name(record.spec.node, network))
    return Allocation(metadata=meta, spec=spec)


def outgrown(node: str, every: Iterable[Allocation], more: int) -> list[Delete]:
    """What is forgotten when so many more networks are to be remembered, none for none; the node's own
    addresses never are."""
    mine = [
        one
        for one in every
        if one.spec.holder_kind == HOLDER and one.name == turn_name(node, one.spec.holder_name)
    ]
    mine.sort(key=lambda one: one.revision)
    return [Delete(one.key, one.revision) for one in mine[: max(0, len(mine) - MOST + more)]]


def _with(turns: list[Turn], entry: AttachmentIP, revision: int) -> list[Turn]:
    """With one more, in the place of the older one of its subnet."""
    plain = entry.address.partition("/")[0]
    subnet = ip_interface(entry.subnet or entry.address).network
    same = [turn for turn in turns if ip_address(turn[0]) in subnet]
    if any(known >= revision for _, known in same):
        return turns
    return [turn for turn in turns if turn not in same] + [(plain, revision)]
