"""What this kernel can do, found by doing it in namespaces that vanish with the thread that made them.

Rule 1: nothing outside of the thread's own network and mount namespace is changed; descriptors are
        closed and the namespaces die with the thread, so nothing is left behind.
Rule 2: a probe answers with a detail, or raises OSError, ImportError or NetplaneError with the
        reason; libraries are imported by the probe that needs them, as a missing one is an answer.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from ..model.errors import KernelError, NetplaneError

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
MS_NODEV, MS_REC, MS_PRIVATE = 4, 16384, 1 << 18
SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
BPF_PROG_LOAD, BPF_LINK_CREATE, SCHED_CLS, TCX_INGRESS = 5, 28, 3, 46  # <linux/bpf.h>
RETURN_ZERO = bytes.fromhex("b700000000000000 9500000000000000")  # r0 = 0; exit
_libc = ctypes.CDLL(None, use_errno=True)

Probe = Callable[[], str]

NFT_BASICS = """
add table inet probe
add chain inet probe nat { type nat hook prerouting priority dstnat; }
add chain inet probe srcnat { type nat hook postrouting priority srcnat; }
add rule inet probe srcnat masquerade fully-random
"""
NFT_MAPS = """
add table inet probe
add chain inet probe pick
add map inet probe vips { typeof ip daddr . meta l4proto . th dport : verdict; }
add map inet probe ends { \\
  typeof ip daddr . meta l4proto . th dport . numgen random mod 2 : ip daddr . th dport; }
add rule inet probe pick dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 5 map @ends
"""
NFT_CONNTRACK = """
add table inet probe
add chain inet probe c { type filter hook forward priority filter; }
add rule inet probe c ct state established,related accept
"""


def apart(probe: Probe) -> str:
    """Run a probe in a thread with network and mount namespaces of its own; its answer or error."""
    outcome: list[str | BaseException] = []

    def run() -> None:
        try:
            if _libc.unshare(CLONE_NEWNS | CLONE_NEWNET):
                raise _error("make a namespace")
            if _libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
                raise _error("make mounts private")
            outcome.append(probe())
        except BaseException as exc:
            outcome.append(exc)

    thread = threading.Thread(target=run, name="probe")
    thread.start()
    thread.join()
    (found,) = outcome
    if isinstance(found, BaseException):
        raise found
    return found


def link(kind: str, **options: object) -> Probe:
    """A probe that makes an interface of this kind."""

    def probe() -> str:
        from pyroute2 import IPRoute

        try:
            with IPRoute() as ip:
                ip.link("add", ifname="npprobe0", kind=kind, **options)
        except Exception as exc:  # pyroute2's errors have no common root
            raise KernelError(getattr(exc, "code", 0) or 95, f"add a {kind} interface") from exc
        return "an interface can be made"

    return probe


def nft(script: str) -> Probe:
    """A probe that commits an nft script."""

    def probe() -> str:
        import nftables

        code, _, error = nftables.Nftables().cmd(script)
        if code:
            raise KernelError(95, "commit nftables rules", str(error).strip().splitlines()[0])
        return "rules can be committed"

    return probe


def bpf() -> str:
    os.close(_prog_load())
    return "a program can be loaded"


def tcx() -> str:
    """Attach to lo of the namespace: kernel 6.6 and later."""
    prog = _prog_load()
    try:
        os.close(_bpf(BPF_LINK_CREATE, struct.pack("4I", prog, 1, TCX_INGRESS, 0), "attach a program by tcx"))
    finally:
        os.close(prog)
    return "a program can be attached"


def libnftables() -> str:
    """That the library loads; it has no call that tells its version."""
    import nftables

    nftables.Nftables()
    return "loads"


def tmpfs() -> str:
    with tempfile.TemporaryDirectory(prefix="np-probe-") as where:
        path = os.fsencode(where)
        if _libc.mount(b"tmpfs", path, b"tmpfs", MS_NODEV, b"size=64k"):
            raise _error("mount a tmpfs")
        _libc.umount2(path, 2)
    return "can be mounted"


def ipv6() -> str:
    """Whether a fresh namespace has IPv6 (not compiled out, not disabled at boot)."""
    return f"forwarding is {read('/proc/sys/net/ipv6/conf/all/forwarding')} in a new namespace"


def read(path: str) -> str:
    return Path(path).read_text().strip()


def btf() -> str:
    return f"{Path('/sys/kernel/btf/vmlinux').stat().st_size >> 10} KiB of types"


def loop() -> str:
    os.close(os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC))
    return "/dev/loop-control opens"


def cgroup2() -> str:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return f"mounted on {where}"
    raise KernelError(2, "find cgroup2", "it is not mounted")


def kernel_version() -> tuple[int, int]:
    major, minor = platform.release().split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def _prog_load() -> int:
    code = ctypes.create_string_buffer(RETURN_ZERO)
    name = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack("IIQQ", SCHED_CLS, 2, ctypes.addressof(code), ctypes.addressof(name))
    return _bpf(BPF_PROG_LOAD, attr, "load a BPF program")


def _bpf(command: int, attr: bytes, operation: str) -> int:
    number = SYS_BPF.get(platform.machine())
    if number is None:
        raise KernelError(38, operation, f"the bpf call's number on {platform.machine()} is not known")
    buffer = ctypes.create_string_buffer(attr.ljust(128, b"\0"), 128)
    result = int(_libc.syscall(number, command, buffer, 128))
    if result < 0:
        raise _error(operation)
    return result


def _error(operation: str) -> NetplaneError:
    return KernelError(ctypes.get_errno(), operation)
