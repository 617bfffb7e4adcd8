"""Volumes of other drivers on this node: attached, staged and published, and all of it undone.

Rule 1: the record names driver, handle, staging path and target before the driver is asked, so that
        whoever comes after a crash undoes it without the pod, the claim or the volume.
Rule 2: order is the specification's: ControllerPublish, NodeStage, NodePublish, and back. A step that
        the driver does not have (by its capabilities) is left out.
Rule 3: "not found" while undoing is done. What a driver leaves of its target, we remove: empty
        directories and files only, and never what is still mounted.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from netplane.model.base import amend
from netplane.model.errors import KernelError, NotFound
from netplane.model.storage_facts import CsiVolume

from ..host import mountinfo, tree
from ..host.corrupt import replaced
from .client import Client, Clients
from .intents import FOLDER, Attached, attached
from .shape import capability


class Attachments:
    """``root`` as everywhere in storageplane; records lie in ROOT/csi-client/attached."""

    def __init__(self, root: str | Path, clients: Clients | None = None) -> None:
        self.root = Path(os.path.realpath(root))
        self._clients = clients or Clients(self.root)
        self._shelf = attached(self.root)

    def publish(self, want: CsiVolume) -> None:
        """Raises Invalid, Unavailable, KernelError; then what was begun is on record, for `unpublish`."""
        client = self._clients.get(want.driver)
        target = f"{self.root}/{want.target}"
        with self._alone():
            record = self._record(want, client)
            if target not in record.targets:
                record = amend(record, targets=(*record.targets, target))
            self._shelf.put(_name(want.driver, want.handle), record)
            replaced(target)
            tree.make(self.root, os.path.dirname(want.target), 0o750)
            Steps(client, want, record).publish(target)

    def _record(self, want: CsiVolume, client: Client) -> Attached:
        known = self._shelf.get(_name(want.driver, want.handle))
        if known is not None:
            return known
        digest = hashlib.sha256(want.handle.encode()).hexdigest()
        place = f"{FOLDER}/staging/{want.driver}/{digest}"
        if not want.ephemeral and client.can("Node", "STAGE_UNSTAGE_VOLUME"):
            tree.make(self.root, place, 0o750)
        return Attached(
            driver=want.driver, handle=want.handle, staging=f"{self.root}/{place}",
            node=client.node.node_id, ephemeral=want.ephemeral,
        )  # fmt: skip

    def unpublish(self, path: str) -> None:
        """Undo what `publish` made at this path (as in the fact); never published: fine."""
        target = f"{self.root}/{path}"
        with self._alone():
            for record in self._shelf.all():
                if target in record.targets:
                    self._undo(record, target)

    def _undo(self, record: Attached, target: str) -> None:
        client, name = self._clients.get(record.driver), _name(record.driver, record.handle)
        replaced(target)
        with suppress(NotFound):
            client.call("NodeUnpublishVolume", volume_id=record.handle, target_path=target)
        _remove_left(target)
        rest = tuple(t for t in record.targets if t != target)
        if rest:
            self._shelf.put(name, amend(record, targets=rest))
            return
        self._detach(client, record)
        self._shelf.remove(name)

    def _detach(self, client: Client, record: Attached) -> None:
        if record.ephemeral:
            return
        if client.can("Node", "STAGE_UNSTAGE_VOLUME"):
            replaced(record.staging)
            with suppress(NotFound):
                client.call("NodeUnstageVolume", volume_id=record.handle, staging_target_path=record.staging)
        if client.can("Controller", "PUBLISH_UNPUBLISH_VOLUME"):
            with suppress(NotFound):
                client.call("ControllerUnpublishVolume", volume_id=record.handle, node_id=record.node)
        _remove_left(record.staging)

    def places(self, driver: str, handle: str) -> tuple[str, str]:
        """(staging path, a target) where the volume is on this node; ("", "") when it is not."""
        known = self._shelf.get(_name(driver, handle))
        return (known.staging, known.targets[0]) if known and known.targets else ("", "")

    def damaged(self) -> list[str]:
        return self._shelf.damaged()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time works on this root's attachments."""
        tree.make(self.root, FOLDER, 0o700)
        fd = os.open(self.root / FOLDER / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            self._shelf.open()
            yield
        finally:
            os.close(fd)


class Steps:
    """The calls that publish one volume, in their order."""

    def __init__(self, client: Client, want: CsiVolume, record: Attached) -> None:
        self._client, self._want, self._record = client, want, record
        self._secrets = {call: dict(pairs) for call, pairs in want.secrets}

    def publish(self, target: str) -> None:
        want, client = self._want, self._client
        more: dict[str, Any] = {"volume_context": dict(want.context), "readonly": want.read_only}
        if not want.ephemeral:
            more["publish_context"] = self._attached()
            if client.can("Node", "STAGE_UNSTAGE_VOLUME"):
                self._staged(more["publish_context"])
                more["staging_target_path"] = self._record.staging
        self._send("NodePublishVolume", target_path=target, **more)
        if want.grown and client.can("Node", "EXPAND_VOLUME"):
            staged = more.get("staging_target_path", "")
            size = {"required_bytes": want.grown}
            self._send(
                "NodeExpandVolume", volume_path=target, staging_target_path=staged, capacity_range=size
            )

    def _attached(self) -> dict[str, str]:
        if not self._client.can("Controller", "PUBLISH_UNPUBLISH_VOLUME"):
            return {}
        answer = self._send(
            "ControllerPublishVolume",
            node_id=self._record.node,
            readonly=self._want.read_only and self._client.can("Controller", "PUBLISH_READONLY"),
            volume_context=dict(self._want.context),
        )
        return dict(answer.publish_context)

    def _staged(self, context: dict[str, str]) -> None:
        replaced(self._record.staging)
        self._send(
            "NodeStageVolume",
            staging_target_path=self._record.staging,
            publish_context=context,
            volume_context=dict(self._want.context),
        )

    def _send(self, method: str, **fields: Any) -> Any:
        secrets = self._secrets.get(method, {})
        if secrets:
            fields["secrets"] = secrets
        want = self._want
        asked = capability(self._client, want.mode, want.block, want.fstype, want.flags)
        return self._client.call(method, volume_id=want.handle, volume_capability=asked, **fields)


def _name(driver: str, handle: str) -> str:
    return "at-" + hashlib.sha256(f"{driver}\0{handle}".encode()).hexdigest()[:40]


def _remove_left(path: str) -> None:
    """What the driver made at a path and did not remove. Raises KernelError(EBUSY) when still mounted."""
    if mountinfo.beneath(path):
        raise KernelError(16, f"remove {path}", "its driver says that it is unpublished, but it is mounted")
    with tree.translated(f"remove {path}"), suppress(FileNotFoundError, NotADirectoryError):
        if os.path.islink(path) or os.path.isfile(path):
            os.unlink(path)
        else:
            os.rmdir(path)
