"""What upstreams said, kept for as long as they said. Pure: the clock is an argument.

Rule 1: names of the cluster never come here; there is no window in which a change is not seen.
Rule 2: a key is what decides the reply: name, type, class, and the DO, AD, CD and RD bits.
Rule 3: the number of entries is bounded; the one that was used longest ago goes first, so that a flood
        of random names costs the flood's own entries.
Rule 4: a reply leaves with the TTLs that are left of it; a stale one with STALE_TTL, as zero it may not
        be (RFC 8767 4).

Negative replies live for the smaller of the SOA's TTL and minimum (RFC 2308 5), and without an SOA not
at all; SERVFAIL for some seconds (RFC 9520), which takes the pressure off what is broken.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import NamedTuple

from ..model.errors import Invalid
from . import wire
from .answer import Forward

Key = tuple[bytes, bytes, int]  # (name, type and class, flags)
_TTL = struct.Struct("!I")
STALE_TTL = 30
_DO = 1 << 16  # beside the header's flags


class CacheOptions(NamedTuple):
    """Times in seconds. Asked ``prefetch`` times within its life, an entry is fetched again when only
    ``prefetch_share`` of its TTL is left; 0: never. ``serve_stale`` 0: what has expired is gone."""

    size: int = 10_000
    max_ttl: int = 3600
    negative_ttl: int = 1800
    servfail_ttl: int = 5
    prefetch: int = 3
    prefetch_share: float = 0.1
    serve_stale: int = 3600


class Entry:
    """A reply as it came (its id and question are replaced on the way out)."""

    __slots__ = ("failed", "hits", "refreshing", "reply", "stored", "ttl", "ttls")

    def __init__(self, reply: bytes, ttls: tuple[tuple[int, int], ...], ttl: int, now: float) -> None:
        self.reply = reply
        self.ttls = ttls  # (offset, seconds) of each record but OPT
        self.ttl = ttl
        self.stored = now
        self.failed = float("-inf")  # when it could not be fetched again
        self.hits = 0
        self.refreshing = False


class Hit(NamedTuple):
    reply: bytes
    stale: bool  # expired: only for when nobody answers
    refresh: bool  # popular and soon to expire: ask again, beside


class Cache:
    """`get` and `put`; counts what a monitor wants to know in ``hits``, ``misses``, ``evicted``."""

    def __init__(self, options: CacheOptions = CacheOptions()) -> None:  # noqa: B008 (immutable)
        self.options = options
        self.hits = 0
        self.misses = 0
        self.evicted = 0
        self.stale = 0
        self.prefetched = 0
        self._entries: OrderedDict[Key, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key, now: float) -> Hit | None:
        """What is known, or None. ``now`` in seconds, of any clock that does not jump."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        age = now - entry.stored
        if age >= entry.ttl + self.options.serve_stale:
            del self._entries[key]
            self.misses += 1
            return None
        self._entries.move_to_end(key)
        if age >= entry.ttl:
            if now - entry.failed < self.options.servfail_ttl:
                self.stale += 1
                return Hit(_aged(entry, None), False, False)
            self.misses += 1
            return Hit(_aged(entry, None), True, False)
        self.hits += 1
        return Hit(_aged(entry, int(age)), False, self._due(entry, age))

    def put(self, key: Key, reply: bytes, now: float) -> None:
        """Keep a reply that `relay.is_reply` accepted, if it may be kept."""
        lifetime = lifetime_of(reply, self.options)
        if lifetime is None or self.options.size <= 0:
            return
        old = self._entries.get(key)
        if old is not None and reply[3] & 15 == wire.SERVFAIL != old.reply[3] & 15:
            old.failed, old.refreshing = now, False
            return  # a stale answer is worth more than a fresh failure
        ttl, ttls = lifetime
        self._entries[key] = Entry(reply, ttls, ttl, now)
        self._entries.move_to_end(key)
        while len(self._entries) > self.options.size:
            self._entries.popitem(last=False)
            self.evicted += 1

    def _due(self, entry: Entry, age: float) -> bool:
        entry.hits += 1
        options = self.options
        if not options.prefetch or entry.hits < options.prefetch or entry.refreshing:
            return False
        entry.refreshing = age >= entry.ttl * (1 - options.prefetch_share)
        self.prefetched += entry.refreshing
        return entry.refreshing


def key_of(forward: Forward) -> Key:
    query = forward.query
    dnssec = _DO if query.edns is not None and query.edns.dnssec else 0
    return forward.name.lower(), query.question[-4:], query.flags & (wire.AD | wire.CD | wire.RD) | dnssec


def lifetime_of(reply: bytes, options: CacheOptions) -> tuple[int, tuple[tuple[int, int], ...]] | None:
    """(seconds to keep it, the TTL fields of its records), or None for what is not to be kept."""
    rcode = reply[3] & 15
    _, flags, questions, answers, authority, additional = wire.HEADER.unpack_from(reply)
    if questions != 1 or flags & wire.TC or rcode not in (wire.NOERROR, wire.NXDOMAIN, wire.SERVFAIL):
        return None
    try:
        start = wire.skip_name(reply, wire.HEADER.size) + 4
        kinds = wire.kind_asked(reply)
        places = wire.places(reply, start, answers + authority + additional)
    except Invalid:
        return None
    ttls = tuple((wire.ttl_at(reply, p), p.ttl) for p in places if p.type != wire.OPT)
    if rcode == wire.SERVFAIL:
        return (options.servfail_ttl, ttls) if options.servfail_ttl else None
    if rcode == wire.NOERROR and any(p.type == kinds or kinds == wire.ANY for p in places[:answers]):
        ttl = min((p.ttl for p in places if p.type != wire.OPT), default=0)
        ttl = min(ttl, options.max_ttl)
    else:
        soas = [p for p in places[answers : answers + authority] if p.type == wire.SOA]
        if not soas or soas[0].end - soas[0].start < 22:
            return None
        minimum = int.from_bytes(reply[soas[0].end - 4 : soas[0].end], "big")
        chain = [p.ttl for p in places[:answers]]
        ttl = min(soas[0].ttl, minimum, options.negative_ttl, *chain)
    return (ttl, ttls) if 0 < ttl < 1 << 31 else None


def _aged(entry: Entry, age: int | None) -> bytes:
    """The reply with ``age`` seconds less to live; None: it has expired."""
    reply = bytearray(entry.reply)
    for offset, ttl in entry.ttls:
        _TTL.pack_into(reply, offset, STALE_TTL if age is None else max(min(ttl, entry.ttl) - age, 0))
    return bytes(reply)
