"""The kernel's own part of an ADD and a DEL: a veth pair into one bridge of all pods, and away again.

Asked for as our agent asks for it, by the same calls, with nothing else to do: no agent, no process, no
record. What this grows by with the ports is what a plugin with one bridge grows by, and ours is spared.
"""

from __future__ import annotations

import time

from netplane.kernel import netns
from netplane.kernel.rtnetlink import LinkDriver
from netplane.model.facts import FactKey, Link, Plan

from .cni_rig import Rig, Times

BRIDGE = Link(
    "npbr0",
    "bridge",
    alias="netplane:floor",
    mtu=1450,  # pinned, as the agent's: or the kernel would ask all ports for theirs
    mac="02:00:00:00:00:01",
    options=(("mcast_snooping", 0),),
)
ROOM = Link(
    "nphr0",
    "vxlan",
    alias="netplane:floor",
    master="npbr0",
    up=False,
    options=(("id", 0xFFFFFF), ("port", 8472)),
)
QUIET = (("bcast_flood", 0), ("hairpin", 1), ("mcast_flood", 0))  # as a pod's port is


class Floor:
    """A node with a bridge and a port for each of these pods."""

    def __init__(self, rig: Rig, name: str, pods: range) -> None:
        self.rig, self.pods = rig, pods
        self.driver = netns.call(rig.node(name), LinkDriver)
        self.driver.apply(Plan(add=(BRIDGE, ROOM)))
        for pod in pods:
            self.driver.apply(Plan(add=(self._pair(pod),)))

    def _pair(self, pod: int) -> Link:
        ends = (("peer", "floor0"), ("peer_netns", str(self.rig.work / f"pod-{pod}")))
        mac, options = "02:00:00:00:00:02", (*QUIET, *ends)
        return Link(f"npv{pod}", "veth", alias="netplane:floor", mac=mac, master=BRIDGE.name, options=options)

    def turn(self, first: int, count: int) -> tuple[Times, Times]:
        """Pairs to pods first … first + count - 1, one at a time: made, and then removed."""
        pairs = [self._pair(pod) for pod in range(first, first + count)]
        return self._timed([Plan(add=(p,)) for p in pairs]), self._timed(
            [Plan(remove=(p.key,)) for p in pairs]
        )

    def _timed(self, plans: list[Plan]) -> Times:
        self.rig.calm()
        found = []
        for plan in plans:
            begin = time.perf_counter()
            self.driver.apply(plan)
            found.append((time.perf_counter() - begin) * 1e3)
        return Times(found, len(found) / sum(found) * 1e3)

    def close(self) -> None:
        keys: tuple[FactKey, ...] = tuple(self._pair(pod).key for pod in self.pods)
        self.driver.apply(Plan(remove=keys))
        self.driver.close()
