"""A directory of manifests as a store: files say what is declared, a state file beside them the rest.

Rule 1: the files are the user's and are only read. PATH/.netplane/state.db (an SqliteStore) holds
        every object: the manifests laid onto it (see merge), and all that agents write.
Rule 2: what a manifest says is in force: a write that contradicts it, or deletes its object, is
        refused with the file's name; status and allocated fields are written freely.
Rule 3: an object of a manifest carries its file and digest as annotations, so that a fresh process
        knows which objects a file took with it, and which are a broken file's last good content.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from ..model import codec
from ..model.base import Key, Object, amend
from ..model.errors import Conflict, Invalid, NotFound, Unavailable
from . import merge
from .manifests import Document, Documents, Manifests, walk
from .sqlite import SqliteStore, SqliteWatch
from .tree import Tree

FILE = "netplane.io/manifest"
DIGEST = "netplane.io/manifest-digest"
STATE = ".netplane/state.db"
ATTEMPTS = 5

Objects = list[Object]  # the class below has a method named list
log = logging.getLogger(__name__)


class DirectoryStore:
    """See store/base.py. ``faults`` says which files are not in force as they stand, and why."""

    allocates = False

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.url = f"dir://{self.path}"
        if Path(self.path).exists() and not Path(self.path).is_dir():
            raise Invalid(f"store {self.path} is not a directory: use sqlite://{self.path} for a file")
        self._state = SqliteStore(str(Path(self.path, STATE)))
        self._manifests = Manifests(self.path)
        self._lock = threading.RLock()  # one look at the files at a time
        self._tree: Tree | None = None
        objects, _ = self._state.list()
        self._owners = {
            o.key: o.metadata.annotations[FILE] for o in objects if FILE in o.metadata.annotations
        }
        self._sync()

    @property
    def faults(self) -> dict[str, str]:
        """{file, relative to the directory: reason} of every file whose content is not in force."""
        with self._lock:
            return dict(self._manifests.faults)

    # --- the verbs ---------------------------------------------------------------------------

    def list(self, kinds: Iterable[str] | None = None) -> tuple[Objects, int]:
        self._fresh()
        return self._state.list(kinds)

    def get(self, key: Key) -> Object | None:
        self._fresh()
        return self._state.get(key)

    def watch(self, since: int, kinds: Iterable[str] | None = None) -> SqliteWatch:
        """Every change after ``since``; the files are followed from now on."""
        with self._lock:
            if self._tree is None:
                self._tree = Tree(self._sync)
                self._sync()
                self._tree.start()
        return self._state.watch(since, kinds)

    def put(self, obj: Object, expect: int | None = None) -> Object:
        """Write one object. Raises Invalid also when a manifest says otherwise, and which."""
        with self._lock:
            stored = self._state.put(self._reconciled(codec.validate(obj)), expect)
            if stored.deleting and not stored.metadata.finalizers:
                self._restore(stored.key)
            return stored

    def delete(self, key: Key, expect: int | None = None) -> Object:
        """Remove one object. Raises Invalid for one that a manifest declares."""
        with self._lock:
            if key in self._manifests.claims:
                self._sync()
            declared = self._manifests.claims.get(key)
            if declared:
                raise Invalid(f"{key}: stands in {self._where(declared)}: remove it there")
            return self._state.delete(key, expect)

    def close(self) -> None:
        with self._lock:
            tree, self._tree = self._tree, None
        if tree:
            tree.close()
        self._state.close()

    # --- writes beside manifests ---------------------------------------------------------------

    def _reconciled(self, obj: Object) -> Object:
        """``obj`` with its manifest's marks, when it agrees with its manifest. Raises Invalid."""
        declared = self._manifests.claims.get(obj.key)
        if declared is None:
            return obj
        try:
            return self._agreeing(obj, declared)
        except Invalid:
            self._sync()  # the file may be newer than what this process knows of it
            declared = self._manifests.claims.get(obj.key)
            return self._agreeing(obj, declared) if declared else obj

    def _agreeing(self, obj: Object, declared: Document) -> Object:
        meta = obj.metadata
        marked = amend(obj, metadata=amend(meta, annotations={**meta.annotations, **_marks(declared)}))
        merged = merge.onto(marked, declared.manifest, status=False)
        managed = merged.metadata.managed_fields
        stripped = amend(marked, metadata=amend(marked.metadata, managed_fields=managed))
        if merged != stripped:
            raise Invalid(
                f"{obj.key}: stands in {self._where(declared)}, which says otherwise: change it there"
            )
        return merged

    def _restore(self, key: Key) -> None:
        """A declared object whose deletion just ended stands in a manifest again: make it anew."""
        declared = self._manifests.claims.get(key)
        if declared:
            try:
                self._accept((declared,))
            except Invalid as exc:
                log.warning("%s", exc)

    def _where(self, declared: Document) -> Path:
        return Path(self.path, declared.file)

    # --- files to objects ----------------------------------------------------------------------

    def _fresh(self) -> None:
        if self._tree is None:
            self._sync()

    def _sync(self) -> None:
        """Bring the state up to the files. Raises Unavailable, and then changes nothing."""
        with self._lock:
            self._state.check()  # an unmounted or moved directory looks empty: it is an outage instead
            before = dict(self._manifests.faults)
            self._manifests.refresh(self._listing(), self._accept)
            self._sweep()
            for name, reason in self._manifests.faults.items():
                if before.get(name) != reason:
                    log.warning("%s", reason)

    def _listing(self) -> dict[str, tuple[int, int, int]]:
        tree = self._tree
        if tree is None:
            return dict(walk(self.path))
        listing = dict(walk(self.path, tree.enter))
        for name in [n for n in listing if tree.half_written(str(Path(self.path, n)))]:
            seen = self._manifests.seen(name)
            if seen:
                listing[name] = seen
            else:
                del listing[name]
        return listing

    def _accept(self, documents: Documents) -> None:
        """Lay one file's documents onto the state, all or none. Raises Invalid, Unavailable."""
        for attempt in range(ATTEMPTS):
            current = [self._state.get(d.key) for d in documents]
            merged = [_laid(live, d) for live, d in zip(current, documents, strict=True)]
            try:
                self._state.put_all(merged, [o.revision if o else 0 for o in current])
                break
            except Conflict:
                if attempt == ATTEMPTS - 1:
                    raise Unavailable(f"store {self.path}: others keep writing the same objects") from None
        self._owners.update((d.key, d.file) for d in documents)

    def _sweep(self) -> None:
        """Remove the objects whose file no longer has them; a broken file keeps what it had."""
        claims, faults = self._manifests.claims, self._manifests.faults
        for key, file in list(self._owners.items()):
            unread = file in faults and not self._manifests.knows(file)
            if key in claims or unread:
                continue
            with contextlib.suppress(NotFound):
                self._state.delete(key)
            del self._owners[key]


def _marks(document: Document) -> dict[str, str]:
    return {FILE: document.file, DIGEST: document.digest}


def _laid(live: Object | None, document: Document) -> Object:
    """The object of a document; an unchanged document does not bring its status in again."""
    known = live is not None and live.metadata.annotations.get(DIGEST) == document.digest
    merged = merge.onto(live, document.manifest, status=not known)
    marked = {**merged.metadata.annotations, **_marks(document)}
    laid: Object = amend(merged, metadata=amend(merged.metadata, annotations=marked))
    return laid
