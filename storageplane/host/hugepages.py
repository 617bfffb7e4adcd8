"""The page sizes of hugetlbfs that this machine has, and how many pages of each are set aside."""

from __future__ import annotations

import re
from pathlib import Path

from netplane.model.checks import parse_quantity
from netplane.model.errors import Invalid

from . import syscalls

_POOLS = Path("/sys/kernel/mm/hugepages")
_POOL = re.compile(r"hugepages-([0-9]+)kB")


def pools() -> dict[int, int]:
    """Page size in bytes → pages that are set aside (nr_hugepages); empty without hugetlbfs."""
    if not _POOLS.is_dir() or not syscalls.knows("hugetlbfs"):
        return {}
    found = ((_POOL.fullmatch(p.name), p) for p in _POOLS.iterdir())
    return {int(m[1]) * 1024: int((p / "nr_hugepages").read_text()) for m, p in found if m}


def check(options: tuple[str, ...]) -> None:
    """Raises Invalid when a mount asks for a page size that is not there."""
    have = pools()
    if not have:
        raise Invalid("emptyDir.medium HugePages: this kernel has no hugetlbfs (CONFIG_HUGETLBFS)")
    for option in options:
        name, _, value = option.partition("=")
        if name == "pagesize" and parse_quantity(value) not in have:
            sizes = ", ".join(shown(s) for s in sorted(have, reverse=True))
            raise Invalid(f"this machine has no huge pages of {shown(parse_quantity(value))}; it has {sizes}")


def shown(size: int) -> str:
    """Bytes as resource names write them: 2Mi, 1Gi."""
    for unit, power in (("Gi", 30), ("Mi", 20), ("Ki", 10)):
        if size % (1 << power) == 0:
            return f"{size >> power}{unit}"
    return str(size)
