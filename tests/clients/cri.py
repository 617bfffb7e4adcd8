"""The few calls of Kubernetes' Container Runtime Interface (runtime.v1) that a pod sandbox needs.

A message is a dict of field numbers, from k8s.io/cri-api's api.proto; only strings, numbers and
messages occur. That is all of protobuf's wire format that is needed, so no generated code is.
"""

from __future__ import annotations

from typing import Any, cast

import grpc

Message = dict[int, Any]
VARINT, BYTES = 0, 2


def encode(message: Message) -> bytes:
    """Strings, ints, messages, and lists of them, by field number."""
    out = bytearray()
    for field, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int):
                out += _varint(field << 3 | VARINT) + _varint(one)
                continue
            data = encode(one) if isinstance(one, dict) else one.encode()
            out += _varint(field << 3 | BYTES) + _varint(len(data)) + data
    return bytes(out)


def decode(data: bytes) -> dict[int, list[Any]]:
    """Each field's values in order: ints, or bytes to be read as text or `decode`d again."""
    found: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        tag, at = _read(data, at)
        value: int | bytes
        value, at = _read(data, at)
        if tag & 7 == BYTES:
            value, at = data[at : at + cast(int, value)], at + cast(int, value)
        found.setdefault(tag >> 3, []).append(value)
    return found


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _read(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def sandbox(
    name: str, namespace: str, uid: str, port: tuple[int, int] | None = None, **annotations: str
) -> Message:
    """A PodSandboxConfig; ``port`` is (host port, container port), TCP."""
    config: Message = {
        1: {1: name, 2: uid, 3: namespace},  # metadata
        2: f"host-{name}",  # hostname
        4: {1: ["192.0.2.53"], 2: ["example.org"]},  # dns: servers, searches
        6: [{1: "app", 2: name}],  # labels
        7: [{1: key, 2: value} for key, value in annotations.items()],
    }
    if port:
        config[5] = [{2: port[1], 3: port[0]}]  # port mappings: container port, host port
    return config


class Cri:
    """The runtime service on the unix socket ``path``."""

    def __init__(self, path: str) -> None:
        self._channel = grpc.insecure_channel(f"unix://{path}")

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, message: Message) -> dict[int, list[Any]]:
        """One call; grpc.RpcError with what the runtime says."""
        rpc = self._channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")
        return decode(rpc(encode(message), timeout=60, wait_for_ready=True))

    def run(self, config: Message) -> str:
        """RunPodSandbox; its id."""
        return str(self.call("RunPodSandbox", {1: config})[1][0], "ascii")

    def remove(self, sandbox_id: str) -> None:
        """StopPodSandbox (CNI DEL) and RemovePodSandbox."""
        self.call("StopPodSandbox", {1: sandbox_id})
        self.call("RemovePodSandbox", {1: sandbox_id})

    def addresses(self, sandbox_id: str) -> list[str]:
        """What the runtime tells the kubelet: PodSandboxStatus' network."""
        status = decode(self.call("PodSandboxStatus", {1: sandbox_id})[1][0])
        network = decode(status[5][0])
        return [str(network[1][0], "ascii"), *(str(decode(one)[1][0], "ascii") for one in network.get(2, []))]

    def network_ready(self) -> bool:
        """Status: the condition NetworkReady, which asks the CNI configuration."""
        conditions = map(decode, decode(self.call("Status", {})[1][0])[1])
        return any(one[1] == [b"NetworkReady"] and one.get(2) == [1] for one in conditions)
