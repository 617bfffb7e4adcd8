"""The specification's verbs over a Host: ADD is whole or leaves nothing, DEL needs nothing but its key.

Rule 1: the Attachment object is the journal. It is removed before the kernel is cleaned (leaving.py). Where
        the kernel itself tells what is ours, it is written with the Pod when all is done: what a crash
        left, no record wants, so the next start sweeps it. Else (`plan.needs_journal`) it is written
        (Pending) before anything is touched, and `recover` undoes it. Of one with another plugin's address
        `plan.owed` stays until that plugin has taken it back: at DEL, at GC, or when an agent asks again.
Rule 2: one container, one operation at a time, since its interfaces share routes, Pod and ports;
        different ones run in parallel.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from errno import EEXIST, EINVAL
from typing import Any

from ..model.base import amend
from ..model.changes import Put
from ..model.errors import Conflict, KernelError, NetplaneError, Unavailable
from ..model.facts import Scope
from ..model.nodes import Node
from ..model.own import Allocation, Attachment
from ..model.snapshot import Snapshot
from . import bridges, delegate, lookup, loopback, master, plan, turns
from .delegate import Lease
from .errors import CONFIG, DIFFERS, ENVIRONMENT, IO, LIMITED, UNKNOWN, Refused
from .host import Host
from .ipam import describe
from .leaving import Leaving
from .locks import Locks
from .networks import Networks
from .nodebridges import NodeBridges
from .poddns import of_file, pod_dns
from .podwriter import PodWriter
from .ports import HostPorts, refuse_unreachable, udp_flows, without_doubles
from .ranges import OURS, whole
from .render import BASE, CniConfig
from .request import Request
from .result import add_result, version_result
from .wiring import ROOM

log = logging.getLogger(__name__)


class Verbs:
    """One node's CNI. Thread-safe. Call `recover` once the host's snapshot is synced."""

    def __init__(self, host: Host, config: CniConfig) -> None:
        self.host = host
        self.config = config
        self.networks = Networks(self._records, self._turns)
        self.ports = HostPorts(self._records)
        self._bridges = NodeBridges(self._records)
        self._coming = bridges.Coming()
        self._pods = PodWriter(host)
        self._locks = Locks()
        self._leaving = Leaving(host, self.networks, self._pods, self._give_back)
        self._begin = threading.Lock()
        self._cidrs: tuple[str, ...] = ()  # what the index and the base were last made for

    def run(self, request: Request, given_up: Callable[[], bool] = lambda: False) -> dict[str, Any] | None:
        """Carry one request out; the result for stdout, None for nothing. Raises NetplaneError.

        ``given_up``: nobody waits for the answer. Such an ADD is not begun: its DEL may have been answered.
        """
        with delegate.clocked():
            verb = {"ADD": self.add, "DEL": self.remove, "CHECK": self.check}.get(request.command)
            if verb is not None:
                with self._locks.hold(request.container_id):
                    if request.command == "ADD" and given_up():
                        raise Unavailable("whoever asked for this ADD waits no longer; it is not done")
                    return verb(request)
            return {"STATUS": self.status, "GC": self.collect, "VERSION": version_result}[request.command](
                request
            )

    # --- ADD ---------------------------------------------------------------------------------

    def add(self, request: Request) -> dict[str, Any]:
        if request.config.kind == "loopback":
            return loopback.add(self.host, request)
        snapshot = self._ready(request)
        attachment = lookup.draft(self.host, self.config.pod_mtu, request)
        self._check_free(request, self._record(snapshot, attachment.name))
        attachment = self._leased(attachment, request)
        try:
            beside = self._pods.beside(attachment)
            attachment = plan.apart(self._bridges.place(attachment), beside)
            attachment = without_doubles(attachment, beside)
            with self._coming.bringing(attachment, request):
                attachment, taken = bridges.settle(self.host, attachment, request, self._every)
                self._claim_ports(attachment)
                self.host.sync([Scope(ROOM, attachment.name)], lambda: self._claim(attachment))
            self.host.forget(udp_flows(attachment))
            ready = bridges.mac(self.host, amend(attachment, phase="Ready"))
            record = self.host.snapshot().get(Attachment, "", attachment.name)
            if record is None:
                raise Conflict(f"the record of {attachment.name} was deleted while its ADD was at work")
            moved: list[Attachment] = []

            def also(revision: int = record.revision) -> list[Put]:
                moved[:] = bridges.without(ready, taken, self._every()) if taken else ()
                return [Put(ready, revision), *(Put(one, one.revision) for one in moved)]

            self._pods.up(ready, request.config.labels, also)
            with suppress(KernelError):  # it is written: the loop tries again
                self.host.sync([Scope(ROOM, one.name) for one in moved])
            dns = pod_dns(ready, self.host.snapshot(), self.config) if plan.on_pod_network(ready) else None
            return add_result(ready, request.config, dns)
        except _Claimed:
            self._give_back(attachment)
            raise
        except BaseException as exc:
            self._undo(attachment)
            if isinstance(exc, KernelError) and exc.errno == EEXIST:
                self._check_name(request)
            elif isinstance(exc, KernelError) and exc.errno == EINVAL and attachment.spec.kind == "macvlan":
                master.refuse_taken(attachment, self._records())
            raise

    def _check_free(self, request: Request, record: Attachment | None) -> None:
        """The netns is there. A record without its interface is released; one with it is an answer.

        Without a record the kernel itself refuses the second of a name, at no cost to all others.
        """
        if not request.config.is_ipam:
            if not self.host.netns_exists(request.netns):
                raise Refused(ENVIRONMENT, f"CNI_NETNS: {request.netns} holds no network namespace")
            if record is not None or request.chained:
                self._check_name(request)
        if record is not None:
            log.info("ADD meets the record of %s, whose interface is gone: released", record.name)
            self._release(record)

    def _check_name(self, request: Request) -> None:
        there = self.host.link_exists(request.netns, request.ifname)
        if there and not request.chained:
            raise Refused(
                ENVIRONMENT,
                f"CNI_IFNAME: {request.ifname} exists already in {request.netns};"
                " call DEL first, or use another name",
            )
        if request.chained and not there:
            raise Refused(
                ENVIRONMENT, f"prevResult.interfaces: there is no {request.ifname} in {request.netns}"
            )

    def _behind(self, attachment: Attachment, lease: Lease) -> Attachment:
        """With the link that leads to a pod with ports, unless somebody else opened it for 127.0.0.1."""
        own = next((ip.address.partition("/")[0] for ip in lease.ips if ":" not in ip.address), "")
        link = self.host.towards(own) if own and attachment.spec.ports else ""
        if not link:
            return attachment
        opened = self.host.localnet(link)
        if opened and not any(r.spec.kind == "chained" and r.spec.bridge == link for r in self._records()):
            return attachment
        behind: Attachment = amend(attachment, spec=amend(attachment.spec, bridge=link))
        return behind

    def _leased(self, attachment: Attachment, request: Request) -> Attachment:
        """The record with its addresses taken, wherever they come from."""
        leases = request.config.leases
        if attachment.spec.kind == "chained":
            lease = plan.lease_before(request)
            attachment = self._behind(attachment, lease)
        elif leases.delegated:
            try:
                return plan.with_lease(attachment, request, delegate.lease(leases.type, request))
            except BaseException:
                with suppress(NetplaneError):
                    delegate.ask("DEL", leases.type, request, request.config.document)
                raise
        elif leases.type in ("", OURS):
            dns = of_file(leases.resolv_conf)
            lease = Lease(self._take(attachment, request), dns=dns)
        else:
            lease = Lease(())
        try:
            return plan.with_lease(attachment, request, lease)
        except BaseException:
            self._give_back(attachment)
            raise

    def _take(self, attachment: Attachment, request: Request) -> Any:
        """Addresses; when there are none, once more on an index fresh from the records."""
        leases, holder = request.config.leases, describe(attachment)
        network, routed = request.config.name, plan.routed(request)
        own = leases.type == OURS
        ipam = self.networks.own(network, leases.sets) if own else self.networks.node
        try:
            return ipam.take(attachment.name, holder, request.ips, routed)
        except Unavailable:
            ipam = self.networks.renew(network, leases.sets) if own else self._index()
            return ipam.take(attachment.name, holder, request.ips, routed)

    def _claim_ports(self, attachment: Attachment) -> None:
        if not attachment.spec.ports:
            return
        refuse_unreachable(attachment)
        self.ports.claim(attachment, self._node_port_holder)

    def _node_port_holder(self, protocol: str, port: int) -> str:
        held = self.host.snapshot().get(Allocation, "", f"nodeport.{protocol}.{port}")
        return f"service {held.spec.holder_namespace}/{held.spec.holder_name} (node port)" if held else ""

    def _claim(self, attachment: Attachment) -> None:
        """Show or write the record; creating it *is* the claim."""
        try:
            if plan.needs_journal(attachment):
                self.host.put(attachment, 0)
            else:
                self.host.draft(attachment)
            self._unpin(attachment)
        except Conflict as exc:
            spec = attachment.spec
            raise _Claimed(
                f"{spec.ifname} of container {spec.container_id} is being added by somebody else"
            ) from exc

    def _undo(self, attachment: Attachment) -> None:
        """After a failed ADD: everything that can go, goes; what cannot is owed and logged.

        Where the store cannot let the record go, its disk being full, the kernel lets go all the same.
        """
        try:
            self._release(attachment)
        except NetplaneError as exc:
            log.warning("undoing %s is not finished: %s", attachment.name, exc)
            with suppress(NetplaneError):
                self.host.withdraw(attachment.name)

    # --- DEL ---------------------------------------------------------------------------------

    def remove(self, request: Request) -> None:
        if request.config.kind == "loopback":
            return
        snapshot = self._synced()
        found = [self._record(snapshot, name) for name in plan.record_names(self.host.node, request)]
        records = [record for record in found if record is not None]
        for record in records:
            self._release(record)
        leases = request.config.leases
        if leases.delegated and not any(map(delegate.is_delegated, records)):
            delegate.ask("DEL", leases.type, request, request.config.document)

    def _release(self, record: Attachment) -> None:
        self._leaving.release(record)

    def _turns(self, network: str) -> Sequence[turns.Turn]:
        return turns.kept(self._leaving.turn(network))

    def _give_back(self, record: Attachment) -> None:
        self.ports.release(record.name)
        self._bridges.release(record.name)
        ipam = self.networks.of(record)
        if ipam is not None:
            ipam.release(record.name)

    def _unpin(self, record: Attachment) -> None:
        ipam = self.networks.of(record)
        if ipam is not None:
            ipam.unpin(record.name)

    # --- CHECK, STATUS, GC ---------------------------------------------------------------------

    def check(self, request: Request) -> None:
        if request.config.kind == "loopback":
            found = loopback.differences(self.host, request)
        else:
            found = list(self._differences(request))
        if found:
            raise Refused(DIFFERS, f"{request.ifname} is not as ADD made it: {'; '.join(found)}")

    def _differences(self, request: Request) -> Iterator[str]:
        """Of every record that may be meant: the previous result names our interface either way."""
        snapshot = self._synced()
        every = (self._record(snapshot, n) for n in plan.record_names(self.host.node, request))
        records = [record for record in every if record is not None and record.phase == "Ready"]
        if not records:
            raise Refused(
                UNKNOWN,
                f"{request.ifname} of container {request.container_id} in network"
                f" {request.config.name} was never added on node {self.host.node}",
            )
        before = request.config.prev_result
        for record in records:
            known = {ip.get("address") for ip in (before or {}).get("ips") or ()}
            missing = [e.address for e in record.spec.ips if e.address not in known]
            if missing and before is not None:
                raise Refused(CONFIG, f"prevResult.ips: {', '.join(missing)} is missing, which ADD gave")
            delegate.tell("CHECK", record, before)
            base = [BASE] if record.spec.kind in ("bridge", "ptp") and not record.spec.ipam else []
            yield from self.host.verify([*base, Scope(ROOM, record.name)])
            yield from lookup.past_the_guard(self.host, record)

    def status(self, request: Request) -> None:
        leases = request.config.leases
        if request.config.kind == "loopback":
            return
        try:
            self._ready(request)
            found = [] if request.config.own_range else self.host.verify([BASE])
        except KernelError as exc:
            found = [str(exc)]
        if found:  # the bridge, forwarding or masquerade: pods that run need them, too
            raise Refused(LIMITED, f"node {self.host.node}: {'; '.join(found)}")
        if leases.delegated:
            delegate.ask("STATUS", leases.type, request, request.config.document)
        elif leases.type == OURS:
            self.networks.check(request.config.name, leases.sets)
        elif leases.type == "":
            try:
                self.networks.node.check()
            except Unavailable:
                self._index().check()

    def collect(self, request: Request) -> None:
        """GC: release what the runtime does not list; go on after an error, report them all.

        What an ADD or DEL is under way for, the runtime could not list. What another plugin gave is kept in
        its record until that plugin is asked: what there is no time for is the next GC's.
        """
        busy = self._locks.busy()  # before the look at the records
        snapshot, valid = self._synced(), self._is_valid(request)
        faults, later = [], 0
        known = (*snapshot.by(Attachment, "node", self.host.node), *list(self._leaving.owed.values()))
        for record in {record.name: record for record in known}.values():
            spec = record.spec
            if spec.network != request.config.name or valid(record) or spec.container_id in busy:
                continue
            if delegate.is_delegated(record) and delegate.spent():
                later += 1
                continue
            with self._locks.hold(spec.container_id):
                if self._record(self.host.snapshot(), record.name) != record:
                    continue
                try:
                    self._release(record)
                except NetplaneError as exc:
                    faults.append(f"{record.name}: {exc}")
        if later:
            faults.append(f"{later} attachments stay for the next GC, since their plugin takes long")
        if request.config.leases.delegated and not delegate.spent():
            try:
                delegate.ask("GC", request.config.leases.type, request, request.config.document)
            except NetplaneError as exc:
                faults.append(str(exc))
        if faults:
            raise Refused(IO, f"GC of network {request.config.name}: {'; '.join(faults)}")

    def _is_valid(self, request: Request) -> Callable[[Attachment], bool]:
        """Listed by the runtime; without any list (`cnitool gc`), while its namespace is there."""
        if request.config.valid_attachments is None:
            return self._has_netns
        keys = {(one.get("containerID"), one.get("ifname")) for one in request.config.valid_attachments}
        return lambda record: (record.spec.container_id, record.spec.ifname) in keys

    # --- start, and namespaces that go without DEL -----------------------------------------------

    @delegate.clocked()
    def recover(self) -> None:
        """After a start: undo every ADD that was cut off, release what outlived its namespace.

        Raises Unavailable while the store is not synced.
        """
        snapshot = self._synced()
        for record in snapshot.by(Attachment, "node", self.host.node):
            spec = record.spec
            if plan.is_owed(record):
                continue  # asking may take long, and nobody is to wait for it
            if record.phase != "Ready":
                why = "its ADD was cut off"
            elif spec.boot_id and spec.boot_id != self.host.boot_id:
                why = "the machine has booted since"
            elif not self._has_netns(record):
                why = f"its namespace {spec.netns} is gone"
            else:
                continue
            self._note_release(record, why)
            self._undo(record)

    def reconcile(self) -> None:
        """Release what outlived its namespace while we run. Raises Unavailable before the store is read.

        A path may be unbound, or lead elsewhere, while the namespace lives on: the host's end is still there.
        """
        for record in self._synced().by(Attachment, "node", self.host.node):
            self._undo_if(self._is_dead, record, f"its namespace {record.spec.netns} is gone")

    @delegate.clocked()
    def pay(self) -> None:
        """Ask other plugins again to take back what they were owed when its interface went."""
        for record in self._synced().by(Attachment, "node", self.host.node):
            if not delegate.spent():
                self._undo_if(plan.is_owed, record, f"{record.spec.ipam} has its address yet")

    def _undo_if(self, is_so: Callable[[Attachment], bool], record: Attachment, why: str) -> None:
        if is_so(record):
            with self._locks.hold(record.spec.container_id):
                again = self.host.snapshot().get(Attachment, "", record.name)
                if again is not None and is_so(again):
                    self._note_release(again, why)
                    self._undo(self._leaving.owed.get(again.name, again))

    def _is_dead(self, record: Attachment) -> bool:
        if record.phase != "Ready" or self._has_netns(record):
            return False
        return not (record.spec.host_ifname and self.host.link_exists("", record.spec.host_ifname))

    def _has_netns(self, record: Attachment) -> bool:
        return self.host.netns_exists(record.spec.netns, record.spec.netns_cookie)

    def _note_release(self, record: Attachment, why: str) -> None:
        pod = f"{record.spec.pod_namespace}/{record.spec.pod_name}"
        log.info("attachment %s of pod %s: %s: released", record.name, pod, why)

    def _ready(self, request: Request) -> Snapshot:
        """The snapshot, with the node's index and base made for it if they are needed. Raises Unavailable."""
        snapshot = self._synced()
        if request.config.own_range or request.chained:
            return snapshot
        node = snapshot.get(Node, "", self.host.node)
        if node is None or not node.pod_cidrs:
            raise Unavailable(
                f"node {self.host.node} has no pod CIDR yet; is --cluster-cidr set and large enough?"
            )
        if self._cidrs != node.pod_cidrs:
            with self._begin:
                if self._cidrs != node.pod_cidrs:
                    self._index()
                    self.host.sync([BASE])
                    self._cidrs = node.pod_cidrs
        return snapshot

    def _synced(self) -> Snapshot:
        """Enough for taking away: what the index does not know yet, it need not forget."""
        snapshot = self.host.snapshot()
        if not snapshot.synced:
            raise Unavailable(f"the agent of node {self.host.node} has not read its store yet")
        return snapshot

    def _records(self) -> tuple[Attachment, ...]:
        return self.host.snapshot().by(Attachment, "node", self.host.node)

    _every = _records  # where a few do not do (narrow.py)

    def _index(self) -> Any:
        node = self.host.snapshot().get(Node, "", self.host.node)
        self.networks.renew_node(map(whole, node.pod_cidrs if node else ()))
        return self.networks.node

    def _record(self, snapshot: Snapshot, name: str) -> Attachment | None:
        return self._leaving.owed.get(name) or snapshot.get(Attachment, "", name)


class _Claimed(Conflict):
    """The record is somebody else's: nothing of it is ours to undo."""
