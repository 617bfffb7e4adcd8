"""The driver of the packet path: its programs on devices, its configuration, and its forgetting.

Rule 1: the path repeats decisions of the kernel path, so every change of what these rest on is followed
        by `forget`, before it is reported as done: one store into shared memory makes all entries stale.
Rule 2: a program is put in another's place in one step, and takes over its maps: upgrades and restarts
        lose neither packets nor what was learnt.
Rule 3: without libbpf, clang's object or a kernel that takes it there is no fast path, and `problem`
        says why; what an earlier process attached is still found and taken away.
"""

from __future__ import annotations

import logging
import mmap
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Any, NamedTuple

from ..model.errors import KernelError, NetplaneError
from ..model.facts import Fact, FactKey, FastPath, Hook, Mark, Plan
from . import bpf, bpfhook
from .bpfhook import INGRESS, OURS, Clsact, Hooks
from .later import Later
from .pathports import Ports

log = logging.getLogger(__name__)

SIDES = tuple(OURS.items())
PLACES = ("", "pod", "tunnel", "wire")  # enum np_place
CONFIG_KEY = ("fastpath",)
DIFFERS = "differs"
MOST = 2.0  # seconds that a pod waits for its programs while others keep coming


class Remembered(NamedTuple):
    """One entry of the flow map: what arrives, and what becomes of it."""

    place: str  # where it comes from: pod, tunnel, wire
    protocol: str  # tcp, udp
    source: str
    source_port: int
    destination: str
    destination_port: int
    new_source: str  # as it is sent on
    new_source_port: int
    new_destination: str
    new_destination_port: int
    device: str  # by which it leaves, "" when that is gone
    peer: bool  # straight to the device's other end, in a pod
    current: bool  # nothing that it rests on has changed
    age: float  # seconds since the decision was first seen
    asked: float  # seconds since the kernel last repeated it
    packets: int  # that took the fast path
    bytes: int


class PathDriver:
    """Works in the network namespace of the process. ``on`` False: only takes away what is there."""

    name = "datapath"
    accepts: tuple[type[Fact], ...] = (Hook, FastPath)
    parallel = False

    def __init__(self, on: bool = True, ways: tuple[Hooks, ...] = (), delay: float = 0.0) -> None:
        self.problem = "" if on else "switched off (--datapath kernel)"
        self._on = on
        self._ways = ways
        self._ports: Ports | None = None
        self._awaited: dict[str, Hook] = {}  # by pods' devices that have their programs, or will
        self._later = Later[Hook | None](self._hook_late, delay, MOST) if delay else None
        self._loaded: bpf.Loaded | None = None
        self._memory: mmap.mmap | None = None
        self._config: Any = None  # struct np_config, in shared memory
        self._view: Any = None
        self._path: FastPath | None = None
        self._base: dict[str, tuple[Hook, int]] = {}  # hooks on devices that may be made again
        self._lock = threading.Lock()

    @property
    def in_qdisc(self) -> bool:
        """Whether the devices of pods should be born with a clsact."""
        return self.usable and isinstance(self._all_ways()[0], Clsact)

    @property
    def usable(self) -> bool:
        return self._loaded is not None

    def open(self) -> bool:
        """Load the programs, with the maps of those that are there already. False: see `problem`."""
        if not self._on:
            return False
        try:
            self._load()
        except (NetplaneError, OSError, AttributeError) as exc:  # also a libbpf that lacks a function
            self.problem = str(exc)
            return False
        return True

    def _load(self) -> None:
        held = _maps_in_use(self._all_ways())
        try:
            try:
                self._loaded = bpf.load(reuse=held)
            except KernelError:
                if not held:
                    raise
                self._loaded = bpf.load()  # maps of another layout: everything is learnt anew
        finally:
            for one in held:
                one.close()
        self._ports = Ports(self._loaded.maps)
        self._memory = mmap.mmap(self._loaded.maps["np_config"].fd, mmap.PAGESIZE)
        ffi = bpf.abi()
        self._view = ffi.from_buffer(self._memory, require_writable=True)
        self._config = ffi.cast("struct np_config *", self._view)

    def close(self) -> None:
        """Let go of programs and maps; what is on devices stays."""
        if self._loaded is None or self._memory is None:
            return
        bpf.abi().release(self._view)
        self._config = self._view = None
        self._memory.close()
        self._loaded.close()
        self._loaded = self._ports = None

    def tried(self) -> str:
        """Put a program on the loopback device and take it away again. Raises KernelError."""
        loaded = self._ready()
        for way in self._all_ways():
            way.attach(1, INGRESS, loaded.programs["np_from_wire"])
            way.detach(1, INGRESS, loaded.programs["np_from_wire"])
        names = " and ".join(way.name for way in self._ways)
        size = sum(one.memory for one in loaded.maps.values())
        return f"{len(loaded.programs)} programs loaded, attached by {names}, {size >> 10} KiB of maps"

    # --- forgetting ----------------------------------------------------------------------------

    def forget(self) -> None:
        """No entry that was learnt before this is used any more. Costs one store into memory."""
        if self._config is None:
            return
        with self._lock:
            self._config.generation = (self._config.generation + 1) & 0xFFFFFFFF

    # --- the Driver's two verbs ------------------------------------------------------------------

    def observe(self) -> Mapping[FactKey, Mark]:
        found: dict[FactKey, Mark] = {}
        for ifindex, name in self._devices():
            mark = self._hook_at(ifindex, name)
            if mark is not None:
                found[("hook", name)] = mark
        if self._config is not None and self._config.enabled:
            found[CONFIG_KEY] = self._path if self._path is not None and self._points_at() else DIFFERS
        return found

    def _hook_at(self, ifindex: int, name: str) -> Mark | None:
        """The fact's mark when all programs are ours and these; DIFFERS for others of ours."""
        tags = []
        for side, _ in SIDES:
            tags += [(program.name, program.tag) for _, program in self._attached(ifindex, side)]
        if self._ports is None:
            return DIFFERS if tags else None
        place = tags[0][0].rpartition("_")[2] if tags else "pod"
        hook = self._ports.hook(name, ifindex) if place == "pod" else Hook(name, place)
        if not tags:
            return hook if hook and hook.barred else None
        wanted = [(one.name, one.tag) for one in self._wanted(hook).values()] if hook else []
        if tags != wanted:
            return DIFFERS
        if hook and place != "pod":
            self._base.setdefault(name, (hook, ifindex))  # an earlier process put it there
        return hook

    def _wanted(self, hook: Hook) -> dict[int, bpf.Program]:
        """The programs of a hook by their side."""
        if hook.barred:
            return {}
        there = self._ready().programs
        named = {side: prefix + hook.place for side, prefix in SIDES}
        return {side: there[name] for side, name in named.items() if name in there}

    def apply(self, plan: Plan) -> None:
        """Raises KernelError: which program could not be put on which device."""
        for key in plan.remove:
            if key == CONFIG_KEY:
                self._switch_off()
            else:
                self._unhook_soon(str(key[1]))
        for fact in (*plan.change, *plan.add):
            if isinstance(fact, FastPath):
                self._configure(fact)
        for fact in (*plan.change, *plan.add):
            if isinstance(fact, Hook):
                self._hook_soon(fact)
        self.forget()

    def _hook_soon(self, hook: Hook) -> None:
        """A pod's link becomes a forwarding port under the RTNL lock, which attaching would hold.

        So pods wait until no more of them come and go; the kernel path serves them until then.
        """
        if hook.place == "pod" and self._later is not None:
            self._awaited[hook.link] = hook
            self._later.put(hook.link, hook)
        else:
            self._hook(hook)

    def _unhook_soon(self, link: str) -> None:
        """A pod's device is on its way out, and takes its programs along: what it leaves can wait."""
        if self._later is not None and link in self._awaited:
            with self._lock:
                self._awaited.pop(link, None)
                if self._ports is not None:
                    self._ports.drop(link)  # at once: its pod's MAC may come again
            self._later.put(link, None)
        else:
            self._unhook(link)

    def _hook_late(self, born: dict[str, Hook | None]) -> None:
        """What fails here is seen by the next full pass; until then the kernel path serves the pod."""
        for link, hook in born.items():
            try:
                if hook is None or not _ifindex(link):
                    self._unhook(link)
                else:
                    self._hook(hook)
            except KernelError as exc:
                log.warning("%s", exc)
        self.look()

    def _hook(self, hook: Hook) -> None:
        wanted, ifindex = self._wanted(hook), _ifindex(hook.link)
        if not ifindex:
            raise KernelError(19, f"attach the packet path to {hook.link}")
        if hook.place != "pod":
            self._base[hook.link] = (hook, ifindex)
        elif self._ports is not None:
            with self._lock:
                if self._later is None or hook.link in self._awaited:  # else it went meanwhile
                    self._ports.put(hook, ifindex, _ifindex(hook.bridge))
        ways = self._all_ways() if hook.place == "pod" else self._all_ways()[-1:]
        chosen = next(w for w in ways if all(w.attach(ifindex, side, one) for side, one in wanted.items()))
        for side, _ in SIDES:
            for way, program in self._attached(ifindex, side):
                if way is not chosen or side not in wanted:
                    way.detach(ifindex, side, program)

    def _unhook(self, link: str) -> None:
        self._base.pop(link, None)
        ifindex = _ifindex(link)
        if ifindex:
            for side, _ in SIDES:
                for way, program in self._attached(ifindex, side):
                    way.detach(ifindex, side, program)
        if self._ports is not None:
            self._ports.drop(link)

    def _configure(self, path: FastPath) -> None:
        self._ready()
        config, ffi = self._config, bpf.abi()
        config.tunnel = _ifindex(path.tunnel)
        config.vni, config.vxlan_port = path.vni, socket.htons(path.port)
        ffi.memmove(config.gateway_mac, _mac(path.gateway_mac), 6)
        ffi.memmove(config.tunnel_mac, _mac(path.tunnel_mac), 6)
        self._path = path
        self.forget()
        config.enabled = 1

    def _points_at(self) -> bool:
        """Whether the programs know the tunnel's device by its present index."""
        return self._path is not None and self._config.tunnel == _ifindex(self._path.tunnel)

    def _switch_off(self) -> None:
        if self._config is not None:
            self._config.enabled = 0
        self._path = None

    def _all_ways(self) -> tuple[Hooks, ...]:
        self._ways = self._ways or bpfhook.ways()
        return self._ways

    def _attached(self, ifindex: int, side: int) -> Iterator[tuple[Hooks, bpf.Program]]:
        """Our programs there, and how they are attached; each is closed when the next is asked for."""
        for way in self._all_ways():
            for program in way.attached(ifindex, side):
                if program.name.startswith(OURS[side]):
                    yield way, program
                program.close()

    def _devices(self) -> list[tuple[int, str]]:
        """Every device of this namespace that could have programs; none where programs cannot be."""
        try:
            self._all_ways()
        except (KernelError, OSError, AttributeError):
            return []
        return socket.if_nameindex()

    def _ready(self) -> bpf.Loaded:
        if self._loaded is None:
            raise KernelError(95, "use the packet path", self.problem)
        return self._loaded

    def made(self, link: str) -> None:
        """A device was made. One of the same name may have gone just before, and the plans for its hook have
        cancelled out, as of a container that starts again: the new one gets what that one had."""
        if link in self._base:
            self.look()
        elif hook := self._wanted_on(link):
            self.gone(link)
            self._hook_soon(hook)

    def gone(self, link: str) -> None:
        """A device went, and nothing is to be sent to it, though its hook is still wanted."""
        if hook := self._wanted_on(link):
            with self._lock:
                if self._later is not None:
                    self._awaited[link] = hook
                if self._ports is not None:
                    self._ports.drop(link)

    def _wanted_on(self, link: str) -> Hook | None:
        """A pod's; also where an earlier process put it there."""
        known = self._ports.known(link) if self._ports is not None else None
        return self._awaited.get(link) or known

    def look(self) -> None:
        """A device of the base that was made again gets its programs back; what fails, the loop mends."""
        for hook, ifindex in list(self._base.values()):
            now = _ifindex(hook.link)
            if now in (0, ifindex):
                continue
            try:
                if self._path is not None:
                    self._configure(self._path)
                if self._ports is not None:
                    self._ports.move(ifindex, now)
                self._hook(hook)  # the last: it is by this that the device is known as seen to
            except KernelError as exc:
                log.warning("%s", exc)

    def clean(self) -> None:
        """Take everything of ours off every device of this namespace."""
        for _, name in self._devices():
            if self._later is not None:
                self._later.drop(name)
            self._unhook(name)

    # --- reading ---------------------------------------------------------------------------------

    def flows(self) -> Iterator[Remembered]:
        """Everything that is remembered. Raises KernelError."""
        if self._loaded is None:
            return
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        names = dict(socket.if_nameindex())
        ffi = bpf.abi()
        for key_bytes, flow_bytes in self._loaded.maps["np_flows"].items():
            key = ffi.cast("struct np_flow_key *", ffi.from_buffer(key_bytes))
            flow = ffi.cast("struct np_flow *", ffi.from_buffer(flow_bytes))
            yield Remembered(
                PLACES[getattr(key, "from")],
                {6: "tcp", 17: "udp"}.get(key.protocol, str(key.protocol)),
                *_ends(key, key.family),
                *_ends(flow, key.family),
                device=names.get(flow.ifindex, ""),
                peer=bool(flow.flags & bpf.constants()["NP_FLOW_PEER"]),
                current=flow.generation == self.generation,
                age=(now - flow.learnt) / 1e9,
                asked=(now - flow.asked) / 1e9,
                packets=flow.packets,
                bytes=flow.bytes,
            )

    def ports(self) -> dict[str, tuple[int, int, int, int]]:
        """By device: packets and bytes that its pod sent, and that it received, on the fast path."""
        return self._ports.counters() if self._ports is not None else {}

    @property
    def generation(self) -> int:
        return int(self._config.generation) if self._config is not None else 0

    def counters(self) -> dict[str, tuple[int, int]]:
        """Packets and bytes by verdict (the header's words in lower case), over all CPUs."""
        if self._loaded is None:
            return {}
        found = {}
        for name, number in bpf.constants().items():
            if name.startswith("NP_VERDICT_") and name != "NP_VERDICT_MAX":
                values = self._loaded.maps["np_counters"].get(_u32(number)) or b""
                found[name.removeprefix("NP_VERDICT_").lower()] = _summed(values)
        return found


def _maps_in_use(ways: tuple[Hooks, ...]) -> list[bpf.Map]:
    """The maps of the programs of ours that are on devices; none: nothing is attached."""
    held: dict[str, bpf.Map] = {}
    places = ((ifindex, side) for ifindex, _ in socket.if_nameindex() for side in OURS)
    there = (way.attached(*place) for place in places for way in ways)
    for program in (one for several in there for one in several):
        if program.name.startswith(tuple(OURS.values())):
            for one in program.maps():
                if one.name.startswith("np_") and one.name not in held:
                    held[one.name] = one
                else:
                    one.close()
        program.close()
    return list(held.values())


def _ifindex(name: str) -> int:
    try:
        return socket.if_nametoindex(name) if name else 0
    except OSError:
        return 0


def _ends(struct: Any, family: int) -> tuple[str, int, str, int]:
    """Source, its port, destination and its port, of a key or of a flow."""
    size, ffi = (4 if family == 4 else 16), bpf.abi()
    source, destination = (bytes(ffi.buffer(field, size)) for field in (struct.source, struct.destination))
    return (
        str(ip_address(source)),
        socket.ntohs(struct.source_port),
        str(ip_address(destination)),
        socket.ntohs(struct.destination_port),
    )


def _u32(number: int) -> bytes:
    return bytes(bpf.abi().buffer(bpf.abi().new("uint32_t *", number)))


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", "")) or bytes(6)


def _summed(values: bytes) -> tuple[int, int]:
    """np_counter of every CPU: packets, bytes."""
    words = memoryview(values).cast("Q")
    return sum(words[0::2]), sum(words[1::2])
