"""A store in memory with the contract's semantics, for tests of what stands above stores."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from msgspec.structs import replace

from netplane.model.base import Key, Object
from netplane.model.errors import Conflict, NotFound, Unavailable
from netplane.store.base import Change


class MemoryWatch:
    def __init__(self, store: MemoryStore, since: int) -> None:
        self._store, self._at, self._closed = store, since, False

    def next(self, timeout: float | None = None) -> list[Change]:
        store = self._store
        with store.changed:
            store.changed.wait_for(lambda: store.log[self._at :] or self._closed or store.down, timeout)
            if store.down:
                raise Unavailable("the store is down")
            found = [c for c in store.log if c.revision > self._at]
            self._at = found[-1].revision if found else self._at
            return found

    def close(self) -> None:
        with self._store.changed:
            self._closed = True
            self._store.changed.notify_all()

    def __enter__(self) -> MemoryWatch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class MemoryStore:
    url = "memory://"
    allocates = False

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        self.log: list[Change] = []  # the change of revision n stands at n - 1
        self.changed = threading.Condition()
        self.down = False

    def list(self, kinds: Iterable[str] | None = None) -> tuple[list[Object], int]:
        with self.changed:
            if self.down:
                raise Unavailable("the store is down")
            wanted = None if kinds is None else set(kinds)
            found = [o for k, o in self.objects.items() if wanted is None or k.kind in wanted]
            return found, len(self.log)

    def watch(self, since: int, kinds: Iterable[str] | None = None) -> MemoryWatch:  # noqa: ARG002
        return MemoryWatch(self, since)

    def get(self, key: Key) -> Object | None:
        return self.objects.get(key)

    def put(self, obj: Object, expect: int | None = None) -> Object:
        with self.changed:
            self._expect(obj.key, expect)
            meta = replace(obj.metadata, resource_version=str(len(self.log) + 1))
            stored = replace(obj, metadata=meta)
            self.objects[obj.key] = stored
            self._append(stored, deleted=False)
            return stored

    def delete(self, key: Key, expect: int | None = None) -> Object:
        with self.changed:
            self._expect(key, expect)
            if key not in self.objects:
                raise NotFound(f"{key} is not there")
            last = self.objects.pop(key)
            self._append(last, deleted=True)
            return last

    def _expect(self, key: Key, expect: int | None) -> None:
        if self.down:
            raise Unavailable("the store is down")
        known = self.objects.get(key)
        revision = known.revision if known else 0
        if expect is not None and expect != revision:
            raise Conflict(f"{key} is at revision {revision}, not {expect}")

    def _append(self, obj: Object, deleted: bool) -> None:
        self.log.append(Change(len(self.log) + 1, obj, deleted))
        self.changed.notify_all()

    def close(self) -> None:
        pass
