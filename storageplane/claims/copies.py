"""Volumes that begin as a copy: made aside, however long it takes, and said how far it is.

Rule 1: the volume says what it is a copy of (`names.SOURCE`) until it says that it is one (`names.FILLED`);
        until then it is not published, and its source stays.
Rule 2: what is taken back from the trash is moved.
"""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from pathlib import Path

from netplane.model.base import Key
from netplane.model.errors import Conflict, NetplaneError, Unavailable
from netplane.model.facts import Fact
from netplane.model.storage import PersistentVolume
from netplane.model.storage_facts import Data

from .. import backends, names
from ..host import freeze, growth, progress
from ..host.errand import Errands
from ..host.trash import Trash
from . import events, sources
from .steps import annotated
from .writer import TRIES, Timed, Writer

TRASH = "trash"  # beneath the root
PATIENCE = 0.3  # seconds that others wait for a copy before it is looked for again


class Copies:
    def __init__(self, root: Path, store: Writer, trash: Trash, timed: Timed) -> None:
        self._root, self._store, self._trash, self._timed = root, store, trash, timed
        self._errands = Errands()

    def done(self, fact: Fact, patience: float) -> bool:
        """Whether nothing is (left) to copy for a fact. Raises what the copy raised."""
        if not isinstance(fact, Data) or not fact.source:
            return True
        return self._errands.done(fact.path, lambda: self._copy(fact), patience)

    def busy(self, path: str, patience: float) -> bool:
        """Whether somebody still copies to this path."""
        return self._errands.busy(path, patience)

    def _copy(self, fact: Data) -> None:
        key = Key(PersistentVolume.KIND, "", os.path.basename(fact.path))

        def tell(work: progress.Work) -> None:
            say(self._store, key, "Provisioning", f"copying {fact.source}: {work}")

        try:
            with (
                self._timed("volume_copy", fact.backend),
                progress.telling(copy_size(self._root, fact), tell),
            ):
                self._fill(fact)
                growth.ensure(self._root, fact)
        except NetplaneError as exc:
            say(self._store, key, "ProvisioningFailed", f"copying {fact.source}: {exc}")
            raise
        for _ in range(TRIES):
            volume = self._store.get(key)
            if not isinstance(volume, PersistentVolume) or sources.whole(volume):
                return
            with suppress(Conflict):
                self._store.put(annotated(volume, {names.FILLED: "true"}), expect=volume.revision)
        raise Unavailable(f"{key}: copied, but others keep writing to the object")

    def _fill(self, fact: Data) -> None:
        """Copied; what is taken back from the trash is moved."""
        folder, _, item = fact.source.partition("/")
        if folder == TRASH:
            self._trash.restore(item, fact.path)
            return
        promised = fact.backend != "directory"  # its size, when it was admitted
        room = nullcontext() if promised or fact.overcommit else backends.copying(self._root, fact)
        with room, freeze.still(self._root / fact.source / "image"):
            backends.fill(self._root, fact)


def say(store: Writer, key: Key, reason: str, message: str) -> None:
    """In the event of the claim of a volume (``key``); that it cannot be said stops nothing."""
    volume = store.get(key)
    ref = volume.spec.claim_ref if isinstance(volume, PersistentVolume) else None
    claim = store.get(Key("PersistentVolumeClaim", ref.namespace, ref.name)) if ref else None
    if claim is not None:
        events.tell(store, claim, "provision", (reason, message))


def copy_size(root: Path, fact: Data) -> int:
    """Bytes that a copy writes, where that is known: an image's blocks."""
    try:
        return os.stat(root / fact.source / "image").st_blocks * 512
    except FileNotFoundError:
        return 0
