"""Loop devices by ioctl (linux/loop.h): attach, find, resize, detach.

Rule 1: an image has one loop device at most; it is found by the backing file's device and inode, so a
        fresh process knows it again and nobody attaches it twice.
Rule 2: a device for a mount is held open until the mount has it, and lets go of its image with its last
        user (autoclear): none is left by whoever is killed in between.
Rule 3: LOOP_CONFIGURE (Linux 5.8) sets all in one step; there is no half-made loop after a crash.
Rule 4: a device reads and writes its image past the page cache: what is in the image is cached once, by
        the file system in it, and a copy into a second cache costs a quarter of the speed of writing.
        Where the disk below cannot do so, the kernel goes without.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from netplane.model.errors import KernelError

from .tree import translated

LOOP_CLR_FD, LOOP_SET_CAPACITY, LOOP_CONFIGURE = 0x4C01, 0x4C07, 0x4C0A
LOOP_CTL_GET_FREE = 0x4C82
AUTOCLEAR, DIRECT_IO = 4, 16  # LO_FLAGS_…
LOOP_MAJOR = 7
BLOCK = 4096
TRIES = 50  # races with other users of loop devices


def find(image: Path) -> str:
    """The loop device ("/dev/loop3") that this image is attached to, or ""."""
    try:
        wanted = os.stat(image)
    except FileNotFoundError:
        return ""
    for device, backing in attached():
        if backing == (wanted.st_dev, wanted.st_ino):
            return device
    return ""


def attached() -> Iterator[tuple[str, tuple[int, int]]]:
    """Every loop device in use, with (device, inode) of what backs it."""
    for name in os.listdir("/sys/block"):
        if name.startswith("loop") and os.path.exists(f"/sys/block/{name}/loop"):
            status = _status(f"/dev/{name}")
            if status is not None:
                yield f"/dev/{name}", status


def backed_by(folder: Path) -> list[tuple[str, str]]:
    """(device, image path) of the loop devices whose backing file lies beneath ``folder``."""
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = entry.read_text().rstrip("\n")
        except OSError:
            continue
        if backing.startswith(f"{folder}/"):
            found.append((f"/dev/{entry.parts[3]}", backing.removesuffix(" (deleted)")))
    return found


def _status(device: str) -> tuple[int, int] | None:
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _backing(fd)
    finally:
        os.close(fd)


def _backs(fd: int, image: Path) -> bool:
    with translated(f"look at {image}"):
        found = os.stat(image)
    return _backing(fd) == (found.st_dev, found.st_ino)


def _backing(fd: int) -> tuple[int, int] | None:
    """LOOP_GET_STATUS64: struct loop_info64 begins with the backing file's device and inode."""
    buffer = bytearray(232)
    try:
        fcntl.ioctl(fd, 0x4C05, buffer)
    except OSError:
        return None
    dev, inode = struct.unpack_from("=QQ", buffer)
    return _kernel_dev(dev), inode


def _kernel_dev(number: int) -> int:
    """huge_encode_dev, which the kernel puts into lo_device, as st_dev."""
    major, minor = (number & 0xFFF00) >> 8, (number & 0xFF) | ((number >> 12) & 0xFFF00)
    return os.makedev(major, minor)


def attach(image: Path) -> str:
    """A loop device on the image; the one that is there already. Raises KernelError."""
    there = find(image)
    if there:
        return there
    with translated(f"attach {image} to a loop device"):
        backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        try:
            device, held = _configure(backing, image, 0)
            os.close(held)
            return device
        finally:
            os.close(backing)


@contextmanager
def held(image: Path) -> Iterator[str]:
    """A loop device on the image for as long as this lasts, and after it for as long as it is mounted."""
    for _ in range(TRIES):
        with alone(image):
            device, fd = _held(image)
        try:
            if _backs(fd, image):  # it did not let go between being found and being opened
                yield device
                return
        finally:
            os.close(fd)
    raise KernelError(errno.EBUSY, f"attach {image} to a loop device", "its device comes and goes")


@contextmanager
def alone(image: Path) -> Iterator[None]:
    """Nobody else attaches this image, or grows what is in it, meanwhile."""
    with translated(f"open {image}"):
        fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _held(image: Path) -> tuple[str, int]:
    with translated(f"attach {image} to a loop device"):
        there = find(image)
        if there:
            return there, os.open(there, os.O_RDWR | os.O_CLOEXEC)
        backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        try:
            return _configure(backing, image, AUTOCLEAR)
        finally:
            os.close(backing)


def _configure(backing: int, image: Path, flags: int) -> tuple[str, int]:
    """The device, and an open descriptor of it."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(TRIES):
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
            device = f"/dev/loop{number}"
            _make_node(device, number)
            fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, LOOP_CONFIGURE, _config(backing, image, flags))
                return device, fd
            except OSError as exc:
                os.close(fd)
                if exc.errno != errno.EBUSY:  # somebody else took it first
                    raise
    finally:
        os.close(control)
    raise KernelError(errno.EBUSY, f"attach {image} to a loop device", "no free loop device was to be had")


def _config(backing: int, image: Path, flags: int) -> bytes:
    """struct loop_config: fd, block size, struct loop_info64, 8 reserved words."""
    flags |= DIRECT_IO
    info = struct.pack(
        "=QQQQQIIII64s64s32s2Q", 0, 0, 0, 0, 0, 0, 0, 0, flags, os.fsencode(image)[:63], b"", b"", 0, 0
    )
    return struct.pack("=II", backing, 0) + info + bytes(64)


def _make_node(device: str, number: int) -> None:
    """Where /dev is no devtmpfs, a device that the kernel has just made has no node yet."""
    if not os.path.exists(device):
        os.mknod(device, stat.S_IFBLK | 0o600, os.makedev(LOOP_MAJOR, number))


def resize(device: str) -> None:
    """The image has grown: so does the device."""
    with translated(f"resize {device}"), open(device, "r+b", buffering=0) as file:
        fcntl.ioctl(file, LOOP_SET_CAPACITY, 0)


def refuse_used(image: Path) -> str:
    """Its device or "". Raises KernelError(EBUSY) while the image is mounted, in whatever mount namespace."""
    device = find(image)
    if device:
        with translated(f"remove {image}, which is mounted by {device}"):
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))  # a mount holds it alone
    return device


def detach(image: Path) -> None:
    """Detach the image's loop device; none: fine. One that is in use goes with its last user."""
    device = find(image)
    if not device:
        return
    with translated(f"detach {device} from {image}"), open(device, "r+b", buffering=0) as file:
        fcntl.ioctl(file, LOOP_CLR_FD, 0)
