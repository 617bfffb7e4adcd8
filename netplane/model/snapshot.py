"""An immutable view of all objects at one revision, with the indexes that rooms look things up by.

Rule 1: a snapshot never changes; `with_put` and `with_delete` cost O(log n) and share the rest.
Rule 2: an index is a pure function of one object; a room names the index it needs here.
Rule 3: `synced` is False until the store's first full list is in: nothing is swept before that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, TypeVar

from immutables import Map

from .base import Key, Object
from .checks import parse_quantity
from .nodes import Node
from .ordered import Ordered
from .own import Allocation, Attachment
from .pods import Pod
from .services import EndpointSlice, Service
from .storage import PersistentVolume, PersistentVolumeClaim
from .volumesnapshots import VolumeSnapshot, VolumeSnapshotContent

T = TypeVar("T", bound=Object)
Slot = tuple[str, str]  # (namespace, name)
Place = tuple[int, str, str]  # (rank, namespace, name)
Ranked = tuple[str, Place]  # (group, place)


def _by_service(o: Any) -> Iterable[str]:
    return (f"{o.namespace}/{o.service}",) if o.service else ()


def _by_node(o: Any) -> Iterable[str]:
    return (o.spec.node_name,) if o.spec.node_name else ()


def _by_holder(o: Any) -> Iterable[str]:
    return (f"{o.spec.holder_kind}/{o.spec.holder_namespace}/{o.spec.holder_name}",)


def _by_labels(o: Any) -> Iterable[str]:
    return (f"{o.namespace}/{k}={v}" for k, v in o.labels.items())


def _by_selector(o: Any) -> Iterable[str]:
    """A service stands under one pair of its selector, which any pod that it selects carries too."""
    return (f"{o.namespace}/{k}={v}" for k, v in sorted(o.spec.selector.items())[:1])


def _refused(o: Any) -> Iterable[str]:
    return ("",) if o.refused else ()


def _ejects(o: Any) -> Iterable[str]:
    return ("",) if o.ejects else ()


def _pod_by_claim(o: Any) -> Iterable[str]:
    """By the claims that a pod names, and by those that are made for its ephemeral volumes."""
    named = {v.persistent_volume_claim.claim_name for v in o.spec.volumes if v.persistent_volume_claim}
    own = {f"{o.name}-{v.name}" for v in o.spec.volumes if v.ephemeral}
    return {f"{o.namespace}/{name}" for name in named | own}


def _by_claim(o: Any) -> Iterable[str]:
    ref = o.spec.claim_ref
    return (f"{ref.namespace}/{ref.name}",) if ref else ()


def _by_pod(o: Any) -> Iterable[str]:
    """The pod that owns the claim of one of its ephemeral volumes."""
    owners = o.metadata.owner_references
    return [f"{o.namespace}/{r.name}" for r in owners if r.kind == Pod.KIND and r.controller]


def _by_source(o: Any) -> Iterable[str]:
    """ "KIND/NAMESPACE/NAME" of what a claim's data is to be a copy of."""
    source = o.spec.data_source_ref or o.spec.data_source
    return (f"{source.get('kind')}/{o.namespace}/{source.get('name')}",) if isinstance(source, dict) else ()


def _snapshot_of(o: Any) -> Iterable[str]:
    name = o.spec.source.persistent_volume_claim_name
    return (f"{o.namespace}/{name}",) if name else ()


def _in_content(o: Any) -> Iterable[str]:
    source, status = o.spec.source, o.status
    return {source.volume_snapshot_content_name, status.bound_volume_snapshot_content_name} - {""}


_bytes = lru_cache(maxsize=4096)(parse_quantity)


def _free(o: Any) -> Ranked | None:
    """Volumes that nobody has claimed, by size, among those of one class, volume mode and access modes."""
    spec = o.spec
    if spec.claim_ref is not None or o.metadata.deletion_timestamp:
        return None
    group = (spec.storage_class_name, spec.volume_mode, *sorted(set(spec.access_modes)))
    return "\0".join(group), (_bytes(spec.capacity.get("storage", 0)), "", o.name)


def _waiting(o: Any) -> Ranked | None:
    """Claims without a volume, by size, among those of one class and volume mode."""
    spec = o.spec
    if spec.volume_name or o.metadata.deletion_timestamp:
        return None
    size = _bytes(spec.resources.requests.get("storage", 0))
    return f"{spec.storage_class_name or ''}\0{spec.volume_mode}", (size, o.namespace, o.name)


# (kind, index name) -> the values under which an object is found
INDEXES: dict[str, dict[str, Callable[[Any], Iterable[str]]]] = {
    EndpointSlice.KIND: {"service": _by_service},
    PersistentVolume.KIND: {"claim": _by_claim},
    PersistentVolumeClaim.KIND: {
        "volume": lambda o: (o.spec.volume_name,),
        "pod": _by_pod,
        "source": _by_source,
    },
    VolumeSnapshot.KIND: {"claim": _snapshot_of, "content": _in_content},
    VolumeSnapshotContent.KIND: {"volume": lambda o: (o.spec.source.volume_handle,)},
    Service.KIND: {"selector": _by_selector, "refused": _refused, "ejects": _ejects},
    Node.KIND: {"refused": _refused},
    Allocation.KIND: {"holder": _by_holder, "cidr": lambda o: ("",) if "/" in o.spec.value else ()},
    Pod.KIND: {
        "node": _by_node,
        "ip": lambda o: o.ips,
        "claim": _pod_by_claim,
        "label": _by_labels,
        "namespace": lambda o: (o.namespace,),
    },
    Attachment.KIND: {
        "node": lambda o: (o.spec.node,),
        "pod": lambda o: (f"{o.spec.pod_namespace}/{o.spec.pod_name}",) if o.spec.pod_name else (),
        "ip": lambda o: tuple(ip.address.partition("/")[0] for ip in o.spec.ips),
        "alias": lambda o: [f"{o.spec.network}/{alias}" for alias in o.aliases],
    },
}

# (kind, index name) -> the group and the place in it under which an object is found, or None. A place
# is (rank, namespace, name).
RANKS: dict[str, dict[str, Callable[[Any], Ranked | None]]] = {
    PersistentVolume.KIND: {"free": _free},
    PersistentVolumeClaim.KIND: {"waiting": _waiting},
}

_EMPTY: Map[Any, Any] = Map()
_NONE = Ordered()
_NOTHING: frozenset[str] = frozenset()


class Snapshot:
    """``get``, ``list`` and ``by`` return objects; absent ones are None or nothing, never an error."""

    __slots__ = ("_index", "_kinds", "revision", "synced")

    def __init__(
        self,
        revision: int = 0,
        synced: bool = False,
        kinds: Map[str, Map[Slot, Object]] = _EMPTY,
        index: Map[tuple[str, str], Map[str, Map[Slot, Object]]] = _EMPTY,
    ) -> None:
        self.revision = revision
        self.synced = synced
        self._kinds = kinds
        self._index = index

    @classmethod
    def of(cls, objects: Iterable[Object], revision: int = 1, synced: bool = True) -> Snapshot:
        """A snapshot of exactly these objects (tests, first lists)."""
        snapshot = cls()
        for obj in objects:
            snapshot = snapshot.with_put(obj)
        return snapshot.at(revision, synced)

    def at(self, revision: int, synced: bool) -> Snapshot:
        return Snapshot(revision, synced, self._kinds, self._index)

    def get(self, kind: type[T], namespace: str, name: str) -> T | None:
        objects: Map[Slot, Any] = self._kinds.get(kind.KIND, _EMPTY)
        found: T | None = objects.get((namespace, name))
        return found

    def find(self, key: Key) -> Object | None:
        return self._kinds.get(key.kind, _EMPTY).get((key.namespace, key.name))

    def list(self, kind: type[T], namespace: str | None = None) -> Iterator[T]:
        """All objects of a kind, in no order; of one namespace when it is given."""
        objects: Any = self._kinds.get(kind.KIND, _EMPTY)
        for (where, _), obj in objects.items():
            if namespace is None or where == namespace:
                yield obj

    def count(self, kind: type[Object]) -> int:
        return len(self._kinds.get(kind.KIND, _EMPTY))

    def version(self, kind: type[Object]) -> object:
        """The same object (by ``is``) for as long as nothing of this kind changes: what a memo rests on."""
        return self._kinds.get(kind.KIND, _EMPTY)

    def kinds(self) -> tuple[str, ...]:
        return tuple(self._kinds)

    def keys(self) -> Iterator[Key]:
        for kind, objects in self._kinds.items():
            for namespace, name in objects:
                yield Key(kind, namespace, name)

    def by(self, kind: type[T], index: str, value: str) -> tuple[T, ...]:
        """The objects of a kind that an index (see INDEXES) files under ``value``, by name."""
        found = self._filed(kind, index, value)
        if not isinstance(found, Map):
            return () if found is None else (found,)
        return tuple(obj for _, obj in sorted(found.items(), key=lambda item: item[0]))

    def count_by(self, kind: type[Object], index: str, value: str) -> int:
        """How many `by` would give, at no cost."""
        found = self._filed(kind, index, value)
        return len(found) if isinstance(found, Map) else found is not None

    def _filed(self, kind: type[Object], index: str, value: str) -> Any:
        """A Map of objects; the object, where there is one alone; None."""
        return self._index.get((kind.KIND, index), _EMPTY).get(value)

    def at_least(self, kind: type[T], index: str, group: str, rank: int) -> Iterator[T]:
        """The objects of a group (see RANKS) from ``rank`` upwards, then by name."""
        return self._ranked(kind, self._group(kind, index, group).since((rank, "", "")))

    def until(self, kind: type[T], index: str, group: str, place: Place) -> Iterator[tuple[Place, T]]:
        """The objects of a group (see RANKS) from ``place`` downwards, and where they stand."""
        objects: Map[Slot, Any] = self._kinds.get(kind.KIND, _EMPTY)
        return ((at, objects[at[1:]]) for at in self._group(kind, index, group).until(place))

    def _group(self, kind: type[T], index: str, group: str) -> Ordered:
        table: Any = self._index.get((kind.KIND, index), _EMPTY)
        found: Ordered = table.get(group, _NONE)
        return found

    def _ranked(self, kind: type[T], places: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        objects: Map[Slot, Any] = self._kinds.get(kind.KIND, _EMPTY)
        return (objects[place[1:]] for place in places)

    def with_put(self, obj: Object) -> Snapshot:
        key = obj.key
        slot = (key.namespace, key.name)
        objects = self._kinds.get(key.kind, _EMPTY)
        index = self._reindexed(key.kind, slot, objects.get(slot), obj)
        kinds = self._kinds.set(key.kind, objects.set(slot, obj))
        return Snapshot(max(self.revision, obj.revision), self.synced, kinds, index)

    def with_delete(self, key: Key, revision: int = 0) -> Snapshot:
        slot = (key.namespace, key.name)
        objects = self._kinds.get(key.kind, _EMPTY)
        old = objects.get(slot)
        if old is None:
            return self.at(max(self.revision, revision), self.synced)
        index = self._reindexed(key.kind, slot, old, None)
        kinds = self._kinds.set(key.kind, objects.delete(slot))
        return Snapshot(max(self.revision, revision), self.synced, kinds, index)

    def _reindexed(self, kind: str, slot: Slot, old: Any, new: Any) -> Any:
        index = self._index
        for name, values in INDEXES.get(kind, {}).items():
            before = set(values(old)) if old is not None else _NOTHING
            after = set(values(new)) if new is not None else _NOTHING
            if not (before or after):
                continue
            table = index.get((kind, name), _EMPTY)
            for value in before - after:
                table = _unfiled(table, value, slot)
            for value in after:
                table = table.set(value, _filed(table.get(value), old, slot, new))
            index = index.set((kind, name), table)
        for name, rank in RANKS.get(kind, {}).items():
            was, now = rank(old) if old is not None else None, rank(new) if new is not None else None
            if was != now:
                index = index.set((kind, name), _moved(index.get((kind, name), _EMPTY), was, now))
        return index


def _filed(found: Any, old: Any, slot: Slot, new: Any) -> Any:
    """What an index files under one value, with ``new``: alone, most are without a Map of their own."""
    if isinstance(found, Map):
        return found.set(slot, new)
    if found is None or found is old:
        return new
    return Map({(found.namespace, found.name): found, slot: new})


def _unfiled(table: Any, value: str, slot: Slot) -> Any:
    found = table[value]
    rest = found.delete(slot) if isinstance(found, Map) else ()
    if not rest:
        return table.delete(value)
    return table.set(value, rest if len(rest) > 1 else next(iter(rest.values())))


def _moved(table: Any, was: Ranked | None, now: Ranked | None) -> Any:
    if was is not None:
        rest = table[was[0]].minus(was[1])
        table = table.set(was[0], rest) if rest else table.delete(was[0])
    if now is not None:
        table = table.set(now[0], table.get(now[0], _NONE).plus(now[1]))
    return table
