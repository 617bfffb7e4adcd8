"""Keeps Pod objects in step with attachments: read, decide (`pods`), write if nobody else did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from ..model.changes import Delete, Put, Write
from ..model.errors import Conflict, NotFound
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

    def up(self, attachment: Attachment, labels: dict[str, str], also: Callable[[], Sequence[Write]]) -> None:
        """The pod runs at the attachment's addresses; ``labels`` are for one that we create.

        What ``also`` decides is written in the same transaction, before the pod. Raises Conflict.
        """

        def write() -> None:
            try:
                decide()
            except NotFound as exc:  # somebody deleted one of them since it was read
                raise Conflict(str(exc)) from exc

        def decide() -> None:
            snapshot = self.host.snapshot()
            others = [a for a in _siblings(snapshot, attachment) if a.name != attachment.name]
            if attachment.spec.kind == "ipam" or is_second(attachment, others):
                self.host.write(also())
                return
            pod = snapshot.get(Pod, attachment.spec.pod_namespace, attachment.spec.pod_name)
            after = pod_up(pod, attachment, labels, self._addresses(snapshot))
            self.host.write([*also(), Put(after, pod.revision if pod else 0)])

        persist(write)

    def down(
        self,
        attachment: Attachment,
        also: Callable[[], Sequence[Write]] = tuple,
        left: Callable[[Attachment], Attachment] | None = None,
    ) -> None:
        """The attachment goes: so do the pod's addresses, or the pod, or nothing; then its record, of which
        ``left`` says what stays, and in the same transaction what ``also`` decides."""

        def write() -> None:
            snapshot = self.host.snapshot()
            pod = snapshot.get(Pod, attachment.spec.pod_namespace, attachment.spec.pod_name)
            writes: list[Write] = []
            if pod is not None and attachment.spec.kind != "ipam":
                after = pod_down(pod, attachment, _siblings(snapshot, attachment), self._addresses(snapshot))
                if after is None:
                    writes = [Delete(pod.key, pod.revision)]
                elif after is not pod:
                    writes = [Put(after, pod.revision)]
            found = snapshot.get(Attachment, "", attachment.name)
            if found is not None:
                writes += [Put(left(found), found.revision) if left else Delete(attachment.key), *also()]
            try:
                if writes:
                    self.host.write(writes)
            except NotFound:  # somebody else deleted one of the two: whatever is left, by itself
                for one in writes:
                    with suppress(NotFound):
                        self.host.write([one])

        persist(write)

    def beside(self, attachment: Attachment) -> list[Attachment]:
        """The pod's other interfaces in the same namespace."""
        found = _siblings(self.host.snapshot(), attachment)
        return [a for a in found if a.name != attachment.name and a.spec.netns == attachment.spec.netns]

    def _addresses(self, snapshot: Snapshot) -> tuple[str, ...]:
        node = snapshot.get(Node, "", self.host.node)
        return node.internal_ips if node else ()


def _siblings(snapshot: Snapshot, attachment: Attachment) -> tuple[Attachment, ...]:
    """The attachments of the same pod, this one included."""
    spec = attachment.spec
    found = snapshot.by(Attachment, "pod", f"{spec.pod_namespace}/{spec.pod_name}")
    return tuple(a for a in found if a.spec.kind != "ipam")
