"""Names from a file in the form of hosts(5): address, names. Pure but for `read`.

A name that the file has is answered by the file alone: a missing family is NODATA, never forwarded.
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from ..model.errors import Invalid
from . import wire
from .table import RRset

TTL = 3600  # CoreDNS' hosts plugin


class Hosts(NamedTuple):
    """Wire name → what it has."""

    names: dict[bytes, tuple[RRset, ...]]

    def find(self, name: bytes) -> tuple[RRset, ...] | None:
        return self.names.get(name)


def parse(text: str, ttl: int = TTL) -> Hosts:
    """Lines that are no address with names are passed over, as resolvers do; the first name of an
    address is what its PTR says."""
    forward: dict[bytes, dict[str, dict[str, None]]] = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        try:
            address = ip_address(words[0].partition("%")[0])
            named = [wire.name(word) for word in words[1:]]
        except (IndexError, ValueError, Invalid):
            continue
        kind = "A" if address.version == 4 else "AAAA"
        for name in named:
            forward.setdefault(name, {}).setdefault(kind, {})[str(address)] = None
        if named:
            pointer = forward.setdefault(wire.name(address.reverse_pointer), {}).setdefault("PTR", {})
            pointer[words[1]] = None
    return Hosts({name: _rrsets(kinds, ttl) for name, kinds in forward.items()})


def _rrsets(kinds: dict[str, dict[str, None]], ttl: int) -> tuple[RRset, ...]:
    return tuple(
        RRset(wire.TYPES[kind], tuple(wire.record(kind, ttl, item) for item in data), None)
        for kind, data in kinds.items()
    )


def read(path: str, ttl: int = TTL) -> Hosts:
    """Raises Invalid when the file cannot be read."""
    try:
        return parse(Path(path).read_text(errors="replace"), ttl)
    except OSError as exc:
        raise Invalid(f"hosts file {path}: {exc.strerror}") from None
