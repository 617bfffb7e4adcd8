"""What the packet path must hear of: changes of what its decisions rest on, by whatever driver."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..model.facts import Link, Plan
from .datapath import PathDriver


class Cutting:
    """A table of tracked flows; when some of them are deleted, the packet path forgets."""

    def __init__(self, table: Any, path: PathDriver) -> None:
        self._table = table
        self._path = path

    def flows(self) -> list[Any]:
        return list(self._table.flows())

    def forget(self, flows: Iterable[Any]) -> int:
        try:
            return int(self._table.forget(flows))
        finally:
            self._path.forget()


class Forgetting:
    """A driver after whose changes the packet path forgets; everything else is the driver's own."""

    def __init__(self, driver: Any, path: PathDriver) -> None:
        self._driver = driver
        self._path = path
        if hasattr(driver, "begin"):
            self.begin = self._begin

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def apply(self, plan: Plan) -> None:
        try:
            self._driver.apply(plan)
        finally:
            self._forget(plan)

    def _begin(self, plan: Plan) -> Callable[[], None] | None:
        end = self._driver.begin(plan)
        if end is None:
            return None

        def forgetting() -> None:
            try:
                end()
            finally:
                self._forget(plan)

        return forgetting

    def _forget(self, plan: Plan) -> None:
        self._path.forget()
        for key in plan.remove:
            if key[:2] == ("link", ""):
                self._path.gone(str(key[2]))
        for fact in plan.add:
            if type(fact) is Link and not fact.netns:
                self._path.made(fact.name)
