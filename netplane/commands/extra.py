"""What other packages add to `describe`: entry points of the group "netplane.describe", named by kind.

Each is a function (object, snapshot) -> lines with an attribute ``kinds``: those that its snapshot is
to hold. So the command line knows nothing of, say, storage, and shows what storage has to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Protocol

from ..model.base import Object
from ..model.snapshot import Snapshot
from ..store.base import Store

GROUP = "netplane.describe"


class Describer(Protocol):
    kinds: tuple[str, ...]

    def __call__(self, obj: Object, snapshot: Snapshot) -> Iterable[str]: ...


def lines(objects: Iterable[Object], store: Store) -> dict[str, list[str]]:
    """What is added about each of these objects, by the text of its key."""
    chosen = list(objects)
    kinds = {obj.KIND for obj in chosen}
    found: dict[str, Describer] = {e.name: e.load() for e in entry_points(group=GROUP) if e.name in kinds}
    needed = {kind for describer in found.values() for kind in describer.kinds}
    snapshot = Snapshot.of(*store.list(needed)) if needed else Snapshot()
    return {str(o.key): list(found[o.KIND](o, snapshot)) for o in chosen if o.KIND in found}
