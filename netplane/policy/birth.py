"""A pod's first moment: which scopes must be in the kernel before its interface, and before ADD returns."""

from __future__ import annotations

from collections.abc import Iterable

from ..model.base import Object
from ..model.changes import Event
from ..model.facts import Scope
from ..model.own import Attachment
from ..model.pods import Pod
from ..model.snapshot import Snapshot
from .room import PolicyRoom


class Birth:
    """What the CNI edge asks of policy. Pure."""

    def __init__(self, room: PolicyRoom, cni: str = "cni") -> None:
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

    def after_put(self, before: Object | None, after: Object, snapshot: Snapshot) -> list[Scope]:
        """The scopes that a pod touches which has just got its addresses."""
        return list(self._room.scopes(Event(before, after), snapshot)) if isinstance(after, Pod) else []
