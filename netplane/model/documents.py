"""YAML and JSON text to plain documents: what JSON can say, and nothing that surprises.

Rule 1: a duplicate key, a key that is not text, and a value that JSON cannot hold are errors.
Rule 2: timestamps stay text, as Kubernetes keeps them.
Rule 3: aliases may repeat, but not without bound (a short file can name billions of nodes).
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import yaml

from .errors import Invalid

NODES = 1_000_000  # that a file with aliases may unfold to
_MERGE = "tag:yaml.org,2002:merge"
_TEXT = "tag:yaml.org,2002:str"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag == _MERGE:
                continue
            if key.tag != _TEXT:
                shown = f"{key.value!r}" if isinstance(key.value, str) else "of a mapping"
                raise Invalid(f"line {line}: the key {shown} is not text: put it in quotes")
            if key.value in seen:
                raise Invalid(f"line {line}: the key {key.value!r} stands twice in one mapping")
            seen.add(key.value)
        result: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return result

    def construct_finite(self, node: yaml.ScalarNode) -> float:
        number: float = self.construct_yaml_float(node)
        if not math.isfinite(number):
            raise Invalid(f"line {node.start_mark.line + 1}: {node.value} is not a number that JSON has")
        return number

    def refuse(self, node: yaml.Node) -> Any:
        tag = "!!" + node.tag.rpartition(":")[2]
        raise Invalid(f"line {node.start_mark.line + 1}: {tag} is not a type that JSON has")


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in pairs if tag != "tag:yaml.org,2002:timestamp"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_finite)
for _name in ("binary", "set", "omap", "pairs", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_name}", _Loader.refuse)


def documents(text: str | bytes, source: str = "-") -> list[dict[str, Any]]:
    """The YAML (or JSON) documents of one file as dicts; Lists are opened. Raises Invalid."""
    try:
        raw = [d for d in yaml.load_all(text, Loader=_Loader) if d is not None]
        if ("*" if isinstance(text, str) else b"*") in text:  # type: ignore[operator]
            _bounded(raw)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        reason = " ".join((getattr(exc, "problem", None) or str(exc)).split())
        raise Invalid(f"{source}:{where} not YAML: {reason}") from exc
    except Invalid as exc:
        raise Invalid(f"{source}: {exc}") from None
    except (RecursionError, UnicodeDecodeError, ValueError) as exc:
        reason = "nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise Invalid(f"{source}: not YAML: {reason}") from None
    found: list[dict[str, Any]] = []
    for doc in raw:
        if not isinstance(doc, dict):
            raise Invalid(
                f"{source}: a manifest is a mapping with apiVersion and kind, not a {type(doc).__name__}"
            )
        found += _opened(doc, source) if str(doc.get("kind", "")).endswith("List") else [doc]
    return found


def _opened(doc: dict[str, Any], source: str) -> list[dict[str, Any]]:
    """The items of a List; those of a ServiceList and the like take their kind from it."""
    items, kind = doc.get("items"), str(doc["kind"])
    if items is None:
        return []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise Invalid(f"{source}: {kind}: items: must be a list of manifests")
    if kind == "List":
        return items
    typed = {"apiVersion": doc.get("apiVersion"), "kind": kind.removesuffix("List")}
    return [{**typed, **item} for item in items]


def _bounded(value: Any) -> None:
    """Raise Invalid when aliases unfold to more than NODES, or to themselves."""
    left, pending = NODES, [value]
    while pending:
        node = pending.pop()
        if isinstance(node, dict | list):
            left -= len(node)
            pending.extend(node.values() if isinstance(node, dict) else node)
        if left < 0:
            raise Invalid(f"its aliases unfold to more than {NODES} values")
