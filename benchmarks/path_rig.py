"""What bench_path measures: pods of two nodes on one wire, by four ways from one pod to the other.

wire ──┬── node-1: bridge ── a, b        fast, kernel: real agents with this --datapath
       └── node-2: bridge ── far         flannel: a bridge, a VXLAN device and static neighbours, no netfilter
                                         host: node-1 to node-2 itself

All are alike but for what is measured: the wire is the lab's (veth and a bridge), pods have an MTU of 1450.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from netplane.kernel import netns
from netplane.lab import Lab
from netplane.lab.settings import Settings

HERE = Path(__file__).parent
VIP, PORT = "10.96.0.77", 8080
SERVICE = f"""
apiVersion: v1
kind: Service
metadata: {{name: far}}
spec:
  clusterIP: {VIP}
  selector: {{app: far}}
  ports: [{{name: tcp, port: {PORT}, targetPort: {PORT}}}]
"""
LATENCY = ("0", "0")  # both ends on one CPU: what is measured is work, not how a CPU wakes another
VOLUME = ("0", "1")
PROGRAM = {"work": "bulk"}  # with both ends on one CPU


@dataclass
class World:
    """``ends``: "same" and "other" (node) → (namespace, address) of a server; ``client``: a namespace."""

    client: Path
    ends: dict[str, tuple[Path, str]] = field(default_factory=dict)
    lab: Lab | None = None


class Meter:
    """path.c, compiled."""

    def __init__(self, work: Path) -> None:
        self._program = str(work / "path")
        command = ["cc", "-O2", "-Wall", "-std=gnu11", "-o", self._program, str(HERE / "path.c")]
        subprocess.run(command, check=True)

    def run(self, what: str, world: World, end: str, amount: int) -> tuple[float, ...]:
        """What path.c printed. SystemExit with what it said when it failed."""
        place, address = world.ends[end]
        cpus = VOLUME if what in ("bulk", "flood", "alone") else LATENCY
        words = [
            PROGRAM.get(what, what),
            str(world.client),
            str(place),
            address,
            str(PORT),
            str(amount),
            *cpus,
        ]
        done = subprocess.run(
            [self._program, *words], capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode or not done.stdout:
            raise SystemExit(f"path: {' '.join(words)}: {done.stderr or done.returncode}")
        return tuple(map(float, done.stdout.split()))


@contextmanager
def worlds() -> Iterator[dict[str, World]]:
    with ExitStack() as stack:
        found = {mode: _ours(stack.enter_context(_lab(mode))) for mode in ("fast", "kernel")}
        plain = stack.enter_context(Lab(nodes=2))
        found["flannel"] = _flannel(plain)
        far = plain.nodes[1]
        found["host"] = World(plain.nodes[0].netns, {"other": (far.netns, far.addresses[0])})
        yield found


def _lab(mode: str) -> Lab:
    return Lab(nodes=2, dual_stack=True, settings=Settings(agent_args=("--datapath", mode)))


def _ours(lab: Lab) -> World:
    lab.start_agents()
    near, other = lab.nodes
    a, b, far = near.add_pod("a"), near.add_pod("b"), other.add_pod("far", labels={"app": "far"})
    lab.apply(SERVICE)
    for node in lab.nodes:
        node.agent.wait()
    ends = {"same": (b.netns, b.ip), "other": (far.netns, far.ip), "vip": (far.netns, VIP)}
    ends["other6"] = (far.netns, far.ip_of("IPv6"))
    return World(a.netns, ends, lab)


def _flannel(lab: Lab) -> World:
    for index, node in enumerate(lab.nodes, 1):
        peer = 3 - index
        mac, far = f"0a:00:00:00:00:0{peer}", lab.nodes[peer - 1].addresses[0]
        _ip(
            node.netns,
            "link add cni0 mtu 1450 type bridge",
            f"link add flannel.1 address 0a:00:00:00:00:0{index} mtu 1450 type vxlan id 1 dstport 8472"
            f" local {node.addresses[0]} dev eth0 nolearning",
            f"address add 10.244.{index}.1/24 dev cni0",
            f"address add 10.244.{index}.0/32 dev flannel.1",
            "link set cni0 up",
            "link set flannel.1 up",
            f"neigh add 10.244.{peer}.0 lladdr {mac} dev flannel.1",
            f"route add 10.244.{peer}.0/24 via 10.244.{peer}.0 dev flannel.1 onlink",
        )
        netns.run(node.netns, "bridge", "fdb", "add", mac, "dev", "flannel.1", "dst", far)
        netns.run(node.netns, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    near, other = lab.nodes
    a, b, far_pod = _pod(lab, near.netns, 1, 2), _pod(lab, near.netns, 1, 3), _pod(lab, other.netns, 2, 2)
    return World(a, {"same": (b, "10.244.1.3"), "other": (far_pod, "10.244.2.2")})


def _pod(lab: Lab, node: Path, subnet: int, host: int) -> Path:
    path = lab.namespace(f"plain-{subnet}-{host}")
    netns.create(path)
    _ip(
        node,
        f"link add plain{host} mtu 1450 master cni0 type veth peer name eth0 mtu 1450 netns {path}",
        f"link set plain{host} up",
    )
    _ip(
        path,
        "link set lo up",
        f"address add 10.244.{subnet}.{host}/24 dev eth0",
        "link set eth0 up",
        f"route add default via 10.244.{subnet}.1",
    )
    return path


def _ip(place: Path, *lines: str) -> None:
    netns.run(place, "ip", "-batch", "-", input="\n".join(lines), stdin=None)


def map_memory(world: World) -> int:
    """Bytes of kernel memory that the maps of one node's path take."""
    assert world.lab and world.lab.nodes[0].agent.process
    found: dict[str, int] = {}
    for path in Path(f"/proc/{world.lab.nodes[0].agent.process.pid}/fdinfo").iterdir():
        words = dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)
        if "map_id" in words:
            found[words["map_id"]] = int(words["memlock"])
    return sum(found.values())
