"""storageplane csi-check: what operators do with other people's CSI drivers."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click


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
