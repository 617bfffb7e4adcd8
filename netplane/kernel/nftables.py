"""The driver of nftables: one atomic transaction for each plan, in table `inet netplane`.

Rule 1: everything of ours lies in one table, and no other table is ever named.
Rule 2: a refused transaction changes nothing; the error quotes nft and the words it refused.
Rule 3: nothing is listed while all goes well: `apply` sends what it is told. Only a refusal makes
        it look, so that adding what is there and removing what is gone is success.
        Elements alone go as a batch encoded in C (nft_batch), all else through libnftables.
Rule 4: the netlink socket belongs to the network namespace of the thread that makes the driver;
        any thread may use it afterwards, one at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..model.errors import Invalid, KernelError, Unavailable
from ..model.facts import Chain, Element, Fact, FactKey, Mark, Plan, Set
from . import nft_batch, nft_look, nft_read, nft_text, nft_verify

_ERRNO = {os.strerror(number): number for number in errno.errorcode}
_REASON = re.compile(rb"Error: (.*)$", re.MULTILINE)
VIEW_SECONDS = 10.0  # as long as a listing serves; halving a large plan takes less
WORTHWHILE = 500  # elements that come with new sets and chains are then a batch of their own
_NEXT = b" ; "  # between statements: nft quotes only a buffer's first line, so it gets one line


class Nft:
    """libnftables' command line, one transaction at a time. Raises Unavailable when it is not there.

    Thread-safe: a context of libnftables is not, two threads in one end the process (SIGABRT).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        try:
            from nftables import Nftables

            known = _sockets()
            self._nft = Nftables()
        except (ImportError, OSError) as exc:
            raise Unavailable(f"libnftables is needed (Debian: libnftables1): {exc}") from exc
        self.portid = _portid_of(known)
        self._nft.set_numeric_proto_output(True)  # names need /etc/protocols, which may be missing

    def run(self, text: str, json: bool = False) -> bytes:
        """All statements, a line each, in one transaction; what they print. Raises KernelError."""
        script = text.strip().encode().replace(b"\n", _NEXT)
        with self._lock:
            self._nft.set_json_output(json)
            status, output, error = self._nft.cmd(script)
        if status:
            raise failure(script, error)
        return bytes(output)


def _sockets() -> dict[str, int]:
    """The process's sockets by inode, each with a descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # another thread's that is closed by now
            found[os.readlink(f"/proc/self/fd/{name}")] = int(name)
    return {inode: fd for inode, fd in found.items() if inode.startswith("socket:")}


def _portid_of(known: dict[str, int]) -> int:
    """The netlink port of the socket that libnftables has opened just now; it tells nobody. 0: not found."""
    for inode, fd in _sockets().items():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
            ours = (sock.family, sock.proto) == (socket.AF_NETLINK, nft_batch.NETLINK_NETFILTER)
            if ours and inode not in known:
                if not sock.getsockname()[0]:
                    sock.bind((0, 0))
                return int(sock.getsockname()[0])
    return 0


class NftDriver:
    """Accepts Chain, Set and Element. Raises Unavailable when libnftables is not there."""

    name = "nftables"
    accepts: tuple[type[Fact], ...] = (Chain, Set, Element)
    parallel = False
    apart = True  # a link is named by its name, whether it is there or not

    def __init__(self) -> None:
        self._nft = Nft()
        self._lock = threading.RLock()
        self._batches = nft_batch.Batches()
        self._within = nft_look.Look(self._batches, self._nft)  # under _lock
        self._looking = threading.Lock()  # taken before _lock, never after it
        self._aside = nft_look.Look(nft_batch.Batches(), Nft())  # under _looking: commits go on
        self._view = _View(self._batches.generation)
        self.plans = 0  # that were carried out, until now

    @property
    def portids(self) -> frozenset[int]:
        """Whose commits are ours, as notifications name them."""
        return frozenset((self._batches.portid, self._nft.portid)) - {0}

    def observe(self) -> Mapping[FactKey, Mark]:
        """{key: mark} of all that our table holds; {} without a table. Raises KernelError."""
        with self._looking, self._lock:
            return self._aside.everything()

    def observe_beside(self, expected: Iterable[FactKey]) -> Mapping[FactKey, Mark]:
        """The same while plans are applied, by others who know what these change; ``expected``: before.

        Raises KernelError: EAGAIN when we commit too often.
        """
        with self._looking:
            return self._aside.beside(expected)

    def differing(self, facts: Iterable[Element]) -> list[str]:
        """In words, each of these elements that the kernel does not hold as wanted. Raises KernelError."""
        with self._looking:
            return self._aside.differing(facts)

    def counted(self, name: str) -> dict[tuple[str | int, ...], tuple[int, Any]]:
        """{item: (packets, value)} of a set or map whose elements count. Raises KernelError."""
        with self._looking:
            return self._aside.counted(name)

    def apply(self, plan: Plan) -> None:
        """All of the plan in one transaction, or nothing of it. Raises KernelError, Invalid."""
        if not plan:
            return
        with self._lock:
            try:
                self._commit(plan)
            except KernelError:
                fitted = fit(plan, self._held(plan))
                if fitted:
                    self._run(nft_text.transaction(fitted))  # refused again: now with nft's words
            self._view.moved(plan)
            self.plans += 1

    def _held(self, plan: Plan) -> Mapping[FactKey, Mark]:
        """What there is of a plan: of a small one alone, for a large one of all."""
        if sum(map(len, (plan.add, plan.change, plan.remove))) <= WORTHWHILE:
            return self._within.part((*(f.key for f in (*plan.add, *plan.change)), *plan.remove))
        return self._view.held(self._within.everything)

    def _commit(self, plan: Plan) -> None:
        """Elements alone go as a batch of our own; anything else through libnftables."""
        structure, elements = parts(plan)
        if structure:
            self._run(nft_text.transaction(structure))
            self._batches.forget()
        if elements and not self._batched(elements):
            self._run(nft_text.transaction(elements))

    def _batched(self, plan: Plan) -> bool:
        """False for what the encoder cannot say. Raises KernelError."""
        if not self._batches.encodable(plan):
            return False
        self._batches.apply(plan)
        return True

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

    def counters(self, name: str) -> dict[str, int]:
        """Packets counted by each element (an address) of a set; {} when the set is not there."""
        try:
            listing = self._run(f"list set {nft_text.TABLE} {name}", json=True)
        except KernelError as exc:
            if exc.errno == errno.ENOENT:
                return {}
            raise
        return nft_read.counters(listing)

    def ruleset(self) -> str:
        """Our table as nft prints it, for people; "" without one."""
        try:
            return self._run(f"list table {nft_text.TABLE}").decode()
        except KernelError as exc:
            if exc.errno == errno.ENOENT:
                return ""
            raise

    def _run(self, text: str, json: bool = False) -> bytes:
        with self._lock:
            return self._nft.run(text, json)


class _View:
    """What a refusal made us list, kept while nobody else commits.

    A refused plan comes back in halves, each of which may be refused: one listing serves them all.
    """

    def __init__(self, generation: Callable[[], int]) -> None:
        self._generation = generation
        self._held: dict[FactKey, Mark] | None = None
        self._at = self._until = 0.0

    def held(self, observe: Callable[[], Mapping[FactKey, Mark]]) -> Mapping[FactKey, Mark]:
        if self._held is None or self._generation() != self._at or time.monotonic() > self._until:
            self._at = self._generation()  # before the listing: a commit meanwhile makes it stale
            self._held = dict(observe())
            self._until = time.monotonic() + VIEW_SECONDS
        return self._held

    def moved(self, plan: Plan) -> None:
        """This plan was committed by us; at most two transactions, so at most two generations."""
        if self._held is None:
            return
        now = self._generation()
        if time.monotonic() > self._until or not 0 <= now - self._at <= 2:
            self._held = None
            return
        self._at = now
        self._held.update((f.key, f.mark) for f in (*plan.add, *plan.change))
        for key in plan.remove:
            self._held.pop(key, None)


def parts(plan: Plan) -> tuple[Plan, Plan]:
    """A plan as (what libnftables must say, elements), both to be carried out, in this order.

    Elements may go by themselves only if nobody can see the time between: after new sets and new
    chains, to which nothing refers yet. Else all of the plan is one transaction, the first.
    """
    fresh = [f for f in plan.add if type(f) is not Element]
    others = any(type(f) is not Element for f in plan.change) or any(k[0] != "element" for k in plan.remove)
    if not fresh and not others:
        return Plan(), plan
    if others or len(plan.add) - len(fresh) < WORTHWHILE:
        return plan, Plan()
    elements = tuple(f for f in plan.add if type(f) is Element)
    return Plan(add=tuple(fresh)), Plan(elements, plan.change, plan.remove)


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
