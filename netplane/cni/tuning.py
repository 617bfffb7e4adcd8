"""Sysctls of a container's namespace: which may be set, and their names as the kernel has them (pure).

Rule 1: only what belongs to a network namespace (net/…), never what the whole machine shares.
Rule 2: names may be written with dots or slashes; IFNAME stands for the interface.
Rule 3: where an administrator keeps the tuning plugin's list of allowed names (regular expressions, a
        line each), it is obeyed, and its expressions are found anywhere in a name, as there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

ALLOWED = "/etc/cni/tuning/allowlist.conf"
_SHARED = re.compile(r"net/core/(?!somaxconn$|xfrm_|optmem_max$|txrehash$|[rw]mem_default$|[rw]mem_max$)")
_NAME = re.compile(r"net/[A-Za-z0-9_./\-]+")


def canonical(name: str, ifname: str = "IFNAME") -> str:
    """With slashes: net.ipv4.conf.IFNAME.forwarding → net/ipv4/conf/eth0/forwarding."""
    first = re.search(r"[./]", name)
    if first and first[0] == ".":  # as sysctl(8): the first separator tells which the others are
        name = name.translate(str.maketrans("./", "/."))
    return name.replace("IFNAME", ifname)


def faults(sysctl: dict[str, str]) -> Iterator[str]:
    for name in sysctl:
        path = canonical(name)
        if not _NAME.fullmatch(path) or ".." in path.split("/"):
            yield f"sysctl: {name!r:.80} is not of a network namespace; names begin with net."
        elif _SHARED.match(path):
            yield f"sysctl: {name} is not a container's own: it would change the whole machine"


def refused(sysctl: dict[str, str], allowed: str) -> str:
    """Why the administrator's list refuses these; "" when it does not. ``allowed``: the file's text."""
    patterns = []
    for number, line in enumerate(allowed.split("\n"), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                patterns.append(re.compile(line.strip()))
            except re.error as exc:
                words = f"{line.strip()!r:.80} is not a regular expression: {exc}"
                return f"sysctl: {ALLOWED}, line {number}: {words}"
    for name in sysctl:
        dotted = canonical(name).replace("/", ".")
        if not any(pattern.search(dotted) for pattern in patterns):
            return f"sysctl: {name} is not in the list of allowed names {ALLOWED}"
    return ""


def settings(sysctl: dict[str, str], ifname: str) -> dict[str, str]:
    return {canonical(name, ifname): value for name, value in sysctl.items()}
