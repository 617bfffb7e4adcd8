"""The room of names in an agent: what its server listens on, its configuration, its sockets at a restart.

Rule 1: the server opens when there is an address to listen on and every name is known once.
Rule 2: a configuration that is refused leaves the running one in force; the status says so.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any

from prometheus_client import CollectorRegistry

from .agentconfig import AgentConfig
from .cni.ipam import gateway
from .cni.names import BRIDGE
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
from .health import Controls, split_listen
from .model.errors import Unavailable
from .model.nodes import Node
from .reconcile.core import Core

DRAIN = 2.0  # seconds that questions to upstreams may take at the end


class DnsEdge:
    """``names`` is the driver of the room, ``room`` the room itself. Raises Invalid for a wrong file."""

    def __init__(self, config: AgentConfig, registry: CollectorRegistry, controls: Controls) -> None:
        self._config, self._registry, self._controls = config, registry, controls
        self._inherited = handover.Inherited.of(os.environ)
        self._setup: Setup | None = None
        self.restarting = False  # set before the end: `held` are then the sockets to pass on
        self.held: list[socket.socket] = []
        self.names = NameTable(config.domain)
        given = dns_config.read(config.dns_config) if config.dns_config else DnsConfig()
        listen = tuple(split_listen(a) for a in config.dns_listen)
        addresses = tuple(ip for ip, _ in listen)
        self.room = ReplaceableRoom(
            DnsRoom(
                config.node,
                config.domain,
                given.ttl,
                addresses,
                given.negative_ttl,
                held=self._owned(addresses),
                link=BRIDGE,
                notrack=listen,
            )
        )

    def servers(self) -> tuple[str, ...] | None:
        """Where pods ask for names; (): at their gateways; None: not here (a resolv.conf has no ports)."""
        if "dns" not in self._config.rooms:
            return None
        listen = [split_listen(text) for text in self._config.dns_listen]
        usable = tuple(ip for ip, port in listen if port == 53)
        if listen and not usable:
            return None
        return () if {"0.0.0.0", "::"} & set(usable) else usable

    def _owned(self, listen: tuple[str, ...]) -> tuple[str, ...]:
        """Of these, what the node must be given: a link-local address, or one of the service range."""
        if "cni" not in self._config.rooms:
            return ()
        ranges = [ip_network(cidr) for cidr in ("169.254.0.0/16", *self._config.cluster.service_cidrs)]
        return tuple(a for a in listen if any(ip_address(a) in r for r in ranges))

    def tell(self, status: dict[str, Any]) -> None:
        """What the agent's status says of the server and of its configuration."""
        if self._setup is None:
            return
        if self._setup.problem:  # no reason to be unready: the running one serves on
            status["dns"] = {"config": self._setup.problem}
        if not self._setup.server.ready:
            status["rooms"]["dns"]["failing"]["server"] = "the DNS server's thread has ended"
            status["synced"] = False

    def open(self, core: Core) -> ExitStack:
        """Serve; closing the stack ends it. Raises Unavailable while there is something to wait for."""
        listen = [split_listen(text) for text in self._config.dns_listen]
        if not listen:
            node = core.snapshot().get(Node, "", self._config.node)
            listen = [(gateway(cidr), 53) for cidr in (node.pod_cidrs if node else ())]
        if not listen:
            raise Unavailable("waiting for this node's pod CIDR, whose gateway address it listens on")
        if not core.wait_synced(0):
            raise Unavailable("waiting for the first full pass")
        self.names.mark_synced()
        server = DnsServer(self.names, listen, self._config.resolv_conf)
        names = LocalNames(core.snapshot, self._config.domain)
        applied = partial(self._applied, core, server)
        setup = Setup(server, names, self._config.dns_config, self._config.resolv_conf, applied)
        with ExitStack() as stack:
            server.start(self._inherited)
            stack.callback(server.stop, DRAIN)
            stack.callback(self._hold, server)
            setup.start(self._inherited)
            stack.callback(setup.stop)
            self._inherited.close()
            self._registry.register(server.counters)
            self._registry.register(DnsMetrics(setup))
            self._setup = setup
            self._controls.update(DnsControls(self.names, names, server.log, core.snapshot).paths())
            return stack.pop_all()

    def _hold(self, server: DnsServer) -> None:
        """Before it stops, when the same process is about to start anew: queries wait in its sockets."""
        if self.restarting:
            self.held = [sock.dup() for sock in server.sockets]

    def _applied(self, core: Core, server: DnsServer, config: DnsConfig) -> None:
        """Sockets may have come or gone; the TTLs are in the room's records, which others render again."""
        handover.keep(server.sockets, os.environ)
        room = self.room.current
        if (room.ttl, room.negative_ttl) != (config.ttl, config.negative_ttl):
            self.room.current = replace(room, ttl=config.ttl, negative_ttl=config.negative_ttl)
            core.resync()
