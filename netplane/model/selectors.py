"""Label selectors (meta/v1 LabelSelector): shape, rules and matching."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from . import checks
from .base import Fault, Struct

OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


class Requirement(Struct, frozen=True, kw_only=True):
    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        if self.operator == "In":
            return value is not None and value in self.values
        if self.operator == "NotIn":
            return value is None or value not in self.values
        return (value is not None) == (self.operator == "Exists")


class LabelSelector(Struct, frozen=True, kw_only=True):
    """Empty matches everything; an absent selector (None) is the caller's to interpret."""

    match_labels: dict[str, str] = {}
    match_expressions: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return subset(self.match_labels, labels) and all(r.matches(labels) for r in self.match_expressions)

    def check(self, path: str) -> Iterator[Fault]:
        yield from checks.label_map(f"{path}.matchLabels", self.match_labels)
        for i, need in enumerate(self.match_expressions):
            where = f"{path}.matchExpressions[{i}]"
            yield from checks.one_of(f"{where}.operator", need.operator, OPERATORS)
            wants = need.operator in ("In", "NotIn")
            if wants and not need.values:
                yield f"{where}.values", f"required when operator is {need.operator}"
            if not wants and need.values:
                yield f"{where}.values", f"not allowed when operator is {need.operator}"


def subset(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """True when every pair of ``selector`` stands in ``labels`` (a Service's selector)."""
    return all(labels.get(k) == v for k, v in selector.items())
