"""The cluster that the checks look at: its lab, its pods, and the servers and clients in them."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ...model import codec
from ...model.errors import NetplaneError
from ...model.pods import Pod as PodObject
from .. import Lab, Pod
from ..place import PROBE, PYTHON, TEXT, Place
from ..runner import Process
from . import machine
from .volumes import Volumes

FAMILIES = ("IPv4", "IPv6")
MANIFESTS = ("web.yaml", "headless.yaml", "dnsrr.yaml", "nodeport.yaml")
SERVER_PORTS = ("--tcp", 8080, 9100, 7946, "--udp", 8080)
CLIENTS = {"client-1": "node-1", "client-2": "node-2"}


class Missed(NetplaneError):
    """A check that does not hold; the message is what was seen."""


class Check(NamedTuple):
    title: str
    run: Callable[[Job], str]


def expect(holds: object, seen: str) -> None:
    if not holds:
        raise Missed(seen)


class Job:
    """The lab of the main job. `up` builds it, `down` takes it away; both say how long it took."""

    def __init__(self, examples: Path) -> None:
        self.examples = examples
        self.lab = Lab(nodes=2, dual_stack=True)
        self.home = self.lab.home
        self.before = machine.survey(self.home)
        self.pods: dict[str, Pod] = {}
        self._adds: list[float] = []

    def up(self) -> str:
        start = time.perf_counter()
        self.lab.up()
        wired = time.perf_counter()
        self.lab.start_agents()
        self.lab.apply(*(self.examples / name for name in MANIFESTS))
        for name, node in self._wanted():
            self._add(name, node)
        adds = sorted(self._adds)
        total = time.perf_counter() - start
        return (
            f"wire {(wired - start) * 1e3:.0f} ms, {len(adds)} pods, "
            f"CNI ADD p50 {adds[len(adds) // 2] * 1e3:.1f} ms, all in {total:.1f} s"
        )

    def _wanted(self) -> Iterator[tuple[str, str]]:
        """(name, node) of every Pod in the manifests, and of the clients, which have no Pod object."""
        for manifest in MANIFESTS:
            for obj in codec.parse_all((self.examples / manifest).read_text(), manifest):
                if isinstance(obj, PodObject):
                    yield obj.name, obj.spec.node_name
        yield from CLIENTS.items()

    def _add(self, name: str, node: str) -> None:
        start = time.perf_counter()
        pod = self.pods[name] = self.lab.node(node).add_pod(name)
        self._adds.append(time.perf_counter() - start)
        server = pod.probe("serve", name, *SERVER_PORTS)
        assert server.stdout
        expect(server.stdout.readline() == "ready\n", f"the server in {name} did not start")

    def down(self) -> str:
        start = time.perf_counter()
        self.lab.down()
        return f"{time.perf_counter() - start:.1f} s"

    # --- what is in it ------------------------------------------------------------------------------

    @property
    def client(self) -> Pod:
        return self.pods["client-1"]

    def named(self, prefix: str) -> dict[str, Pod]:
        return {name: pod for name, pod in self.pods.items() if name.startswith(prefix)}

    @property
    def web(self) -> dict[str, Pod]:
        return self.named("web-")

    @cached_property
    def vips(self) -> dict[str, str]:
        """The virtual IPs of the service `web`, by family."""
        found = self.lab.get("service", "web")["spec"].get("clusterIPs", ())
        return {"IPv6" if ":" in ip else "IPv4": ip for ip in found}

    def vip(self, family: str) -> str:
        expect(family in self.vips, f"service web has no {family} address, only {self.vips}")
        return self.vips[family]

    @cached_property
    def volumes(self) -> Volumes:
        return Volumes(self.lab, self.lab.nodes[0], (self.examples / "storage.yaml").read_text())

    # --- servers and clients ------------------------------------------------------------------------

    def ask(self, place: Place, *words: str | int) -> dict[str, Any]:
        """Run one of the probe's clients in a place; its JSON. Raises Missed with its stderr."""
        return answer(place.probe(*words), f"{' '.join(map(str, words))} from {place.name}")

    def ask_by_name(self, pod: Pod, *words: str | int) -> dict[str, Any]:
        """The same in the pod's own view of /etc/resolv.conf, through the C library's resolver."""
        process = pod.popen(sys.executable, *PYTHON, PROBE, *map(str, words), **TEXT)
        return answer(process, f"{' '.join(map(str, words))} from {pod.name}")

    @contextmanager
    def stream(self, place: Place, kind: str, host: str, port: int) -> Iterator[dict[str, Any]]:
        """Packets flow inside the block; afterwards the dict holds what was sent and lost."""
        process = place.probe("stream", kind, host, port)
        assert process.stdout
        expect(process.stdout.readline() == "ready\n", f"no {kind} stream to {host}:{port}")
        seen: dict[str, Any] = {}
        yield seen
        seen |= answer(process, f"{kind} stream to {host}")


def answer(process: Process, what: str, timeout: float = 30) -> dict[str, Any]:
    out, err = process.communicate("", timeout=timeout)
    expect(process.returncode == 0, f"{what}: {str(err).strip()[-300:]}")
    return dict(json.loads(str(out).splitlines()[-1]))


def spread(names: Mapping[str, int], wanted: set[str]) -> str:
    """Random choice over ``wanted``: every count within five standard deviations of its mean.

    Each count is binomial with p = 1/k; beyond 5 σ chance comes once in a million runs.
    """
    total, share = sum(names.values()), 1 / len(wanted)
    bound = 5 * math.sqrt(total * share * (1 - share))
    split = "/".join(str(names.get(name, 0)) for name in sorted(wanted))
    expect(set(names) == wanted, f"answers came from {sorted(names)}, not from {sorted(wanted)}")
    uneven = max(abs(count - total * share) for count in names.values())
    expect(uneven <= bound, f"{split} of {total} is uneven: {uneven:.0f} off the mean, at most {bound:.0f}")
    return f"{split} of {total} (±{bound:.0f} allowed)"
