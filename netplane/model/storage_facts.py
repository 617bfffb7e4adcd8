"""Facts of storage: what must lie and be mounted for this node's pods (driver: storageplane's mounts).

Rule 1: a relative path is beneath storageplane's root, an absolute one is a place that a user named.
Rule 2: a fact that nobody wants any more is removed, except what users keep: `Data` and `HostPath`
        are made and never removed; only an explicit `Erase` removes data.
"""

from __future__ import annotations

from typing import ClassVar

from .facts import Fact, FactKey, Mark


class Directory(Fact, frozen=True):
    """A directory; ``mode`` is exact, whatever the umask. Beneath our root it goes with its content."""

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


class Data(Fact, frozen=True):
    """The data of a provisioned volume. Made when absent, grown to its size; its content is a user's.

    ``backend``: directory, image, btrfs or tmpfs (storageplane.backends); ``size`` in bytes is
    enforced by all but the first. ``fstype`` is an image's, "" for raw blocks (``block``).
    """

    TYPE: ClassVar[str] = "data"

    path: str
    mode: int = 0o777
    backend: str = "directory"
    size: int = 0
    fstype: str = ""
    block: bool = False
    overcommit: bool = False

    @property
    def key(self) -> FactKey:
        return ("data", self.path)


class Erase(Fact, frozen=True):
    """The data of a released volume is to go, and then the PersistentVolume of that name and UID."""

    TYPE: ClassVar[str] = "erase"

    path: str
    volume: str
    uid: str

    @property
    def key(self) -> FactKey:
        return ("erase", self.path)


class HostPath(Fact, frozen=True):
    """A path of the host that must be of a type (HostPathVolumeSource.type); made when …OrCreate."""

    TYPE: ClassVar[str] = "hostpath"

    path: str
    type: str = ""

    @property
    def key(self) -> FactKey:
        return ("hostpath", self.path, self.type)


class Point(Fact, frozen=True):
    """The place of a mount: an empty directory, or an empty file where ``source`` is no directory."""

    TYPE: ClassVar[str] = "point"

    path: str
    source: str

    @property
    def key(self) -> FactKey:
        return ("point", self.path)


class Mount(Fact, frozen=True):
    """A mount at ``target``: a bind of ``source`` when ``fstype`` is "", else that file system.

    ``recursive``: a bind takes the mounts beneath its source along. ``follow``: links in ``source``
    are the user's own and are followed; else a link in it is refused.
    """

    TYPE: ClassVar[str] = "mount"

    target: str
    source: str
    fstype: str = ""
    options: tuple[str, ...] = ()
    read_only: bool = False
    propagation: str = "private"  # private, rslave, rshared
    recursive: bool = False
    follow: bool = False

    @property
    def key(self) -> FactKey:
        return ("mount", self.target)

    @property
    def mark(self) -> Mark:
        """What mountinfo tells; whether a bind shows its source, the driver compares by inode."""
        return (self.fstype, self.read_only, self.propagation)


class CsiVolume(Fact, frozen=True):
    """A volume of a CSI driver, staged and published at ``target`` through that driver's socket.

    ``secrets``: pairs whose values print as stars (`Veiled`); ``ephemeral``: made and gone with its pod.
    """

    TYPE: ClassVar[str] = "csi"

    target: str
    driver: str
    handle: str
    context: tuple[tuple[str, str], ...] = ()
    fstype: str = ""
    flags: tuple[str, ...] = ()
    mode: str = "ReadWriteOnce"
    block: bool = False
    read_only: bool = False
    ephemeral: bool = False
    grown: int = 0  # bytes that the node has yet to be told of; 0: none
    secrets: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()  # by call

    @property
    def key(self) -> FactKey:
        return ("csi", self.target)


class Provision(Fact, frozen=True):
    """A claim that a CSI driver is to make a volume for; gone once the PersistentVolume stands."""

    TYPE: ClassVar[str] = "provision"

    namespace: str
    claim: str
    uid: str
    driver: str

    @property
    def key(self) -> FactKey:
        return ("provision", f"pvc-{self.uid}")


class Withdraw(Fact, frozen=True):
    """A released volume of a CSI driver is to be deleted there, and then its PersistentVolume."""

    TYPE: ClassVar[str] = "withdraw"

    volume: str
    uid: str
    driver: str

    @property
    def key(self) -> FactKey:
        return ("withdraw", self.volume)


class Grow(Fact, frozen=True):
    """A bound volume of a CSI driver is to grow to ``size`` bytes, as its claim asks."""

    TYPE: ClassVar[str] = "grow"

    volume: str
    uid: str
    driver: str
    size: int

    @property
    def key(self) -> FactKey:
        return ("grow", self.volume)


class Veiled(str):
    """Text that is used and never shown."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Scrub(Fact, frozen=True):
    """What lies in a released hostPath volume of policy Recycle is to go; then the volume is free again."""

    TYPE: ClassVar[str] = "scrub"

    path: str
    volume: str
    uid: str

    @property
    def key(self) -> FactKey:
        return ("scrub", self.path)
