"""Sysctls below /proc/sys, of our or of another network namespace.

Rule 1: read before write: what is as wanted is not written (a write to net/ipv4/ip_forward resets
        other settings of the namespace even when it changes nothing).
Rule 2: names have slashes; a name that leaves /proc/sys is refused.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..model.errors import Invalid, KernelError
from ._rtnl import ffi, lib

_SIZE = 4096


def _path(name: str) -> bytes:
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise Invalid(f"sysctl {name!r}: a name lies below /proc/sys and has slashes: net/ipv4/ip_forward")
    return b"/proc/sys/" + name.encode()


def read(name: str, netns: str = "") -> str | None:
    """The value, white space as single blanks; None when this kernel has no such name."""
    out = ffi.new("char[]", _SIZE)
    size = lib.np_sysctl_read(netns.encode(), _path(name), out, _SIZE)
    if size in (-2, -20):  # ENOENT, ENOTDIR
        return None
    if size < 0:
        raise KernelError(-size, f"read sysctl {name}{f' in {netns}' if netns else ''}")
    return " ".join(ffi.buffer(out, size)[:].decode().split())


def write(pairs: Iterable[tuple[str, str]], netns: str = "", missing_ok: bool = False) -> None:
    """Write all; with ``missing_ok`` names that this kernel lacks are passed over. Raises KernelError."""
    items = list(pairs)
    if not items:
        return
    for name, value in items:
        if "\0" in value:  # it would begin the next pair
            raise Invalid(f"sysctl {name}: the value {value!r:.40} holds a NUL character")
    errnos = ffi.new("int[]", len(items))
    data = b"".join(_path(name) + b"\0" + value.encode() + b"\0" for name, value in items)
    result = lib.np_sysctl_write(netns.encode(), data, errnos, len(items))
    where = f" in {netns}" if netns else ""
    if result < 0:
        raise KernelError(-result, f"enter network namespace {netns}")
    for (name, value), error in zip(items, errnos, strict=True):
        if error and not (missing_ok and error == -2):
            raise KernelError(-error, f"set sysctl {name} = {value}{where}")


def ensure(pairs: Iterable[tuple[str, str]], netns: str = "") -> None:
    """Write what is not yet so. Raises KernelError, also for a name that this kernel lacks."""
    write([(n, v) for n, v in pairs if read(n, netns) != " ".join(v.split())], netns)


def ipv6_missing(netns: str = "") -> str:
    """Why this namespace cannot have IPv6, or "" when it can."""
    disabled = read("net/ipv6/conf/all/disable_ipv6", netns)
    if disabled is None:
        return "this kernel has no IPv6 (no net/ipv6 in /proc/sys)"
    return "IPv6 is switched off: net/ipv6/conf/all/disable_ipv6 is 1" if disabled == "1" else ""
