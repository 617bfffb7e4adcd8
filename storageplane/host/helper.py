"""File systems of the network, mounted by the helper that comes with their client: mount.nfs and others.

Rule 1: before anything is run: is the helper installed, and has the kernel the file system? What is
        missing is named with the package and the kernel option that bring it.
Rule 2: a helper runs in a process group of its own, without a terminal, for TIMEOUT seconds at most; then
        all of the group ends, and what it may have mounted meanwhile goes.
Rule 3: a secret reaches the helper in an anonymous file, never on its command line, and no message has it.
Rule 4: CephFS without the kernel's client is mounted by ceph-fuse, if that is here, as kubelet does.
Source: mount(8), "External helpers"; mount.ceph(8), ceph-fuse(8); kubernetes v1.30 pkg/volume/cephfs.
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


CEPH_FUSE = Needs("CephFS", "ceph-fuse", "fuse", "CONFIG_FUSE_FS")


def lacking(fstype: str) -> str:
    """What this machine lacks for such a mount, as a sentence; "" when it has all."""
    if by(fstype):
        return ""
    needs = NEEDS[fstype]
    parts = []
    if not _program(f"mount.{fstype}"):
        parts.append(f"mount.{fstype} is not installed (Debian: {needs.package})")
    if not syscalls.knows(needs.fstype):
        parts.append(f"this kernel has no {needs.fstype} file system ({needs.option})")
    if fstype == "ceph":
        parts.append(f"without it, {CEPH_FUSE.package} would do (Debian: {CEPH_FUSE.package})")
    return f"{needs.what} volumes cannot be had here: {'; '.join(parts)}"


def by(fstype: str) -> str:
    """The program that mounts it here; "" when something is lacking."""
    if _program(f"mount.{fstype}") and syscalls.knows(NEEDS[fstype].fstype):
        return f"mount.{fstype}"
    fuse = fstype == "ceph" and _program(CEPH_FUSE.package) and syscalls.knows(CEPH_FUSE.fstype)
    return CEPH_FUSE.package if fuse else ""


def mount(fact: NetworkMount, target: str) -> None:
    """Mount it at ``target``, an empty directory. Raises Invalid (something is lacking), KernelError."""
    name = by(fact.fstype)
    program = _program(name)
    if program is None:
        raise Invalid(lacking(fact.fstype))
    fuse = name == CEPH_FUSE.package
    with _file(_keyring(fact) if fuse else fact.secret) as secret:
        words = ceph_fuse(fact, target, secret) if fuse else _words(fact, target, secret)
        code, said = _run([program, *words], (secret,) if secret >= 0 else ())
    what = f"{name} {fact.source}"
    if code is None:
        _withdraw(target)
        raise KernelError(errno.ETIMEDOUT, what, f"no answer in {TIMEOUT:.0f} s; is the server reachable?")
    if code != 0:
        raise KernelError(errno.EIO, what, _without(said, fact.secret) or f"exit status {code}")
    if not any(m.point == target for m in mountinfo.read()):
        raise KernelError(errno.EIO, what, "said that it was done, but nothing is mounted")


def _words(fact: NetworkMount, target: str, secret: int) -> list[str]:
    options = [*fact.options, *([f"secretfile=/proc/self/fd/{secret}"] if secret >= 0 else [])]
    return [fact.source, target, *(["-o", ",".join(options)] if options else [])]


def ceph_fuse(fact: NetworkMount, target: str, keyring: int) -> list[str]:
    """What ceph-fuse is told instead of mount.ceph's words. Pure."""
    monitors, _, path = fact.source.partition(":/")
    words = ["-m", monitors, "-r", f"/{path}", "--id", _option(fact, "name")]
    words += ["-k", f"/proc/self/fd/{keyring}"] if keyring >= 0 else []
    rest = [o for o in fact.options if o.partition("=")[0] not in ("name", "secretfile")]
    return [*words, target, *(["-o", ",".join(rest)] if rest else [])]


def _keyring(fact: NetworkMount) -> bytes:
    """A keyring with the key that mount.ceph would get. Raises KernelError when its file cannot be read."""
    key, path = fact.secret, _option(fact, "secretfile")
    if path:
        try:
            with open(path, "rb") as file:
                key = file.read(SAID)
        except OSError as exc:
            raise KernelError(exc.errno or errno.EIO, f"read cephfs.secretFile {path}") from exc
    if not key.strip() or key.lstrip().startswith(b"["):
        return key  # none, or a keyring already
    return b"[client.%b]\n\tkey = %b\n" % (_option(fact, "name").encode(), key.strip())


def _option(fact: NetworkMount, name: str) -> str:
    return next((o.partition("=")[2] for o in fact.options if o.startswith(f"{name}=")), "")


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") if name else None


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
