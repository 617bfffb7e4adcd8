"""A pod's first moment: which scopes must be in the kernel before its interface, and before ADD returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..model.base import Key, Object
from ..model.changes import Event
from ..model.facts import Scope
from ..model.own import Attachment
from ..model.pods import Pod
from ..model.snapshot import Snapshot
from .room import PolicyRoom


class Birth:
    """What the CNI edge asks of policy. Pure."""

    def __init__(self, room: PolicyRoom, cni: str) -> None:
        self._room = room
        self._cni = cni

    def before_links(self, scopes: Iterable[Scope], snapshot: Snapshot) -> list[Scope]:
        """The scopes of policy for the attachments that are about to get an interface."""
        found: dict[Scope, None] = {}
        for scope in scopes:
            attachment = snapshot.get(Attachment, "", scope.name) if scope.room == self._cni else None
            if attachment is not None:
                found.update(dict.fromkeys(self._room.scopes(Event(None, attachment), snapshot)))
        return list(found)

    def after(self, before: Mapping[Key, Object | None], snapshot: Snapshot) -> list[Scope]:
        """The scopes that the pods touch which have just got their addresses."""
        found: dict[Scope, None] = {}
        for key, old in before.items():
            new = snapshot.find(key)
            if isinstance(new, Pod) and new.ips:
                found.update(dict.fromkeys(self._room.scopes(Event(old, new), snapshot)))
        return list(found)
