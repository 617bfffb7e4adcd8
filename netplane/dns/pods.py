"""Names of single pods, ``<address with dashes>.<namespace>.pod.<domain>``, and of who asks. Pure.

Modes, as CoreDNS has them: "disabled" (no such names), "insecure" (any address that can be read out of
the name), "verified" (the address of a pod of that namespace, in the snapshot of this moment).
"""

from __future__ import annotations

from ipaddress import ip_address

from ..model.nodes import Namespace
from ..model.own import Attachment
from ..model.pods import Pod
from ..model.snapshot import Snapshot

_DIGITS = frozenset("0123456789abcdef-")
MODES = ("disabled", "insecure", "verified")


def pod_addresses(labels: tuple[str, ...], snapshot: Snapshot, mode: str) -> tuple[str, ...] | None:
    """The addresses of a name beneath "pod"; () for one that only exists, None for none.

    ``labels`` are those before "pod": ("10-244-0-5", "default").
    """
    if not labels:
        return ()  # CoreDNS: in every mode
    if mode == "disabled" or len(labels) > 2:
        return None
    if snapshot.get(Namespace, "", labels[-1]) is None and not _pods_in(snapshot, labels[-1], mode):
        return None
    if len(labels) == 1:
        return ()
    address = undashed(labels[0])
    if not address:
        return None
    if mode == "insecure":
        return (address,)
    pods = snapshot.by(Pod, "ip", address)
    return (address,) if any(p.namespace == labels[1] and not p.finished for p in pods) else None


def _pods_in(snapshot: Snapshot, namespace: str, mode: str) -> bool:
    """A namespace may exist by its pods alone where nobody declares namespaces."""
    if mode == "insecure" and snapshot.count(Namespace) == 0:
        return True
    return next(iter(snapshot.list(Pod, namespace)), None) is not None


def undashed(label: str) -> str:
    """ "10-1-0-2" as 10.1.0.2, "fd01--2" as fd01::2; "" for what is no address.

    Nothing but digits and dashes: Python reads "fe80::1%eth0" too, which has no record.
    """
    if not _DIGITS.issuperset(label):
        return ""
    v4 = label.count("-") == 3 and "--" not in label
    try:
        return str(ip_address(label.replace("-", "." if v4 else ":")))
    except ValueError:
        return ""


def pod_of(snapshot: Snapshot, address: str) -> Pod | None:
    """The pod that has this address for itself; one on the host's network shares it with the node."""
    for pod in snapshot.by(Pod, "ip", address):
        if not pod.spec.host_network and not pod.finished:
            return pod
    return None


def networks_of(snapshot: Snapshot, pod: Pod) -> tuple[str, ...]:
    """The names of the networks that a pod is attached to."""
    found = snapshot.by(Attachment, "pod", f"{pod.namespace}/{pod.name}")
    return tuple(dict.fromkeys(a.spec.network for a in found))
