"""The packet path in an agent: its room, what must make it forget, and what operators see of it.

Rule 1: whatever can change what a flow's entry rests on (links, rules, tracked flows) is wrapped, so
        that the path forgets before the change is reported as done.
Rule 2: without a fast path nothing fails but `--datapath fast`; why there is none is said here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from .agentconfig import AgentConfig
from .cni.names import BRIDGE, bridge_mac
from .datapath.room import PathConfig, PathRoom
from .health import Controls
from .kernel.datapath import PathDriver, Remembered
from .kernel.forgetting import Cutting, Forgetting
from .kernel.underlay import is_ethernet, underlay_of
from .model.errors import Invalid, NetplaneError
from .model.facts import Driver, FastPath
from .model.own import Attachment
from .model.snapshot import Snapshot
from .overlay.room import OverlayRoom, vtep_mac

# Seconds without another pod's ADD or DEL, from a pod's ADD to its fast path. Plugins behind ours in a list
# have come by then: the bandwidth plugin wants to be the first that puts an ingress queue there.
BIRTH = 1.0
Drivers = dict[str, tuple[Driver, ...]]


class PathEdge:
    """``driver`` is the room's driver. Registers metrics, and `/flows` on the agent's socket."""

    def __init__(self, config: AgentConfig, registry: CollectorRegistry, controls: Controls) -> None:
        self.driver = PathDriver(on=config.datapath != "kernel", delay=BIRTH)
        self._config = config
        self._room: PathRoom | None = None
        registry.register(PathMetrics(self.driver))
        controls["/flows"] = self.flows

    def open(self) -> None:
        """Load the programs. Raises Invalid when that is demanded and cannot be."""
        if not self.driver.open() and self._config.datapath == "fast":
            raise Invalid(f"--datapath fast: {self.driver.problem}; --datapath auto does without")

    def room(self, node_ips: Iterable[str], boot_id: str) -> PathRoom:
        config = self._config
        self._room = PathRoom(config.node, self._path(node_ips, boot_id))
        return self._room

    def _path(self, node_ips: Iterable[str], boot_id: str) -> PathConfig | None:
        config = self._config
        if not self.driver.usable or "cni" not in config.rooms:
            return None
        overlay = OverlayRoom(config.node)
        tunnel = overlay.device if "overlay" in config.rooms else ""
        path = FastPath(
            gateway_mac=bridge_mac(config.node),
            tunnel=tunnel,
            tunnel_mac=vtep_mac(config.node),
            vni=overlay.vni,
            port=overlay.port,
        )
        uplinks = dict.fromkeys(underlay_of(address)[0] for address in node_ips)
        return PathConfig(tuple(filter(is_ethernet, uplinks)), path, BRIDGE, boot_id)

    # --- forgetting ----------------------------------------------------------------------------

    def forgetting(self, drivers: Drivers, links: Driver) -> Drivers:
        """All drivers with the path's own, and those wrapped whose changes it must follow."""
        drivers = {**drivers, PathRoom.name: (self.driver, links)}
        wrapped: dict[int, Any] = {id(self.driver): self.driver}
        for driver in (one for several in drivers.values() for one in several):
            wrapped.setdefault(id(driver), Forgetting(driver, self.driver))
        return {name: tuple(wrapped[id(one)] for one in several) for name, several in drivers.items()}

    def cutting(self, table: Any) -> Cutting:
        return Cutting(table, self.driver)

    # --- what operators see ----------------------------------------------------------------------

    def flows(self, words: dict[str, str]) -> dict[str, Any]:
        """Remembered flows of an address, or all, busiest first. Raises Invalid."""
        if not self.driver.usable:
            raise Invalid(f"there is no fast path: {self.driver.problem}")
        try:
            only = str(ip_address(words["address"])) if words.get("address") else ""
        except ValueError:
            raise Invalid(f"{words['address']!r} is not an IP address") from None
        found = [flow for flow in self.driver.flows() if not only or only in _addresses(flow)]
        found.sort(key=lambda flow: -flow.bytes)
        counters = {name: packets for name, (packets, _) in self.driver.counters().items()}
        return {"flows": [flow._asdict() for flow in found], "verdicts": counters}

    def explain(self, source: str, target: str, verdict: str, snapshot: Snapshot) -> str:
        """Whether a flow from this address would be fast, in words; ``target`` ends with its protocol."""
        why = self._why_slow(source, target, verdict, snapshot)
        if why:
            return f"no: {why}"
        flows = sum(1 for f in self.driver.flows() if f.current and source in (f.source, f.new_destination))
        return f"yes, once it is answered; {flows} entries of {source} are remembered now"

    def _why_slow(self, source: str, target: str, verdict: str, snapshot: Snapshot) -> str:
        if not self.driver.usable:
            return self.driver.problem
        if verdict not in ("dnat", "pass"):
            return "the kernel path refuses it, and that is all there is to remember"
        if not target.endswith(("/tcp", "/udp")):
            return f"only TCP and UDP are remembered, not {target.rpartition('/')[2]}"
        assert self._room is not None
        for attachment in snapshot.by(Attachment, "node", self._config.node):
            if source in (entry.address.partition("/")[0] for entry in attachment.spec.ips):
                return self._room.why_not(attachment)
        return (
            f"{source} is no pod of this node; what arrives by the tunnel or the uplink is remembered there"
        )


class PathMetrics:
    """A prometheus collector over the path's maps."""

    def __init__(self, driver: PathDriver) -> None:
        self._driver = driver

    def collect(self) -> Iterator[Metric]:
        on = GaugeMetricFamily("netplane_datapath_fast", "1 while the fast path is in use")
        on.add_metric([], float(self._driver.usable))
        yield on
        if not self._driver.usable:
            return
        packets = CounterMetricFamily(
            "netplane_datapath_packets", "What became of packets that the path saw", labels=["verdict"]
        )
        volume = CounterMetricFamily(
            "netplane_datapath_bytes", "Bytes of packets that the path saw", labels=["verdict"]
        )
        try:
            counted = self._driver.counters()
        except NetplaneError:
            return
        for verdict, (number, size) in counted.items():
            packets.add_metric([verdict], number)
            volume.add_metric([verdict], size)
        yield from (packets, volume)
        yield from self._ports()

    def _ports(self) -> Iterator[Metric]:
        packets = CounterMetricFamily(
            "netplane_datapath_port_packets", "Fast packets of a pod", labels=["device", "direction"]
        )
        volume = CounterMetricFamily(
            "netplane_datapath_port_bytes", "Fast bytes of a pod", labels=["device", "direction"]
        )
        for device, (sent, sent_bytes, received, received_bytes) in self._driver.ports().items():
            for direction, number, size in (
                ("sent", sent, sent_bytes),
                ("received", received, received_bytes),
            ):
                packets.add_metric([device, direction], number)
                volume.add_metric([device, direction], size)
        yield from (packets, volume)


def _addresses(flow: Remembered) -> tuple[str, str, str, str]:
    return flow.source, flow.destination, flow.new_source, flow.new_destination
