"""Facts of storage: what must lie and be mounted beneath storageplane's root (driver: mounts)."""

from __future__ import annotations

from typing import ClassVar

from .facts import Fact, FactKey


class Directory(Fact, frozen=True):
    """A directory beneath our root; ``mode`` is exact, whatever the umask."""

    TYPE: ClassVar[str] = "directory"

    path: str
    mode: int = 0o755
    uid: int = 0
    gid: int = 0

    @property
    def key(self) -> FactKey:
        return ("directory", self.path)


class Image(Fact, frozen=True):
    """A sparse file that backs a volume."""

    TYPE: ClassVar[str] = "image"

    path: str
    size: int  # bytes

    @property
    def key(self) -> FactKey:
        return ("image", self.path)


class Loop(Fact, frozen=True):
    """A loop device on an image; the device's number is the kernel's choice."""

    TYPE: ClassVar[str] = "loop"

    image: str

    @property
    def key(self) -> FactKey:
        return ("loop", self.image)


class Filesystem(Fact, frozen=True):
    """A file system made inside an image."""

    TYPE: ClassVar[str] = "filesystem"

    image: str
    type: str = "ext4"

    @property
    def key(self) -> FactKey:
        return ("filesystem", self.image)


class Mount(Fact, frozen=True):
    """A mount at ``target``: a bind of ``source`` when ``fstype`` is "", else that file system."""

    TYPE: ClassVar[str] = "mount"

    target: str
    source: str
    fstype: str = ""
    options: tuple[str, ...] = ()
    read_only: bool = False
    propagation: str = "private"  # private, rslave, rshared

    @property
    def key(self) -> FactKey:
        return ("mount", self.target)
