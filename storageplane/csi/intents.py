"""What is recorded about other people's drivers: what is about to be made there, and what is attached here.

Rule 1: an intent is written before CreateVolume and removed after the PersistentVolume stands in the
        store. So whatever step a crash falls on, either the store knows the volume, or an intent does
        (kubernetes-csi/external-provisioner#486).
Rule 2: it holds what repeats the call (names, sizes, parameters), and references to secrets, never them.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..host.durable import Shelf

FOLDER = "csi-client"  # beneath the root
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


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What CreateSnapshot is asked. ``secret``: namespace and name; ``handle``: the answer, "" before it."""

    content: str
    driver: str
    volume: str
    parameters: dict[str, str] = {}
    secret: tuple[str, str] = ("", "")
    handle: str = ""

    @property
    def name(self) -> str:
        return self.content.replace("snapcontent-", "snapshot-", 1)


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """One volume of one driver on this node; paths are absolute."""

    driver: str
    handle: str
    staging: str
    node: str = ""
    ephemeral: bool = False
    targets: tuple[str, ...] = ()


def attached(root: str | Path) -> Shelf[Attached]:
    advice = "it was damaged; unpublish that volume at its driver by hand, then remove the file"
    return Shelf(Path(root) / FOLDER / "attached", Attached, advice)


def snapshots(root: str | Path) -> Shelf[Asked]:
    advice = "it was damaged; look for that snapshot at its driver, then remove the file"
    return Shelf(Path(root) / FOLDER / "snapshots", Asked, advice)


def damaged(root: str | Path) -> list[str]:
    """What is wrong with each of these records that cannot be read."""
    return [*Intents(root).damaged(), *attached(root).damaged(), *snapshots(root).damaged()]


class Intents:
    def __init__(self, root: str | Path) -> None:
        self._shelf = Shelf(Path(root) / FOLDER / "intents", Intent, ADVICE)

    def write(self, intent: Intent) -> Intent:
        """Durable when this returns. Raises KernelError (ENOSPC); then nothing may be asked of a driver."""
        self._shelf.open()
        self._shelf.put(intent.name, intent)
        return intent

    def get(self, name: str) -> Intent | None:
        return self._shelf.get(name)

    def all(self) -> list[Intent]:
        return self._shelf.all()

    def damaged(self) -> list[str]:
        """What is wrong with each intent that cannot be read."""
        return self._shelf.damaged()

    def remove(self, name: str) -> None:
        if self._shelf.get(name) is not None:
            self._shelf.remove(name)
