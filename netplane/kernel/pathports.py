"""What the packet path knows of each port of a bridge: its flags, its counters, and which pod is there.

Rule 1: the path sends to a port what has its pod's MAC, so an entry goes before its port's name or its
        pod's MAC can be another's: at once, never later.
Rule 2: what an earlier process left of a port that has gone meanwhile is taken away when it is found.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Mapping

from ..model.facts import Hook
from . import bpf

_STATE = struct.Struct("=II")  # struct np_port begins so: flags, and the index of the bridge


class Ports:
    """The maps np_ports (by the port's index) and np_pods (a pod's MAC → its port's index)."""

    def __init__(self, maps: Mapping[str, bpf.Map]) -> None:
        self._ports, self._pods = maps["np_ports"], maps["np_pods"]
        names = dict(socket.if_nameindex())
        self._at: dict[str, int] = {}  # the index of each port
        self._macs: dict[int, bytes] = {}  # the key in np_pods of each index
        for key, value in list(self._pods.items()):
            if _number(value) in names:
                self._macs[_number(value)] = key
            else:
                self._pods.drop(key)
        for key, _ in list(self._ports.items()):
            if name := names.get(_number(key)):
                self._at[name] = _number(key)
            else:
                self._ports.drop(key)

    def put(self, hook: Hook, ifindex: int, bridge: int) -> None:
        """``bridge``: the index of the hook's. Raises KernelError."""
        self.drop(hook.link)
        lib = bpf.constants()
        flags = hook.barred * lib["NP_PORT_BARRED"] | hook.shaped * lib["NP_PORT_SHAPED"]
        self._at[hook.link] = ifindex
        self._ports.put(_u32(ifindex), _STATE.pack(flags, bridge).ljust(self._ports.value_size, b"\0"))
        if hook.mac:
            self._macs[ifindex] = bytes.fromhex(hook.mac.replace(":", "")) + bytes(2)
            self._pods.put(self._macs[ifindex], _u32(ifindex))

    def move(self, before: int, after: int) -> None:
        """A bridge was made again and has another index; what was counted stays. Raises KernelError."""
        for key, values in list(self._ports.items()):
            flags, bridge = _STATE.unpack_from(values)
            if bridge == before:
                size = self._ports.value_size
                kept = (values[at + _STATE.size : at + size] for at in range(0, len(values), size))
                self._ports.put(key, b"".join(_STATE.pack(flags, after) + one for one in kept))

    def drop(self, link: str) -> None:
        """Also when the device went before, whose index no other will ever have."""
        ifindex = self._at.pop(link, 0)
        if not ifindex:
            return
        self._ports.drop(_u32(ifindex))
        mac = self._macs.pop(ifindex, None)
        if mac is not None and self._pods.get(mac) == _u32(ifindex):  # it may be another pod's by now
            self._pods.drop(mac)

    def known(self, link: str) -> Hook | None:
        """Of the port of this name, on whatever device that was."""
        ifindex = self._at.get(link, 0)
        return self.hook(link, ifindex) if ifindex else None

    def hook(self, link: str, ifindex: int) -> Hook | None:
        """What is known of a port; None: nothing."""
        value = self._ports.get(_u32(ifindex))
        if value is None:
            return None
        (flags, bridge), lib = _STATE.unpack_from(value), bpf.constants()
        barred, shaped = bool(flags & lib["NP_PORT_BARRED"]), bool(flags & lib["NP_PORT_SHAPED"])
        mac = self._macs.get(ifindex, b"")[:6].hex(":")
        return Hook(link, "pod", barred, shaped, mac, _name(bridge))

    def counters(self) -> dict[str, tuple[int, int, int, int]]:
        """By device: packets and bytes that its pod sent, and that it received, on the fast path."""
        names, found = dict(socket.if_nameindex()), {}
        for key, values in self._ports.items():
            words = memoryview(values).cast("Q")
            if name := names.get(_number(key)):  # per CPU: its state, packets and bytes sent, and received
                found[name] = (sum(words[1::5]), sum(words[2::5]), sum(words[3::5]), sum(words[4::5]))
        return found


def _name(ifindex: int) -> str:
    """ "" when it is gone."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return ""


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)


def _u32(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)
