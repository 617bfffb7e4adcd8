"""The driver of links, addresses, routes, neighbours, forwarding entries, shapers and sysctls.

Rule 1: no dump on the way of an ADD: links are looked up by name, requests go in batches, each
        batch is one system call with the GIL released, and every request is acknowledged by itself.
Rule 2: a plan is all or nothing for what it adds: when a step fails, what was added is removed again.
Rule 3: order: removals; links, masters first; sysctls (they may name the links); then, in one batch
        for each namespace, new pairs and lo go up, and addresses, routes, neighbours and entries come.
Rule 4: a plan that is one fresh pair, as an ADD's is, is one call (linkpair); when that is refused it has
        left nothing, and the general way does the plan and words the error.
Rule 5: what a pod's namespace holds belongs to the pod: `observe` reads our own namespace only.
"""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from errno import EHOSTUNREACH, ENETUNREACH
from typing import Any

import msgspec

from ..model.errors import Invalid, KernelError
from ..model.facts import (
    ROUTE_PROTOCOL,
    Address,
    Fact,
    FactKey,
    Fdb,
    Link,
    Mark,
    Neighbour,
    Plan,
    Route,
    Shaper,
    Sysctl,
)
from . import linkmsg, linkpair, ours, qdiscmsg, routemsg, sysctl
from . import nlmsg as nl
from .factput import put_facts
from .linkdrop import delete, drop, drop_rest
from .linkput import announce, put, wait_carried
from .linkread import View, addresses, link_faults, peer_faults
from .linkreap import Departures, Reaper
from .nlsocket import Pool, Socket
from .nsnumbers import Numbers
from .session import GONE, Session

_OVERLAP = 8  # deletions at once that wait until the kernel has let the links' memory go


class LinkDriver:
    """Works in the namespace of the thread that makes it, whichever threads call it afterwards."""

    name = "links"
    accepts: tuple[type[Fact], ...] = (Link, Address, Route, Neighbour, Fdb, Shaper, Sysctl)
    parallel = True

    def __init__(self) -> None:
        self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.netns = f"/proc/self/fd/{self._fd}"
        self._pool = Pool(lambda: Socket(self.netns, name=""))
        self._numbers = Numbers()
        self._reaper = Reaper(self._delete)
        self._masters: dict[str, int] = {}  # looked up by plans before; doubted when one fails
        self.hooked = False  # our ends of pairs get a place for programs (option clsact) where they may
        self._burials = ThreadPoolExecutor(_OVERLAP, thread_name_prefix="reaper")

    def close(self) -> None:
        self._burials.shutdown()
        self._pool.close()
        os.close(self._fd)

    def apply(self, plan: Plan) -> None:
        """Raises Invalid for a fact that can never be; KernelError naming operation and object."""
        self._check(plan)
        if plan.remove:
            with self._session() as session:
                drop(session, plan.remove, self._reaper)
        if plan.change or not self._at_once(plan.add):
            self._generally(plan)

    def begin(self, plan: Plan) -> Callable[[], None] | None:
        """The plan of one fresh pair, made while the caller goes on; what is returned waits for the end, and
        raises as `apply` does. None for any other plan. Raises Invalid."""
        if plan.change or plan.remove:
            return None
        self._check(plan)
        packed = linkpair.pack(plan.add, self._masters, self.hooked, self._number)
        if packed is None:
            return None
        lent = ExitStack()
        wait = lent.enter_context(self._pool.take()).begin_pair(*packed)

        def end() -> None:
            with lent:
                errno = wait()
            if errno:  # it has left nothing, and no words
                self._generally(plan)

        return end

    def _check(self, plan: Plan) -> None:
        for fact in (*plan.add, *plan.change):
            if not isinstance(fact, self.accepts):
                raise Invalid(f"{type(fact).__name__} is not for the driver {self.name}")
            if isinstance(fact, Link):
                linkmsg.check(fact)

    def _generally(self, plan: Plan) -> None:
        wanted = (*plan.add, *plan.change)
        known = frozenset(fact.key for fact in plan.change)
        trusted = bool(self._masters)
        try:
            self._put_or_undo(wanted, known)
        except KernelError:
            if not trusted:
                raise
            self._masters.clear()  # one of them may have been made again
            self._put_or_undo(wanted, known)

    def _at_once(self, facts: tuple[Any, ...]) -> bool:
        """Whether it is one fresh pair that nothing stood in the way of; else nothing of it is there."""
        packed = linkpair.pack(facts, self._masters, self.hooked, self._number)
        if packed is None:
            return False
        with self._pool.take() as own:
            return own.make_pair(*packed) == 0

    def _number(self) -> int:
        with self._pool.take() as own:
            return self._numbers.take(own)

    def _put_or_undo(self, wanted: tuple[Any, ...], known: frozenset[FactKey]) -> None:
        if not wanted:
            return
        with self._session() as session:
            try:
                self._put(session, wanted, known)
            except (ValueError, struct.error) as exc:
                session.undo()
                raise Invalid(f"a fact cannot be put into a request: {exc}") from exc
            except BaseException:
                session.undo()
                raise

    def _put(self, session: Session, facts: tuple[Any, ...], known: frozenset[FactKey]) -> None:
        put(session, (f for f in facts if isinstance(f, Link)), known)
        settings: dict[str, list[tuple[str, str]]] = defaultdict(list)
        rest: dict[str, list[Any]] = defaultdict(list)
        for fact in facts:
            if isinstance(fact, Sysctl):
                settings[fact.netns].append((fact.name, fact.value))
            elif not isinstance(fact, Link):
                rest[fact.netns].append(fact)
        for netns, pairs in settings.items():
            sysctl.ensure(pairs, session.path(netns))
        for netns in dict.fromkeys((*session.later, *rest)):
            put_facts(session, netns, rest.get(netns, ()), known)
        announce(session)
        wait_carried(session)

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with self._pool.take() as own:
            session = Session(own, self.netns, self._masters)
            session.hooked = self.hooked
            try:
                yield session
            finally:
                session.close()

    def _delete(self, keys: list[FactKey]) -> None:
        with Departures(self.netns) as departures:  # it listens before anything goes
            with self._session() as session:
                doomed = drop_rest(session, "", keys)
            if doomed:
                departures.wait(doomed, self._burials.submit(self._bury, doomed))

    def _bury(self, doomed: list[int]) -> None:
        with self._pool.take() as sock:
            delete(sock, doomed)

    def observe(self) -> dict[FactKey, Mark]:
        """Everything of ours in our namespace but sysctls and links of kind "", which bear no mark."""
        with self._pool.take() as own:
            view = View(own)
            marks: dict[FactKey, Mark] = {
                ("link", "", state.name): view.link_mark(state)
                for state in view.by_index.values()
                if state.ours
            }
            marks.update((fact.key, fact.mark) for fact in view.ours())
        return marks

    def unseen(self, key: FactKey) -> bool:
        """What lies in a pod's namespace (rule 5), and settings."""
        return key[0] == "sysctl" or bool(key[1])

    def verify(self, facts: Iterable[Fact]) -> list[str]:
        """In words, what differs from these facts, in pods' namespaces too; [] when nothing does."""
        with self._session() as session:
            return list(_Verifier(session).faults(list(facts)))

    def link_exists(self, netns: str, name: str) -> bool:
        """Raises KernelError when there is no namespace at the path."""
        with self._session() as session:
            return name in session.states(netns, [name])

    def mtu_and_mac(self, name: str) -> tuple[int, str]:
        """Of the link in our namespace; (0, "") when there is no such link."""
        with self._session() as session:
            state = session.states("", [name]).get(name) if name else None
            return (state.mtu, state.mac) if state else (0, "")

    def asked_mtu(self, name: str) -> int:
        """The MTU that our link of this name was made with; 0: the kernel's choice, or no such link."""
        with self._session() as session:
            state = session.states("", [name]).get(name)
        kept = ours.wish_of(state.alias) if state else None
        return int(kept[1].get("mtu", "0")) if kept else 0

    def pairs_on(self, bridge: str) -> int:
        """How many ports of the bridge are ends of pairs; 0 without a bridge."""
        with self._session() as session:
            state = session.states("", [bridge]).get(bridge)
            if state is None:
                return 0
            body = linkmsg.ports_of(state.ifindex)
            found = [linkmsg.parse(link) for _, link in session.socket("").dump(nl.RTM_GETLINK, body)]
        return sum(port.kind == "veth" and port.master == state.ifindex for port in found)

    def look(self, netns: str, name: str) -> tuple[linkmsg.State, dict[str, bool]] | None:
        """The link, and its addresses with whether each bears our protocol; None when there is none.

        Raises KernelError when there is no namespace at the path.
        """
        with self._session() as session:
            state = session.states(netns, [name]).get(name)
            if state is None:
                return None
            every = addresses(session.socket(netns), {state.ifindex: name})
            return state, {fact.address: proto == ROUTE_PROTOCOL for fact, proto in every if fact.link}

    def peer(self, netns: str, name: str) -> str:
        """The link of our namespace whose other end is the veth ``name`` in ``netns``; "" without one."""
        with self._session() as session:
            inside = session.states(netns, [name]).get(name)
            if inside is None or inside.kind != "veth":
                return ""
            (answer,) = session.socket("").must([linkmsg.get_index(inside.iflink)], fine=GONE)
            outside = linkmsg.parse(answer.body) if answer.body else None
            # an index says little of another namespace: both ends must name each other
            return outside.name if outside and outside.iflink == inside.ifindex else ""

    def towards(self, address: str) -> str:
        """The link of our namespace on which the address is a neighbour; "" when a gateway, or nothing,
        leads there, or it is this node's own."""
        with self._session() as session:
            sock = session.socket("")
            (answer,) = sock.must([routemsg.get_route(address)], fine=(*GONE, ENETUNREACH, EHOSTUNREACH))
            if not answer.body:
                return ""
            route, _ = routemsg.read_route(answer.body, str)
            if route.via or route.kind != "unicast" or not route.link:
                return ""
            (found,) = sock.must([linkmsg.get_index(int(route.link))], fine=GONE)
            return linkmsg.parse(found.body).name if found.body else ""

    def redirects(self, name: str) -> bool:
        """Whether the link of our namespace has an ingress qdisc, whose filters (the bandwidth plugin's) see
        its frames before nftables does, and may take them past it."""
        with self._session() as session:
            state = session.states("", [name]).get(name)
            if state is None:
                return False
            everything = session.socket("").dump(qdiscmsg.RTM_GETQDISC, qdiscmsg.TCMSG.pack(0, 0, 0, 0, 0))
            found = [qdiscmsg.at_ingress(body, state.ifindex) for _, body in everything]
            return True in found  # a dump is read to its end

    def portids(self) -> frozenset[int]:
        """Whose notifications are echoes of our own requests (for LinkMonitor)."""
        return frozenset(self._pool.portids)


class _Verifier:
    """Compares facts with the kernel, one view per namespace."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._views: dict[str, View] = {}
        self._held: dict[str, dict[FactKey, Mark]] = {}

    def faults(self, facts: list[Any]) -> Iterator[str]:
        for fact in facts:
            try:
                yield from self._fault(fact)
            except KernelError as exc:
                yield str(exc)

    def _fault(self, fact: Any) -> Iterator[str]:
        where = f" in {fact.netns}" if fact.netns else ""
        if isinstance(fact, Link):
            view = self._view(fact.netns)
            yield from link_faults(fact, view, where)
            if fact.kind == "veth":
                peer = self._view(str(dict(fact.options).get("peer_netns", "")))
                yield from peer_faults(fact, view.by_name.get(fact.name), peer)
        elif isinstance(fact, Sysctl):
            value = sysctl.read(fact.name, self._session.path(fact.netns))
            if value != fact.value:
                yield f"sysctl {fact.name}{where} is {value or 'not there'}, not {fact.value}"
        else:
            inside = msgspec.structs.replace(fact, netns="")
            words = f"{fact.TYPE} {' '.join(str(part) for part in fact.key[2:])}{where}"
            held = self._holdings(fact.netns)
            if inside.key not in held:
                yield f"{words} is not there"
            elif held[inside.key] != inside.mark:
                yield f"{words} is {held[inside.key]}, not {inside.mark}"

    def _view(self, netns: str) -> View:
        if netns not in self._views:
            self._views[netns] = View(self._session.socket(netns))
        return self._views[netns]

    def _holdings(self, netns: str) -> dict[FactKey, Mark]:
        if netns not in self._held:
            view = self._view(netns)
            every = (*view.addresses(), *view.routes(), *view.neighbours())
            self._held[netns] = {fact.key: fact.mark for fact, _ in every}
            self._held[netns] |= {fact.key: fact.mark for fact in view.shapers()}
        return self._held[netns]
