"""Facts of storage: what must lie and be mounted for this node's pods (driver: storageplane's mounts).

Rule 1: a relative path is beneath storageplane's root, an absolute one is a place that a user named.
Rule 2: a fact that nobody wants any more is removed, except what users keep: `Data`, `HostPath`,
        `SubPath` and `Ownership` are made and never removed; only an explicit `Erase` removes data.
Rule 3: a key never holds content, and a fact that holds some does not show it (`repr`).
"""

from __future__ import annotations

import hashlib
from typing import ClassVar

from .facts import Fact, FactKey, Mark


class Placed(Fact, frozen=True):
    """A fact that its path names."""

    path: str

    @property
    def key(self) -> FactKey:
        return (self.TYPE, self.path)


class Directory(Placed, frozen=True):
    """A directory; ``mode`` is exact, whatever the umask. Beneath our root it goes with its content."""

    TYPE: ClassVar[str] = "directory"

    mode: int = 0o755
    uid: int = 0
    gid: int = 0


class Image(Placed, frozen=True):
    """A sparse file that backs a volume, with a file system in it that has ``size`` bytes of room."""

    TYPE: ClassVar[str] = "image"

    size: int  # bytes
    fstype: str = "ext4"


class Data(Placed, frozen=True):
    """The data of a provisioned volume. Made when absent, grown to its size; its content is a user's.

    ``backend``: directory, image, btrfs or tmpfs (storageplane.backends); ``size`` in bytes is
    enforced by all but the first. ``fstype`` is an image's, "" for raw blocks (``block``). ``source``:
    the path of what it is first to be a copy of.
    """

    TYPE: ClassVar[str] = "data"

    mode: int = 0o777
    backend: str = "directory"
    size: int = 0
    fstype: str = ""
    block: bool = False
    overcommit: bool = False
    source: str = ""


class Erase(Placed, frozen=True):
    """The data of a released volume is to go, and then the PersistentVolume of that name and UID."""

    TYPE: ClassVar[str] = "erase"

    volume: str
    uid: str


class HostPath(Fact, frozen=True):
    """A path of the host that must be of a type (HostPathVolumeSource.type); made when …OrCreate."""

    TYPE: ClassVar[str] = "hostpath"

    path: str
    type: str = ""

    @property
    def key(self) -> FactKey:
        return ("hostpath", self.path, self.type)


class File(Fact, frozen=True):
    """A file of a payload: a path beneath the volume, its exact mode, its content."""

    path: str
    mode: int
    content: bytes

    def __repr__(self) -> str:
        return f"File({self.path!r}, {self.mode:#o}, {len(self.content)} bytes)"


class Payload(Placed, frozen=True):
    """Files that appear and change together, in the layout of kubelet's atomic writer.

    ``gid``: fsGroup, which then owns and may read them; None: root's. ``memory``: secrets, on tmpfs only.
    """

    TYPE: ClassVar[str] = "payload"

    files: tuple[File, ...]
    gid: int | None = None
    memory: bool = True

    @property
    def mark(self) -> Mark:
        """A hash, so that a ledger that remembers it remembers no secret."""
        digest = hashlib.sha256()
        for part in (
            f.path.encode() + b"\0%o\0%d\0" % (f.mode, len(f.content)) + f.content for f in self.files
        ):
            digest.update(part)
        return (self.gid, digest.hexdigest())


class Device(Placed, frozen=True):
    """A block device beneath the root that is an image's loop device, for a pod's volumeDevices."""

    TYPE: ClassVar[str] = "device"

    image: str


class Ownership(Placed, frozen=True):
    """fsGroup: the group of everything in a volume. ``always``: also when the root already fits."""

    TYPE: ClassVar[str] = "ownership"

    gid: int
    always: bool = True


class SubPath(Fact, frozen=True):
    """A path in a volume that a container mounts: directories where absent, with the volume's mode."""

    TYPE: ClassVar[str] = "subpath"

    source: str  # the volume
    path: str  # in it
    follow: bool = False

    @property
    def key(self) -> FactKey:
        return ("subpath", self.source, self.path)


class Point(Placed, frozen=True):
    """The place of a mount: an empty directory, or an empty file where ``source`` is no directory.

    ``sub``: what is shown is this path in the source, as in `Mount`.
    """

    TYPE: ClassVar[str] = "point"

    source: str
    sub: str = ""
    follow: bool = False


class Mount(Fact, frozen=True):
    """A mount at ``target``: a bind of ``source`` when ``fstype`` is "", else that file system.

    ``recursive``: a bind takes the mounts beneath its source along. ``follow``: links in ``source``
    are the user's own and are followed; else a link in it is refused. ``sub``: a path in ``source``, whose
    links may not lead out of it; such a mount is made anew when the path has become another file.
    ``all_read_only``: with every mount beneath it. A source with a slash under an ``fstype`` is an image,
    whose loop device goes with the mount; ``emptied``: it is shown as a new directory, without lost+found.
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
    sub: str = ""
    emptied: bool = False
    all_read_only: bool = False

    @property
    def key(self) -> FactKey:
        return ("mount", self.target)

    @property
    def mark(self) -> Mark:
        """What mountinfo tells; whether a bind shows its source, the driver compares by inode."""
        return (self.fstype, self.read_only, self.propagation)


class NetworkMount(Fact, frozen=True):
    """A file system of the network, mounted by its helper, mount.<fstype>.

    ``secret`` is handed to the helper in a file of its own and stands in no key, mark or message.
    """

    TYPE: ClassVar[str] = "networkmount"

    target: str
    source: str
    fstype: str  # nfs, ceph, glusterfs
    options: tuple[str, ...] = ()
    secret: bytes = b""

    @property
    def key(self) -> FactKey:
        return ("mount", self.target)

    @property
    def mark(self) -> Mark:
        return (self.fstype, self.source, self.options)

    def __repr__(self) -> str:
        return f"NetworkMount({self.target!r}, {self.source!r}, {self.fstype!r})"


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


class OfContent(Fact, frozen=True):
    """A fact that a VolumeSnapshotContent names; ``driver``: whose it is."""

    content: str
    uid: str
    driver: str

    @property
    def key(self) -> FactKey:
        return (self.TYPE, self.content)


class Capture(OfContent, frozen=True):
    """The snapshot of a VolumeSnapshotContent is to be taken, or found, and the content to say so."""

    TYPE: ClassVar[str] = "capture"


class Discard(OfContent, frozen=True):
    """The snapshot behind a VolumeSnapshotContent is to be deleted, and then the content let go."""

    TYPE: ClassVar[str] = "discard"


class Veiled(str):
    """Text that is used and never shown."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Scrub(Placed, frozen=True):
    """What lies in a released hostPath volume of policy Recycle is to go; then the volume is free again."""

    TYPE: ClassVar[str] = "scrub"

    volume: str
    uid: str
