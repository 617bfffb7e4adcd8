"""What is published stays as it should be: volumes follow their objects, and come back after a reboot.

Rule 1: the room says which pods of this node have volumes and what these come to (a digest); it knows
        nothing of what is published. The driver looks that up, and publishes again what is.
Rule 2: so a start, a change of a ConfigMap, a Secret or the Pod, and the hourly comparison are one thing: a
        repair, which leaves alone what is right (`publish`, rule 3).
Rule 3: nothing is published here for the first time, and nothing unpublished.
Rule 4: a volume for which somebody else must answer (a server, a CSI driver) keeps nobody waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

from netplane.model.base import Object
from netplane.model.changes import Event
from netplane.model.errors import Conflict, KernelError, NetplaneError, Unavailable
from netplane.model.facts import Fact, FactKey, Facts, Mark, Plan, Scope
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import ConfigMap, Secret

from ..host.errand import Errand
from ..host.mounts import Mounts
from ..volumes import LIVE
from ..volumes.base import Context
from . import publish, wants

PATIENCE = 0.5  # seconds that a repair waits for servers before it goes on


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
        self._errands: dict[str, Errand] = {}

    def observe(self) -> Mapping[FactKey, Mark]:
        """Nothing, so that every comparison repairs everything that is published."""
        return {}

    def apply(self, plan: Plan) -> None:
        """Raises Unavailable or Invalid for one pod; Conflict when it is one of several, to be found."""
        facts = (*plan.add, *plan.change)
        errors = [exc for fact in facts if (exc := self._repaired(fact)) is not None]
        if errors and len(facts) > 1:
            raise Conflict("some of these pods must be looked at one by one")
        if errors:
            raise errors[0]

    def _repaired(self, fact: Published) -> NetplaneError | None:
        """What is wrong with a pod's volumes after their repair."""
        snapshot = self.snapshot()
        pod = snapshot.get(Pod, fact.namespace, fact.name)
        if pod is None or pod.deleting:
            return None
        try:
            errand = self._errands.get(pod.metadata.uid)
            if errand is not None and not errand.done(0):
                return _waiting(pod)  # it has the pod's lock
            if publish.again(pod, snapshot, self.node, self.mounts, far=False):
                self._send(pod, snapshot)
        except KernelError as exc:
            return Unavailable(f"{pod.key}: {exc}")  # the pod's own: no reason to doubt the others
        except NetplaneError as exc:
            return exc
        return None

    def _send(self, pod: Pod, snapshot: Snapshot) -> None:
        """Volumes whose servers may not answer are repaired aside, and asked about when this is retried."""
        uid = pod.metadata.uid
        errand = self._errands.get(uid)
        if errand is None:
            errand = self._errands[uid] = Errand(
                lambda: publish.again(pod, snapshot, self.node, self.mounts, far=True)
            )
        if not errand.done(PATIENCE):
            raise _waiting(pod)
        del self._errands[uid]
        if errand.error is not None:
            raise errand.error


def _waiting(pod: Pod) -> Unavailable:
    return Unavailable(f"{pod.key}: waiting for the servers of its volumes")
