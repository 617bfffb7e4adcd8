"""Kind loopback: lo of a namespace, up and with its addresses; nothing is recorded, and DEL leaves it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .errors import ENVIRONMENT, Refused
from .host import Host, Seen
from .request import Request
from .result import LOOPBACK, loopback_result


def add(host: Host, request: Request) -> dict[str, Any]:
    _refuse_missing(host, request)
    host.raise_loopback(request.netns)
    lo = host.look(request.netns, "lo")
    return loopback_result(request.netns, request.config, lo.addresses if lo else LOOPBACK)


def differences(host: Host, request: Request) -> list[str]:
    """What is otherwise than after `add`, in words."""
    if not host.netns_exists(request.netns):
        return [f"{request.netns} is gone"]
    return list(_faults(host.look(request.netns, "lo"), _given(request), request.netns))


def _faults(lo: Seen | None, given: list[str], netns: str) -> Iterator[str]:
    if lo is None:
        yield f"there is no lo in {netns}"
        return
    if not lo.up:
        yield f"lo in {netns} is down"
    for address in given:
        if address not in lo.addresses:
            yield f"lo in {netns} has no address {address}"


def _given(request: Request) -> list[str]:
    """The loopback addresses that ADD answered with; a chain's other addresses are its other plugins'."""
    before = (request.config.prev_result or {}).get("ips") or ()
    known = [one.get("address") for one in before if isinstance(one, dict)]
    return [address for address in LOOPBACK if address in known]


def _refuse_missing(host: Host, request: Request) -> None:
    if not host.netns_exists(request.netns):
        raise Refused(ENVIRONMENT, f"CNI_NETNS: {request.netns} holds no network namespace")
