"""Docker's names: the bare service, its tasks, and aliases, seen from the client's place. Pure.

Rule 1: a bare name means what it means in the client's namespace; who is no pod has no namespace, and
        asks upstreams as ever.
Rule 2: ``tasks.<service>`` always lists the ready endpoints, whatever the endpoint mode.
Rule 3: an alias belongs to a network: only who is attached to it sees it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..model.own import Attachment
from ..model.pods import Pod
from ..model.services import EndpointSlice, Service
from ..model.snapshot import Snapshot
from . import zone
from .pods import networks_of

TASKS = "tasks"


def endpoint_addresses(labels: tuple[str, ...], snapshot: Snapshot) -> tuple[str, ...] | None:
    """Of ``<host>.<service>.<namespace>``, ``labels`` being these three: the endpoints of that name.

    "tasks" is all of them; None when there are none. The table has only those of headless services.
    """
    if len(labels) != 3:
        return None
    host, name, namespace = labels
    service = snapshot.get(Service, namespace, name)
    if service is None or service.spec.type == "ExternalName":
        return None
    found = dict.fromkeys(
        target.address
        for part in snapshot.by(EndpointSlice, "service", f"{namespace}/{name}")
        for target in zone.ready_targets(part, "")
        if host in (TASKS, target.name.rstrip("."))
    )
    return tuple(found) or None


def aliased_addresses(alias: str, snapshot: Snapshot, pod: Pod) -> tuple[str, ...] | None:
    """The addresses of the containers that go by this name in a network of the pod's."""
    found: dict[str, None] = {}
    for network in networks_of(snapshot, pod):
        for attachment in snapshot.by(Attachment, "alias", f"{network}/{alias}"):
            if attachment.phase == "Ready":
                found.update(dict.fromkeys(_plain(attachment)))
    return tuple(found) or None


def _plain(attachment: Attachment) -> Iterator[str]:
    for entry in attachment.spec.ips:
        yield entry.address.partition("/")[0]
