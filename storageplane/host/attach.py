"""Mounts made detached: whole, with their flags and propagation, before anybody can see them.

Rule 1: a source is opened once; what is copied is that descriptor.
Rule 2: a file system that we make ourselves (tmpfs, hugetlbfs, an image of ours) is made ready here too.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from netplane.model.errors import KernelError
from netplane.model.storage_facts import Mount

from . import hugepages, loops, mountinfo, subpath, syscalls, tree

PROPAGATION = {
    "private": (syscalls.MS_PRIVATE,),
    "rslave": (syscalls.MS_SLAVE, syscalls.MS_SHARED),  # a slave that hands on what it receives
    "rshared": (syscalls.MS_SHARED,),
}
LOST = "lost+found"


def where(root: Path, path: str) -> str:
    """The absolute path of a fact's path."""
    return path if path.startswith("/") else f"{root}/{path}"


def detached(fact: Mount, root: Path) -> int:
    """A descriptor of the mount, attached nowhere. Raises Invalid, KernelError."""
    made = _made(fact, root)
    try:
        for kind in PROPAGATION[fact.propagation]:
            syscalls.mount_setattr(made, False, kind)
        if fact.read_only:
            syscalls.mount_setattr(made, True, 0, recursive=fact.all_read_only)
    except KernelError:
        os.close(made)
        raise
    return made


def _made(fact: Mount, root: Path) -> int:
    if fact.fstype and "/" in fact.source:
        return _image(fact, Path(where(root, fact.source)))
    if fact.fstype:
        return _memory(fact)
    with subpath.opened(where(root, fact.source), fact.sub, fact.follow) as fd:
        return syscalls.open_tree(fd, fact.recursive, fact.source)


def _memory(fact: Mount) -> int:
    """tmpfs or hugetlbfs; ``noswap`` (Linux 6.4) where the kernel has it."""
    source = f"source={fact.source}"
    if fact.fstype == "hugetlbfs":
        hugepages.check(fact.options)
    try:
        return syscalls.new_filesystem(fact.fstype, (source, *fact.options))
    except KernelError as exc:
        if exc.errno != errno.EINVAL or "noswap" not in fact.options:
            raise
    return syscalls.new_filesystem(fact.fstype, (source, *(o for o in fact.options if o != "noswap")))


def _image(fact: Mount, image: Path) -> int:
    """The file system in an image, by a loop device that goes with the mount."""
    with loops.held(image) as device:
        made = syscalls.new_filesystem(fact.fstype, (f"source={device}", *fact.options))
    try:
        if fact.emptied:
            with tree.translated(f"empty {image}"):
                _emptied(made)
    except KernelError:
        os.close(made)
        raise
    return made


def _emptied(made: int) -> None:
    """A new file system as users expect a new directory: without lost+found, and theirs to write."""
    if LOST in os.listdir(f"/proc/self/fd/{made}"):  # else it was mounted before; its mode is a user's
        os.chmod(f"/proc/self/fd/{made}", 0o777)
        os.rmdir(LOST, dir_fd=made)


def same(mounted: mountinfo.Mounted, fact: Mount, root: Path) -> bool:
    """Whether what is mounted is what the fact wants; a bind is compared by device and inode."""
    if mounted.read_only != fact.read_only:
        return False
    if fact.fstype:
        return mounted.fstype == fact.fstype
    with tree.translated(f"compare {fact.target} with {fact.source}"):
        have = os.stat(where(root, fact.target))
        with subpath.opened(where(root, fact.source), fact.sub, fact.follow) as fd:
            want = os.fstat(fd)
    return (have.st_dev, have.st_ino) == (want.st_dev, want.st_ino)
