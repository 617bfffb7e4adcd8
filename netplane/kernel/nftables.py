"""The driver of nftables: one atomic transaction for each plan, in table `inet netplane`.

Rule 1: everything of ours lies in one table, and no other table is ever named.
Rule 2: a refused transaction changes nothing; the error quotes nft and the words it refused.
Rule 3: nothing is listed while all goes well: `apply` sends what it is told. Only a refusal makes
        it look, so that adding what is there and removing what is gone is success.
Rule 4: the netlink socket belongs to the network namespace of the thread that makes the driver;
        any thread may use it afterwards, one at a time.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterable, Mapping

from ..model.errors import Invalid, KernelError, Unavailable
from ..model.facts import Chain, Element, Fact, FactKey, Mark, Plan, Set
from . import nft_read, nft_text, nft_verify

_ERRNO = {os.strerror(number): number for number in errno.errorcode}
_REASON = re.compile(rb"Error: (.*)$", re.MULTILINE)
_NEXT = b" ; "  # between statements: nft quotes only a buffer's first line, so it gets one line


class NftDriver:
    """Accepts Chain, Set and Element. Raises Unavailable when libnftables is not there."""

    name = "nftables"
    accepts: tuple[type[Fact], ...] = (Chain, Set, Element)
    parallel = False

    def __init__(self) -> None:
        try:
            from nftables import Nftables

            self._nft = Nftables()
        except (ImportError, OSError) as exc:
            raise Unavailable(f"libnftables is needed (Debian: libnftables1): {exc}") from exc
        self._nft.set_numeric_proto_output(True)  # names need /etc/protocols, which may be missing
        self._lock = threading.Lock()

    def observe(self) -> Mapping[FactKey, Mark]:
        """{key: mark} of all that our table holds; {} without a table. Raises KernelError."""
        try:
            listing = self._run(f"list table {nft_text.TABLE}", json=True)
        except KernelError as exc:
            if exc.errno == errno.ENOENT:
                return {}
            raise
        return nft_read.marks(listing)

    def apply(self, plan: Plan) -> None:
        """All of the plan in one transaction, or nothing of it. Raises KernelError, Invalid."""
        if not plan:
            return
        try:
            self._run(nft_text.transaction(plan))
        except KernelError:
            fitted = fit(plan, self.observe())
            if fitted == plan:
                raise
            if fitted:
                self._run(nft_text.transaction(fitted))

    def verify(self, facts: Iterable[Fact]) -> list[str]:
        """In words, what differs from these facts; [] when nothing does. Asks for these alone."""
        return list(nft_verify.faults(list(facts), self._list))

    def _list(self, statement: str) -> dict[FactKey, Mark] | None:
        try:
            return nft_read.marks(self._run(statement, json=True))
        except KernelError as exc:
            if exc.errno == errno.ENOENT:
                return None
            raise

    def clean(self) -> None:
        """Remove our table and all it holds; gone already is fine."""
        self._run(f"add table {nft_text.TABLE}\ndelete table {nft_text.TABLE}\n")

    def ruleset(self) -> str:
        """Our table as nft prints it, for people; "" without one."""
        try:
            return self._run(f"list table {nft_text.TABLE}").decode()
        except KernelError as exc:
            if exc.errno == errno.ENOENT:
                return ""
            raise

    def _run(self, text: str, json: bool = False) -> bytes:
        script = text.strip().encode().replace(b"\n", _NEXT)
        with self._lock:
            self._nft.set_json_output(json)
            status, output, error = self._nft.cmd(script)
        if status:
            raise failure(script, error)
        return bytes(output)


def fit(plan: Plan, held: Mapping[FactKey, Mark]) -> Plan:
    """The plan without what is done already, and each fact under the verb that ``held`` asks for."""
    wanted = [f for f in (*plan.add, *plan.change) if held.get(f.key, plan) != f.mark]
    for fact in wanted:
        if isinstance(fact, Set) and fact.key in held:
            raise Invalid(f"nftables set {fact.name} exists with another specification; rename the new one")
    return Plan(
        add=tuple(f for f in wanted if f.key not in held),
        change=tuple(f for f in wanted if f.key in held),
        remove=tuple(key for key in plan.remove if key in held),
    )


def failure(script: bytes, error: bytes) -> KernelError:
    """nft's complaint as a KernelError that quotes the refused words in their statement."""
    match = _REASON.search(error)
    if match is None:
        return KernelError(errno.EINVAL, "nftables transaction", error.decode(errors="replace")[:500])
    reason = match[1].decode(errors="replace")
    number = _ERRNO.get(reason.rpartition(": ")[2].partition(";")[0], errno.EINVAL)
    return KernelError(number, f"nftables: {_refused(script, error)}", reason)


def _refused(script: bytes, error: bytes) -> str:
    """The statement that nft underlined; of a long one its head and the underlined words."""
    underline = next((line for line in error.splitlines() if b"^" in line and not line.strip(b" \t^")), b"")
    first, last = underline.find(b"^"), underline.rfind(b"^") + 1
    if first < 0:
        return "transaction"
    begin = script.rfind(_NEXT, 0, first + 1) + len(_NEXT) if _NEXT in script[: first + 1] else 0
    end = script.find(_NEXT, last - 1)
    statement = script[begin : end if end > 0 else None]
    if len(statement) > 200:
        statement = statement.partition(b"{")[0] + "…".encode() + b" " + script[first:last][:200]
    return statement.decode(errors="replace").strip()
