"""storageplane csi-check and storageplane snapshot: what operators do with other people's CSI drivers."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from netplane.store import DEFAULT, open_store

ROOT = "/var/lib/storageplane"
_root = click.option("--root", type=click.Path(path_type=Path), default=Path(ROOT), show_default=True)
_namespace = click.option("-n", "--namespace", default="default", show_default=True)


@click.command("csi-check")
@click.option("--endpoint", required=True, metavar="unix:///PATH", help="The driver to judge.")
@click.option("--parameter", "parameters", multiple=True, metavar="KEY=VALUE", help="For CreateVolume.")
@click.option("--size", type=int, default=16, show_default=True, metavar="MIB", help="Of each volume.")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), default=None, metavar="DIR",
    help="Where to stage and publish; default: a temporary directory.",
)  # fmt: skip
def csi_check(endpoint: str, parameters: tuple[str, ...], size: int, folder: Path | None) -> None:
    """Judge a CSI driver by what csi-sanity does not ask; exit status 1 when a check fails."""
    from .csi.client import Client
    from .csi.conformance import bed, checklist
    from .csi.server import socket_path

    given = dict(pair.split("=", 1) for pair in parameters if "=" in pair)
    if len(given) != len(parameters):
        raise click.UsageError("--parameter takes KEY=VALUE, each key once")
    with tempfile.TemporaryDirectory(prefix="csi-check-", dir=folder) as place:
        judged = bed.Bed(Client(socket_path(endpoint)), Path(os.path.realpath(place)), given, size << 20)
        outcomes = []
        for outcome in bed.run(judged, checklist.CHECKS):
            click.echo(str(outcome))
            outcomes.append(outcome.word)
    click.echo(", ".join(f"{outcomes.count(word)} {word}" for word in ("ok", "FAIL", "skip")))
    if "FAIL" in outcomes:
        raise SystemExit(1)


@click.group()
def snapshot() -> None:
    """Snapshots of claims' volumes, by their CSI drivers."""


@snapshot.command("create")
@click.argument("claim")
@click.argument("name")
@_namespace
@_root
@click.option("--store", envvar="NETPLANE_STORE", default=DEFAULT, show_default=True, metavar="URL")
def create(claim: str, name: str, namespace: str, root: Path, store: str) -> None:
    """Take snapshot NAME of the volume of CLAIM; a claim's dataSource (VolumeSnapshot) may name it then."""
    from .csi.snapshotting import Snapshotting

    opened = open_store(store)
    taken = Snapshotting(root, opened).create(namespace, name, claim)
    opened.close()
    click.echo(f"{taken.namespace}/{taken.name} {taken.driver} {taken.handle} {taken.size}")


@snapshot.command("delete")
@click.argument("name")
@_namespace
@_root
def delete(name: str, namespace: str, root: Path) -> None:
    """Delete snapshot NAME at its driver; gone already: fine."""
    from .csi.snapshotting import Snapshotting

    Snapshotting(root).delete(namespace, name)


@snapshot.command("list")
@_root
def show(root: Path) -> None:
    """The snapshots that were taken here."""
    from .csi.snapshotting import Snapshotting

    for taken in Snapshotting(root).all():
        state = "ready" if taken.ready else "unfinished"
        click.echo(f"{taken.namespace}/{taken.name} of {taken.claim} {taken.driver} {state} {taken.handle}")
