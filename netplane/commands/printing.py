"""Objects as kubectl prints them: a table per kind, its columns pure functions of object and time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ..model.base import Object
from ..model.selectors import LabelSelector

NONE = "<none>"
MODES = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}


class Column(NamedTuple):
    title: str
    show: Callable[[Any, datetime], str]
    wide: bool = False


def duration(seconds: float) -> str:
    """kubectl's short age: 5s, 3m20s, 40m, 5h10m, 30h, 3d4h, 40d, 3y."""
    s = int(seconds)
    if s < 0:
        return "<invalid>"
    minutes, hours, days = s // 60, s // 3600, s // 86400
    if s < 120:
        return f"{s}s"
    if minutes < 10:
        return f"{minutes}m{s % 60}s" if s % 60 else f"{minutes}m"
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    return f"{days}d" if days < 730 else f"{days // 365}y"


def since(stamp: str, now: datetime) -> str:
    try:
        then = datetime.fromisoformat(stamp)
    except ValueError:
        return "<unknown>"
    return duration((now - (then if then.tzinfo else then.replace(tzinfo=UTC))).total_seconds())


def selector_text(selector: LabelSelector) -> str:
    words = [f"{k}={v}" for k, v in selector.match_labels.items()]
    for need in selector.match_expressions:
        values = f" ({','.join(need.values)})" if need.values else ""
        words.append(f"{need.key} {need.operator.lower()}{values}")
    return ",".join(words) or NONE


def pairs(labels: dict[str, str]) -> str:
    return ",".join(f"{k}={v}" for k, v in sorted(labels.items())) or NONE


def modes(values: Iterable[str]) -> str:
    return ",".join(MODES.get(v, v) for v in values)


def pod_ready(pod: Any) -> str:
    statuses = pod.status.container_statuses or ()
    total = len(pod.spec.containers)
    ready = sum(bool(s.get("ready")) for s in statuses) if statuses else total * pod.ready
    return f"{ready}/{total}"


def pod_status(pod: Any) -> str:
    if pod.deleting:
        return "Terminating"
    return str(pod.status.reason or pod.status.phase or ("Running" if pod.ips else "Pending"))


def pod_restarts(pod: Any) -> str:
    return str(sum(s.get("restartCount", 0) for s in pod.status.container_statuses or ()))


def service_external(svc: Any) -> str:
    if svc.spec.type == "ExternalName":
        return str(svc.spec.external_name)
    balanced = [i.ip or i.hostname for i in svc.status.load_balancer.ingress]
    addresses = [*balanced, *svc.spec.external_ips]
    return ",".join(addresses) or ("<pending>" if svc.spec.type == "LoadBalancer" else NONE)


def service_ports(svc: Any) -> str:
    texts = (f"{p.port}{f':{p.node_port}' if p.node_port else ''}/{p.protocol}" for p in svc.spec.ports)
    return ",".join(texts) or NONE


def slice_endpoints(eps: Any) -> str:
    addresses = [a for e in eps.endpoints for a in e.addresses]
    more = f" + {len(addresses) - 3} more..." if len(addresses) > 3 else ""
    return ",".join(addresses[:3]) + more or "<unset>"


def node_status(node: Any) -> str:
    ready = next((c.status for c in node.status.conditions if c.type == "Ready"), "Unknown")
    text = {"True": "Ready", "False": "NotReady"}.get(ready, "Unknown")
    return text + (",SchedulingDisabled" if node.spec.unschedulable else "")


def node_roles(node: Any) -> str:
    prefix = "node-role.kubernetes.io/"
    return ",".join(sorted(k.removeprefix(prefix) for k in node.labels if k.startswith(prefix))) or NONE


def volume_claim(volume: Any) -> str:
    ref = volume.spec.claim_ref
    return f"{ref.namespace}/{ref.name}" if ref else ""


def attachment_pod(att: Any) -> str:
    return f"{att.spec.pod_namespace}/{att.spec.pod_name}" if att.spec.pod_name else NONE


def holder(alloc: Any) -> str:
    spec = alloc.spec
    where = f"{spec.holder_namespace}/" if spec.holder_namespace else ""
    return f"{spec.holder_kind} {where}{spec.holder_name}"


def _name(obj: Any, _: datetime) -> str:
    return f"{obj.name} (default)" if getattr(obj, "is_default", False) else obj.name


NAME = Column("NAME", _name)
AGE = Column("AGE", lambda o, now: since(o.metadata.creation_timestamp, now))
NAMESPACE = Column("NAMESPACE", lambda o, _: o.namespace)
LABELS = Column("LABELS", lambda o, _: pairs(o.labels))

TABLES: dict[str, tuple[Column, ...]] = {
    "Pod": (
        NAME,
        Column("READY", lambda o, _: pod_ready(o)),
        Column("STATUS", lambda o, _: pod_status(o)),
        Column("RESTARTS", lambda o, _: pod_restarts(o)),
        AGE,
        Column("IP", lambda o, _: ",".join(o.ips) or NONE, wide=True),
        Column("NODE", lambda o, _: o.spec.node_name or NONE, wide=True),
    ),
    "Service": (
        NAME,
        Column("TYPE", lambda o, _: o.spec.type),
        Column("CLUSTER-IP", lambda o, _: o.spec.cluster_ip or NONE),
        Column("EXTERNAL-IP", lambda o, _: service_external(o)),
        Column("PORT(S)", lambda o, _: service_ports(o)),
        AGE,
        Column("SELECTOR", lambda o, _: pairs(o.spec.selector), wide=True),
    ),
    "EndpointSlice": (
        NAME,
        Column("ADDRESSTYPE", lambda o, _: o.address_type),
        Column("PORTS", lambda o, _: ",".join(str(p.port or "*") for p in o.ports) or "<unset>"),
        Column("ENDPOINTS", lambda o, _: slice_endpoints(o)),
        AGE,
    ),
    "Node": (
        NAME,
        Column("STATUS", lambda o, _: node_status(o)),
        Column("ROLES", lambda o, _: node_roles(o)),
        AGE,
        Column("VERSION", lambda o, _: (o.status.node_info or {}).get("kubeletVersion", "")),
        Column("INTERNAL-IP", lambda o, _: ",".join(o.internal_ips) or NONE, wide=True),
        Column("POD-CIDRS", lambda o, _: ",".join(o.pod_cidrs) or NONE, wide=True),
    ),
    "Namespace": (
        NAME,
        Column("STATUS", lambda o, _: "Terminating" if o.deleting else o.status.phase or "Active"),
        AGE,
    ),
    "Lease": (NAME, Column("HOLDER", lambda o, _: o.spec.holder_identity or NONE), AGE),
    "Event": (
        Column("LAST SEEN", lambda o, now: since(o.last_timestamp or o.event_time, now)),
        Column("TYPE", lambda o, _: o.type),
        Column("REASON", lambda o, _: o.reason),
        Column("OBJECT", lambda o, _: f"{o.involved_object.kind.lower()}/{o.involved_object.name}"),
        Column("MESSAGE", lambda o, _: o.message.strip()),
    ),
    "NetworkPolicy": (NAME, Column("POD-SELECTOR", lambda o, _: selector_text(o.spec.pod_selector)), AGE),
    "ClusterNetworkPolicy": (
        NAME,
        Column("TIER", lambda o, _: o.spec.tier),
        Column("PRIORITY", lambda o, _: str(o.spec.priority)),
        AGE,
    ),
    "PersistentVolume": (
        NAME,
        Column("CAPACITY", lambda o, _: str(o.spec.capacity.get("storage", ""))),
        Column("ACCESS MODES", lambda o, _: modes(o.spec.access_modes)),
        Column("RECLAIM POLICY", lambda o, _: o.spec.persistent_volume_reclaim_policy),
        Column("STATUS", lambda o, _: "Terminating" if o.deleting else o.status.phase or "Pending"),
        Column("CLAIM", lambda o, _: volume_claim(o)),
        Column("STORAGECLASS", lambda o, _: o.spec.storage_class_name),
        Column("REASON", lambda o, _: o.status.reason),
        AGE,
        Column("VOLUMEMODE", lambda o, _: o.spec.volume_mode, wide=True),
    ),
    "PersistentVolumeClaim": (
        NAME,
        Column("STATUS", lambda o, _: "Terminating" if o.deleting else o.status.phase or "Pending"),
        Column("VOLUME", lambda o, _: o.spec.volume_name),
        Column("CAPACITY", lambda o, _: str(o.status.capacity.get("storage", ""))),
        Column("ACCESS MODES", lambda o, _: modes(o.status.access_modes)),
        Column("STORAGECLASS", lambda o, _: o.spec.storage_class_name or ""),
        AGE,
        Column("VOLUMEMODE", lambda o, _: o.spec.volume_mode, wide=True),
    ),
    "StorageClass": (
        NAME,
        Column("PROVISIONER", lambda o, _: o.provisioner),
        Column("RECLAIMPOLICY", lambda o, _: o.reclaim_policy),
        Column("VOLUMEBINDINGMODE", lambda o, _: o.volume_binding_mode),
        Column("ALLOWVOLUMEEXPANSION", lambda o, _: str(o.allow_volume_expansion).lower()),
        AGE,
    ),
    "VolumeSnapshot": (
        NAME,
        Column("READYTOUSE", lambda o, _: str(o.status.ready_to_use).lower()),
        Column("SOURCEPVC", lambda o, _: o.spec.source.persistent_volume_claim_name),
        Column("SOURCESNAPSHOTCONTENT", lambda o, _: o.spec.source.volume_snapshot_content_name),
        Column("RESTORESIZE", lambda o, _: str(o.status.restore_size)),
        Column("SNAPSHOTCLASS", lambda o, _: o.spec.volume_snapshot_class_name or ""),
        Column("SNAPSHOTCONTENT", lambda o, _: o.status.bound_volume_snapshot_content_name),
        AGE,
    ),
    "VolumeSnapshotContent": (
        NAME,
        Column("READYTOUSE", lambda o, _: str(o.status.ready_to_use).lower()),
        Column("RESTORESIZE", lambda o, _: str(o.status.restore_size or "")),
        Column("DELETIONPOLICY", lambda o, _: o.spec.deletion_policy),
        Column("DRIVER", lambda o, _: o.spec.driver),
        Column("VOLUMESNAPSHOTCLASS", lambda o, _: o.spec.volume_snapshot_class_name),
        Column("VOLUMESNAPSHOT", lambda o, _: o.spec.volume_snapshot_ref.name),
        Column("VOLUMESNAPSHOTNAMESPACE", lambda o, _: o.spec.volume_snapshot_ref.namespace),
        AGE,
    ),
    "VolumeSnapshotClass": (
        NAME,
        Column("DRIVER", lambda o, _: o.driver),
        Column("DELETIONPOLICY", lambda o, _: o.deletion_policy),
        AGE,
    ),
    "ConfigMap": (NAME, Column("DATA", lambda o, _: str(len(o.data) + len(o.binary_data))), AGE),
    "Secret": (
        NAME,
        Column("TYPE", lambda o, _: o.type),
        Column("DATA", lambda o, _: str(len(o.data.keys() | o.string_data.keys()))),
        AGE,
    ),
    "Allocation": (
        NAME, Column("VALUE", lambda o, _: o.spec.value), Column("HOLDER", lambda o, _: holder(o)), AGE,
    ),
    "Attachment": (
        NAME,
        Column("NODE", lambda o, _: o.spec.node),
        Column("POD", lambda o, _: attachment_pod(o)),
        Column("INTERFACE", lambda o, _: o.spec.ifname),
        Column("IPS", lambda o, _: ",".join(i.address for i in o.spec.ips) or NONE),
        Column("PHASE", lambda o, _: o.phase),
        AGE,
        Column("NETWORK", lambda o, _: o.spec.network, wide=True),
        Column("HOST-INTERFACE", lambda o, _: o.spec.host_ifname, wide=True),
    ),
}  # fmt: skip


def columns(kind: str, wide: bool = False, namespace: bool = False) -> tuple[Column, ...]:
    chosen = tuple(c for c in TABLES[kind] if wide or not c.wide)
    return (NAMESPACE, *chosen) if namespace else chosen


def row(obj: Object, chosen: Sequence[Column], now: datetime) -> tuple[str, ...]:
    return tuple(column.show(obj, now) for column in chosen)


def table(rows: Sequence[Sequence[str]], widths: list[int] | None = None) -> list[str]:
    """Lines with three spaces between columns; ``widths`` keep a followed table's columns in place."""
    wide = list(widths or [0] * len(rows[0] if rows else ()))
    for line in rows:
        wide = [max(w, len(cell)) for w, cell in zip(wide, line, strict=True)]
    if widths is not None:
        widths[:] = wide
    return ["   ".join(c.ljust(w) for c, w in zip(line, wide, strict=True)).rstrip() for line in rows]
