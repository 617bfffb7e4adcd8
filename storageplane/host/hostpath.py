"""HostPathVolumeSource.type: what a path of the host must be, and what is made when it is not there.

Directories come with their parents (0755), files without (0644). Links are followed: the path is the
node administrator's. Source: kubernetes pkg/volume/hostpath/host_path.go.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from netplane.model.errors import Invalid, KernelError
from netplane.model.storage_facts import HostPath

_IS: dict[str, tuple[str, Callable[[int], bool]]] = {
    "Directory": ("a directory", stat.S_ISDIR),
    "File": ("a file", stat.S_ISREG),
    "Socket": ("a socket", stat.S_ISSOCK),
    "CharDevice": ("a character device", stat.S_ISCHR),
    "BlockDevice": ("a block device", stat.S_ISBLK),
}


def ensure(fact: HostPath) -> None:
    """Make or check the path. Raises Invalid when it is missing or something else, KernelError."""
    if ".." in fact.path.split("/") or not fact.path.startswith("/"):
        raise Invalid(f"hostPath {fact.path!r} must be an absolute path without '..'")
    if fact.type.endswith("OrCreate") and not os.path.exists(fact.path):
        _create(fact)
    if fact.type:
        check(fact.path, fact.type.removesuffix("OrCreate"))


def check(path: str, kind: str) -> None:
    """Raises Invalid unless ``path`` is there and of ``kind`` (Directory, File, Socket, …)."""
    name, test = _IS[kind]
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise Invalid(f"hostPath type check failed: {path} does not exist; it must be {name}") from None
    except OSError as exc:
        raise KernelError(exc.errno or 5, f"look at {path}") from exc
    if not test(mode):
        have = next((n for n, is_it in _IS.values() if is_it(mode)), "something else")
        raise Invalid(f"hostPath type check failed: {path} is {have}; it must be {name}")


def _create(fact: HostPath) -> None:
    path = Path(fact.path)
    try:
        if fact.type == "DirectoryOrCreate":
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o755)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fd = os.open(path, flags, 0o644)
            os.fchmod(fd, 0o644)
            os.close(fd)
    except FileExistsError:
        pass  # somebody else made it meanwhile; what it is, the check says
    except FileNotFoundError:
        raise Invalid(
            f"hostPath {path}: {path.parent} does not exist; FileOrCreate makes no parents"
        ) from None
    except OSError as exc:
        raise KernelError(exc.errno or 5, f"create {path}") from exc
