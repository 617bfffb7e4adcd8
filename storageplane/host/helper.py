"""File systems of the network, mounted by the helper that comes with their client: mount.nfs and others.

Rule 1: before anything is run: is the helper installed, and has the kernel the file system? What is
        missing is named with the package and the kernel option that bring it.
Rule 2: a helper runs in a process group of its own, without a terminal, for TIMEOUT seconds at most; then
        all of the group ends, and what it may have mounted meanwhile goes.
Rule 3: a secret reaches the helper in an anonymous file, never on its command line, and no message has it.
Source: mount(8), "External helpers".
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from netplane.model.errors import Invalid, KernelError
from netplane.model.storage_facts import NetworkMount

from . import mountinfo, syscalls

TIMEOUT = 60.0  # seconds
SAID = 4096  # bytes of what a helper says that are kept


class Needs(NamedTuple):
    """``fstype``: the kernel's name of it."""

    what: str
    package: str
    fstype: str
    option: str


NEEDS = {
    "nfs": Needs("NFS", "nfs-common", "nfs", "CONFIG_NFS_FS"),
    "ceph": Needs("CephFS", "ceph-common", "ceph", "CONFIG_CEPH_FS"),
    "glusterfs": Needs("GlusterFS", "glusterfs-client", "fuse", "CONFIG_FUSE_FS"),
}


def lacking(fstype: str) -> str:
    """What this machine lacks for such a mount, as a sentence; "" when it has all."""
    needs = NEEDS[fstype]
    parts = []
    if not _program(fstype):
        parts.append(f"mount.{fstype} is not installed (Debian: {needs.package})")
    if not syscalls.knows(needs.fstype):
        parts.append(f"this kernel has no {needs.fstype} file system ({needs.option})")
    return f"{needs.what} volumes cannot be had here: {'; '.join(parts)}" if parts else ""


def mount(fact: NetworkMount, target: str) -> None:
    """Mount it at ``target``, an empty directory. Raises Invalid (something is lacking), KernelError."""
    missing = lacking(fact.fstype)
    program = _program(fact.fstype)
    if missing or program is None:
        raise Invalid(missing)
    with _file(fact.secret) as secret:
        options = [*fact.options, *([f"secretfile=/proc/self/fd/{secret}"] if secret >= 0 else [])]
        words = ["-o", ",".join(options)] if options else []
        code, said = _run([program, fact.source, target, *words], (secret,) if secret >= 0 else ())
    what = f"mount.{fact.fstype} {fact.source}"
    if code is None:
        _withdraw(target)
        raise KernelError(errno.ETIMEDOUT, what, f"no answer in {TIMEOUT:.0f} s; is the server reachable?")
    if code != 0:
        raise KernelError(errno.EIO, what, _without(said, fact.secret) or f"exit status {code}")
    if not any(m.point == target for m in mountinfo.read()):
        raise KernelError(errno.EIO, what, "said that it was done, but nothing is mounted")


def _program(fstype: str) -> str | None:
    return shutil.which(f"mount.{fstype}", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


@contextmanager
def _file(secret: bytes) -> Iterator[int]:
    """A descriptor of an anonymous file with this content; -1 for none."""
    if not secret:
        yield -1
        return
    fd = os.memfd_create("secret", os.MFD_CLOEXEC)
    try:
        os.write(fd, secret)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


def _run(argv: list[str], keep: tuple[int, ...]) -> tuple[int | None, str]:
    """(exit status or None, the last line that it said); daemons that it leaves may keep its stderr."""
    said = os.memfd_create("said", os.MFD_CLOEXEC)
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd="/", pass_fds=keep,
            start_new_session=True, env={"PATH": f"{os.defpath}:/usr/sbin:/sbin", "LC_ALL": "C"},
        )  # fmt: skip
        try:
            code: int | None = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = None
        lines = os.pread(said, SAID, 0).decode(errors="replace").strip().splitlines()
    except OSError as exc:
        raise KernelError(exc.errno or errno.EIO, f"run {argv[0]}") from exc
    finally:
        os.close(said)
    return code, lines[-1] if lines else ""


def _withdraw(target: str) -> None:
    if any(m.point == target for m in mountinfo.read()):
        syscalls.umount(target, syscalls.MNT_DETACH)


def _without(said: str, secret: bytes) -> str:
    return said.replace(secret.decode(errors="replace").strip(), "***") if secret.strip() else said
