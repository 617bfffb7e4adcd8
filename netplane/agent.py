"""The wiring: the one place that knows every room.

An agent is a store, drivers, rooms and controllers around one Core, and the edges that face outside:
the CNI socket, the DNS server, the health server. It works in the network namespace it is started in.

Rule 1: what is wrong with the configuration is refused before anything is touched.
Rule 2: the CNI socket opens when everything is in the kernel once; until then runtimes try again.
Rule 3: stopping stops the work, not the data plane: nothing is taken down.
"""

from __future__ import annotations

import ctypes
import logging
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from . import cluster
from .agentconfig import AgentConfig
from .cni.render import CniConfig, CniRoom
from .cni.server import CniServer
from .cnihost import CniHost
from .dnsedge import DnsEdge
from .health import Controls, HealthServer
from .kernel.flows import FlowDriver
from .kernel.flowtable import FlowTable
from .kernel.linkwatch import LinkMonitor
from .kernel.nft_guard import GuardDriver
from .kernel.nft_limit import LimitDriver
from .kernel.nft_text import joined
from .kernel.nftables import NftDriver
from .kernel.nftwatch import NftMonitor
from .kernel.rtnetlink import LinkDriver
from .kernel.underlay import addresses_within, node_addresses, own_addresses, underlay_of
from .model.errors import Invalid, NetplaneError, Unavailable
from .model.facts import Driver
from .model.nodes import Node
from .model.snapshot import Snapshot
from .overlay.room import OverlayRoom, pod_mtu
from .pathedge import PathEdge
from .policy.birth import Birth
from .policy.counters import DropCounters
from .policy.explain import lines, straight
from .policy.flows import PolicyFlows
from .policy.room import PolicyRoom
from .reconcile.base import Room
from .reconcile.core import Core
from .services.ejector import Ejector
from .services.explain import explain
from .services.health import HealthChecks
from .services.metrics import ServiceCounts, ServiceMetrics
from .services.room import ServicesRoom
from .services.upkeep import translated
from .spare import Spare
from .store import Store, open_store

log = logging.getLogger(__name__)

TO_BE_DELETED = "ToBeDeletedByClusterAutoscaler"  # the taint that kube-proxy looks for too
CNI_SOCKET = "cni.sock"
EDGES = ("dns", "cni")  # the rooms with a server, which opens last
NOT_OPEN = "its server is not open yet"
CALM = 0.2  # seconds that link events are gathered before everything is compared again


class Agent:
    """`run` until told to stop. Everything that is opened is closed in the reverse order."""

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._registry = CollectorRegistry()
        self._links = LinkDriver()
        self._metrics = ServiceMetrics(self._registry)
        self._checks = HealthChecks(self.proxy_healthy)
        self._flows: PolicyFlows | None = None
        self._policy: PolicyRoom | None = None
        # a room is not in sync before its server answers: who waits for us sends it the next request
        self._edge_failures = {edge: NOT_OPEN for edge in EDGES if edge in config.rooms}
        self._controls: Controls = {"/explain": self._explain}  # what operators ask, on the agent's socket
        self.dns = DnsEdge(config, self._registry, self._controls)
        self._path = PathEdge(config, self._registry, self._controls)
        self._core: Core | None = None
        self._cni: CniServer | None = None
        self._nft: NftDriver | None = None
        self._nft_ports: frozenset[int] = frozenset()  # whose commits are ours
        self._spare: Spare | None = None
        self._ejector: Ejector | None = None

    def run(self, stopping: threading.Event) -> None:
        """Raises Invalid for what is refused at start; after that, only `stopping` ends it."""
        _raise_limits()
        _share_heap()
        self._path.open()
        self._links.hooked = self._path.driver.in_qdisc
        with ExitStack() as stack:
            self.config.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            instance = cluster.Instance(self.config.state_dir)
            stack.callback(instance.close)
            store = _patiently(lambda: open_store(self.config.store), stopping)
            stack.callback(store.close)
            machine = self._machine(instance.id)
            spare = self._spare = Spare(self.config.run_dir, store)
            _patiently(lambda: spare.settle(self.config.node, self.boot_id), stopping)
            registrar = cluster.Registrar(store, machine)
            if not store.allocates:
                _patiently(registrar.register, stopping)
                stack.callback(_quietly, registrar.release)
            core = self._core = self._build(store, machine)
            if self._policy is not None and self._flows is not None:
                self._flows.judge = self._policy.judge(core.snapshot)
                self._flows.start()
                stack.callback(self._flows.stop)
            core.start()
            stack.callback(core.stop)
            if self._ejector is not None:
                self._ejector.start()
                stack.callback(self._ejector.stop)
            health = HealthServer(
                self.config.run_dir,
                self.status,
                self._registry,
                self.config.http_listen,
                self._controls,
                self,
            )
            health.start()
            stack.callback(health.stop)
            for monitor in self._monitors(core):
                stack.enter_context(monitor)
            edges = threading.Thread(target=self._open_edges, args=(core, stack, stopping), name="edges")
            edges.start()
            try:
                self._beat(registrar, store.allocates, stopping)
            finally:
                stopping.set()
                edges.join()

    def _monitors(self, core: Core) -> Iterator[AbstractContextManager[Any]]:
        """What tells us that somebody else changed what is ours."""
        mend = _Calm(partial(self._mend, core))
        yield LinkMonitor(mend, own=self._links.portids)
        if self._nft is not None:
            yield NftMonitor(mend, own=self._nft_ports)

    def _mend(self, core: Core) -> None:
        """Compare everything; a link that went may mean that a namespace went without its DEL."""
        if self._cni is not None:
            self._cni.look()
        core.resync()

    def status(self) -> dict[str, Any]:
        """Core's status with the node's name and the edges that are not open."""
        assert self._core is not None
        status = self._core.status()
        for edge, why in tuple(self._edge_failures.items()):
            room = status["rooms"].setdefault(edge, {"scopes": 0, "failing": {}})
            room["failing"]["server"] = why
            status["synced"] = False
        self.dns.tell(status)
        if self._ejector is not None:  # no reason to be unready either
            status["ejected"] = self._ejector.status()
        return {"node": self.config.node, **status}

    def proxy_healthy(self) -> bool:
        """As load balancers are told of it: the kernel takes what it is given."""
        return self._core is None or self._core.healthy()

    def node_eligible(self) -> bool:
        """Whether load balancers may go on using this node: neither it nor its taints say it leaves."""
        assert self._core is not None
        node = self._core.snapshot().get(Node, "", self.config.node)
        return node is None or not (node.deleting or any(t.key == TO_BE_DELETED for t in node.spec.taints))

    def probed(self, path: str, code: int) -> None:
        self._metrics.probed(path, code)

    def _explain(self, words: dict[str, str]) -> dict[str, Any]:
        """What applies to a connection, and how the kernel differs. Raises Invalid, NotFound."""
        assert self._core is not None
        room = self._core.room(ServicesRoom.name)
        if not isinstance(room, ServicesRoom) or self._nft is None:
            raise Invalid("this agent serves no services; start it with --rooms services")
        snapshot, source, target = (
            self._core.snapshot(),
            words.get("source", ""),
            words.get("destination", ""),
        )
        judged = straight(source, target, snapshot) if self._policy is not None else []
        found = explain(room, snapshot, source, judged[0].packet.towards if judged else target)
        return {
            "policy": [line for a in judged for line in lines(a)] if found.verdict == "pass" else [],
            **{
                name: getattr(found, name)
                for name in ("source", "destination", "verdict", "reason", "service")
            },
            "endpoints": found.endpoints,
            "notes": found.notes,
            "elements": [f"{f.of}: {joined(f.item)} → {joined(f.value or ())}" for f in found.facts],
            "differs": self._nft.differing(found.facts),
            "fast": self._path.explain(found.source, found.destination, found.verdict, snapshot),
        }

    def _machine(self, instance: str) -> cluster.Machine:
        addresses = self.config.node_ips or tuple(node_addresses())
        if not addresses:
            raise Invalid("this network namespace has no address; name the node's own with --node-ip")
        return cluster.Machine(
            node=self.config.node,
            node_ips=addresses,
            underlay_mtu=min(underlay_of(a)[1] for a in addresses),
            hostname=socket.gethostname(),
            boot_id=self.boot_id,
            instance=instance,
        )

    def _build(self, store: Store, machine: cluster.Machine) -> Core:
        nft, limits, guards = NftDriver(), LimitDriver(), GuardDriver()
        self._nft, self._nft_ports = nft, nft.portids | limits.portids | guards.portids
        flows = FlowDriver(self._metrics.swept, lambda: translated(nft.counted))
        drivers: dict[str, tuple[Driver, ...]] = {
            "cni": (self._links, nft, limits, guards),
            "overlay": (self._links,),
            "services": (nft, self._links, flows, self._checks),
            "dns": (self.dns.names, self._links, nft),
        }
        if "policy" in self.config.rooms:
            self._flows = PolicyFlows(self._path.cutting(FlowTable()), own_addresses)
            drivers["policy"] = (nft, self._flows)
        drivers = self._path.forgetting(drivers, self._links)
        rooms = [(room, drivers[room.name]) for room in self._rooms(machine)]
        controllers = [] if store.allocates else cluster.controllers(self.config.cluster)
        observer = self._metrics if "services" in self.config.rooms else None
        core = Core(store, rooms, controllers, self._rank, observer)
        if "services" in self.config.rooms:
            room = core.room(ServicesRoom.name)
            assert isinstance(room, ServicesRoom)
            self._registry.register(ServiceCounts(core.snapshot, nft.counted, room.node_port_ips))
            self._ejector = Ejector(room, core.snapshot, nft.counted, core.sync)
            self._registry.register(self._ejector)
        if self._policy is not None and self._flows is not None:
            self._registry.register(DropCounters(self._policy, core.snapshot, nft.counters, self._flows))
        return core

    def _rooms(self, machine: cluster.Machine) -> list[Room]:
        config, ranges = self.config, self.config.cluster
        dns_servers = self.dns.servers()
        cni = CniConfig(
            cluster_cidrs=ranges.cluster_cidrs,
            pod_mtu=self._pod_mtu(machine),
            tunnel="overlay" in config.rooms,
            boot_id=self.boot_id,
            dns_domain=config.domain if dns_servers is not None else "",
            dns_servers=dns_servers or (),
            resolv_conf=config.resolv_conf,
        )
        rooms: dict[str, Room] = {
            "cni": CniRoom(config.node, cni),
            "overlay": OverlayRoom(config.node, ipv6=Path("/proc/sys/net/ipv6").exists()),
            "services": ServicesRoom(
                config.node,
                machine.node_ips,
                ranges.cluster_cidrs,
                ranges.service_cidrs,
                bridge_netfilter="cni" not in config.rooms and Path("/proc/sys/net/bridge").exists(),
                node_port_ips=addresses_within(within) if (within := config.node_port_addresses) else None,
            ),
            "dns": self.dns.room,
        }
        if "policy" in config.rooms:
            rooms["policy"] = self._policy = PolicyRoom(config.node)
        chosen = [room for name, room in rooms.items() if name in config.rooms]
        return [*chosen, self._path.room(machine.node_ips, self.boot_id)]

    def _pod_mtu(self, machine: cluster.Machine) -> int:
        if "overlay" not in self.config.rooms:
            return machine.underlay_mtu
        family = 4 if any(":" not in a for a in machine.node_ips) else 6
        return pod_mtu(machine.underlay_mtu, family)

    def _rank(self, snapshot: Snapshot) -> int:
        return cluster.rank(snapshot, self.config.node, time.time())

    def _beat(self, registrar: cluster.Registrar, off: bool, stopping: threading.Event) -> None:
        """Renew the node's lease until told to stop. Raises Invalid when the name was taken over."""
        while not stopping.wait(cluster.RENEW_SECONDS):
            if off:
                continue
            try:
                registrar.beat()
            except Invalid:
                stopping.set()
                raise
            except NetplaneError as exc:
                log.warning("heartbeat: %s", exc)

    def _open_edges(self, core: Core, stack: ExitStack, stopping: threading.Event) -> None:
        """DNS as soon as there is an address to listen on, CNI when the first pass is through."""
        todo: dict[str, Callable[[Core], Any]] = {"dns": self.dns.open, "cni": self._open_cni}
        todo = {name: step for name, step in todo.items() if name in self.config.rooms}
        while todo and not stopping.is_set():
            for name, step in list(todo.items()):
                try:
                    server = step(core)
                    self._edge_failures.pop(name, None)
                except NetplaneError as exc:
                    if self._edge_failures.get(name) != str(exc):
                        log.info("%s: %s", name, exc)
                    self._edge_failures[name] = str(exc)
                    continue
                stack.callback(server.close if isinstance(server, ExitStack) else server.stop)
                del todo[name]
            stopping.wait(0.02)

    def _open_cni(self, core: Core) -> CniServer:
        if not core.wait_synced(0):
            raise Unavailable("waiting for the first full pass")
        birth = Birth(self._policy, "cni") if self._policy else None
        room = core.room(CniRoom.name)
        assert isinstance(room, CniRoom)
        host = CniHost(room, core, self._links)
        host.birth, host.spare = birth, self._spare
        host.finish()
        server = CniServer(str(self.config.run_dir / CNI_SOCKET), host, room.config)
        server.start()
        self._cni = server
        return server


class _Calm:
    """Calls ``action`` once, a moment after the first of a flock of events."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._lock = threading.Lock()
        self._set = False

    def __call__(self, words: str) -> None:
        with self._lock:
            if self._set:
                return
            self._set = True
        log.warning("somebody else changed what is ours: %s", words)
        timer = threading.Timer(CALM, self._fire)
        timer.daemon = True
        timer.start()

    def _fire(self) -> None:
        with self._lock:
            self._set = False
        self._action()


def _patiently(step: Callable[[], Any], stopping: threading.Event) -> Any:
    """Do a step that may have to wait for others. Raises Invalid; Unavailable only when told to stop."""
    while True:
        try:
            return step()
        except Unavailable as exc:
            log.warning("%s (trying again)", exc)
            if stopping.wait(1.0):
                raise


def _raise_limits() -> None:
    """As many descriptors as we may have: sockets in pods' namespaces, DNS questions in flight."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _share_heap() -> None:
    """One heap of glibc's for all threads, not one for each: the GIL has them take turns anyway."""
    try:
        ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX, malloc.h
    except AttributeError:  # another libc
        log.debug("no mallopt here")


def _quietly(step: Callable[[], Any]) -> None:
    try:
        step()
    except NetplaneError as exc:
        log.warning("%s", exc)
