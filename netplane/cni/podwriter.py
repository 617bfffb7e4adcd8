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
        attachments: Sequence[Attachment],
        also: Callable[[Sequence[Attachment]], Sequence[Write]] = lambda _: (),
        left: Callable[[Attachment], Attachment] | None = None,
    ) -> None:
        """These attachments, no two of one pod, go: so do the pods' addresses, or the pods, or nothing; then
        the records, of each of which ``left`` says what stays, and in the same transaction what ``also``
        decides of those that were there."""

        def write() -> None:
            snapshot = self.host.snapshot()
            writes = [one for a in attachments for one in self._pod_writes(snapshot, a)]
            found = [f for a in attachments if (f := snapshot.get(Attachment, "", a.name)) is not None]
            writes += [Put(left(f), f.revision) if left else Delete(f.key) for f in found]
            writes += also(found) if found else ()
            try:
                if writes:
                    self.host.write(writes)
            except NotFound:  # somebody else deleted one of these: whatever is left, by itself
                for one in writes:
                    with suppress(NotFound):
                        self.host.write([one])

        persist(write)

    def _pod_writes(self, snapshot: Snapshot, gone: Attachment) -> list[Write]:
        pod = snapshot.get(Pod, gone.spec.pod_namespace, gone.spec.pod_name)
        if pod is None or gone.spec.kind == "ipam":
            return []
        after = pod_down(pod, gone, _siblings(snapshot, gone), self._addresses(snapshot))
        if after is None:
            return [Delete(pod.key, pod.revision)]
        return [Put(after, pod.revision)] if after is not pod else []

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
