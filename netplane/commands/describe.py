"""One object for people: what it is, then its fields indented, and what happened to it. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from ..model import codec
from ..model.base import Object
from ..model.nodes import Event
from ..model.services import EndpointSlice, Service
from ..model.storage import Secret
from . import printing
from .status import until

WIDTH = 16


def describe(
    obj: Object,
    objects: Iterable[Object] = (),
    now: datetime | None = None,
    ejected: Iterable[dict[str, Any]] | None = None,
    more: Iterable[str] = (),
) -> str:
    """The text of ``describe``; endpoints and events are found among ``objects``.

    ``ejected``: what this node's agent says of endpoints that are out of rotation; None without an agent.
    ``more``: lines that stand before the events (see `extra`).
    """
    others = list(objects)
    lines = [_line("Name", obj.name)]
    if obj.NAMESPACED:
        lines.append(_line("Namespace", obj.namespace))
    lines += _map("Labels", obj.labels, "=")
    lines += _map("Annotations", obj.metadata.annotations, ": ")
    if obj.metadata.creation_timestamp:
        lines.append(_line("Created", obj.metadata.creation_timestamp))
    if obj.deleting:
        lines.append(_line("Deleting since", obj.metadata.deletion_timestamp))
    if obj.metadata.finalizers:
        lines.append(_line("Finalizers", ", ".join(obj.metadata.finalizers)))
    lines += _secret(obj) if isinstance(obj, Secret) else _body(obj)
    if isinstance(obj, Service):
        lines.append(_line("Endpoints", _endpoints(obj, others)))
        lines += _ejected(obj, ejected) if obj.ejects else ()
    lines += more
    lines += _events(obj, others, now or datetime.now(UTC))
    return "\n".join(lines)


def _line(title: str, value: str) -> str:
    return f"{title + ':':<{WIDTH}} {value}".rstrip()


def _map(title: str, values: dict[str, str], sign: str) -> Iterator[str]:
    if not values:
        yield _line(title, printing.NONE)
    for i, (key, value) in enumerate(sorted(values.items())):
        text = f"{key}{sign}{value}"
        yield _line(title, text) if i == 0 else f"{'':<{WIDTH}} {text}"


def _secret(secret: Secret) -> Iterator[str]:
    yield _line("Type", secret.type)
    yield "Data:"
    sizes = {key: _size(value) for key, value in secret.data.items()}
    sizes |= {key: len(value.encode()) for key, value in secret.string_data.items()}
    for key, size in sorted(sizes.items()):
        yield f"  {key}:  {size} bytes"


def _size(text: str) -> int:
    try:
        return len(base64.b64decode(text))
    except binascii.Error:
        return len(text)


def _body(obj: Object) -> Iterator[str]:
    for name, value in codec.to_dict(obj).items():
        if name not in ("apiVersion", "kind", "metadata"):
            yield from _field(name[0].upper() + name[1:], value, 0)


def _field(title: str, value: Any, depth: int) -> Iterator[str]:
    pad = "  " * depth
    if isinstance(value, dict):
        yield f"{pad}{title}:"
        for name, below in value.items():
            yield from _field(name, below, depth + 1)
    elif isinstance(value, list | tuple) and any(isinstance(v, dict) for v in value):
        yield f"{pad}{title}:"
        for item in value:
            yield from _item(item, depth + 1)
    else:
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        yield f"{pad}{_line(title, text)}" if "\n" not in text else f"{pad}{title}:\n{text}"


def _item(item: Any, depth: int) -> Iterator[str]:
    lines = [line for name, value in item.items() for line in _field(name, value, depth + 1)]
    for i, line in enumerate(lines):
        yield f"{'  ' * depth}- {line.lstrip()}" if i == 0 else line


def _endpoints(service: Service, objects: Iterable[Object]) -> str:
    slices = [
        o for o in objects
        if isinstance(o, EndpointSlice) and (o.namespace, o.service) == (service.namespace, service.name)
    ]  # fmt: skip
    ready = [
        f"[{a}]:{p.port}" if ":" in a else f"{a}:{p.port}"
        for s in slices for e in s.endpoints if e.ready for a in e.addresses for p in s.ports
    ]  # fmt: skip
    return ", ".join(ready) or printing.NONE


def _ejected(service: Service, ejected: Iterable[dict[str, Any]] | None) -> Iterator[str]:
    """Endpoints that the agent of this node has taken out of rotation."""
    if ejected is None:
        yield _line("Ejected here", "unknown: no agent answers")
        return
    mine = [e for e in ejected if e["service"] == f"{service.namespace}/{service.name}"]
    words = [f"{e['endpoint']} ({e['reason']}; {until(e)})" for e in mine]
    yield _line("Ejected here", ", ".join(words) or printing.NONE)


def _events(obj: Object, objects: Iterable[Object], now: datetime) -> Iterator[str]:
    mine = [
        o for o in objects
        if isinstance(o, Event) and o.involved_object.kind == obj.KIND
        and (o.involved_object.namespace, o.involved_object.name) == (obj.namespace, obj.name)
    ]  # fmt: skip
    if not mine:
        yield _line("Events", printing.NONE)
        return
    yield "Events:"
    mine.sort(key=lambda e: e.last_timestamp or e.event_time)
    rows = [("Type", "Reason", "Age", "Message")]
    rows += [
        (e.type, e.reason, printing.since(e.last_timestamp or e.event_time, now), e.message) for e in mine
    ]
    yield from (f"  {line}" for line in printing.table(rows))
