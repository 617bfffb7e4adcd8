"""Which endpoints are left out for a while because connections to them fail. Pure.

What is known of an endpoint are three counts that the kernel keeps (see watch): connections sent to
it, connections that it answered, connections that it refused with a reset.

Rule 1: an endpoint goes when so many connections in a row failed: refused, or silent for PATIENCE.
Rule 2: it comes back after its time, which doubles with each time until it answers again, up to MOST.
        One answer, whenever it comes, forgives everything at once.
Rule 3: at least half of a list stays (`without`): where most fail, the fault is elsewhere, and all are
        tried. So the last one never goes.
Rule 4: this is the memory of one node about what its own connections saw. It is no object of the store:
        other nodes may see something else, and a restart gives every endpoint another chance.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from ..model.errors import Invalid
from ..model.services import EJECTION_FAILURES, EJECTION_LIMITS, EJECTION_SECONDS, Service
from .endpoints import Backend, Choice

LOOK = 1.0  # seconds between two looks at the counts
PATIENCE = 3  # looks: a lost SYN is sent again after 1 s (RFC 6298)
MOST = 600  # seconds that an endpoint stays out, unless it was asked to be longer the first time
Ejected = Mapping[str, Mapping[Backend, str]]  # "namespace/name" of a service → endpoint → why


class Rule(NamedTuple):
    failures: int = 5
    seconds: int = 30


class Count(NamedTuple):
    """Connections so far."""

    tried: int = 0
    answered: int = 0
    refused: int = 0


class Record(NamedTuple):
    """What is remembered of an endpoint. ``seen``, ``since``: the counts now, and where failures begin;
    ``looks``: how many were tried at the last looks, the oldest first; ``times``: it was out."""

    seen: Count
    since: Count
    looks: tuple[int, ...] = ()
    until: float = 0.0  # out until then; 0: in rotation
    times: int = 0
    reason: str = ""


def rule(service: Service) -> Rule | None:
    """What the service asks for; None unless it does. Raises Invalid for a number that cannot be."""
    if not service.ejects:
        return None
    notes = service.metadata.annotations
    return Rule(
        *(
            _number(service, name, notes[name]) if name in notes else default
            for name, default in zip((EJECTION_FAILURES, EJECTION_SECONDS), Rule(), strict=True)
        )
    )


def _number(service: Service, name: str, text: str) -> int:
    most = EJECTION_LIMITS[name]
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 0 < number <= most:
        raise Invalid(f"{service.key}: annotation {name} is {text!r}; it must be from 1 to {most}")
    return number


def judge(record: Record | None, count: Count, rule: Rule, now: float) -> Record:
    """What is known of an endpoint after one more look. ``now``: seconds of a clock that only goes on."""
    known = record.seen if record else count
    if record is None or any(new < old for new, old in zip(count, known, strict=True)):
        return Record(count, count)  # of a new element
    if count.answered > known.answered:
        return Record(count, count)
    if record.until:
        if now < record.until:
            return record._replace(seen=count)
        record = record._replace(since=count, looks=(), until=0.0, reason="")
    record = record._replace(seen=count, looks=(*record.looks, count.tried)[-PATIENCE - 1 :])
    reason = _failing(record, rule)
    if not reason:
        return record
    seconds = min(rule.seconds << record.times, max(MOST, rule.seconds))
    return record._replace(until=now + seconds, times=min(record.times + 1, 16), reason=reason)


def _failing(record: Record, rule: Rule) -> str:
    """In words, why it must go; "" if it need not."""
    refused = record.seen.refused - record.since.refused
    if refused >= rule.failures:
        return f"{refused} connections in a row refused"
    late = record.looks[0] - record.since.tried if len(record.looks) > PATIENCE else 0
    if late >= rule.failures:
        return f"{late} connections in a row without an answer"
    return ""


def without(choice: Choice, out: Collection[Backend]) -> Choice:
    """The choice without these; each list by itself, whole again when more than half of it would go."""
    return choice._replace(cluster=_rest(choice.cluster, out), local=_rest(choice.local, out))


def _rest(backends: tuple[Backend, ...], out: Collection[Backend]) -> tuple[Backend, ...]:
    left = tuple(backend for backend in backends if backend not in out)
    return left if 2 * len(left) >= len(backends) else backends
