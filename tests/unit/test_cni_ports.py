"""Host ports by holder, from records that other versions wrote, too."""

from __future__ import annotations

import pytest

from netplane.cni.ports import HostPorts, without_doubles
from netplane.model.base import ObjectMeta, amend
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


WEB = PortMapping(host_port=8080, container_port=80)
V4, V6 = amend(WEB, host_ip="0.0.0.0"), amend(WEB, host_ip="::")
AT = amend(WEB, host_ip="192.0.2.1")


@pytest.mark.parametrize(
    ("first", "second", "asked", "left"),
    [
        (["10.1.0.2"], ["10.2.0.2"], [WEB], []),
        (["10.1.0.2"], ["10.2.0.2", "fd00:2::2"], [WEB], [V6]),
        (["fd00:1::2"], ["10.2.0.2", "fd00:2::2"], [WEB], [V4]),
        (["10.1.0.2", "fd00:1::2"], ["10.2.0.2", "fd00:2::2"], [WEB], []),
        (["fd00:1::2"], ["10.2.0.2"], [V4, V6], [V4]),
        (["10.1.0.2"], ["10.2.0.2"], [AT], []),
        (["fd00:1::2"], ["10.2.0.2"], [AT], [AT]),
    ],
)
def test_a_port_leads_to_the_pod_by_the_first_of_its_interfaces(
    first: list[str], second: list[str], asked: list[PortMapping], left: list[PortMapping]
) -> None:
    one, other = (
        amend(pod, spec=amend(pod.spec, ips=tuple(AttachmentIP(address=a) for a in addresses)))
        for pod, addresses in ((attachment("a", *asked), first), (attachment("b", *asked), second))
    )
    assert list(without_doubles(other, [one]).spec.ports) == left
    other_port = amend(other, spec=amend(other.spec, ports=(amend(WEB, container_port=81),)))
    assert without_doubles(other_port, [one]) == other_port
