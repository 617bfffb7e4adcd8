"""Which upstreams a name goes to: its nearest stub domain's, or the common ones. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from . import wire

T = TypeVar("T")


class Routes(Generic[T]):
    """``stubs``: wire name of a zone → its target; ``default``: for everything else."""

    def __init__(self, default: T, stubs: Mapping[bytes, T]) -> None:
        self.default = default
        self._stubs = dict(stubs)

    def of(self, name: bytes) -> T:
        """``name`` in lower case."""
        if not self._stubs:
            return self.default
        for zone in (name, *wire.parents(name)):
            if zone in self._stubs:
                return self._stubs[zone]
        return self._stubs.get(b"\0", self.default)

    @property
    def zones(self) -> tuple[bytes, ...]:
        return tuple(self._stubs)

    def __iter__(self) -> Iterator[T]:
        yield self.default
        yield from self._stubs.values()
