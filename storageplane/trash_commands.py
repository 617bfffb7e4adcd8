"""storageplane trash: what was deleted and is still there, taken back or removed.

Rule: a volume of the store comes back as its PersistentVolume, prebound to the claim that it had; the agent
moves the data. A volume of the CSI driver comes back when it is created under its old name.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import click

from netplane.model import codec
from netplane.model.base import ObjectMeta, amend
from netplane.model.errors import Invalid, NotFound
from netplane.model.services import ObjectReference
from netplane.model.storage import PersistentVolume, PersistentVolumeStatus
from netplane.store import DEFAULT, open_store

from . import names
from .claims.copies import TRASH
from .host.trash import Thrown, Trash

ROOT = "/var/lib/storageplane"
CSI = "csi/trash"
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"))
_root = click.option("--root", type=click.Path(path_type=Path), default=Path(ROOT), show_default=True)


@click.group("trash")
def trash() -> None:
    """Deleted volumes, where --trash keeps them for a while."""


def _trashes(root: Path) -> tuple[Trash, Trash]:
    real = root.resolve()
    return Trash(real, TRASH), Trash(real, CSI)


@trash.command("list")
@_root
def show(root: Path) -> None:
    """What lies in the trash, the oldest first."""
    for one in _trashes(root):
        for thrown in one.all():
            click.echo(f"{thrown.item}  {_ago(thrown)}  {_about(thrown, one)}")


@trash.command("restore")
@click.argument("name")
@click.option("--claim", default="", metavar="NAMESPACE/NAME", help="For whom; default: for whom it was.")
@_root
@click.option("--store", envvar="NETPLANE_STORE", default=DEFAULT, show_default=True, metavar="URL")
def restore(name: str, claim: str, root: Path, store: str) -> None:
    """Take volume NAME back."""
    own, csi = _trashes(root)
    try:
        thrown = own.find(name)
    except NotFound:
        thrown = csi.find(name)
        csi.restore(thrown.item, f"csi/data/{thrown.name}")
        called = f"of the name {thrown.about}" if thrown.about else "under its old name"
        click.echo(f"{thrown.name} is back; create a volume {called} and of the same size to use it")
        return
    volume = taken_back(thrown, claim)
    opened = open_store(store)
    try:
        opened.put(volume, expect=0)
    finally:
        opened.close()
    ref = volume.spec.claim_ref
    assert ref is not None
    click.echo(f"{volume.key} is back for claim {ref.namespace}/{ref.name}; the agent moves its data")


@trash.command("empty")
@click.argument("chosen", nargs=-1, metavar="[NAME]...")
@_root
def empty(chosen: tuple[str, ...], root: Path) -> None:
    """Remove these now, or everything."""
    for line in _emptied(chosen, root):
        click.echo(line)


def _emptied(chosen: tuple[str, ...], root: Path) -> Iterator[str]:
    both = _trashes(root)
    have = {word for one in both for thrown in one.all() for word in (thrown.name, thrown.item)}
    for name in chosen:
        if name not in have:
            raise NotFound(f"{name} is not in the trash of {root}")
    for one in both:
        yield from one.empty(lambda thrown: not chosen or bool({thrown.name, thrown.item} & set(chosen)))


def taken_back(thrown: Thrown, claim: str = "") -> PersistentVolume:
    """The volume as it is to stand in the store again. Raises Invalid when nobody knows what it was."""
    if not thrown.about:
        raise Invalid(f"{thrown.item}: nobody wrote down what it was; move it by hand")
    was = codec.decode(PersistentVolume.KIND, thrown.about.encode())
    assert isinstance(was, PersistentVolume)
    namespace, _, name = claim.partition("/")
    if claim and not (namespace and name):
        raise Invalid(f"--claim {claim!r}: write it as NAMESPACE/NAME")
    old = was.spec.claim_ref
    if not claim and old is not None:
        namespace, name = old.namespace, old.name
    if not name:
        raise Invalid(f"{thrown.item} was nobody's: say --claim NAMESPACE/NAME")
    left = (names.BOUND_BY_CONTROLLER, names.FILLED)
    notes = {k: v for k, v in was.metadata.annotations.items() if k not in left}
    meta = ObjectMeta(
        name=was.name,
        labels=was.labels,
        annotations={**notes, names.SOURCE: f"{TRASH}/{thrown.item}"},
        finalizers=(names.PV_PROTECTION, names.DATA),
    )
    ref = ObjectReference(kind="PersistentVolumeClaim", namespace=namespace, name=name, api_version="v1")
    spec = amend(was.spec, claim_ref=ref)
    back: PersistentVolume = amend(was, metadata=meta, spec=spec, status=PersistentVolumeStatus())
    return back


def _ago(thrown: Thrown) -> str:
    seconds = int(time.time() - thrown.since)
    size, unit = next((pair for pair in _UNITS if seconds >= pair[0]), (1, "s"))
    return f"{seconds // size}{unit} ago"


def _about(thrown: Thrown, one: Trash) -> str:
    if one.folder == CSI or not thrown.about:
        return f"csi volume {thrown.about}" if one.folder == CSI else "unknown"
    was = codec.decode(PersistentVolume.KIND, thrown.about.encode())
    assert isinstance(was, PersistentVolume)
    ref, backend = was.spec.claim_ref, was.metadata.annotations.get(names.BACKEND, "directory")
    whose = f" of {ref.namespace}/{ref.name}" if ref else ""
    return f"{backend} {was.spec.capacity.get('storage', '')}{whose}"
