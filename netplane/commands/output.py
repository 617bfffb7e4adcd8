"""Objects onto stdout, in one of the forms of -o; first all of them, then one at a time."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click
import yaml

from ..model import codec
from ..model.base import Key, Object, amend
from . import printing
from .query import Query


class Printer:
    """Prints objects in one of the output forms, first all, then one at a time."""

    def __init__(self, output: str, query: Query) -> None:
        self.output = output
        self.query = query
        self.widths: dict[str, list[int]] = {}

    def first(self, found: tuple[list[Object], int]) -> int:
        """Print a list; returns its revision."""
        objects, revision = found
        if self.output in ("yaml", "json"):
            docs = [shown(o, self.query.managed) for o in objects]
            single = self.query.named and len(docs) == 1
            self._dump(docs[0] if single else {"apiVersion": "v1", "kind": "List", "items": docs})
        elif self.output == "name":
            for obj in objects:
                click.echo(slug(obj.key))
        elif not objects:
            where = f" in {self.query.namespace} namespace" if self.query.namespace else ""
            namespaced = any(cls.NAMESPACED for cls in self.query.kinds)
            click.echo(f"No resources found{where if namespaced else ''}", err=True)
        else:
            self._tables(objects)
        return revision

    def change(self, obj: Object) -> None:
        """Print one object that changed."""
        if self.output == "name":
            click.echo(slug(obj.key))
        elif self.output in ("yaml", "json"):
            if self.output == "yaml":
                click.echo("---")
            self._dump(shown(obj, self.query.managed))
        else:
            self._rows(obj.KIND, [obj], header=obj.KIND not in self.widths)

    def _dump(self, doc: dict[str, Any]) -> None:
        if self.output == "json":
            click.echo(json.dumps(doc, indent=4))
        else:
            click.echo(yaml.safe_dump(doc, sort_keys=False, default_flow_style=False), nl=False)

    def _tables(self, objects: list[Object]) -> None:
        present = list(dict.fromkeys(o.KIND for o in objects))
        for i, kind in enumerate(present):
            if i:
                click.echo()
            self._rows(kind, [o for o in objects if kind == o.KIND], header=True)

    def _rows(self, kind: str, objects: list[Object], header: bool) -> None:
        spread = self.query.namespace is None and codec.KINDS[kind].NAMESPACED
        chosen = printing.columns(kind, self.output == "wide", spread)
        now = datetime.now(UTC)
        rows = [printing.row(o, chosen, now) for o in objects]
        if len(self.query.kinds) > 1:
            rows = [self._prefixed(kind, chosen, line) for line in rows]
        widths = self.widths.setdefault(kind, [0] * len(chosen))
        lines = [tuple(c.title for c in chosen), *rows] if header else rows
        for line in printing.table(lines, widths):
            click.echo(line)

    def _prefixed(
        self, kind: str, chosen: tuple[printing.Column, ...], line: tuple[str, ...]
    ) -> tuple[str, ...]:
        return tuple(
            f"{kind.lower()}/{cell}" if column is printing.NAME else cell
            for column, cell in zip(chosen, line, strict=True)
        )


def shown(obj: Object, managed: bool = False) -> dict[str, Any]:
    """The manifest of an object as ``-o yaml`` prints it: plain JSON types, managedFields on request."""
    kept = obj if managed else amend(obj, metadata=amend(obj.metadata, managed_fields=None))
    plain: dict[str, Any] = json.loads(codec.encode(kept))
    return {"apiVersion": obj.API_VERSION, "kind": obj.KIND, **plain}


def slug(key: Key) -> str:
    """kubectl's KIND/NAME, as in service/web."""
    return f"{key.kind.lower()}/{key.name}"
