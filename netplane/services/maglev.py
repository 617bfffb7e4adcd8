"""Consistent slots: a client's hash names a slot, and few slots change hands when endpoints do.

Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4:
every endpoint has its own order of preference over all slots, and they choose in turns.

Rule 1: the table depends on the endpoints alone, so all nodes send a client to the same one.
Rule 2: the number of slots is prime, so that offset and skip make a permutation; shares differ by
        about endpoints / slots, so a hundred slots for each endpoint keep them within one percent.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from ..model.errors import Invalid
from ..model.services import MAGLEV_SLOTS, Service
from .endpoints import Backend

SLOTS = 251  # without the annotation
MOST = 65521  # the largest prime that a class can count


def slots(service: Service) -> int:
    """How many slots it asks for. Raises Invalid unless it is a prime that can be."""
    text = service.metadata.annotations.get(MAGLEV_SLOTS, str(SLOTS))
    number = int(text) if text.isdecimal() and len(text) <= 5 else 0
    if not (2 < number <= MOST and all(number % i for i in range(2, int(number**0.5) + 1))):
        raise Invalid(
            f"{service.key}: annotation {MAGLEV_SLOTS} is {text!r}; it must be a prime from 3 to {MOST}"
        )
    return number


@lru_cache(maxsize=1024)
def table(backends: tuple[Backend, ...], size: int) -> tuple[Backend, ...]:
    """The endpoint of each of ``size`` slots. Raises Invalid when there are more endpoints than slots."""
    if len(backends) > size:
        raise Invalid(
            f"{len(backends)} endpoints do not fit into {size} slots; annotation {MAGLEV_SLOTS} asks for more"
        )
    orders = [_preference(backend, size) for backend in backends]
    filled: list[Backend | None] = [None] * size
    turns = [0] * len(backends)
    left = size
    while left:
        for i, (offset, skip) in enumerate(orders):
            slot = (offset + turns[i] * skip) % size
            while filled[slot] is not None:
                turns[i] += 1
                slot = (offset + turns[i] * skip) % size
            filled[slot] = backends[i]
            turns[i] += 1
            left -= 1
            if not left:
                break
    return tuple(b for b in filled if b is not None)


def _preference(backend: Backend, size: int) -> tuple[int, int]:
    digest = hashlib.blake2b("{} {}".format(*backend).encode(), digest_size=16).digest()
    offset, skip = (int.from_bytes(half, "big") for half in (digest[:8], digest[8:]))
    return offset % size, skip % (size - 1) + 1
