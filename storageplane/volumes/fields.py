"""Fields of a Pod and resources of its containers as text: downwardAPI files and environment variables.

Source: kubernetes pkg/fieldpath/fieldpath.go, pkg/api/v1/resource/helpers.go.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from netplane.model.checks import exact_quantity
from netplane.model.errors import Invalid
from netplane.model.pods import Container, Pod

_ESCAPES = {
    '"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t",
    "\v": "\\v",
}  # fmt: skip


def field(pod: Pod, path: str) -> str:
    """The value of a fieldPath such as "metadata.labels['app']"; "" for a label that is not there.

    Raises Invalid for a path that is not offered.
    """
    meta = pod.metadata
    maps = {"metadata.labels": meta.labels, "metadata.annotations": meta.annotations}
    name, _, key = path.partition("['")
    if key:
        if name in maps and key.endswith("']"):
            return maps[name].get(key[:-2], "")
    elif name in maps:
        return "\n".join(f"{k}={quoted(v)}" for k, v in sorted(maps[name].items()))
    plain = {
        "metadata.name": meta.name,
        "metadata.namespace": meta.namespace,
        "metadata.uid": meta.uid,
        "spec.nodeName": pod.spec.node_name,
        "spec.serviceAccountName": account(pod),
        "status.hostIP": pod.status.host_ip,
        "status.hostIPs": ",".join(i.ip for i in pod.status.host_ips),
        "status.podIP": next(iter(pod.ips), ""),
        "status.podIPs": ",".join(pod.ips),
    }
    if path not in plain:
        raise Invalid(f"{pod.key}: fieldPath {path!r} is not offered; use one of {', '.join(plain)}")
    return plain[path]


def account(pod: Pod) -> str:
    """The pod's service account; Kubernetes' admission writes "default" where none is named."""
    return pod.spec.service_account_name or pod.spec.service_account or "default"


def resource(
    container: Container,
    name: str,
    divisor: str | int | float,
    allocatable: Mapping[str, str | int | float],
) -> str:
    """A limit or request in units of the divisor (0: 1), rounded up.

    A limit that is not set is the node's allocatable; a request that is not set is the limit, or 0.
    """
    which, _, what = name.partition(".")
    limits, requests = container.resources.limits, container.resources.requests
    if which == "limits":
        value = limits.get(what, allocatable.get(what, 0))
    else:
        value = requests.get(what, limits.get(what, 0))
    unit = exact_quantity(divisor) or 1
    return str(math.ceil(exact_quantity(value) / unit))


def quoted(text: str) -> str:
    """Go's %q (strconv.Quote)."""
    return '"' + "".join(_escaped(c) for c in text) + '"'


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    number = ord(char)
    if number < 0x80:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
