"""What policy dropped, for Prometheus: by pod and direction, and by policy.

The kernel counts by address (`pol-drops-*`); the pod and the policies that isolate it are looked up when
somebody asks. A drop counts for every policy that selects the pod in that direction: any of them could
have allowed it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from ..model.errors import NetplaneError
from ..model.snapshot import Snapshot
from . import chains
from .flows import PolicyFlows
from .index import holder
from .room import PolicyRoom
from .rules import INGRESS


class DropCounters(Collector):
    """``read`` gives {address: packets} of a set of counters."""

    def __init__(
        self,
        room: PolicyRoom,
        snapshot: Callable[[], Snapshot],
        read: Callable[[str], dict[str, int]],
        flows: PolicyFlows,
    ) -> None:
        self._room, self._snapshot, self._read, self._flows = room, snapshot, read, flows

    def describe(self) -> list[Metric]:
        return []  # registering must not read the kernel

    def collect(self) -> Iterator[Metric]:
        pods: Counter[tuple[str, ...]] = Counter()
        policies: Counter[tuple[str, ...]] = Counter()
        snapshot = self._snapshot()
        for direction in chains.DIRECTIONS:
            word = "ingress" if direction == INGRESS else "egress"
            for address, packets in self._counted(direction):
                whose = holder(snapshot, self._room.node, address)
                if whose is None:
                    continue
                pods[whose.namespace, whose.name, word] += packets
                for policy in self._room.selecting(whose.pod, snapshot) if whose.pod else ():
                    if policy.rules(direction) is not None:
                        policies[policy.key.kind, policy.key.namespace, policy.key.name, word] += packets
        text = "Packets that network policy dropped, by the pod that it isolates"
        yield _family("pod_dropped_packets", text, ("namespace", "pod", "direction"), pods)
        text = "Packets dropped at pods that this policy isolates"
        yield _family("dropped_packets", text, ("kind", "namespace", "policy", "direction"), policies)
        yield _family("cut_flows", "Established flows ended by a change of policy", (), {(): self._flows.cut})

    def _counted(self, direction: str) -> Iterator[tuple[str, int]]:
        for digit, _, _ in chains.WORDS.values():
            try:
                yield from self._read(chains.drops(direction, digit)).items()
            except NetplaneError:
                return


def _family(
    name: str, text: str, labels: tuple[str, ...], values: dict[tuple[str, ...], int]
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"netplane_policy_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
