"""Files that change all at once, in the layout of kubelet's AtomicWriter.

    volume/key         -> ..data/key
    volume/..data      -> ..2026_11_20_18_50_01.734518
    volume/..2026_11_20_18_50_01.734518/key

Rule 1: readers go through `..data`, which a rename moves from a whole old set to a whole new one.
Rule 2: each step may be the last: whatever a crash left (a set nobody points to, `..data_tmp`, a link
        too few or too many) the next write takes away, also when the content is the same.
Rule 3: what is compared is content, mode and group, as they lie there; nothing is remembered.
Rule 4: no message holds content. Files are synced before anything points to them.
Source: kubernetes pkg/volume/util/atomic_writer.go, whose traps (no sync, a left ..data_tmp, leaked
sets, a change of mode unnoticed) are avoided here.
"""

from __future__ import annotations

import os
import random
import re
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

from netplane.model.errors import KernelError
from netplane.model.storage_facts import File, Payload

from . import tree

DATA, FRESH, LINK = "..data", "..data_tmp", "..link_tmp"
_SET = re.compile(r"\.\.[0-9]{4}(_[0-9]{2}){5}\.[0-9]+")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ, ENTER = 0o440, 0o2550  # what fsGroup adds: to a file, to a directory


def write(at: int, payload: Payload) -> None:
    """Make the volume's directory, open as ``at``, show exactly these files. Raises OSError, KernelError."""
    if payload.gid is not None:
        os.fchown(at, -1, payload.gid)
        os.fchmod(at, stat.S_IMODE(os.fstat(at).st_mode) | ENTER)
    current = _current(at)
    if not current or not _fits(at, current, payload):
        current = _written(at, payload)
        _switch(at, current)
    shown = {f.path.split("/")[0] for f in payload.files}
    _link(at, shown)
    _unlink(at, shown)
    for name in os.listdir(at):
        if name in (FRESH, LINK) or (_SET.fullmatch(name) and name != current):
            tree.remove_entry(at, name)
    os.fsync(at)


def _current(at: int) -> str:
    """The set that readers see, "" for none."""
    try:
        name = os.readlink(DATA, dir_fd=at)
    except OSError:
        return ""
    return name if _SET.fullmatch(name) else ""


# --- a new set ------------------------------------------------------------------------------------


def _written(at: int, payload: Payload) -> str:
    """The name of a new set, whole and synced; a failure (a full disk) leaves none."""
    name = time.strftime("..%Y_%m_%d_%H_%M_%S.", time.gmtime()) + str(random.randrange(10**8, 10**9))
    os.mkdir(name, 0o700, dir_fd=at)
    try:
        with tree.opened(at, name, _FOLDER) as top:
            _fill(top, payload)
    except (OSError, KernelError):
        tree.remove_entry(at, name)
        raise
    return name


def _fill(top: int, payload: Payload) -> None:
    _own(top, 0o755, payload.gid, ENTER)
    folders = sorted(_folders(payload.files))
    for folder in folders:
        os.mkdir(folder, 0o700, dir_fd=top)
        with tree.opened(top, folder, _FOLDER) as fd:
            _own(fd, 0o755, payload.gid, ENTER)
    for file in payload.files:
        _write_one(top, file, payload.gid)
    for folder in folders:
        with tree.opened(top, folder, _FOLDER) as fd:
            os.fsync(fd)
    os.fsync(top)


def _folders(files: Iterable[File]) -> set[str]:
    """The directories of a set, without the set's own."""
    found = set()
    for file in files:
        parts = file.path.split("/")[:-1]
        found |= {"/".join(parts[: i + 1]) for i in range(len(parts))}
    return found


def _write_one(top: int, file: File, gid: int | None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(file.path, flags, 0o600, dir_fd=top), "wb") as out:
        out.write(file.content)
        out.flush()
        _own(out.fileno(), file.mode, gid, READ)
        os.fsync(out.fileno())


def _own(fd: int, mode: int, gid: int | None, more: int) -> None:
    if gid is not None:
        os.fchown(fd, -1, gid)
    os.fchmod(fd, mode | (more if gid is not None else 0))


def _switch(at: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(FRESH, dir_fd=at)
    os.symlink(name, FRESH, dir_fd=at)
    os.rename(FRESH, DATA, src_dir_fd=at, dst_dir_fd=at)
    os.fsync(at)


# --- what is there --------------------------------------------------------------------------------


def _fits(at: int, name: str, payload: Payload) -> bool:
    """Whether this set holds exactly the payload."""
    group = payload.gid if payload.gid is not None else 0
    more = READ if payload.gid is not None else 0
    want = {f.path: (stat.S_IFREG | f.mode | more, group, f.content) for f in payload.files}
    try:
        with tree.opened(at, name, _FOLDER) as top:
            return dict(_found(top, "")) == want
    except (OSError, KernelError):
        return False


def _found(top: int, below: str) -> Iterator[tuple[str, tuple[int, int, bytes]]]:
    with tree.opened(top, below or ".", _FOLDER) as fd:
        names = os.listdir(fd)
    for name in names:
        path = f"{below}/{name}" if below else name
        have = os.stat(path, dir_fd=top, follow_symlinks=False)
        if stat.S_ISDIR(have.st_mode):
            yield from _found(top, path)
        else:
            yield path, (have.st_mode, have.st_gid, _content(top, path, have.st_mode))


def _content(top: int, path: str, mode: int) -> bytes:
    if not stat.S_ISREG(mode):
        return b""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top), "rb") as file:
        return file.read()


# --- the names that users see ---------------------------------------------------------------------


def _link(at: int, names: Iterable[str]) -> None:
    for name in names:
        if _target(at, name) != f"{DATA}/{name}":
            with suppress(FileNotFoundError):
                os.unlink(LINK, dir_fd=at)
            os.symlink(f"{DATA}/{name}", LINK, dir_fd=at)
            os.rename(LINK, name, src_dir_fd=at, dst_dir_fd=at)


def _unlink(at: int, shown: set[str]) -> None:
    for name in os.listdir(at):
        if name not in shown and _target(at, name).startswith(f"{DATA}/"):
            os.unlink(name, dir_fd=at)


def _target(at: int, name: str) -> str:
    try:
        return os.readlink(name, dir_fd=at)
    except OSError:
        return ""
