"""Which objects a command line asks for: kinds, names, namespace, labels."""

from __future__ import annotations

from collections.abc import Iterator

import click

from ..model.base import Key, Object
from ..model.errors import NotFound
from ..model.selectors import LabelSelector
from ..store import Store
from . import kinds


class Query:
    """Which objects a command line asks for."""

    def __init__(
        self, words: tuple[str, ...], namespace: str | None = None, all_namespaces: bool = False,
        selector: str | None = None, managed: bool = False,
    ) -> None:  # fmt: skip
        if namespace and all_namespaces:
            raise click.UsageError("-n and -A exclude each other")
        self.resources = kinds.resources(words)
        self.namespace = None if all_namespaces else namespace or "default"
        self.selector: LabelSelector | None = kinds.selector(selector) if selector is not None else None
        self.managed = managed
        self.kinds = tuple(dict.fromkeys(cls for classes, _ in self.resources for cls in classes))
        self.named = all(names for _, names in self.resources)
        if self.named and self.selector:
            raise click.UsageError("a name and -l exclude each other")
        if self.named and all_namespaces:
            raise click.UsageError("a name and -A exclude each other")

    def select(self, store: Store) -> tuple[list[Object], int]:
        """The objects by kind, namespace and name, and the revision. Raises NotFound for a name."""
        objects, revision = store.list([cls.KIND for cls in self.kinds])
        have = {o.key for o in objects}
        for key in self.keys():
            if key not in have:
                raise NotFound(f"{key}: not found")
        order = {cls.KIND: i for i, cls in enumerate(self.kinds)}
        chosen = [o for o in objects if self.wants(o)]
        return sorted(chosen, key=lambda o: (order[o.KIND], o.namespace, o.name)), revision

    def keys(self) -> Iterator[Key]:
        for classes, names in self.resources:
            for cls in classes:
                for name in names:
                    yield Key(cls.KIND, (self.namespace or "") if cls.NAMESPACED else "", name)

    def wants(self, obj: Object) -> bool:
        if self.named:
            return obj.key in set(self.keys())
        here = not obj.NAMESPACED or self.namespace in (None, obj.namespace)
        return here and kinds.matches(self.selector, obj.labels)
