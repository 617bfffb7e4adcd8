"""What tests of the packet path share: programs of their own, and the header's structs by keyword."""

from __future__ import annotations

import time
from ipaddress import ip_address
from typing import Any

from netplane.kernel import bpf

UNSPEC, SHOT, REDIRECT = 0xFFFFFFFF, 2, 7  # TC_ACT_*
MAC_A, MAC_B = bytes.fromhex("02aaaaaaaaaa"), bytes.fromhex("02bbbbbbbbbb")
HERE = bytes(6)  # the loopback's MAC, on which test runs arrive: "to us"


def struct(name: str, **fields: Any) -> bytes:
    """The bytes of a struct of the ABI header; fields that are not named are zero."""
    ffi = bpf.abi()
    made = ffi.new(f"struct {name} *")
    for field, value in fields.items():
        if isinstance(value, bytes):
            ffi.memmove(getattr(made, field), value, len(value))
        else:
            setattr(made, field, value)
    return bytes(ffi.buffer(made))


def read(name: str, data: bytes) -> Any:
    ffi = bpf.abi()
    made = ffi.new(f"struct {name} *")
    ffi.memmove(made, data, len(data))
    return made


def swapped(port: int) -> int:
    """A port as it stands in a big-endian field of a struct that this machine reads."""
    return int.from_bytes(port.to_bytes(2, "big"), "little")


def ends(source: str, destination: str, sport: int, dport: int) -> dict[str, Any]:
    return {
        "source": ip_address(source).packed,
        "destination": ip_address(destination).packed,
        "source_port": swapped(sport),
        "destination_port": swapped(dport),
    }


def now() -> int:
    """Nanoseconds of the clock that programs read (bpf_ktime_get_ns)."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


class Path:
    """The loaded programs with a configuration: generation 5, VNI 1, port 8472, no device."""

    generation = 5

    def __init__(self) -> None:
        self.loaded = bpf.load()
        self.number = bpf.constants()
        self.configure(gateway_mac=MAC_A)

    def configure(self, **fields: Any) -> None:
        base = {"generation": self.generation, "vni": 1, "vxlan_port": swapped(8472), "enabled": 1}
        self.loaded.maps["np_config"].put(bytes(4), struct("np_config", **{**base, **fields}))

    def close(self) -> None:
        self.loaded.close()

    def remember(
        self,
        before: dict[str, Any],
        after: dict[str, Any],
        protocol: int = 6,
        place: str = "WIRE",
        **fields: Any,
    ) -> None:
        """An entry of a flow to the wire, learnt a moment ago; ``place``: where it comes from."""
        family = 4 if len(before["source"]) == 4 else 6
        key = struct(
            "np_flow_key", **before, protocol=protocol, family=family, **{"from": self.number[f"NP_{place}"]}
        )
        rewrites = self.number["NP_FLOW_REWRITES"] if before != after else 0
        base = {"generation": self.generation, "size": 1500, "asked": now(), "learnt": now(), "ifindex": 1,
                "to": self.number["NP_WIRE"], "flags": rewrites, "ethernet": MAC_B + MAC_A}  # fmt: skip
        self.loaded.maps["np_flows"].put(key, struct("np_flow", **{**after, **base, **fields}))

    def prove(self, source: str, destination: str) -> None:
        """The kernel has just let a tunnel packet of this node in (its place: a hash of its address)."""
        address = ip_address(source).packed
        number = int.from_bytes(address, "little")
        place = (number * 0x9E3779B1 & 0xFFFFFFFF) >> 20
        far = int.from_bytes(ip_address(destination).packed, "little")
        peer = struct("np_peer", source=number, destination=far, touched=now(), proven=now())
        self.loaded.maps["np_peers"].put(place.to_bytes(4, "little"), peer)

    def remember_tunnel(self, header: bytes) -> None:
        """The outer header of a tunnel packet, as the programs keep it."""
        made = bytearray(header)
        for at in (15, 16, 17, 18, 19, 24, 25, 34, 35, 38, 39):  # tos; lengths, ID, checksum, source port
            made[at] = 0
        words = [int.from_bytes(made[i : i + 2], "little") for i in range(14, 34, 2)]
        total = sum(words)
        total = (total & 0xFFFF) + (total >> 16)
        fields = {"header": bytes(made), "ifindex": 1, "generation": self.generation, "size": 1500}
        value = struct("np_tunnel", **fields, sum=(total & 0xFFFF) + (total >> 16), asked=now())
        self.loaded.maps["np_tunnels"].put(bytes(made[50:56]) + bytes(2), value)

    def flows(self) -> int:
        return sum(1 for _ in self.loaded.maps["np_flows"].items())

    def counted(self, verdict: str) -> int:
        """Packets of a verdict, over all CPUs."""
        key = self.number[f"NP_VERDICT_{verdict}"].to_bytes(4, "little")
        words = memoryview(self.loaded.maps["np_counters"].get(key) or b"").cast("Q")
        return sum(words[0::2])

    def run(self, program: str, packet: bytes) -> tuple[int, bytes]:
        return self.loaded.programs[program].run(packet)
