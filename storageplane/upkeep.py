"""What is published stays as it should be: volumes follow their objects, and come back after a reboot.

Rule 1: the room says which pods of this node have volumes and what these come to (a digest); it knows
        nothing of what is published. The driver looks that up, and publishes again what is.
Rule 2: so a start, a change of a ConfigMap, a Secret or the Pod, and the hourly comparison are one thing: a
        repair, which leaves alone what is right (`publish`, rule 3).
Rule 3: nothing is published here for the first time, and nothing unpublished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

from netplane.model.base import Object
from netplane.model.changes import Event
from netplane.model.errors import NetplaneError
from netplane.model.facts import Fact, FactKey, Facts, Mark, Plan, Scope
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import ConfigMap, Secret

from . import publish, wants
from .mounts import Mounts
from .volumes import LIVE
from .volumes.base import Context


class Published(Fact, frozen=True):
    """A pod whose publication, if there is one, is to be as its objects say. ``state``: what they say."""

    TYPE: ClassVar[str] = "published"

    namespace: str
    name: str
    state: str

    @property
    def key(self) -> FactKey:
        return ("published", self.namespace, self.name)


class Pods:
    """The room. ``root``: as the driver's."""

    name = "pods"

    def __init__(self, node: str, root: str) -> None:
        self.node = node
        self.root = root

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        if event is None:
            return [self._scope(pod) for pod in snapshot.by(Pod, "node", self.node)]
        touched = [obj for obj in (event.old, event.new) if obj is not None]
        return {scope for obj in touched for scope in self._touched(obj, snapshot)}

    def _touched(self, obj: Object, snapshot: Snapshot) -> Iterable[Scope]:
        if isinstance(obj, Pod) and obj.spec.node_name == self.node:
            yield self._scope(obj)
        elif isinstance(obj, (ConfigMap, Secret)):
            for pod in snapshot.by(Pod, "node", self.node):
                if pod.namespace == obj.namespace and follows(pod):
                    yield self._scope(pod)

    def _scope(self, pod: Pod) -> Scope:
        return Scope(self.name, f"{pod.namespace}/{pod.name}")

    def render(self, scope: Scope, snapshot: Snapshot) -> Facts:
        namespace, _, name = scope.name.partition("/")
        pod = snapshot.get(Pod, namespace, name)
        if pod is None or pod.spec.node_name != self.node or pod.deleting or not pod.spec.volumes:
            return []
        context = Context(self.node, self.root, snapshot)
        states = [_state(pod, i, context) for i in range(len(pod.spec.volumes))]
        return [Published(namespace, name, f"{pod.metadata.uid} {' '.join(states)}")]


def _state(pod: Pod, index: int, context: Context) -> str:
    """A volume's digest, or what is wrong with it: whether anybody minds, the driver knows."""
    try:
        return wants.digest([wants.volume(pod, pod.spec.volumes[index], "", context)])
    except NetplaneError as exc:
        return str(exc)


def follows(pod: Pod) -> bool:
    """Whether a ConfigMap or Secret may change what this pod is shown."""
    return any(v.sources and v.sources[0] in LIVE for v in pod.spec.volumes)


class Keeper:
    """The driver of `Published`. ``snapshot``: the newest."""

    name = "published"
    accepts: tuple[type[Fact], ...] = (Published,)
    parallel = False

    def __init__(self, node: str, mounts: Mounts, snapshot: Callable[[], Snapshot]) -> None:
        self.node = node
        self.mounts = mounts
        self.snapshot = snapshot

    def observe(self) -> Mapping[FactKey, Mark]:
        """Nothing, so that every comparison repairs everything that is published."""
        return {}

    def apply(self, plan: Plan) -> None:
        """Raises as `publish.again`; on the pod's scope, so the other pods go on."""
        for fact in (*plan.add, *plan.change):
            snapshot = self.snapshot()
            pod = snapshot.get(Pod, fact.namespace, fact.name)
            if pod is not None and not pod.deleting:
                publish.again(pod, snapshot, self.node, self.mounts)
