"""What this machine offers to volumes, and what a crash has left: one line each, read-only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from netplane.model.errors import KernelError

from .claims import capture
from .claims.copies import TRASH
from .csi import intents
from .host import helper, hugepages, images, mountinfo, syscalls
from .host.trash import Trash
from .pods.journal import Journal
from .rpc import server

Finding = tuple[bool, str]


def findings(root: Path) -> Iterator[Finding]:
    """(good, line) for each thing looked at."""
    yield os.geteuid() == 0, "mounting needs root" if os.geteuid() else "runs as root"
    yield _openat2()
    yield _tmpfs()
    yield from _volumes()
    yield from _left_over(root)


def _openat2() -> Finding:
    try:
        os.close(syscalls.openat2(syscalls.AT_FDCWD, "/", os.O_PATH, syscalls.RESOLVE_NO_SYMLINKS))
    except KernelError as exc:
        return False, f"openat2 (Linux 5.6) is missing: paths cannot be resolved safely: {exc}"
    return True, "openat2: paths are resolved without links"


def _tmpfs() -> Finding:
    try:
        os.close(syscalls.new_filesystem("tmpfs", ("size=4096",)))
    except KernelError as exc:
        return False, f"tmpfs by fsopen (Linux 5.2) fails: emptyDir Memory cannot be had: {exc}"
    return True, "fsopen and tmpfs: emptyDir Memory with its size limit"


def _volumes() -> Iterator[Finding]:
    """Kinds of volumes that not every machine has; one that is lacking is no fault."""
    memory = (
        "stay out of swap (noswap)" if _noswap() else "may be swapped out: this kernel's tmpfs has no noswap"
    )
    yield True, f"secrets in memory {memory}"
    if images.tools("ext4") and os.path.exists("/dev/loop-control"):
        yield True, "emptyDir sizeLimit on disk: ext4 in an image, by a loop device"
    else:
        yield False, "emptyDir sizeLimit on disk needs mkfs.ext4 (Debian: e2fsprogs) and loop devices"
    pools = ", ".join(f"{n} pages of {hugepages.shown(s)}" for s, n in sorted(hugepages.pools().items()))
    yield True, f"emptyDir HugePages: {pools or 'not here: this kernel has no hugetlbfs (CONFIG_HUGETLBFS)'}"
    yield True, server.LACKING or "the CSI driver can be served (nghttp2)"
    for fstype, needs in helper.NEEDS.items():
        yield True, helper.lacking(fstype) or f"{needs.what} volumes, by mount.{fstype}"


def _noswap() -> bool:
    try:
        os.close(syscalls.new_filesystem("tmpfs", ("noswap",)))
    except KernelError:
        return False
    return True


def _left_over(root: Path) -> Iterator[Finding]:
    journal = Journal(root)
    damaged = (*journal.damaged(), *intents.damaged(root), *capture.damaged(root))
    yield from ((False, why) for why in damaged)
    uids = {r.uid for r in journal.records()}
    pods = root / "pods"
    found = {p.name for p in pods.iterdir()} if pods.is_dir() else set()
    for uid in sorted(found - uids):
        yield False, f"{pods / uid} belongs to no publication: remove it once nothing uses it"
    thrown = [one for folder in (TRASH, "csi/trash") for one in Trash(root, folder).all()]
    if thrown:
        yield True, f"{len(thrown)} deleted volumes in the trash: storageplane trash list"
    mounted = mountinfo.beneath(os.path.realpath(root))
    yield True, f"{len(uids)} pods published, {len(mounted)} mounts beneath {root}"
