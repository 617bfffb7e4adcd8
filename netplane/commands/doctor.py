"""`netplane doctor`: what this machine has and lacks, what a lack costs, and how to mend it.

Rule 1: it looks and leaves nothing: kernel features are tried in namespaces that vanish.
Rule 2: a lack is one line, never a traceback.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import click

from ..cni.names import BRIDGE, NODE_BRIDGES, node_bridge_number
from ..dns import loop
from ..kernel import forwarding, probe
from ..kernel.datapath import PathDriver
from ..model.errors import NetplaneError

OLDEST = (5, 13)
AS_ROOT = "run it with sudo"
ROOM = 100 << 20  # bytes that the state directory's disk should have free


class Lack(NamedTuple):
    """What a missing thing costs, and how to get it."""

    costs: str
    remedy: str
    required: bool = False


class Check(NamedTuple):
    name: str
    look: Callable[[], str]  # a detail; or OSError, NetplaneError
    lack: Lack


class Finding(NamedTuple):
    name: str
    ok: bool
    required: bool
    detail: str
    costs: str = ""
    remedy: str = ""


def register(group: click.Group) -> None:
    group.add_command(doctor)


@click.command()
@click.option("--state-dir", type=click.Path(path_type=Path), default=Path("/var/lib/netplane"))
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text")
def doctor(state_dir: Path, output: str) -> None:
    """Say what the kernel and the tools offer; exit status 0 if all that is required is there."""
    findings = [examine(check) for check in checks(state_dir)]
    if output == "json":
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(line(finding))
    if not all(finding.ok for finding in findings if finding.required):
        raise SystemExit(1)


def examine(check: Check) -> Finding:
    """Look once; whatever goes wrong is a lack with its reason."""
    try:
        detail = check.look()
    except (OSError, ImportError, NetplaneError, ValueError) as exc:
        denied = getattr(exc, "errno", 0) in (errno.EPERM, errno.EACCES) and os.geteuid() != 0
        remedy = AS_ROOT if denied else check.lack.remedy
        return Finding(check.name, False, check.lack.required, str(exc), check.lack.costs, remedy)
    return Finding(check.name, True, check.lack.required, detail)


def line(finding: Finding) -> str:
    if finding.ok:
        return f"ok       {finding.name:<18} {finding.detail}"
    need = "REQUIRED: " if finding.required else ""
    return f"missing  {finding.name:<18} {need}{finding.costs}; {finding.remedy} ({finding.detail})"


def checks(state_dir: Path) -> Iterator[Check]:
    """All checks, the required ones first."""
    yield Check("root", _root, Lack("nothing can be configured or probed", AS_ROOT, True))
    yield Check(
        "kernel", _kernel, Lack("it is untested", f"use Linux {OLDEST[0]}.{OLDEST[1]} or later", True)
    )
    yield from _network()
    yield from _fast_path()
    yield Check("DNS in C", _dns_in_c, Lack("DNS answers are Python's: as right, not as fast", "make build"))
    yield from _storage(state_dir)
    yield from _programs()


def _module(name: str) -> str:
    return f"modprobe {name}, or a kernel with it"


def _network() -> Iterator[Check]:
    def tried(name: str, what: probe.Probe, costs: str, module: str, required: bool = True) -> Check:
        return Check(name, lambda: probe.apart(what), Lack(costs, _module(module), required))

    yield tried("veth", probe.link("veth"), "pods get no interface", "veth")
    yield tried("bridge", probe.link("bridge"), "pods of one node do not meet", "bridge")
    yield tried(
        "nftables", probe.nft(probe.NFT_BASICS), "no services, no masquerade", "nft_chain_nat nft_masq"
    )
    yield tried("nftables maps", probe.nft(probe.NFT_MAPS), "no services", "nft_numgen")
    yield tried("conntrack", probe.nft(probe.NFT_CONNTRACK), "no NAT and no policy", "nf_conntrack nft_ct")
    vxlan = probe.link("vxlan", vxlan_id=1, vxlan_port=8472)
    yield tried("vxlan", vxlan, "pods of other nodes are out of reach", "vxlan", False)
    yield tried("IPv6", probe.ipv6, "IPv4 only", "ipv6 (and no ipv6.disable=1 at boot)", False)
    forward = Lack("pods reach nothing beyond their node", "mount /proc/sys writable", True)
    yield Check("ip_forward", _forward, forward)
    dropped = Lack(
        "pods reach only their node: policy drop, and an accept of ours cannot undo it",
        'chain {"type": "firewall"} after netplane in the conflist, or'
        f" iptables -I {forwarding.USERS} (without Docker: FORWARD) -i {NODE_BRIDGES}+ -j ACCEPT, and"
        f" -o {NODE_BRIDGES}+; ip6tables the same",
    )
    yield Check("forward policy", _forward_policy, dropped)
    filtered = Lack("bridged frames pass no NAT or policy of the host", _module("br_netfilter"))
    yield Check("br_netfilter", _br_netfilter, filtered)


def _fast_path() -> Iterator[Check]:
    slow = "no fast path, packets take the kernel's"
    built = Lack(slow, "install clang and libbpf-dev, then build again")
    yield Check("BPF object", _bpf_object, built)
    yield Check("BPF", lambda: probe.apart(probe.bpf), Lack(slow, "a kernel with CONFIG_BPF_SYSCALL"))
    yield Check("BTF", probe.btf, Lack(slow, "a kernel with CONFIG_DEBUG_INFO_BTF"))
    yield Check("tcx", lambda: probe.apart(probe.tcx), Lack(slow, "Linux 6.6 or later"))
    meant = Lack(slow, "what it says; --datapath kernel when that is meant")
    yield Check("packet path", lambda: probe.apart(_packet_path), meant)
    yield Check(
        "cgroup2", probe.cgroup2, Lack("no balancing at the socket", "mount -t cgroup2 none /sys/fs/cgroup")
    )


def _storage(state_dir: Path) -> Iterator[Check]:
    disk = Lack("state cannot be kept", f"free {ROOM >> 20} MiB, or name another --state-dir", True)
    yield Check("disk for state", lambda: _disk(state_dir), disk)
    yield Check(
        "tmpfs", lambda: probe.apart(probe.tmpfs), Lack("no emptyDir in memory", "a kernel with tmpfs")
    )
    yield Check("loop", probe.loop, Lack("no volumes with a size limit", _module("loop")))
    for kind, package in (("ext4", "e2fsprogs"), ("xfs", "xfsprogs"), ("btrfs", "btrfs-progs")):
        yield _program(f"mkfs.{kind}", f"no {kind} volumes", package)


def _programs() -> Iterator[Check]:
    packages = Lack("parts of netplane do not start", "pip install netplane, in a fresh environment", True)
    yield Check("python packages", _packages, packages)
    library = Lack("no services, no policy", "apt install libnftables1", True)
    yield Check("libnftables", _libnftables, library)
    yield _program("nft", "no look at the rules by hand", "nftables")
    yield _program("bpftool", "no look at the fast path by hand", "bpftool")


def _program(name: str, costs: str, package: str) -> Check:
    def look() -> str:
        found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if found is None:
            raise FileNotFoundError(f"no {name} in PATH")
        return found

    return Check(name, look, Lack(costs, f"apt install {package}"))


def _root() -> str:
    if os.geteuid():
        raise PermissionError(f"user id {os.geteuid()}")
    return "user id 0"


def _kernel() -> str:
    if probe.kernel_version() < OLDEST:
        raise ValueError(f"this is {platform.release()}")
    return platform.release()


def _forward() -> str:
    path = "/proc/sys/net/ipv4/ip_forward"
    value = probe.read(path)
    if value != "1" and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, f"it is {value} and cannot be set")
    return "on in this namespace" if value == "1" else "off in this namespace; the agent turns it on"


def _forward_policy() -> str:
    """What forwards is dropped by nobody else's chain, or that chain lets pods through."""
    names = [name for _, name in socket.if_nameindex() if node_bridge_number(name) is not None]
    found = forwarding.dropping(sorted(names) or [BRIDGE])
    shut = [one.chain for one in found if not one.opened]
    if shut:
        raise ValueError(f"{', '.join(shut)} drops what it does not accept")
    if found:
        return "; ".join(f"{one.chain} has policy drop, pods pass by {one.opened}" for one in found)
    return "nobody's chain has policy drop"


def _br_netfilter() -> str:
    value = probe.read("/proc/sys/net/bridge/bridge-nf-call-iptables")
    return f"bridge-nf-call-iptables is {value} in this namespace"


def _dns_in_c() -> str:
    if not loop.available:
        raise FileNotFoundError("the extension netplane.dns._answer is not built")
    return "netplane.dns._answer"


def _bpf_object() -> str:
    found = Path(__file__).parent.parent / "_bpf/netplane.bpf.o"
    return f"{found.name}, {found.stat().st_size} bytes"


def _packet_path() -> str:
    """All programs through the verifier, and one on a device."""
    with closing(PathDriver()) as path:
        if not path.open():
            raise ValueError(path.problem)
        return path.tried()


def _disk(state_dir: Path) -> str:
    where = next(p for p in (state_dir.absolute(), *state_dir.absolute().parents) if p.exists())
    free = shutil.disk_usage(where).free
    if free < ROOM:
        raise ValueError(f"{free >> 20} MiB free on {where}")
    return f"{free >> 20} MiB free on {where}"


def _packages() -> str:
    missing = sorted(_missing(importlib.metadata.requires("netplane") or ()))
    if missing:
        raise ValueError(f"not installed: {', '.join(missing)}")
    return f"all there, Python {platform.python_version()}"


def _missing(requirements: Iterable[str]) -> Iterator[str]:
    for requirement in requirements:
        if "extra ==" in requirement:
            continue
        name = re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0]
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name


def _libnftables() -> str:
    """The version is told by its own program, built with it, where that is installed."""
    loads = probe.libnftables()
    tool = shutil.which("nft", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if tool is None:
        return loads
    done = subprocess.run([tool, "--version"], capture_output=True, text=True, timeout=10, check=False)
    return done.stdout.strip() or loads
