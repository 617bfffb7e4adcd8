"""A request as the record of its attachment, whole but for what must be claimed (pure).

Kinds: those of the configuration; chained, when a plugin before us made the interface; ipam, when
another plugin asks for addresses alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_interface
from typing import Any

from ..model.base import ObjectMeta, amend
from ..model.own import Attachment, AttachmentIP, AttachmentRoute, AttachmentSpec, PortMapping
from . import names
from .config import NetConf
from .delegate import Lease, is_delegated
from .errors import CONFIG, Refused
from .ranges import NONE
from .request import Request
from .tuning import settings
from .wiring import FOREIGN, METRIC, pod_routes

_ROLES = {"ipam": "/ipam", "chained": "/chained"}  # no network's name has a '/'
_FLAGS = ("macspoofchk", "portIsolation", "promiscMode")
IPV6_MTU = 1280
DEFAULTS = {4: "0.0.0.0/0", 6: "::/0"}


def kind_of(request: Request) -> str:
    if request.config.is_ipam:
        return "ipam"
    return "chained" if request.chained else request.config.kind


def record_name(node: str, request: Request, kind: str) -> str:
    """One container interface may have a record as our own work, as a chain's, and as addresses alone."""
    network = request.config.name + _ROLES.get(kind, "")
    return names.attachment_name(node, request.container_id, request.ifname, network)


def record_names(node: str, request: Request) -> list[str]:
    """All records that a DEL may mean: without a previous result a chained one looks like our own."""
    if request.config.is_ipam:
        return [record_name(node, request, "ipam")]
    return [record_name(node, request, kind) for kind in ("chained", "bridge")]


def on_pod_network(attachment: Attachment) -> bool:
    """Whether the node's pod CIDRs, its bridge and its name server are the attachment's."""
    return attachment.spec.kind in ("bridge", "ptp") and not attachment.spec.ipam


def needs_journal(attachment: Attachment) -> bool:
    """Whether an ADD that is cut off leaves something that only its record could tell of: an address that
    a third party gave, a link in the pod's namespace, or what lies on a link that is not ours."""
    spec = attachment.spec
    return spec.kind not in ("bridge", "ptp") or is_delegated(attachment) or FOREIGN in spec.config


def owed(record: Attachment) -> Attachment:
    """What stays of a record whose interface goes: that another plugin is to take its address back."""
    spec = amend(record.spec, kind="ipam", ips=(), ports=(), aliases=())
    left: Attachment = amend(record, phase="Pending", spec=spec)
    return left


def is_owed(record: Attachment) -> bool:
    return record.spec.kind == "ipam" and is_delegated(record)


def routed(request: Request) -> bool:
    """Whether addresses get a host's length and everything goes by the gateway."""
    config = request.config
    if config.is_ipam or request.chained:
        return False
    return config.kind == "ptp" or (config.kind == "bridge" and not config.own_range)


def draft(node: str, boot_id: str, request: Request, pod_mtu: int) -> Attachment:
    """Everything that the request alone decides."""
    config, kind = request.config, kind_of(request)
    identity = (request.container_id, request.ifname, config.name)
    pod = (request.pod.namespace, request.pod.name)
    if not request.pod.name:
        pod = ("default", names.pod_name(request.container_id))
    ours = kind in ("bridge", "ptp")
    before = _interface_before(request) if kind == "chained" else {}
    spec = AttachmentSpec(
        node=node,
        container_id=request.container_id,
        ifname=request.ifname,
        netns=request.netns,
        network=config.name,
        pod_namespace=pod[0],
        pod_name=pod[1],
        pod_uid=request.pod.uid,
        host_ifname=names.host_ifname(*identity) if ours else "",
        mac=request.mac or before.get("mac", "") or names.pod_mac(*identity),
        mtu=config.mtu or (pod_mtu if ours and not config.own_range else 0),
        kind=kind,
        bridge=_bridge(config, kind),
        ipam=NONE if kind == "chained" else config.leases.type,
        ports=tuple(_canonical(port) for port in config.runtime_config.port_mappings),
        bandwidth=config.runtime_config.bandwidth,
        sysctls=settings(config.sysctl, request.ifname),
        aliases=config.aliases,
        config=_kept(request, kind),
        boot_id=boot_id,
    )
    name = record_name(node, request, kind)
    return Attachment(metadata=ObjectMeta(name=name), spec=spec)


def with_lease(attachment: Attachment, request: Request, lease: Lease) -> Attachment:
    """The record with its addresses and the routes that follow."""
    config = request.config
    six = next((entry.address for entry in lease.ips if ":" in entry.address), "")
    if six and 0 < config.mtu < IPV6_MTU:
        raise Refused(
            CONFIG, f"mtu: {config.mtu}: {six} is assigned, and IPv6 needs {IPV6_MTU} (RFC 8200, section 5)"
        )
    if attachment.spec.kind == "chained":
        held: Attachment = amend(attachment, spec=amend(attachment.spec, ips=lease.ips))
        return held
    ips = tuple(_finished(entry, request) for entry in lease.ips)
    routes = [*config.leases.routes, *lease.routes]
    if (attachment.spec.kind in ("bridge", "ptp") and not config.own_range) or config.is_default_gateway:
        there = {route.dst for route in routes}
        for entry in ips:
            dst = DEFAULTS[6 if ":" in entry.address else 4]
            if entry.gateway and dst not in there:
                there.add(dst)
                routes.append(AttachmentRoute(dst=dst, gw=entry.gateway))
    kept = {**attachment.spec.config, "dns": lease.dns} if lease.dns else attachment.spec.config
    spec = amend(attachment.spec, ips=ips, routes=tuple(routes), config=kept)
    whole: Attachment = amend(attachment, spec=spec)
    return whole


def apart(attachment: Attachment, others: Sequence[Attachment]) -> Attachment:
    """With routes that can be beside those of the pod's ``others``, which keep theirs: a default route that
    comes later counts for less, and for all once the first interface is gone."""
    held = {route.key for other in others for route in pod_routes(other)}
    made = attachment
    for more in range(1, len(others) + 1):
        if held.isdisjoint(route.key for route in pod_routes(made)):
            break
        config = {**attachment.spec.config, METRIC: more}
        made = amend(attachment, spec=amend(attachment.spec, config=config))
    return made


def lease_before(request: Request) -> Lease:
    """The addresses that the plugin before us gave to this interface."""
    before = request.config.prev_result or {}
    mine = [
        i
        for i, one in enumerate(before.get("interfaces") or ())
        if one.get("name") == request.ifname and one.get("sandbox")
    ]
    try:
        ips = tuple(
            AttachmentIP(address=str(ip_interface(one["address"])), gateway=one.get("gateway") or "")
            for one in before.get("ips") or ()
            if one.get("interface", mine[0]) in mine
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise Refused(CONFIG, f"prevResult.ips: {before.get('ips')!r:.200} cannot be read: {exc}") from None
    return Lease(ips)


def _interface_before(request: Request) -> dict[str, Any]:
    before = request.config.prev_result or {}
    return next(
        one for one in before["interfaces"] if one.get("name") == request.ifname and one.get("sandbox")
    )


def _canonical(port: PortMapping) -> PortMapping:
    host_ip = str(ip_interface(port.host_ip).ip) if port.host_ip else ""
    mapping: PortMapping = amend(port, protocol=port.protocol.lower(), host_ip=host_ip)
    return mapping


def _bridge(config: NetConf, kind: str) -> str:
    if kind == "bridge":
        return (config.bridge or "cni0") if config.own_range else names.BRIDGE
    return config.master if kind == "macvlan" else ""


def _finished(entry: AttachmentIP, request: Request) -> AttachmentIP:
    """A delegate's address in the shape that the kind needs, with the gateway that it left open."""
    gateway = entry.gateway
    if gateway and (entry.subnet or not routed(request)):  # from our own index
        return entry
    network = ip_interface(entry.subnet or entry.address).network
    wanted = request.config.is_gateway or request.config.is_default_gateway or request.config.kind == "ptp"
    if not gateway and wanted and network.num_addresses >= 4:
        gateway = str(network[1])
    if routed(request) and not entry.subnet:
        interface = ip_interface(entry.address)
        length = interface.max_prefixlen
        return AttachmentIP(address=f"{interface.ip}/{length}", gateway=gateway, subnet=str(network))
    made: AttachmentIP = amend(entry, gateway=gateway)
    return made


def _kept(request: Request, kind: str) -> dict[str, Any]:
    """What DEL, CHECK and a restart need of the configuration."""
    config = request.config
    kept: dict[str, Any] = {"cniVersion": config.version}
    if config.ip_masq is not None:
        kept["ipMasq"] = config.ip_masq
    # with bridge netfilter on, a pod that reaches itself by a host port leaves by the port it came from
    ports = bool(config.runtime_config.port_mappings) and not config.promisc_mode
    hairpin = config.hairpin_mode if config.hairpin_mode is not None else ports or not config.own_range
    if not hairpin:
        kept["hairpinMode"] = False
    if config.is_gateway or config.is_default_gateway:
        kept["isGateway"] = True
    kept |= {key: True for key in _FLAGS if config.document.get(key)} if kind != "ipam" else {}
    if kind == "bridge" and not config.own_range and config.capabilities.get("bandwidth"):
        kept["bandwidth"] = True  # limits are ours: nobody behind us wants the host end's ingress queue
    if config.force_address and kept.get("isGateway") and kind == "bridge":
        kept["forceAddress"] = True
    if config.mode:
        kept["mode"] = config.mode
    if kind == "chained" and request.mac:
        kept["mac"] = request.mac
    if config.leases.delegated and kind != "chained":
        conf = {k: v for k, v in config.document.items() if k not in ("prevResult", "runtimeConfig")}
        kept["delegate"] = {"path": request.path, "args": request.args, "config": conf}
    return kept
