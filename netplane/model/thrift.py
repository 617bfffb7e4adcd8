"""What many objects have alike is held once: timestamps, namespaces, ports of services of one make.

Rule 1: only what never changes is shared: text, tuples, frozen structs, and the map with nothing in it.
        What is equal stays equal.
Rule 2: what is known is bounded; forgetting it costs memory, nothing else.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import force_setattr

from .base import Object
from .own import Allocation
from .services import EndpointSlice, Service

MOST = 4096  # parts that are remembered

# kind -> (the struct within the object, its fields that are worth a look)
_PARTS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    Service.KIND: (("", ("status",)), ("spec", ("selector", "ports", "ip_families", "ip_family_policy"))),
    EndpointSlice.KIND: (("", ("ports", "address_type")),),
    Allocation.KIND: (("spec", ("holder_kind", "holder_namespace")),),
}
_META = ("namespace", "creation_timestamp", "labels", "annotations")
_known: dict[Any, Any] = {}
_EMPTY: dict[str, str] = {}  # as objects never change, nobody puts anything in


def thrifty(obj: Object) -> None:
    """Have ``obj``, which nobody else has seen yet, hold what others hold already."""
    if len(_known) > MOST:
        _known.clear()
    _share(obj.metadata, _META)
    for within, fields in _PARTS.get(obj.KIND, ()):
        _share(getattr(obj, within) if within else obj, fields)


def _share(part: Any, fields: tuple[str, ...]) -> None:
    for field in fields:
        value = getattr(part, field)
        if type(value) is dict:
            known = value or _EMPTY
        else:
            try:
                known = _known.setdefault(value, value)
            except TypeError:  # there is a list or a map in it
                continue
        if known is not value and type(known) is type(value):
            force_setattr(part, field, known)
