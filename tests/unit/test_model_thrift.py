"""Objects that share what they have alike are the objects that they were."""

from __future__ import annotations

from netplane.model import codec, thrift
from netplane.model.thrift import MOST, thrifty

PORTS = [{"name": "http", "port": 80}, {"name": "https", "port": 443}]


def made(kind: str, version: str, number: int, **more: object) -> codec.Object:
    meta = {
        "name": f"one-{number}",
        "namespace": f"ns-{number % 2}",
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return codec.parse({"apiVersion": version, "kind": kind, "metadata": meta, **more})


def test_parts_alike_are_one_and_nothing_else_changes() -> None:
    pair = [made("Service", "v1", n, spec={"ports": PORTS, "ipFamilies": ["IPv4"]}) for n in (1, 3)]
    before = [codec.encode(obj) for obj in pair]
    for obj in pair:
        thrifty(obj)
    one, other = pair
    assert [codec.encode(obj) for obj in pair] == before
    assert one.spec.ports is other.spec.ports  # type: ignore[attr-defined]
    assert one.metadata.creation_timestamp is other.metadata.creation_timestamp
    assert one.metadata.labels is other.metadata.labels == {}
    assert one.metadata.namespace is other.metadata.namespace


def test_what_cannot_be_shared_stays_and_what_is_known_is_bounded() -> None:
    refused = {"conditions": [{"type": "netplane.io/Allocated", "status": "False"}]}
    obj = made("Service", "v1", 1, spec={"selector": {"app": "web"}, "ports": PORTS}, status=refused)
    same = codec.decode("Service", codec.encode(obj))
    thrifty(obj)
    assert obj == same
    for number in range(2 * MOST):
        thrifty(codec.parse({"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": "n", "creationTimestamp": f"stamp-{number}"}}))  # fmt: skip
    assert len(thrift._known) <= MOST + 4
