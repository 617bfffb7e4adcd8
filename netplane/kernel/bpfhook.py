"""Programs on devices: by clsact and a direct-action filter, or by tcx.

Rule 1: a program that is on a device stays there without us until the device goes, and holds its maps:
        that is what a fresh process finds. Nothing is pinned, so nothing can be left behind.
Rule 2: another program takes one's place in one step; no packet meets neither.
Rule 3: others' programs and filters on the same device are left alone. Ours come last of tcx; as filters they
        have a priority and handle of their own.

tcx (Linux 6.6) is quicker for packets, but waits for an RCU grace period, with the RTNL lock held, for each
side of each device: to attach, and again when the device is deleted. Measured: 32 instead of 0.7 ms for a
pod, and 780 instead of 42 ms to delete 20 pods' devices at once. So pods have clsact, and are born with it:
the kernel takes a device's queue away for a moment to put it there, and what is sent then is lost. A device
that is up without it (a pod from before the fast path) gets tcx, where there is tcx.
"""

from __future__ import annotations

import errno
from typing import Any, Protocol

from ..model.errors import KernelError
from . import bpf
from .bpf import Program, abi, check, library

INGRESS, EGRESS = 46, 47  # BPF_TCX_INGRESS, BPF_TCX_EGRESS
REPLACE = 1 << 2  # BPF_F_REPLACE
OURS = {INGRESS: "np_from_", EGRESS: "np_to_"}
POINTS = {INGRESS: 1, EGRESS: 2}  # BPF_TC_INGRESS, BPF_TC_EGRESS
BOTH = 3
TC_REPLACE = 1  # BPF_TC_F_REPLACE
HANDLE = PRIORITY = 0x6E70  # "np"
GONE = (-errno.ENODEV, -errno.ENOENT)


class Hooks(Protocol):
    """One way to put programs on a side (INGRESS, EGRESS) of a device."""

    name: str

    def attached(self, ifindex: int, side: int) -> list[Program]:
        """The programs there, each to be closed; none when the device is gone. Raises KernelError."""
        ...

    def attach(self, ifindex: int, side: int, program: Program) -> bool:
        """Put it there, in the place of an earlier one of ours. False: not here. Raises KernelError."""
        ...

    def detach(self, ifindex: int, side: int, old: Program) -> None:
        """Take it away; gone already (the device, too) is fine. Raises KernelError."""
        ...


class Tcx:
    name = "tcx"

    def attached(self, ifindex: int, side: int) -> list[Program]:
        ids, count = abi().new("uint32_t[64]"), abi().new("uint32_t *", 64)
        result = library().bpf_prog_query(ifindex, side, 0, abi().NULL, ids, count)
        if result in GONE:
            return []
        check(result, f"ask device {ifindex} for its programs")
        return _opened(ids[0 : count[0]])

    def attach(self, ifindex: int, side: int, program: Program) -> bool:
        there = self.attached(ifindex, side)
        try:
            if any(one.id == program.id for one in there):
                return True
            options = abi().new("struct attach_opts *", {"sz": abi().sizeof("struct attach_opts")})
            for old in there:
                if old.name.startswith(OURS[side]):
                    options.flags, options.replace_prog_fd = REPLACE, old.fd
            result = library().bpf_prog_attach_opts(program.fd, ifindex, side, options)
            check(result, f"attach {program.name} to device {ifindex}")
            return True
        finally:
            for one in there:
                one.close()

    def detach(self, ifindex: int, side: int, old: Program) -> None:
        result = library().bpf_prog_detach2(old.fd, ifindex, side)
        if result not in GONE:
            check(result, f"detach {old.name} from device {ifindex}")


class Clsact:
    """The qdisc stays when the last program went: others may have filters in it, and it costs nothing."""

    name = "clsact"

    def __init__(self, make: bool = True) -> None:
        self._make = make  # the qdisc, where there is none; else such a device is refused

    def attached(self, ifindex: int, side: int) -> list[Program]:
        options = _tc_options()
        with bpf.told():  # libbpf complains on stderr of a device without the qdisc
            result = library().bpf_tc_query(_tc_hook(ifindex, side), options)
        if result in (*GONE, -errno.EINVAL):  # EINVAL: no such qdisc, or nothing in it
            return []
        check(result, f"ask device {ifindex} for its filter")
        return _opened([options.prog_id])

    def attach(self, ifindex: int, side: int, program: Program) -> bool:
        hook = _tc_hook(ifindex, side)
        with bpf.told():
            result = library().bpf_tc_attach(hook, _tc_options(program))
            if result in (*GONE, -errno.EINVAL):  # without the qdisc
                if not self._make:
                    return False
                made = library().bpf_tc_hook_create(hook)
                if made != -errno.EEXIST:
                    check(made, f"add clsact to device {ifindex}")
                result = library().bpf_tc_attach(hook, _tc_options(program))
        check(result, f"attach {program.name} to device {ifindex}")
        return True

    def detach(self, ifindex: int, side: int, old: Program) -> None:
        with bpf.told():
            result = library().bpf_tc_detach(_tc_hook(ifindex, side), _tc_options())
        if result not in (*GONE, -errno.EINVAL):
            check(result, f"detach {old.name} from device {ifindex}")


def ways() -> tuple[Hooks, ...]:
    """The ways that this kernel has, first the one for devices that come and go, last the one for those
    that stay; tried on the loopback device. Raises KernelError without any."""
    lo = _tc_hook(1, INGRESS)
    with bpf.told():
        made = library().bpf_tc_hook_create(lo)
        if made == 0:
            lo.attach_point = BOTH
            library().bpf_tc_hook_destroy(lo)
    count = abi().new("uint32_t *", 0)
    tcx = library().bpf_prog_query(1, INGRESS, 0, abi().NULL, abi().NULL, count) in (0, *GONE)
    found: list[Hooks] = [Clsact(make=not tcx)] if made in (0, -errno.EEXIST) else []
    if tcx:
        found.append(Tcx())
    if not found:
        raise KernelError(-made, "attach programs to devices", "it needs clsact, or tcx (Linux 6.6)")
    return tuple(found)


def _opened(ids: list[int]) -> list[Program]:
    found = (library().bpf_prog_get_fd_by_id(number) for number in ids)
    return [bpf.program(fd) for fd in found if fd >= 0]  # or it went meanwhile


def _tc_hook(ifindex: int, side: int) -> Any:
    size = abi().sizeof("struct tc_hook")
    return abi().new("struct tc_hook *", {"sz": size, "ifindex": ifindex, "attach_point": POINTS[side]})


def _tc_options(program: Program | None = None) -> Any:
    """To ask and detach; with a program, to attach it."""
    made = abi().new("struct tc_opts *", {"sz": abi().sizeof("struct tc_opts")})
    made.handle, made.priority = HANDLE, PRIORITY
    if program is not None:
        made.prog_fd, made.flags = program.fd, TC_REPLACE
    return made
