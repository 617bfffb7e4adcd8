"""The specification's verbs over a Host: ADD is whole or leaves nothing, DEL needs nothing but its key.

Rule 1: the Attachment object is the journal. It is written (Pending) before the kernel is touched and
        removed before the kernel is cleaned, so a crash at any point is undone by `recover`.
Rule 2: an address returns to the range only when the kernel holds nothing of it any more.
Rule 3: one container interface, one operation at a time; different ones run in parallel.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from errno import EEXIST
from typing import Any

from ..model.base import Object, ObjectMeta, amend
from ..model.changes import Put
from ..model.errors import Conflict, KernelError, NetplaneError, Unavailable
from ..model.facts import Scope
from ..model.nodes import Node
from ..model.own import Attachment, AttachmentIP, AttachmentSpec
from ..model.snapshot import Snapshot
from . import names
from .errors import CONFIG, DIFFERS, ENVIRONMENT, UNKNOWN, Refused
from .host import Host
from .ipam import Ipam, holder_of
from .locks import Locks
from .poddns import pod_dns
from .podwriter import PodWriter
from .render import BASE, ROOM, CniConfig
from .request import Request
from .result import add_result

log = logging.getLogger(__name__)


class Verbs:
    """One node's CNI. Thread-safe. Call `recover` once the host's snapshot is synced."""

    def __init__(self, host: Host, config: CniConfig) -> None:
        self.host = host
        self.config = config
        self.ipam = Ipam()
        self._pods = PodWriter(host)
        self._locks = Locks()
        self._owed: dict[str, Attachment] = {}  # record gone, kernel not yet clean
        self._begin = threading.Lock()
        self._adding = threading.BoundedSemaphore((os.cpu_count() or 1) + 1)
        self._cidrs: tuple[str, ...] = ()  # what the index and the base were last made for

    def run(self, request: Request) -> dict[str, Any] | None:
        """Carry one request out; the result for stdout, None for nothing. Raises NetplaneError."""
        verb = {"ADD": self.add, "DEL": self.remove, "CHECK": self.check}.get(request.command)
        if verb is not None:
            with self._locks.hold((request.container_id, request.ifname)), self._lane(request.command):
                return verb(request)
        return {"STATUS": self.status, "GC": self.collect, "VERSION": _versions}[request.command](request)

    def _lane(self, command: str) -> AbstractContextManager[Any]:
        """ADDs are work for the processor: more at once than it has cores would only be in each other's
        way. The others wait for the kernel, together."""
        return self._adding if command == "ADD" else nullcontext()

    # --- ADD ---------------------------------------------------------------------------------

    def add(self, request: Request) -> dict[str, Any]:
        snapshot = self._ready()
        name = self._name(request)
        self._check_free(request, self._record(snapshot, name))
        attachment = self._planned(name, request)
        try:
            self.host.sync([Scope(ROOM, name)], lambda: self._claim(attachment))
            ready = amend(attachment, phase="Ready")
            record = self.host.snapshot().get(Attachment, "", name)
            if record is None:
                raise Conflict(f"the record of {name} was deleted while its ADD was at work")
            self._pods.up(ready, request.config.labels, [Put(ready, record.revision)])
            dns = pod_dns(ready, self.host.snapshot(), self.config)
            return add_result(ready, request.config, dns)
        except _Claimed:
            self.ipam.release(name)
            raise
        except BaseException as exc:
            self._undo(attachment)
            if isinstance(exc, KernelError) and exc.errno == EEXIST:
                self._check_name(request)
            raise

    def _planned(self, name: str, request: Request) -> Attachment:
        """The record of this ADD, its addresses taken."""
        pod = (request.pod.namespace, request.pod.name)
        if not request.pod.name:
            pod = ("default", names.pod_name(request.container_id))
        ips = self._take(name, holder_of(*pod, request.container_id, request.ifname), request.ips)
        attachment = _attachment(name, self.host, request, pod)
        mtu = request.config.mtu or self.config.pod_mtu
        planned: Attachment = amend(attachment, spec=amend(attachment.spec, ips=ips, mtu=mtu))
        return planned

    def _check_free(self, request: Request, record: Attachment | None) -> None:
        """The netns is there. A record without its interface is released; one with it is an answer.

        Without a record the kernel itself refuses the second of a name, at no cost to all others.
        """
        if not self.host.netns_exists(request.netns):
            raise Refused(ENVIRONMENT, f"CNI_NETNS: {request.netns} holds no network namespace")
        if record is not None:
            self._check_name(request)
            log.info("ADD meets the record of %s, whose interface is gone: released", record.name)
            self._release(record)

    def _check_name(self, request: Request) -> None:
        if self.host.link_exists(request.netns, request.ifname):
            raise Refused(
                ENVIRONMENT,
                f"CNI_IFNAME: {request.ifname} exists already in {request.netns};"
                " call DEL first, or use another name",
            )

    def _claim(self, attachment: Attachment) -> None:
        """Write the record; creating it *is* the claim."""
        try:
            self.host.put(attachment, 0)
            self.ipam.unpin(attachment.name)
        except Conflict as exc:
            spec = attachment.spec
            raise _Claimed(
                f"{spec.ifname} of container {spec.container_id} is being added by somebody else"
            ) from exc

    def _take(self, name: str, holder: str, asked: tuple[str, ...]) -> tuple[AttachmentIP, ...]:
        """Addresses; when there are none, once more on an index fresh from the records."""
        try:
            return self.ipam.take(name, holder, asked)
        except Unavailable:
            self._index()
            return self.ipam.take(name, holder, asked)

    def _undo(self, attachment: Attachment) -> None:
        """After a failed ADD: everything that can go, goes; what cannot is owed and logged."""
        try:
            self._release(attachment)
        except NetplaneError as exc:
            log.warning("undoing %s is not finished: %s", attachment.name, exc)

    # --- DEL ---------------------------------------------------------------------------------

    def remove(self, request: Request) -> None:
        snapshot = self._synced()
        name = self._name(request)
        record = self._record(snapshot, name)
        if record is not None:
            self._release(record)

    def _release(self, record: Attachment) -> None:
        """Pod, record, kernel, address: in this order (rules 1 and 2), each step idempotent."""
        self._owed[record.name] = record
        self.ipam.pin(record)
        self.host.sync([Scope(ROOM, record.name)], lambda: self._pods.down(record))
        self.ipam.release(record.name)
        del self._owed[record.name]

    # --- CHECK, STATUS, GC ---------------------------------------------------------------------

    def check(self, request: Request) -> None:
        snapshot = self._ready()
        record = snapshot.get(Attachment, "", self._name(request))
        if record is None or record.phase != "Ready":
            raise Refused(
                UNKNOWN,
                f"{request.ifname} of container {request.container_id} in network"
                f" {request.config.name} was never added on node {self.host.node}",
            )
        known = {ip.get("address") for ip in (request.config.prev_result or {}).get("ips", ())}
        missing = [e.address for e in record.spec.ips if e.address not in known]
        if missing:
            raise Refused(CONFIG, f"prevResult.ips: {', '.join(missing)} is missing, which ADD gave")
        found = self.host.verify([BASE, Scope(ROOM, record.name)])
        if found:
            raise Refused(DIFFERS, f"{record.spec.ifname} is not as ADD made it: {'; '.join(found)}")

    def status(self, _request: Request) -> None:
        self._ready()
        try:
            self.ipam.check()
        except Unavailable:
            self._index()
            self.ipam.check()

    def collect(self, request: Request) -> None:
        """GC: release what the runtime does not list; go on after an error, report them all."""
        snapshot, valid = self._synced(), self._is_valid(request)
        faults = []
        for record in snapshot.by(Attachment, "node", self.host.node):
            spec = record.spec
            if spec.network != request.config.name or valid(record):
                continue
            with self._locks.hold((spec.container_id, spec.ifname)):
                try:
                    self._release(record)
                except NetplaneError as exc:
                    faults.append(f"{record.name}: {exc}")
        if faults:
            raise KernelError(5, f"GC of network {request.config.name}", "; ".join(faults))

    def _is_valid(self, request: Request) -> Callable[[Attachment], bool]:
        """Listed by the runtime; without any list (`cnitool gc`), while its namespace is there."""
        listed = request.config.valid_attachments
        if listed is None:
            return lambda record: self.host.netns_exists(record.spec.netns)
        keys = {(one.get("containerID"), one.get("ifname")) for one in listed}
        return lambda record: (record.spec.container_id, record.spec.ifname) in keys

    # --- start -------------------------------------------------------------------------------

    def recover(self) -> None:
        """After a start: undo every ADD that was cut off, release what outlived its namespace.

        Raises Unavailable while the store is not synced.
        """
        snapshot = self._synced()
        for record in snapshot.by(Attachment, "node", self.host.node):
            spec = record.spec
            if record.phase != "Ready":
                why = "its ADD was cut off"
            elif spec.boot_id and spec.boot_id != self.host.boot_id:
                why = "the machine has booted since"
            elif not self.host.netns_exists(spec.netns):
                why = f"its namespace {spec.netns} is gone"
            else:
                continue
            log.info("attachment %s of pod %s/%s: %s: released", record.name, spec.pod_namespace,
                     spec.pod_name, why)  # fmt: skip
            self._undo(record)

    def _ready(self) -> Snapshot:
        """The snapshot, with the index and the node's base made for it. Raises Unavailable."""
        snapshot = self._synced()
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

    def _index(self) -> None:
        node = self.host.snapshot().get(Node, "", self.host.node)
        self.ipam.rebuild(
            node.pod_cidrs if node else (),
            lambda: self.host.snapshot().by(Attachment, "node", self.host.node),
        )

    def _record(self, snapshot: Snapshot, name: str) -> Attachment | None:
        return self._owed.get(name) or snapshot.get(Attachment, "", name)

    def _name(self, request: Request) -> str:
        return names.attachment_name(
            self.host.node, request.container_id, request.ifname, request.config.name
        )


def _versions(request: Request) -> dict[str, Any]:
    """The binary answers this by itself; others that speak to the socket may ask too."""
    from .config import VERSIONS

    return {"cniVersion": request.config.version, "supportedVersions": list(VERSIONS)}


class _Claimed(Conflict):
    """The record is somebody else's: nothing of it is ours to undo."""


def _stored(obj: Object) -> Attachment:
    assert isinstance(obj, Attachment)
    return obj


def _attachment(name: str, host: Host, request: Request, pod: tuple[str, str]) -> Attachment:
    """The record of this ADD, all but its addresses and MTU."""
    identity = (request.container_id, request.ifname, request.config.name)
    kept: dict[str, Any] = {"cniVersion": request.config.version}
    if request.config.ip_masq is not None:
        kept["ipMasq"] = request.config.ip_masq
    if not request.config.hairpin_mode:
        kept["hairpinMode"] = False
    return Attachment(
        metadata=ObjectMeta(name=name),
        spec=AttachmentSpec(
            node=host.node,
            container_id=request.container_id,
            ifname=request.ifname,
            netns=request.netns,
            network=request.config.name,
            pod_namespace=pod[0],
            pod_name=pod[1],
            pod_uid=request.pod.uid,
            host_ifname=names.host_ifname(*identity),
            mac=request.mac or names.pod_mac(*identity),
            config=kept,
            boot_id=host.boot_id,
        ),
    )
