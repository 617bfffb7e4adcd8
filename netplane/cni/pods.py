"""What an attachment means for its Pod object (pure).

Rule 1: a Pod that a user declared keeps its spec and labels; ADD sets nodeName and status (podIPs,
        hostIPs, phase Running), the last DEL takes podIPs and hostIPs away, phase Running becomes Pending.
Rule 2: a Pod that nobody declared is created by ADD, marked by an annotation, and goes with its last
        attachment.
Rule 3: a pod's addresses are those of one attachment: of the newest container's first interface. So a
        late DEL of an old sandbox does not take the new one's addresses.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..model.base import ObjectMeta, amend
from ..model.own import Attachment
from ..model.pods import Pod, PodIP, PodSpec, PodStatus

CREATED = "netplane.io/created-by"


def pod_up(pod: Pod | None, attachment: Attachment, labels: dict[str, str], hosts: tuple[str, ...]) -> Pod:
    """The Pod once ``attachment`` is ready; ``hosts`` are the node's addresses."""
    spec = attachment.spec
    if pod is None:
        meta = ObjectMeta(
            name=spec.pod_name,
            namespace=spec.pod_namespace,
            labels=labels,
            annotations={CREATED: "cni"},
        )
        pod = Pod(metadata=meta, spec=PodSpec(node_name=spec.node))
    if pod.spec.node_name != spec.node:
        pod = amend(pod, spec=amend(pod.spec, node_name=spec.node))
    status = _with_ips(pod.status, attachment, hosts)
    up: Pod = amend(pod, status=amend(status, phase="Running"))
    return up


def is_second(attachment: Attachment, others: Iterable[Attachment]) -> bool:
    """Whether the container has its pod addresses already, from an interface added before."""
    mine = attachment.spec.container_id
    return any(o.spec.container_id == mine and o.phase == "Ready" for o in others)


def pod_down(pod: Pod, gone: Attachment, rest: Iterable[Attachment], hosts: tuple[str, ...]) -> Pod | None:
    """The Pod without ``gone``; None when it goes too; the same object when nothing changes."""
    ready = [a for a in rest if a.name != gone.name and a.phase == "Ready"]
    if not ready and pod.metadata.annotations.get(CREATED) == "cni":
        return None
    if not set(pod.ips) & set(_plain(gone)):
        return pod
    if ready:
        best = max(
            ready,
            key=lambda a: a.revision,  # clocks jump, revisions grow
        )
        status = _with_ips(pod.status, best, hosts)
    else:
        phase = "Pending" if pod.status.phase == "Running" else pod.status.phase
        status = amend(pod.status, pod_ip="", pod_ips=(), host_ip="", host_ips=(), phase=phase)
    left: Pod = amend(pod, status=status)
    return left


def _with_ips(status: PodStatus, attachment: Attachment, hosts: tuple[str, ...]) -> PodStatus:
    ips = _plain(attachment)
    changed: PodStatus = amend(
        status,
        pod_ip=ips[0] if ips else "",
        pod_ips=tuple(PodIP(ip=ip) for ip in ips),
        host_ip=hosts[0] if hosts else "",
        host_ips=tuple(PodIP(ip=ip) for ip in hosts),
    )
    return changed


def _plain(attachment: Attachment) -> list[str]:
    return [entry.address.partition("/")[0] for entry in attachment.spec.ips]
