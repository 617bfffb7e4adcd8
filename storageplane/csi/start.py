"""What a start finds, held against the records: adopted, repaired or removed.

    mounted as recorded           adopted: nothing is touched, whoever uses it notices nothing
    recorded, not mounted         repaired, where its place still stands; in another boot forgotten
    recorded, mounted but dead    replaced (a FUSE server that was killed)
    frozen by a killed driver     thawed
    recorded as being removed     removed
    an empty directory that no record accounts for: removed
    a loop device of ours that no record accounts for, and nobody mounts: detached

Rule: what fails is said and stops nothing; the call that needs it will say it again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from netplane.model.base import amend
from netplane.model.errors import NetplaneError

from ..backends import BACKENDS
from ..host import loops, mountinfo
from ..host.corrupt import dead
from ..host.journal import boot
from .depot import Depot, Group, Snapshot
from .freeze import thaw
from .node import Node, mounted
from .volumes import Volume


class Start:
    def __init__(self, depot: Depot, node: Node) -> None:
        self._depot = depot
        self._node = node

    def reconcile(self) -> list[str]:
        """In words, what was done; nothing for what was as it should be."""
        done: list[str] = []
        for step in (self._removals, self._volumes, self._loops):
            done.extend(step())
        done.extend(self._depot.trash.empty())
        return done

    def _removals(self) -> Iterator[str]:
        """Calls that were cut off when the data was already condemned."""
        shelves: tuple[Any, ...] = (self._depot.volumes, self._depot.snapshots)
        for shelf in shelves:
            for record in shelf.all():
                if record.phase == "removing":
                    yield self._tried(f"removed {record.id}", partial(self._remove, record, shelf))
        for group in self._depot.groups.all():
            if group.phase == "removing":
                yield self._tried(f"removed {group.id}", partial(self._remove_group, group))
        for name in self._depot.hollows():
            yield f"removed {name}, which was never whole"

    def _remove(self, record: Volume | Snapshot, shelf: Any) -> None:
        self._depot.drop(record.id)
        shelf.remove(record.id)

    def _remove_group(self, group: Group) -> None:
        for name in group.snapshots:
            found = self._depot.peek(self._depot.snapshots, name)
            if found is not None:
                self._remove(found, self._depot.snapshots)
        self._depot.groups.remove(group.id)

    # --- mounts -------------------------------------------------------------------------------------

    def _volumes(self) -> Iterator[str]:
        for volume in self._depot.volumes.all():
            stage = volume.stage
            if stage is None:
                continue
            places = [stage.path, *(t.path for t in volume.targets)]
            if stage.boot != boot() and not any(map(mounted, places)):
                self._depot.less(self._depot.volumes, amend(volume, stage=None, targets=()))
                yield f"forgot that {volume.id} was staged: that was before this boot"
                continue
            if BACKENDS[volume.backend].images and mounted(stage.path) and thaw(stage.path):
                yield f"thawed {stage.path}"
            yield from self._mend(volume)

    def _mend(self, volume: Volume) -> Iterator[str]:
        assert volume.stage is not None
        path = volume.stage.path
        if not volume.block and (dead(path) or not mounted(path)) and os.path.isdir(os.path.dirname(path)):
            yield self._tried(f"staged {volume.id} again at {path}", partial(self._node.bring_up, volume))
        for target in volume.targets:
            there = mounted(target.path) and not dead(target.path)
            if not there and os.path.isdir(os.path.dirname(target.path)):
                done = f"published {volume.id} again at {target.path}"
                yield self._tried(done, partial(self._node.show, volume, target))

    # --- loop devices -------------------------------------------------------------------------------

    def _loops(self) -> Iterator[str]:
        wanted = {str(self._depot.content(v)) for v in self._depot.volumes.all() if v.stage}
        used = {m.device for m in mountinfo.read()}
        for device, image in loops.backed_by(self._depot.data):
            if image not in wanted and _number(device) not in used:
                path = self._depot.data / os.path.relpath(image, self._depot.data)
                yield self._tried(f"detached {device} from {image}", partial(loops.detach, path))

    @staticmethod
    def _tried(what: str, action: Callable[[], None]) -> str:
        try:
            action()
        except NetplaneError as exc:
            return f"could not say {what!r}: {exc}"
        return what


def _number(device: str) -> str:
    found = os.stat(device).st_rdev
    return f"{os.major(found)}:{os.minor(found)}"
