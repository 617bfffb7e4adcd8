"""A spare of every record of an attachment that is whole, beside the socket, for the day the store is lost.

The kernel keeps the pods' interfaces then, but cannot say whose they are. A file system like /run lives
exactly as long as what the kernel holds, so what the records said lies there, too.

Rule 1: it is read only when the store is another than the one that was spared (a file that was damaged
        and set aside); a record that somebody deleted from the same store stays deleted.
Rule 2: of another boot nothing is put back. Whether a namespace is still there is CNI's question at its
        start (`Verbs.recover`), as it is of any record.
Rule 3: what is being deleted lies aside until the kernel holds no flow of it: a start that finds it there
        knows which addresses are to be seen to, whatever record is gone.
Rule 4: nothing waits for it and nothing fails for it: a spare that cannot be written costs a warning.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from .model import codec
from .model.base import Key, Object, ObjectMeta, amend
from .model.changes import Put, Write, key_of
from .model.errors import Conflict, Invalid
from .model.nodes import Node, NodeSpec
from .model.own import Attachment
from .model.pods import Pod
from .store.base import Store

log = logging.getLogger(__name__)
IDENTITY = "identity"  # the file that names the store; no record's name is without a dot
LEAVING = "leaving"  # the directory of those that are being deleted


class Spare:
    """The spare of one store beneath ``run_dir``. A store without an identity (a directory) has none."""

    def __init__(self, run_dir: Path, store: Store) -> None:
        self._store = store
        self._identity: str = getattr(store, "identity", "")
        path: str = getattr(store, "path", "")
        self._dir = run_dir / "spare" / hashlib.sha256(path.encode()).hexdigest()[:12]

    def keep(self, stored: Iterable[Object]) -> None:
        """A record that became whole, and the pod that was written with it."""
        objects = sorted(stored, key=lambda obj: obj.KIND)  # the Attachment, then its Pod
        if not self._identity or not objects or not _whole(objects[0]):
            return
        lines = [b"%b %b\n" % (obj.KIND.encode(), codec.encode(obj)) for obj in objects]
        self._write(objects[0].name, b"".join(lines))

    def drop(self, writes: Sequence[Write]) -> None:
        """Before these: a record that is about to go is no spare any more."""
        for name in ending(writes):
            self._put_aside(name)

    def gone(self, name: str) -> None:
        """The kernel holds nothing of this record any more."""
        self._remove(f"{LEAVING}/{name}")

    def leaving(self) -> list[Attachment]:
        """Records whose deletion has begun and, as far as anybody knows, not ended."""
        found = []
        for path in (self._dir / LEAVING).glob("*"):
            try:
                record = _parsed(path.read_bytes().partition(b"\n")[0])
            except (OSError, Invalid, ValueError) as exc:
                log.warning("%s cannot be read: %s", path, exc)
                self._remove(f"{LEAVING}/{path.name}")
                continue
            if isinstance(record, Attachment):
                found.append(record)
        return found

    def is_settled(self) -> bool:
        """Whether it is this very store's, and no deletion was cut off; then only what others did to the
        store is not spared yet."""
        return bool(self._identity) and self._noted() == self._identity and not self.leaving()

    def settle(self, node: str, boot_id: str) -> None:
        """At a start: put back what the store has lost, then be its spare. Raises Unavailable."""
        if not self._identity:
            return
        if self._noted() != self._identity:
            self._put_back(node, boot_id)
        listed = self._store.list([Attachment.KIND])[0]
        records = {obj.name: obj for obj in listed if _whole(obj) and _of(obj) == node}
        there = {path.name for path in self._files()}
        for name in there - records.keys():
            self._remove(name)
        for name in records.keys() - there:
            self.keep([records[name], *self._pod(records[name])])
        self._write(IDENTITY, self._identity.encode())

    def _put_back(self, node: str, boot_id: str) -> None:
        lost = []
        for path in self._files():
            try:
                objects = [_parsed(line) for line in path.read_bytes().splitlines()]
            except (OSError, Invalid, ValueError) as exc:
                log.warning("%s cannot be read: %s", path, exc)
                continue
            record = objects[0] if objects else None
            if isinstance(record, Attachment) and _of(record) == node and record.spec.boot_id == boot_id:
                lost.append(objects)
        lost.sort(key=lambda objects: objects[0].revision)
        self._put_back_node(node, [o for objects in lost for o in objects if isinstance(o, Attachment)])
        for objects in lost:
            log.warning("the store has lost attachment %s: it is put back", objects[0].name)
            for obj in objects:
                try:
                    self._store.put(obj, 0)
                except Conflict:  # it is there
                    continue
                except Invalid as exc:  # of another netplane's making
                    log.warning("not put back: %s", exc)

    def _put_back_node(self, name: str, records: Sequence[Attachment]) -> None:
        """Its pod CIDRs are those that its pods' addresses are from."""
        given = (ip.subnet for r in records if r.spec.ipam == "" for ip in r.spec.ips if ip.subnet)
        cidrs = tuple({":" in cidr: cidr for cidr in given}.values())
        found = self._store.get(Key(Node.KIND, "", name))
        node = found if isinstance(found, Node) else Node(metadata=ObjectMeta(name=name), spec=NodeSpec())
        if cidrs and not node.pod_cidrs:
            spec = amend(node.spec, pod_cidr=cidrs[0], pod_cidrs=cidrs)
            self._store.put(amend(node, spec=spec), node.revision)

    def _pod(self, record: Object) -> list[Object]:
        assert isinstance(record, Attachment)
        found = self._store.get(Key(Pod.KIND, record.spec.pod_namespace, record.spec.pod_name))
        return [found] if found is not None else []

    def _files(self) -> list[Path]:
        return [path for path in self._dir.glob("*.*") if not path.name.endswith("~")]

    def _noted(self) -> str:
        with suppress(OSError):
            return (self._dir / IDENTITY).read_text()
        return ""

    def _put_aside(self, name: str) -> None:
        aside = f"{self._dir}/{LEAVING}/{name}"
        try:
            try:
                os.rename(f"{self._dir}/{name}", aside)
            except FileNotFoundError:
                if not os.path.exists(f"{self._dir}/{name}"):
                    return
                (self._dir / LEAVING).mkdir(mode=0o700, exist_ok=True)  # DELs come together
                os.rename(f"{self._dir}/{name}", aside)
        except OSError as exc:
            log.warning("%s cannot be put aside: %s", name, exc)
            self._remove(name)

    def _remove(self, name: str) -> None:
        try:
            os.unlink(f"{self._dir}/{name}")
        except FileNotFoundError:
            return
        except OSError as exc:
            log.warning("the spare of %s stays: %s", name, exc)

    def _write(self, name: str, data: bytes) -> None:
        """What is there is replaced in one step. What is new is written in its place: one that a crash tore
        is of an ADD that was not answered."""
        try:
            try:
                self._fill(name, data, os.O_EXCL)
            except FileNotFoundError:
                self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._fill(name, data, os.O_EXCL)
            except FileExistsError:
                self._fill(f"{name}~", data, os.O_TRUNC)
                os.rename(self._dir / f"{name}~", self._dir / name)
        except OSError as exc:
            log.warning("no spare of %s in %s: %s", name, self._dir, exc)

    def _fill(self, name: str, data: bytes, how: int) -> None:
        descriptor = os.open(f"{self._dir}/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, 0o600)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        except OSError:
            os.unlink(f"{self._dir}/{name}")
            raise
        finally:
            os.close(descriptor)


def ending(writes: Iterable[Write]) -> Iterator[str]:
    """The attachments whose interface goes with these writes, whatever stays of the record."""
    for one in writes:
        key = key_of(one)
        if key.kind == Attachment.KIND and not (isinstance(one, Put) and _whole(one.object)):
            yield key.name


def _whole(obj: Object) -> bool:
    return isinstance(obj, Attachment) and obj.phase == "Ready"


def _of(obj: Object) -> str:
    return obj.spec.node if isinstance(obj, Attachment) else ""


def _parsed(line: bytes) -> Object:
    kind, _, body = line.partition(b" ")
    return codec.decode(kind.decode(), body)
