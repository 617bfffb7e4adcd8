"""What this process holds open: a test of leaks compares two of these.

What other tests left for the collector is closed before the first look, so it is not missing at the second.
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
