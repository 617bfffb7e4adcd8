"""Sparse files that hold a file system or raw blocks: made, copied, grown.

Rule 1: an image appears under its name whole, by rename; what a crash left is overwritten.
Rule 2: a copy shares blocks where the file system can (reflink on xfs and btrfs) and stays sparse
        everywhere. Growing is online; nothing ever shrinks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

from netplane.model.errors import Invalid, KernelError, NetplaneError, Unavailable

from . import loops, progress, syscalls
from .tree import translated

MIB = 1 << 20
FICLONE = 0x40049409  # linux/fs.h
SLACK = 1 << 16  # what a file system may leave unused at its end
SMALLEST = {"ext4": 1 * MIB, "xfs": 300 * MIB, "btrfs": 114294784, "": 4096}  # what each mkfs accepts
_MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-K"),
}
PACKAGE = {"ext4": "e2fsprogs", "xfs": "xfsprogs", "btrfs": "btrfs-progs"}
_GROW = {  # the program, and whether it takes the device or the mount point
    "ext4": (("resize2fs",), "device"),
    "xfs": (("xfs_growfs",), "mounted"),
    "btrfs": (("btrfs", "filesystem", "resize", "max"), "mounted"),
}
_WORDS = {"No space left": errno.ENOSPC, "Permission denied": errno.EPERM}
OPTIONS = {"xfs": ("nouuid",)}  # mount flags: a clone has its source's UUID
TIMEOUT = 600.0  # seconds in which a mkfs, copy or growth has written nothing


def make(image: Path, size: int, fstype: str) -> None:
    """A sparse image of ``size`` bytes with an empty file system ("": raw). There already: fine.

    Raises KernelError (ENOSPC), Invalid for a size the file system cannot have, Unavailable without
    its mkfs.
    """
    if image.exists():
        return
    check(size, fstype)
    fresh = image.with_name(f"{image.name}.new")
    with translated(f"make image {image}"), open(fresh, "wb") as file:
        file.truncate(size)
    if fstype:
        run(*_MKFS[fstype], str(fresh), package=PACKAGE[fstype])
    _settle(fresh, image)


def check(size: int, fstype: str) -> None:
    """Raises Invalid for an unknown file system or too small a size."""
    known(fstype)
    if size < SMALLEST[fstype]:
        raise Invalid(f"{size} bytes are too few for {fstype or 'an image'}: at least {SMALLEST[fstype]}")


def known(fstype: str) -> None:
    """Raises Invalid for a file system that no image here can hold; "" is raw blocks."""
    if fstype not in SMALLEST:
        kinds = ", ".join(sorted(PACKAGE))
        raise Invalid(f"file system {fstype!r} is not supported; use one of {kinds}")


def copy(source: Path, image: Path, fstype: str) -> None:
    """A copy of an image, sharing its blocks where the file system can. There already: fine.

    What fails leaves nothing: on a full disk others need the room.
    """
    if image.exists():
        return
    fresh = image.with_name(f"{image.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        run("cp", "--reflink=auto", "--sparse=always", "--", str(source), str(fresh))
        _new_identity(fresh, fstype)
        _settle(fresh, image)
    except NetplaneError:
        fresh.unlink(missing_ok=True)
        raise


def shares_blocks(folder: Path) -> bool:
    """Whether the file system there can reflink, tried with two files that have no name."""
    with translated(f"look at {folder}"):
        fds = [os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600) for _ in range(2)]
        try:
            os.write(fds[0], bytes(4096))
            fcntl.ioctl(fds[1], FICLONE, fds[0])
        except OSError:
            return False
        finally:
            for fd in fds:
                os.close(fd)
    return True


def copy_tree(source: Path, target: Path) -> None:
    """A copy of a directory's content with owners, modes, times, xattrs and links; reflinked, and synced."""
    run("cp", "--archive", "--reflink=auto", "--sparse=always", "--", f"{source}/.", f"{target}/")
    syscalls.syncfs(str(target))


def _new_identity(image: Path, fstype: str) -> None:
    """A copy of a btrfs needs a UUID of its own, or the kernel takes both for one file system.

    xfs is mounted with nouuid instead, and ext4 does not mind.
    """
    if fstype == "btrfs":
        run("btrfstune", "-f", "-m", str(image), package=PACKAGE[fstype])


def grow(image: Path, size: int) -> None:
    """Make the file larger; a smaller ``size`` changes nothing."""
    with translated(f"grow {image}"), open(image, "r+b") as file:
        if os.fstat(file.fileno()).st_size < size:
            file.truncate(size)
            os.fsync(file.fileno())


def thicken(image: Path) -> None:
    """Take every block of an image now. Raises KernelError(ENOSPC); what was taken stays."""
    with translated(f"allocate {image}"), open(image, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def grow_unmounted(fstype: str, image: Path) -> None:
    """Let the file system in an unmounted image take all of it; only ext4 can. Mounted, large enough: no.

    Growing a mounted ext4 needs CAP_SYS_RESOURCE, which containers often lack; this does not.
    """
    if fstype != "ext4" or filled(fstype, image):
        return
    with loops.alone(image):
        if not loops.find(image):
            run("e2fsck", "-f", "-p", str(image), package=PACKAGE[fstype], fine=(0, 1))
            run("resize2fs", str(image), package=PACKAGE[fstype])


def filled(fstype: str, image: Path) -> bool:
    """Whether the file system in an image takes all of it; of a mounted one, whether the disk says so yet."""
    with translated(f"read {image}"):
        return size_of(fstype, image) >= os.stat(image).st_size - SLACK


def size_of(fstype: str, path: Path) -> int:
    """Bytes that the file system on an image or device says it has, from its superblock.

    ext4: kernel Documentation/filesystems/ext4, "Super Block"; xfs: struct xfs_dsb; btrfs: struct
    btrfs_super_block.
    """
    with translated(f"read {path}"), open(path, "rb", buffering=0) as file:
        raw = os.pread(file.fileno(), 1024, {"ext4": 1024, "xfs": 0, "btrfs": 65536}[fstype])
    if fstype == "ext4":
        blocks, power = struct.unpack_from("<4xI16xI", raw)
        return int(blocks) << (10 + int(power))
    if fstype == "xfs":
        block, blocks = struct.unpack_from(">4xIQ", raw)
        return int(block) * int(blocks)
    return int(struct.unpack_from("<112xQ", raw)[0])


def grow_filesystem(fstype: str, device: str, mounted: str) -> None:
    """Let a mounted file system take all of its device."""
    if size_of(fstype, Path(device)) >= _device_size(device) - SLACK:
        return
    program, takes = _GROW[fstype]
    run(*program, device if takes == "device" else mounted, package=PACKAGE[fstype])


def mkfs(fstype: str) -> tuple[str, ...]:
    """The command line that makes a file system, without the image."""
    return _MKFS[fstype]


def tools(fstype: str) -> bool:
    return not fstype or program(_MKFS[fstype][0])


def program(name: str) -> bool:
    return shutil.which(name) is not None


def _device_size(device: str) -> int:
    with translated(f"measure {device}"), open(device, "rb") as file:
        return file.seek(0, os.SEEK_END)


def run(*argv: str, package: str = "", fine: tuple[int, ...] = (0,)) -> str:
    """A program's stdout. Raises KernelError with its own words, Unavailable when it is not there."""
    try:
        done = progress.finished(argv, TIMEOUT)
    except FileNotFoundError:
        hint = f" (Debian: {package})" if package else ""
        raise Unavailable(f"{argv[0]} is needed{hint}") from None
    except subprocess.TimeoutExpired:
        raise KernelError(errno.ETIMEDOUT, f"{argv[0]} {argv[-1]}") from None
    if done.returncode not in fine:
        words = (done.stderr or done.stdout).strip().splitlines()
        code = next((n for text, n in _WORDS.items() if any(text in line for line in words)), errno.EIO)
        raise KernelError(code, f"{argv[0]} {argv[-1]}", words[-1] if words else f"exit {done.returncode}")
    return done.stdout


def _settle(fresh: Path, image: Path) -> None:
    with translated(f"make image {image}"):
        fd = os.open(fresh, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(fresh, image)
