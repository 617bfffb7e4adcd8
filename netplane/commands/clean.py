"""`netplane clean`: take everything of ours out of the network namespace that it runs in."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from ..cluster import Instance
from ..kernel.datapath import PathDriver
from ..kernel.nft_guard import GuardDriver
from ..kernel.nft_limit import LimitDriver
from ..kernel.nftables import NftDriver
from ..kernel.rtnetlink import LinkDriver
from ..model.facts import Plan


def register(group: click.Group) -> None:
    group.add_command(clean)


@click.command()
@click.option("--run-dir", type=click.Path(path_type=Path), default=Path("/run/netplane"), show_default=True)
@click.option(
    "--state-dir", type=click.Path(path_type=Path), default=Path("/var/lib/netplane"), show_default=True
)
def clean(run_dir: Path, state_dir: Path) -> None:
    """Remove programs, links, routes, rules and files of ours; refused while an agent uses --state-dir."""
    held = Instance(state_dir)
    PathDriver(on=False).clean()
    links = LinkDriver()
    have = links.observe()
    links.apply(Plan(remove=tuple(have)))
    NftDriver().clean()
    GuardDriver().clean()
    LimitDriver().clean()
    for path in (run_dir, state_dir):
        shutil.rmtree(path, ignore_errors=True)
    held.close()
    click.echo(f"removed {len(have)} links, addresses and routes, the nft tables, {run_dir} and {state_dir}")
