"""What the CNI server needs of the agent: the store, the kernel and this machine, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from ..model.base import Key, Object
from ..model.changes import Write
from ..model.facts import Scope
from ..model.snapshot import Snapshot


class Host(Protocol):
    """Thread-safe. A write is visible in `snapshot` when it returns; raises what the store raises."""

    node: str
    boot_id: str

    def snapshot(self) -> Snapshot: ...
    def put(self, obj: Object, expect: int | None = None) -> Object: ...
    def delete(self, key: Key, expect: int | None = None) -> object: ...

    def write(self, writes: Sequence[Write]) -> list[Object]:
        """All of these in order, in one transaction where the store has them; what was stored."""

    def sync(self, scopes: Iterable[Scope], before: Callable[[], object] | None = None) -> None:
        """Render, diff and apply in this thread, after the writes of ``before``. Raises the scope's error."""

    def verify(self, scopes: Iterable[Scope]) -> list[str]:
        """What the kernel holds otherwise than it should, in words."""

    def link_exists(self, netns: str, ifname: str) -> bool: ...
    def netns_exists(self, path: str) -> bool: ...
