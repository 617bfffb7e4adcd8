"""Where a volume's data lies, and who enforces its size: one file per backend.

    directory   a directory of the root's file system: no limit, and says so
    image       a sparse file with ext4, xfs or btrfs in it, or raw blocks: its size is a wall
    btrfs       a subvolume with a qgroup limit: where the root is btrfs
    tmpfs       memory with a size: its content goes with a reboot

How the rest of storageplane uses them. Pure code (a provisioner, CreateVolume) calls

    choice = choose(parameters, block, asked, machine)        # a StorageClass's parameters; raises Invalid
    reason = admit(choice, size, machine, promised)           # "" or why there is no room

with ``machine = look(root)``, taken once and again when it matters (it is the only I/O), and
``promised`` the bytes that other volumes were promised and this class does not overcommit. The volume's
data is then the fact ``Data(path="volumes/NAME", backend=…, size=…, fstype=…)``, and a driver says

    ensure(root, data)      make it, or let it grow to data.size; done already: fine
    fill(root, data)        make it a copy of data.source
    erase(root, data.path)  remove it, whatever its backend was
    room(root)              bytes that may still be promised: what is free, less what images may yet take

and what a pod publishes is ``shown(data, target)``: the facts to make and the path that shows them;
``grow_shown(root, data, target)`` lets what is mounted there take a size that has grown.

Rule 1: whatever is made is made beneath its home, under its name only when whole, so that whoever is
        killed leaves something that the same call finishes and `erase` removes.
Rule 2: no overcommit: what an image may still grow into is promised and not free, unless its class says
        ``overcommit: "true"``.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from netplane.model.errors import Invalid, NetplaneError, Unavailable
from netplane.model.facts import Fact
from netplane.model.storage_facts import Data, Directory, Mount

from ..host import images, loops, syscalls, tree
from .base import Backend, Place
from .btrfs import Btrfs, settled
from .directory import InDirectory, copied
from .image import InImage
from .tmpfs import Tmpfs

BACKENDS: dict[str, Backend] = {b.name: b for b in (InDirectory(), InImage(), Btrfs(), Tmpfs())}
PARAMETERS = ("backend", "fsType", "overcommit")
BLOCK = 4096  # sizes are multiples of it
admission = threading.Lock()  # between asking what is free and taking it nobody else may ask
_under_way: list[tuple[Path, str, int]] = []  # copies of this process: root, what they draw on, bytes


class Machine(NamedTuple):
    """What the machine under a root has. ``lacking``: (backend, file system) → why not, "" when it can."""

    lacking: Mapping[tuple[str, str], str]
    free: Mapping[str, int]  # by what a backend draws on: "disk", "memory"

    def can(self, backend: str, fstype: str = "") -> bool:
        return not self.lacking.get((backend, fstype), "")


class Choice(NamedTuple):
    backend: str
    fstype: str
    overcommit: bool

    @property
    def enforced(self) -> bool:
        return BACKENDS[self.backend].enforced

    def least(self) -> int:
        """The smallest size in bytes that this can have."""
        return BACKENDS[self.backend].least(self.fstype)


def look(root: str | Path) -> Machine:
    """What can be had beneath ``root`` now."""
    top = Path(root)
    kinds = [(b.name, fs) for b in BACKENDS.values() for fs in (("", *images.PACKAGE) if b.images else ("",))]
    lacking = {(name, fs): BACKENDS[name].lacking(top, fs) for name, fs in kinds}
    return Machine(lacking, {"disk": room(top), "memory": memory(top)})


def choose(
    parameters: Mapping[str, str],
    block: bool,
    machine: Machine,
    asked: str = "",
    default: str = "",
) -> Choice:
    """What the parameters of a class mean here. ``asked``: the file system that the volume itself asks.

    ``default``: the backend of a class that names none; "": by what the machine has: an image, else a
    directory. Raises Invalid for what is not known, does not go together, or cannot be had here.
    """
    strange = sorted(set(parameters) - set(PARAMETERS))
    if strange:
        raise Invalid(f"parameters[{strange[0]}]: not known; there are {', '.join(PARAMETERS)}")
    overcommit = parameters.get("overcommit", "false")
    if overcommit not in ("true", "false"):
        raise Invalid("parameters[overcommit]: true or false")
    fstype = asked or parameters.get("fsType", "")
    name = parameters.get("backend") or default or _by_machine(block, fstype, machine)
    if name not in BACKENDS:
        raise Invalid(f"parameters[backend]: {name!r}; use one of {', '.join(BACKENDS)}")
    if not BACKENDS[name].images and (block or fstype):
        what = "a block device" if block else f"file system {fstype}"
        raise Invalid(f"parameters[backend]: {name} cannot be {what}; use image")
    fstype = "" if block or not BACKENDS[name].images else fstype or "ext4"
    if fstype:
        images.known(fstype)
    if not machine.can(name, fstype):
        raise Invalid(f"parameters[backend]: {name}: {machine.lacking[name, fstype]}")
    return Choice(name, fstype, overcommit == "true")


def _by_machine(block: bool, fstype: str, machine: Machine) -> str:
    kind = "" if block else fstype or "ext4"
    return "image" if block or fstype or machine.can("image", kind) else "directory"


def admit(choice: Choice, size: int, machine: Machine, promised: int = 0) -> str:
    """Why ``size`` bytes cannot be promised, or "". ``promised``: what `look` could not see yet."""
    draws = BACKENDS[choice.backend].draws
    if not draws or choice.overcommit:
        return ""
    free = max(0, machine.free[draws] - promised)
    return "" if size <= free else f"{size} bytes are asked for and {free} of {draws} are not promised yet"


def rounded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


# --- the data of a store's volumes -----------------------------------------------------------------


def place(root: Path, data: Data) -> Place:
    return Place(root, data.path, data.size, data.fstype, data.block, data.overcommit)


def ensure(root: Path, data: Data) -> None:
    """Make the data, or let it grow to its size; done already: fine. Raises KernelError, Invalid."""
    if data.backend == "directory":
        tree.make(root, data.path, data.mode)
        return
    tree.make(root, data.path, 0o711)
    with locked(root, data.path):
        here = place(root, data)
        backend = BACKENDS[data.backend]
        backend.make(here)
        backend.grow(here)
        if data.backend == "image":
            images.grow_unmounted(data.fstype, backend.content(here))


def fill(root: Path, data: Data) -> None:
    """Make the data a copy of its source, durably: whoever is told so may let the source go.

    Done already: fine. Raises KernelError (ENOENT, ENOSPC).
    """
    if data.backend == "directory":
        _fill_directory(root, data)
    else:
        tree.make(root, data.path, 0o711)
        with locked(root, data.path):
            here, backend = place(root, data), BACKENDS[data.backend]
            backend.copy(Place(root, data.source, data.size, data.fstype, data.block), here)
    tree.kept(root, data.path)


def there(root: Path, data: Data) -> bool:
    """Whether the data has its name, which it gets when it is whole."""
    directory = data.backend == "directory"  # which lies there itself
    return (root / data.path if directory else BACKENDS[data.backend].content(place(root, data))).exists()


@contextmanager
def copying(root: Path, data: Data) -> Iterator[None]:
    """While a volume is copied nobody else is promised the room for it. Raises Unavailable where others were.

    Where the disk shares blocks that is what the source needs to be written again.
    """
    draws = BACKENDS[data.backend].draws or "disk"
    need = 0 if there(root, data) else _costs(root, data)  # a walk, which keeps nobody waiting
    with ExitStack() as stack:
        with admission:
            if need > (have := free(root, draws)):
                raise Unavailable(f"ResourceExhausted: {crowded(need, have, draws)}; free some")
            stack.enter_context(reserved(root, {draws: need}))
        yield


def _costs(root: Path, data: Data) -> int:
    if data.backend == "directory":
        return copied(root, root / data.source)
    return BACKENDS[data.backend].costs(Place(root, data.source, data.size, data.fstype, data.block))


@contextmanager
def reserved(root: Path, needs: Mapping[str, int]) -> Iterator[None]:
    """These bytes are promised meanwhile, by what they draw on; under `admission`, after `free` was asked.

    What is written of them counts twice till then, which errs to the safe side.
    """
    mine = [(root, draws, need) for draws, need in needs.items()]
    _under_way.extend(mine)
    try:
        yield
    finally:
        for one in mine:
            _under_way.remove(one)


def crowded(need: int, have: int, draws: str) -> str:
    return f"a copy takes {need} bytes and {have} of {draws} are not promised yet"


def _fill_directory(root: Path, data: Data) -> None:
    """Beside it first, and moved to its name when whole."""
    if (root / data.path).exists():
        return
    fresh = _fresh(data.path)
    tree.remove(root, fresh)
    tree.make(root, fresh, 0o700)
    tree.make(root, os.path.dirname(data.path), 0o755)
    try:
        images.copy_tree(root / data.source, root / fresh)
    except NetplaneError:
        tree.remove(root, fresh)  # on a full disk others need the room
        raise
    with (
        tree.parent(root, fresh) as (source, old),
        tree.parent(root, data.path) as (target, new),
        tree.translated(f"copy to {data.path}"),
    ):
        os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)


def _fresh(path: str) -> str:
    return f"copies/{os.path.basename(path)}"


def grow_shown(root: Path, data: Data, target: str) -> None:
    """After `ensure` let it grow, what is mounted at ``target`` takes it. Raises KernelError."""
    BACKENDS[data.backend].grow_shown(place(root, data), target)


def refuse_used(root: Path, path: str) -> None:
    """Raises KernelError(EBUSY) while an image in this home is mounted, in whatever mount namespace."""
    image = root / path / "image"
    if image.exists():
        loops.refuse_used(image)
        loops.detach(image)


def erase(root: Path, path: str, backend: str = "") -> None:
    """Remove a volume's home, whatever is in it; gone already: fine. Raises KernelError(EBUSY) in use.

    ``backend``: whose it is, where that is known.
    """
    here = Place(root, path)
    for one in [BACKENDS[backend]] if backend else BACKENDS.values():
        one.let_go(here)
    tree.remove(root, path)
    if os.path.lexists(root / _fresh(path)):  # a copy that was cut off
        tree.remove(root, _fresh(path))


def shown(data: Data, target: str) -> tuple[tuple[Fact, ...], str]:
    """(facts, the path that shows the data), ``target`` being a place of the pod's own beneath the root."""
    if data.backend == "directory":
        return (data,), data.path
    if data.backend != "image":
        return (data,), f"{data.path}/tree"
    options = images.OPTIONS.get(data.fstype, ())
    mount = Mount(target=target, source=f"{data.path}/image", fstype=data.fstype, options=options)
    return (data, Directory(path=target, mode=0o750), mount), target


@contextmanager
def locked(root: Path, home: str) -> Iterator[None]:
    """One process at a time makes what lies in this home."""
    with tree.opened(syscalls.AT_FDCWD, f"{root}/{home}", os.O_RDONLY | os.O_DIRECTORY, 0) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield


# --- room ------------------------------------------------------------------------------------------


def free(root: Path, draws: str) -> int:
    return memory(root) if draws == "memory" else room(root)


def room(root: Path) -> int:
    """Bytes of the root's disk that may still be promised.

    The volumes themselves are the ledger: an image that is not allowed to overcommit may yet take its
    size less its blocks, a btrfs subvolume its limit less what it refers to.
    """
    settled(root)
    found = os.statvfs(root)
    return max(0, found.f_bavail * found.f_frsize - promised(root, "disk"))


def memory(root: Path) -> int:
    """Bytes that may still be promised of what the kernel says is available (proc(5), MemAvailable)."""
    words = Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()
    return max(0, int(words[0]) * 1024 - promised(root, "memory"))


def promised(root: Path, what: str) -> int:
    """Bytes of "disk" or "memory" that the volumes may take beyond what they have."""
    homes = [home for top in ("volumes", "csi/data") for home in _homes(root, top)]
    copies = sum(need for where, draws, need in list(_under_way) if (where, draws) == (root, what))
    return copies + sum(b.promised(root, homes) for b in BACKENDS.values() if b.draws == what)


def _homes(root: Path, top: str) -> list[str]:
    try:
        return [f"{top}/{name}" for name in os.listdir(root / top)]
    except FileNotFoundError:
        return []


__all__ = [
    "BACKENDS", "Backend", "Choice", "Machine", "Place", "admit", "choose", "ensure", "erase", "grow_shown",
    "look", "memory", "promised", "room", "rounded", "shown",
]  # fmt: skip
