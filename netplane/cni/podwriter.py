"""Keeps Pod objects in step with attachments: read, decide (`pods`), write if nobody else did."""

from __future__ import annotations

from ..model.nodes import Node
from ..model.own import Attachment
from ..model.pods import Pod
from ..model.snapshot import Snapshot
from .host import Host
from .locks import persist
from .pods import is_second, pod_down, pod_up


class PodWriter:
    def __init__(self, host: Host) -> None:
        self.host = host

    def up(self, attachment: Attachment, labels: dict[str, str]) -> None:
        """The pod runs at the attachment's addresses; ``labels`` are for one that we create."""

        def write() -> None:
            snapshot = self.host.snapshot()
            others = [a for a in _siblings(snapshot, attachment) if a.name != attachment.name]
            if is_second(attachment, others):
                return
            pod = snapshot.get(Pod, attachment.spec.pod_namespace, attachment.spec.pod_name)
            after = pod_up(pod, attachment, labels, self._addresses(snapshot))
            self.host.put(after, pod.revision if pod else 0)

        persist(write)

    def down(self, attachment: Attachment) -> None:
        """The attachment goes: so do the pod's addresses, or the pod, or nothing."""

        def write() -> None:
            snapshot = self.host.snapshot()
            pod = snapshot.get(Pod, attachment.spec.pod_namespace, attachment.spec.pod_name)
            if pod is None:
                return
            after = pod_down(pod, attachment, _siblings(snapshot, attachment), self._addresses(snapshot))
            if after is None:
                self.host.delete(pod.key, pod.revision)
            elif after is not pod:
                self.host.put(after, pod.revision)

        persist(write)

    def _addresses(self, snapshot: Snapshot) -> tuple[str, ...]:
        node = snapshot.get(Node, "", self.host.node)
        return node.internal_ips if node else ()


def _siblings(snapshot: Snapshot, attachment: Attachment) -> tuple[Attachment, ...]:
    """The attachments of the same pod, this one included."""
    spec = attachment.spec
    found = snapshot.by(Attachment, "pod", f"{spec.pod_namespace}/{spec.pod_name}")
    return tuple(a for a in found if a.spec.kind != "ipam")
