"""What the drivers of claims and volumes need of a store, and of whoever measures them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from netplane.model.base import Key, Object

TRIES = 10  # of a write that others keep overtaking


class Writer(Protocol):
    """The part of a store that they need."""

    def get(self, key: Key) -> Object | None: ...
    def put(self, obj: Any, expect: int | None = None) -> Object: ...
    def delete(self, key: Key, expect: int | None = None) -> Object: ...


Timed = Callable[[str, str], AbstractContextManager[object]]  # (operation, plugin): measures a block
