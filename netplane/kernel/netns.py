"""Network namespaces at paths: make, remove, run code or programs inside.

Rule 1: a namespace is a path that holds it (a bind mount), as in the CNI specification.
Rule 2: only `enter` moves the calling thread; all else runs inside in a thread of its own.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..model.errors import KernelError
from ._rtnl import ffi, lib

T = TypeVar("T")
MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def _done(result: int, operation: str) -> int:
    if result < 0:
        raise KernelError(-result, operation)
    return result


def create(path: str | Path) -> None:
    """Make a namespace and bind it to ``path``, which must not exist. Raises KernelError."""
    _done(lib.np_netns_create(str(path).encode()), f"create network namespace {path}")


def delete(path: str | Path) -> None:
    """Unbind and remove ``path``; the namespace goes with its last process. Gone already: fine."""
    _libc.umount2(os.fsencode(path), MNT_DETACH)
    Path(path).unlink(missing_ok=True)


def exists(path: str | Path) -> bool:
    """Whether ``path`` holds a namespace (it lies on nsfs), not just a file left behind."""
    try:
        return os.stat(path).st_dev == _own().st_dev
    except OSError:
        return False


def is_own(path: str | Path) -> bool:
    """Whether ``path`` leads to the namespace that this process was started in."""
    try:
        return os.path.samestat(os.stat(path), _own())
    except OSError:
        return False


def cookie(path: str | Path) -> int:
    """What the kernel calls the namespace at ``path``, no other of this boot so (SO_NETNS_COOKIE, 5.14).

    0: it has no name for it, or there is none.
    """
    return max(0, int(lib.np_netns_cookie(os.fsencode(path))))


@functools.cache
def _own() -> os.stat_result:
    """A process stays where it was started; all namespaces lie on one file system."""
    return os.stat("/proc/self/ns/net")


def enter(path: str | Path) -> None:
    """Move the calling thread into the namespace, for good; its children are born there."""
    _done(lib.np_netns_enter(str(path).encode()), f"enter network namespace {path}")


def call(path: str | Path, function: Callable[..., T], *args: Any) -> T:
    """Run ``function`` in a thread inside the namespace; its result or exception is ours."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            enter(path)
            outcome.extend((True, function(*args)))
        except BaseException as exc:
            outcome[:] = (False, exc)

    thread = threading.Thread(target=run, name=f"netns {path}")
    thread.start()
    thread.join()
    good, value = outcome
    if not good:
        raise value
    result: T = value
    return result


def popen(path: str | Path, argv: list[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a program inside the namespace (a thread enters it and forks there)."""
    return call(path, lambda: subprocess.Popen(argv, **options))


def run(path: str | Path, *argv: str, check: bool = True, **options: Any) -> str:
    """Run a program inside to its end, return its stdout. Raises KernelError with its stderr."""
    options = {"timeout": 60, "stdin": subprocess.DEVNULL, **options}
    done = call(path, lambda: subprocess.run(argv, capture_output=True, text=True, check=False, **options))
    if check and done.returncode:
        raise KernelError(5, f"{' '.join(argv)} in {path}", (done.stderr or done.stdout).strip())
    return str(done.stdout)


def open_socket(path: str, protocol: int) -> int:
    """A netlink socket's descriptor of the namespace at ``path`` ("": ours). Raises KernelError."""
    return _done(lib.np_socket_open(path.encode() or ffi.NULL, protocol), f"open netlink socket in {path}")


def make_private(mounts: bool = True, network: bool = False) -> None:
    """Give this process namespaces whose changes nobody else sees. Call before any thread starts."""
    _done(lib.np_private_namespaces(mounts, network), "unshare namespaces")
