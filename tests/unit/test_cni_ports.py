"""Host ports by holder, from records that other versions wrote, too."""

from __future__ import annotations

import pytest

from netplane.cni.ports import HostPorts
from netplane.model.base import ObjectMeta
from netplane.model.errors import Unavailable
from netplane.model.own import Attachment, AttachmentIP, AttachmentSpec, PortMapping


def attachment(name: str, *ports: PortMapping) -> Attachment:
    spec = AttachmentSpec(
        node="n1", container_id=name, ifname="eth0", netns=f"/n/{name}", network="net",
        pod_namespace="default", pod_name=name, host_ifname="npv1", ports=ports,
        ips=(AttachmentIP(address="10.244.1.2/32"),),
    )  # fmt: skip
    return Attachment(metadata=ObjectMeta(name=f"{name}.n1"), spec=spec)


def nobody(_protocol: str, _port: int) -> str:
    return ""


def test_a_record_that_names_one_port_twice_gives_it_back_once() -> None:
    one = PortMapping(host_port=8080, container_port=80)
    twice, other = attachment("a", one, one), attachment("b", one)
    ports = HostPorts(lambda: [twice])
    with pytest.raises(Unavailable, match="8080"):
        ports.claim(other, nobody)
    ports.release(twice.name)
    ports.release(twice.name)
    ports.claim(other, nobody)
