"""What an operator asks of a running server: what it would answer and why, and the query log's switch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..model.errors import Invalid
from ..model.snapshot import Snapshot
from . import explain, wire
from .answer import Client, Forward, answer
from .names import LocalNames
from .querylog import QueryLog
from .table import NameTable
from .upstreams import family

Words = dict[str, str]


class DnsControls:
    """Words of a query string in, what JSON can say out. Raises Invalid for words that cannot be."""

    def __init__(
        self, table: NameTable, names: LocalNames, log: QueryLog, snapshot: Callable[[], Snapshot]
    ) -> None:
        self._table, self._names = table, names
        self._log, self._snapshot = log, snapshot

    def paths(self) -> dict[str, Callable[[Words], dict[str, Any]]]:
        return {"/dns/query": self.query, "/dns/log": self.log}

    def query(self, words: Words) -> dict[str, Any]:
        """``name``, ``type``, ``client``: the response in hex or the name that is forwarded; and why."""
        client = Client(words.get("client", ""), udp=False)
        if client.address and not family(client.address):
            raise Invalid(f"client {client.address!r} is not an IP address")
        name = wire.name(words.get("name", ""))
        if words.get("type", "A") not in wire.TYPES:
            raise Invalid(f"{words['type']!r} is not a record type such as A, AAAA, SRV, PTR, CNAME or TXT")
        view = self._table.view
        kind = wire.TYPES[words.get("type", "A")].to_bytes(2, "big")
        packet = wire.HEADER.pack(0, wire.RD, 1, 0, 0, 0) + name + kind + wire.A_IN[2:]
        found = answer(packet, view, client, True, self._names)
        why = explain.explain(name, view, client, self._names, self._snapshot())
        if isinstance(found, Forward):
            return {"forward": wire.to_text(found.name), "why": why}
        return {"answer": (found or b"").hex(), "why": why}

    def log(self, words: Words) -> dict[str, Any]:
        """``every``: one of so many queries is logged, 0 none; without it, only says how it stands."""
        if "every" in words:
            if not words["every"].isdigit():
                raise Invalid(f"every={words['every']!r}: it takes a number, 0 for off")
            self._log.every = int(words["every"])
        return {"every": self._log.every}
