"""/proc/self/mountinfo, parsed (Documentation/filesystems/proc.rst, 3.5)."""

from __future__ import annotations

import re
from typing import NamedTuple

_ESCAPED = re.compile(r"[\s\\#]")  # what the kernel writes as octal digits
_OCTAL = re.compile(r"\\([0-7]{3})")


class Mounted(NamedTuple):
    """One line; ``propagation``: private, rslave, rshared (a shared slave is rshared)."""

    id: int
    parent: int
    device: str
    root: str
    point: str
    options: tuple[str, ...]
    propagation: str
    fstype: str
    super_options: tuple[str, ...]

    @property
    def read_only(self) -> bool:
        return "ro" in self.options


def read(path: str = "/proc/self/mountinfo") -> list[Mounted]:
    """Every mount of this namespace, in the order in which they hide each other."""
    return [parse(line) for line in _text(path).splitlines()]


def _text(path: str = "/proc/self/mountinfo") -> str:
    with open(path, "rb", buffering=0) as file:
        return file.readall().decode("utf-8", "surrogateescape")


def parse(line: str) -> Mounted:
    left, _, right = line.partition(" - ")
    number, above, device, root, point, options, *tags = left.split(" ")
    fstype, _, super_options = right.split(" ", 2)
    return Mounted(
        int(number), int(above), device, _plain(root), _plain(point), tuple(options.split(",")),
        _propagation(tags), fstype, tuple(super_options.split(",")),
    )  # fmt: skip


def _propagation(tags: list[str]) -> str:
    if any(t.startswith("shared:") for t in tags):
        return "rshared"
    return "rslave" if any(t.startswith("master:") for t in tags) else "private"


def _plain(text: str) -> str:
    return _OCTAL.sub(lambda m: chr(int(m[1], 8)), text)


def beneath(path: str) -> list[Mounted]:
    """The mounts at ``path`` and below it, parents first."""
    text = _text()
    if path not in text and not _ESCAPED.search(path):
        return []  # as mostly, and nothing need be parsed to know it
    found = [parse(line) for line in text.splitlines()]
    return [m for m in found if m.point == path or m.point.startswith(path + "/")]
