"""The manifests of a directory: which files there are, what is in them, what is wrong with them.

Rule 1: *.yaml, *.yml and *.json at any depth; names that begin with '.' are not looked at.
Rule 2: a file is taken whole or not at all; while it is broken its last good content stays.
Rule 3: one object stands in one place; a file that repeats another's object is refused.
Rule 4: a file that became empty is taken for one that is being written: remove it to remove its objects.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..model import codec
from ..model.base import Key, Object
from ..model.errors import Invalid

SUFFIXES = (".yaml", ".yml", ".json")
Signature = tuple[int, int, int]  # inode, mtime in ns, size


class Document(NamedTuple):
    """One manifest: its key, as written, a digest of that, and the file (relative) it stands in."""

    key: Key
    manifest: dict[str, Any]
    digest: str
    file: str


Documents = tuple[Document, ...]


def walk(root: str, entering: Callable[[str], None] | None = None) -> Iterator[tuple[str, Signature]]:
    """(relative name, signature) of every manifest file; ``entering`` hears of a directory first."""
    pending = [root]
    while pending:
        directory = pending.pop()
        try:
            if entering:
                entering(directory)
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except FileNotFoundError:
            continue  # went away between the two looks
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            elif entry.name.endswith(SUFFIXES):
                yield from _signed(root, entry.path)


def _signed(root: str, path: str) -> Iterator[tuple[str, Signature]]:
    try:
        found = os.stat(path)
    except OSError:
        return  # gone, or a link that leads nowhere
    yield os.path.relpath(path, root), (found.st_ino, found.st_mtime_ns, found.st_size)


def read(root: str, name: str) -> Documents:
    """The documents of one file. Raises Invalid with the file and the reason."""
    path = Path(root, name)
    try:
        text = path.read_bytes()
    except OSError as exc:
        raise Invalid(f"{path}: {exc.strerror}") from exc
    found: dict[Key, Document] = {}
    for raw in codec.documents(text, str(path)):
        try:
            obj: Object = codec.parse(raw)
        except Invalid as exc:
            raise Invalid(f"{path}: {exc}") from None
        if obj.key in found:
            raise Invalid(f"{path}: {obj.key} stands in this file twice")
        digest = hashlib.blake2b(json.dumps(raw, sort_keys=True).encode(), digest_size=8).hexdigest()
        found[obj.key] = Document(obj.key, raw, digest, name)
    return tuple(found.values())


class Manifests:
    """What is in force: per file its last good documents, per object the one that declares it."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.faults: dict[str, str] = {}
        self.claims: dict[Key, Document] = {}
        self._accepted: dict[str, Documents] = {}
        self._seen: dict[str, Signature] = {}
        self._waiting: dict[str, Documents] = {}  # good by themselves, refused beside the others

    def knows(self, name: str) -> bool:
        """Whether this process has good content of a file; if not, the store's is the last good."""
        return name in self._accepted

    def seen(self, name: str) -> Signature | None:
        """The signature that a file had when it was last read."""
        return self._seen.get(name)

    def refresh(self, listing: dict[str, Signature], accept: Callable[[Documents], None]) -> None:
        """Take in what changed; ``accept`` puts a file's documents in force, or raises Invalid."""
        for name in self._seen.keys() - listing.keys():
            self._forget(name)
        for name, signature in listing.items():
            if self._seen.get(name) != signature:
                self._seen[name] = signature
                self._reread(name, signature[2])
        progress = True
        while progress:  # one file may be waiting for another to give an object up
            taken = [self._try(name, accept) for name in sorted(self._waiting)]
            progress = any(taken)

    def _reread(self, name: str, size: int) -> None:
        self._waiting.pop(name, None)
        try:
            if not size and self._accepted.get(name):
                raise Invalid(f"{Path(self.root, name)}: is empty now; remove the file to remove its objects")
            self._waiting[name] = read(self.root, name)
        except Invalid as exc:
            self.faults[name] = str(exc)

    def _try(self, name: str, accept: Callable[[Documents], None]) -> bool:
        documents = self._waiting[name]
        try:
            for document in documents:
                holder = self.claims.get(document.key)
                if holder and holder.file != name:
                    raise Invalid(
                        f"{Path(self.root, name)}: {document.key} stands in {Path(self.root, holder.file)} "
                        "already: remove one of the two"
                    )
            accept(documents)
        except Invalid as exc:
            self.faults[name] = str(exc)
            return False
        self._forget_claims(name)
        self._accepted[name] = self._waiting.pop(name)
        self.claims.update((d.key, d) for d in documents)
        self.faults.pop(name, None)
        return True

    def _forget(self, name: str) -> None:
        self._forget_claims(name)
        for table in (self._seen, self._accepted, self._waiting, self.faults):
            table.pop(name, None)

    def _forget_claims(self, name: str) -> None:
        for document in self._accepted.get(name, ()):
            self.claims.pop(document.key, None)
