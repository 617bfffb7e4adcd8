"""Claims: an Allocation's name stands for one address, port or CIDR, so to create it is to hold it.

Rule 1: a claim is written with expect=0 before anything uses it; the loser of a race reads again.
Rule 2: a claim made for a holder's revision is adopted by it after a crash. Adopting one that was
        made for an older revision writes it anew, so that whoever still means to release it, on
        an older snapshot, meets a Conflict.
Rule 3: what a holder no longer wants is released last, and only at the revision that was read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from ..model.base import Object, ObjectMeta, amend
from ..model.changes import Delete, Put
from ..model.own import Allocation, AllocationSpec
from ..model.snapshot import Snapshot


class Claim(NamedTuple):
    """``settled``: the holder's spec names the value already, so nothing is left to decide."""

    type: str  # clusterip, nodeport.tcp, podcidr
    value: str
    purpose: str = ""
    settled: bool = False

    @property
    def name(self) -> str:
        return claim_name(self.type, self.value)


def claim_name(type_: str, value: str) -> str:
    """``clusterip.fd00-96--a``; an address that ends in "::" gets a 0, as a name ends in no '-'."""
    value = f"0{value}" if value.startswith(":") else value
    value = f"{value}0" if value.endswith(":") else value
    return f"{type_}.{value.replace(':', '-').replace('/', '-')}"


def held_by(snapshot: Snapshot, kind: str, namespace: str, name: str) -> tuple[Allocation, ...]:
    return snapshot.by(Allocation, "holder", f"{kind}/{namespace}/{name}")


def holder_text(allocation: Allocation) -> str:
    """The holder as users name it: "Service default/web"."""
    spec = allocation.spec
    where = f"{spec.holder_namespace}/" if spec.holder_namespace else ""
    return f"{spec.holder_kind} {where}{spec.holder_name}"


def is_holder(allocation: Allocation, holder: Object) -> bool:
    """By name: a new object of an old name may take over what the old one left behind."""
    spec = allocation.spec
    return (spec.holder_kind, spec.holder_namespace, spec.holder_name) == holder.key


def taken_by(snapshot: Snapshot, name: str, holder: Object) -> str:
    """Who else holds the claim of this name, or ""."""
    found = snapshot.get(Allocation, "", name)
    return "" if found is None or is_holder(found, holder) else holder_text(found)


def take(snapshot: Snapshot, claim: Claim, holder: Object) -> list[Put]:
    """The write that makes the claim the holder's, at most one."""
    spec = AllocationSpec(
        value=claim.value,
        holder_kind=holder.KIND,
        holder_namespace=holder.namespace,
        holder_name=holder.name,
        holder_uid=holder.metadata.uid,
        for_revision=holder.revision,
        purpose=claim.purpose,
    )
    found = snapshot.get(Allocation, "", claim.name)
    if found is None:
        return [Put(Allocation(metadata=ObjectMeta(name=claim.name), spec=spec), expect=0)]
    if found.spec == (amend(spec, for_revision=found.spec.for_revision) if claim.settled else spec):
        return []
    return [Put(amend(found, spec=spec), expect=found.revision)]


def release(held: Iterable[Allocation], keep: Collection[str] = ()) -> list[Delete]:
    return [Delete(a.key, expect=a.revision) for a in held if a.name not in keep]


def first_free(size: int, static: int, seed: str, taken: Callable[[int], bool]) -> int | None:
    """An offset in [0, size) that is not taken, or None when all are.

    The first ``static`` offsets are left to those who ask by name, until the rest is full
    (Kubernetes' bands, KEP-3070 and KEP-3668). The search starts at a hash of ``seed``, so the same
    holder finds the same offset again and two holders seldom meet.
    """
    dynamic = size - static
    start = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=8).digest(), "big")
    for i in range(dynamic):
        offset = static + (start + i) % dynamic
        if not taken(offset):
            return offset
    return next((offset for offset in range(static - 1, -1, -1) if not taken(offset)), None)


def static_band(size: int, divisor: int, most: int) -> int:
    """How many low offsets are left to explicit requests: size/divisor within 16..most."""
    return 0 if size <= 16 else min(max(16, size // divisor), most)
