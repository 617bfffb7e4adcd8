"""What this process holds open: a test of leaks compares two of these.

Only what came counts: what other tests left may be closed at any moment, by a thread that ends.
"""

from __future__ import annotations

import gc
import os
from collections import Counter


def held() -> Counter[str]:
    """How many descriptors are open on what: a path, or its kind where it has none (``socket``, ``pipe``)."""
    gc.collect()
    found: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the listing's own, or closed since
            continue
        found[target if target.startswith("/") else target.partition(":[")[0]] += 1
    return found
