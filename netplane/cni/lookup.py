"""What the record of a request takes from the node: its namespace, an allow list, a peer, a master."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..model.base import amend
from ..model.own import Attachment
from . import master, plan, tuning
from .errors import CONFIG, Refused
from .host import Host
from .request import Request


def draft(host: Host, pod_mtu: int, request: Request) -> Attachment:
    """The record without addresses, with what has to be looked up. Raises Refused."""
    config = request.config
    if config.sysctl and Path(tuning.ALLOWED).exists():
        why = tuning.refused(config.sysctl, Path(tuning.ALLOWED).read_text(errors="replace"))
        if why:
            raise Refused(CONFIG, why)
    made = plan.draft(host.node, host.boot_id, request, pod_mtu)
    spec = amend(made.spec, netns_cookie=host.netns_cookie(request.netns))
    if spec.kind == "chained":
        spec = amend(spec, host_ifname=host.peer(request.netns, request.ifname))
        needed = spec.bandwidth or spec.config.get("macspoofchk")
        if needed and not spec.host_ifname:
            raise Refused(
                CONFIG,
                f"bandwidth, macspoofchk: {request.ifname} is not a veth whose other end is on this node",
            )
    elif spec.kind == "macvlan":
        link = spec.bridge or host.default_link()
        spec = master.under(amend(spec, bridge=link), request.mac, *host.mtu_and_mac(link))
    drafted: Attachment = amend(made, spec=spec)
    for why in past_the_guard(host, drafted) if spec.kind == "chained" else ():
        raise Refused(CONFIG, why)
    return drafted


def past_the_guard(host: Host, record: Attachment) -> Iterator[str]:
    """In words, what leads the pod's frames past its guard; nothing where it has none."""
    link = record.spec.host_ifname
    if record.spec.config.get("macspoofchk") and link and host.redirects(link):
        yield (
            f"macspoofchk: {link} has an ingress qdisc, which takes frames past the check (the bandwidth"
            " plugin's egressRate); let this plugin limit the bandwidth"
        )
