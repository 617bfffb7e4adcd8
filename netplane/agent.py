"""The wiring: the one place that knows every room.

An agent is a store, drivers, rooms and controllers around one Core, and the edges that face outside:
the CNI socket, the DNS server, the health server. It works in the network namespace it is started in.

Rule 1: what is wrong with the configuration is refused before anything is touched.
Rule 2: the CNI socket opens when everything is in the kernel once; until then runtimes try again.
Rule 3: stopping stops the work, not the data plane: nothing is taken down.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from . import cluster
from .agentconfig import AgentConfig
from .cni.ipam import gateway
from .cni.names import BRIDGE, bridge_mac
from .cni.render import CniConfig, CniRoom
from .cni.server import CniServer
from .cnihost import CniHost
from .datapath.room import PathConfig, PathRoom
from .dns import config as dns_config
from .dns import handover
from .dns.config import DnsConfig
from .dns.controls import DnsControls
from .dns.metrics import DnsMetrics
from .dns.names import LocalNames
from .dns.server import DnsServer
from .dns.setup import Setup
from .dns.table import NameTable
from .dns.zone import DnsRoom, ReplaceableRoom
from .health import Controls, HealthServer, split_listen
from .kernel.datapath import Forgetting, PathDriver
from .kernel.flows import FlowDriver
from .kernel.flowtable import FlowTable
from .kernel.linkwatch import LinkMonitor
from .kernel.nft_guard import GuardDriver
from .kernel.nft_text import joined
from .kernel.nftables import NftDriver
from .kernel.nftwatch import NftMonitor
from .kernel.rtnetlink import LinkDriver
from .kernel.underlay import addresses_within, node_addresses, underlay_of
from .model.errors import Invalid, NetplaneError, Unavailable
from .model.facts import Driver, FastPath
from .model.nodes import Node
from .model.snapshot import Snapshot
from .overlay.room import OverlayRoom, pod_mtu, vtep_mac
from .policy.birth import Birth
from .policy.counters import DropCounters
from .policy.explain import lines, straight
from .policy.flows import PolicyFlows
from .policy.room import PolicyRoom
from .reconcile.base import Room
from .reconcile.core import Core
from .services.explain import explain
from .services.health import HealthChecks
from .services.metrics import ServiceCounts, ServiceMetrics
from .services.room import ServicesRoom
from .store import Store, open_store

log = logging.getLogger(__name__)

TO_BE_DELETED = "ToBeDeletedByClusterAutoscaler"  # the taint that kube-proxy looks for too
CNI_SOCKET = "cni.sock"
DRAIN = 2.0  # seconds that DNS questions to upstreams may take at the end
CALM = 0.2  # seconds that link events are gathered before everything is compared again


class Agent:
    """`run` until told to stop. Everything that is opened is closed in the reverse order."""

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._registry = CollectorRegistry()
        self._links = LinkDriver()
        self._path = PathDriver(on=config.datapath != "kernel")
        self._names = NameTable(config.domain)
        self._metrics = ServiceMetrics(self._registry)
        self._checks = HealthChecks(self.proxy_healthy)
        self._dns = dns_config.read(config.dns_config) if config.dns_config else dns_config.DnsConfig()
        self._dns_setup: Setup | None = None
        self._inherited = handover.Inherited.of(os.environ)
        self.restarting = False  # set before `run` ends: `held` are then the sockets to pass on
        self.held: list[socket.socket] = []
        self._flows: PolicyFlows | None = None
        self._policy: PolicyRoom | None = None
        self._edge_failures: dict[str, str] = {}
        self._controls: Controls = {
            "/explain": self._explain
        }  # what operators ask of the edges, on the agent's socket
        self._core: Core | None = None
        self._cni: CniServer | None = None
        self._nft: NftDriver | None = None

    def run(self, stopping: threading.Event) -> None:
        """Raises Invalid for what is refused at start; after that, only `stopping` ends it."""
        _raise_limits()
        if not self._path.open() and self.config.datapath == "fast":
            raise Invalid(f"--datapath fast: {self._path.problem}")
        with ExitStack() as stack:
            self.config.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            instance = cluster.Instance(self.config.state_dir)
            stack.callback(instance.close)
            store = _patiently(lambda: open_store(self.config.store), stopping)
            stack.callback(store.close)
            machine = self._machine(instance.id)
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
            busy = partial(getattr, self._nft, "transactions")
            yield NftMonitor(mend, own=self._nft.portids, busy=busy)

    def _mend(self, core: Core) -> None:
        """Compare everything; a link that went may mean that a namespace went without its DEL."""
        if self._cni is not None:
            self._cni.look()
        core.resync()

    def status(self) -> dict[str, Any]:
        """Core's status with the node's name and the edges that could not be opened."""
        assert self._core is not None
        status = self._core.status()
        for edge, why in self._edge_failures.items():
            room = status["rooms"].setdefault(edge, {"scopes": 0, "failing": {}})
            room["failing"]["server"] = why
            status["synced"] = False
        if self._dns_setup is not None:
            if self._dns_setup.problem:  # no reason to be unready: the running one serves on
                status["dns"] = {"config": self._dns_setup.problem}
            if not self._dns_setup.server.ready:
                status["rooms"]["dns"]["failing"]["server"] = "the DNS server's thread has ended"
                status["synced"] = False
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
        nft = self._nft = NftDriver()
        drivers: dict[str, tuple[Driver, ...]] = {
            "cni": (self._links, nft, GuardDriver()),
            "overlay": (self._links,),
            "services": (nft, self._links, FlowDriver(self._metrics.swept), self._checks),
            "dns": (self._names, self._links, nft),
        }
        if "policy" in self.config.rooms:
            self._flows = PolicyFlows(FlowTable())
            drivers["policy"] = (nft, self._flows)
        drivers[PathRoom.name] = (self._path, self._links)
        forgetting = {id(d): Forgetting(d, self._path) for d in (self._links, nft)}
        drivers = {name: tuple(forgetting.get(id(d), d) for d in all_) for name, all_ in drivers.items()}
        rooms = [(room, drivers[room.name]) for room in self._rooms(machine)]
        controllers = [] if store.allocates else cluster.controllers(self.config.cluster)
        core = Core(store, rooms, controllers, self._rank, self._metrics)
        if "services" in self.config.rooms:
            self._registry.register(ServiceCounts(core.snapshot, nft.counted, machine.node_ips))
        if self._policy is not None and self._flows is not None:
            self._registry.register(DropCounters(self._policy, core.snapshot, nft.counters, self._flows))
        return core

    def _rooms(self, machine: cluster.Machine) -> list[Room]:
        config, ranges = self.config, self.config.cluster
        dns_servers = self._dns_servers()
        self._cni_config = CniConfig(
            cluster_cidrs=ranges.cluster_cidrs,
            pod_mtu=self._pod_mtu(machine),
            boot_id=self.boot_id,
            dns_domain=config.domain if dns_servers is not None else "",
            dns_servers=dns_servers or (),
            resolv_conf=config.resolv_conf,
        )
        listen = tuple(split_listen(a) for a in config.dns_listen)
        addresses = tuple(ip for ip, _ in listen)
        self._dns_room = ReplaceableRoom(
            DnsRoom(
                config.node,
                config.domain,
                self._dns.ttl,
                addresses,
                self._dns.negative_ttl,
                held=self._dns_held(addresses),
                link=BRIDGE,
                notrack=listen,
            )
        )
        rooms: dict[str, Room] = {
            "cni": CniRoom(config.node, self._cni_config),
            "overlay": OverlayRoom(config.node, ipv6=Path("/proc/sys/net/ipv6").exists()),
            "services": ServicesRoom(
                config.node,
                machine.node_ips,
                ranges.cluster_cidrs,
                ranges.service_cidrs,
                bridge_netfilter="cni" not in config.rooms and Path("/proc/sys/net/bridge").exists(),
                node_port_ips=addresses_within(within) if (within := config.node_port_addresses) else None,
            ),
            "dns": self._dns_room,
        }
        if "policy" in config.rooms:
            rooms["policy"] = self._policy = PolicyRoom(config.node)
        chosen = [room for name, room in rooms.items() if name in config.rooms]
        return [*chosen, PathRoom(config.node, self._path_config(machine))]

    def _path_config(self, machine: cluster.Machine) -> PathConfig | None:
        if not self._path.usable or "cni" not in self.config.rooms:
            return None
        overlay = OverlayRoom(self.config.node)
        tunnel = overlay.device if "overlay" in self.config.rooms else ""
        path = FastPath(
            bridge_mac(self.config.node), tunnel, vtep_mac(self.config.node), overlay.vni, overlay.port
        )
        uplinks = dict.fromkeys(underlay_of(address)[0] for address in machine.node_ips)
        return PathConfig(BRIDGE, tuple(uplinks), path, self.boot_id)

    def _dns_servers(self) -> tuple[str, ...] | None:
        """Where pods ask for names; (): at their gateways; None: not here (a resolv.conf has no ports)."""
        if "dns" not in self.config.rooms:
            return None
        listen = [split_listen(text) for text in self.config.dns_listen]
        usable = tuple(ip for ip, port in listen if port == 53)
        if listen and not usable:
            return None
        return () if {"0.0.0.0", "::"} & set(usable) else usable

    def _dns_held(self, listen: tuple[str, ...]) -> tuple[str, ...]:
        """Of these, what the node must be given: a link-local address, or one of the service range."""
        if "cni" not in self.config.rooms:
            return ()
        ranges = [ip_network(cidr) for cidr in ("169.254.0.0/16", *self.config.cluster.service_cidrs)]
        return tuple(a for a in listen if any(ip_address(a) in r for r in ranges))

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
        todo: dict[str, Callable[[Core], Any]] = {"dns": self._open_dns, "cni": self._open_cni}
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

    def _open_dns(self, core: Core) -> ExitStack:
        listen = [split_listen(text) for text in self.config.dns_listen]
        if not listen:
            node = core.snapshot().get(Node, "", self.config.node)
            listen = [(gateway(cidr), 53) for cidr in (node.pod_cidrs if node else ())]
        if not listen:
            raise Unavailable("waiting for this node's pod CIDR, whose gateway address it listens on")
        if not core.wait_synced(0):
            raise Unavailable("waiting for the first full pass")
        self._names.mark_synced()
        server = DnsServer(self._names, listen, self.config.resolv_conf)
        names = LocalNames(core.snapshot, self.config.domain)
        setup = Setup(server, names, self.config.dns_config, self.config.resolv_conf, self._dns_applied)
        with ExitStack() as stack:
            server.start(self._inherited)
            stack.callback(server.stop, DRAIN)
            stack.callback(self._hold, server)
            self._inherited.close()
            handover.keep(server.sockets, os.environ)
            setup.start()
            stack.callback(setup.stop)
            self._registry.register(server.counters)
            self._registry.register(DnsMetrics(setup))
            self._dns_setup = setup
            self._controls.update(DnsControls(self._names, names, server.log, core.snapshot).paths())
            return stack.pop_all()

    def _hold(self, server: DnsServer) -> None:
        """Before it stops, when the same process is about to start anew: queries wait in its sockets."""
        if self.restarting:
            self.held = [sock.dup() for sock in server.sockets]

    def _dns_applied(self, config: DnsConfig) -> None:
        """The TTLs are in the room's records: others mean that all are rendered again."""
        room = self._dns_room.current
        if (room.ttl, room.negative_ttl) != (config.ttl, config.negative_ttl):
            self._dns_room.current = replace(room, ttl=config.ttl, negative_ttl=config.negative_ttl)
            assert self._core is not None
            self._core.resync()

    def _open_cni(self, core: Core) -> CniServer:
        if not core.wait_synced(0):
            raise Unavailable("waiting for the first full pass")
        birth = Birth(self._policy, "cni") if self._policy else None
        host = CniHost(self.config.node, self.boot_id, core, self._links, birth)
        server = CniServer(str(self.config.run_dir / CNI_SOCKET), host, self._cni_config)
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


def _quietly(step: Callable[[], Any]) -> None:
    try:
        step()
    except NetplaneError as exc:
        log.warning("%s", exc)
