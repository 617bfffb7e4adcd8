"""What is about to be made at other people's drivers, recorded before they are asked.

Rule 1: an intent is written before CreateVolume and removed after the PersistentVolume stands in the
        store. So whatever step a crash falls on, either the store knows the volume, or an intent does
        (kubernetes-csi/external-provisioner#486).
Rule 2: it holds what repeats the call (names, sizes, parameters), and references to secrets, never them.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..durable import Shelf

ADVICE = "it was damaged; look for that volume at its driver, then remove the file"


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """``name``: pvc-UID, CreateVolume's name. ``handle``: what the driver answered; "" before that."""

    name: str
    driver: str
    size: int
    parameters: dict[str, str] = {}
    mode: str = "ReadWriteOnce"
    fstype: str = ""
    block: bool = False
    source: tuple[str, str] = ("", "")  # ("volume" or "snapshot", handle)
    secret: tuple[str, str] = ("", "")  # namespace and name
    handle: str = ""


class Intents:
    def __init__(self, root: str | Path) -> None:
        self._shelf = Shelf(Path(root) / "csi-client" / "intents", Intent, ADVICE)

    def write(self, intent: Intent) -> Intent:
        """Durable when this returns. Raises KernelError (ENOSPC); then nothing may be asked of a driver."""
        self._shelf.open()
        self._shelf.put(intent.name, intent)
        return intent

    def get(self, name: str) -> Intent | None:
        return self._shelf.get(name)

    def all(self) -> list[Intent]:
        return self._shelf.all()

    def remove(self, name: str) -> None:
        if self._shelf.get(name) is not None:
            self._shelf.remove(name)
