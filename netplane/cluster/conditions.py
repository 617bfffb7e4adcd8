"""A refusal stands where users look: the condition netplane.io/Allocated=False on the object itself.

It is a function of the objects alone (so it carries no time), and goes when the reason goes.
"""

from __future__ import annotations

from typing import Any

from ..model.base import amend
from ..model.nodes import Condition, Node
from ..model.own import ALLOCATED
from ..model.services import Service

REASON = "Refused"


def service_refused(service: Service, why: str) -> Service:
    """The service with its refusal set, or removed when ``why`` is ""; itself when nothing changes."""
    if service.refused == why:
        return service
    kept: list[Any] = [c for c in service.status.conditions or () if c.get("type") != ALLOCATED]
    if why:
        kept.append({"type": ALLOCATED, "status": "False", "reason": REASON, "message": why})
    updated: Service = amend(service, status=amend(service.status, conditions=kept or None))
    return updated


def node_refused(node: Node, why: str) -> Node:
    """The same for a node."""
    if node.refused == why:
        return node
    kept = tuple(c for c in node.status.conditions if c.type != ALLOCATED)
    if why:
        kept = (*kept, Condition(type=ALLOCATED, status="False", reason=REASON, message=why))
    updated: Node = amend(node, status=amend(node.status, conditions=kept))
    return updated
