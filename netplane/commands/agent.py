"""`netplane agent`: the node's daemon, in the foreground, in the network namespace it is started in."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import click

from ..agent import DATAPATHS, ROOMS, Agent, AgentConfig
from ..cluster.config import ClusterConfig
from ..store import DEFAULT


def register(group: click.Group) -> None:
    group.add_command(agent)


def _split(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in (value or "").split(",") if part.strip())


@click.command()
@click.option("--node", default=socket.gethostname, show_default="the host's name", help="This node's name.")
@click.option("--store", default=DEFAULT, envvar="NETPLANE_STORE", show_default=True, metavar="URL")
@click.option("--run-dir", type=click.Path(path_type=Path), default=Path("/run/netplane"), show_default=True)
@click.option(
    "--state-dir", type=click.Path(path_type=Path), default=Path("/var/lib/netplane"), show_default=True
)
@click.option("--node-ip", "node_ips", callback=_split, default="", metavar="IP[,IP]")
@click.option("--cluster-cidr", callback=_split, default="10.244.0.0/16", metavar="CIDR[,CIDR]")
@click.option("--service-cidr", callback=_split, default="10.96.0.0/16", metavar="CIDR[,CIDR]")
@click.option("--datapath", type=click.Choice(DATAPATHS), default="auto", show_default=True)
@click.option("--rooms", callback=_split, default=",".join(ROOMS), show_default=True)
@click.option("--domain", default="cluster.local", show_default=True, help="The cluster's DNS domain.")
@click.option("--dns-listen", callback=_split, default="", metavar="IP:PORT[,IP:PORT]")
@click.option("--dns-config", default="", metavar="FILE", help="The DNS server's YAML file (docs/dns.md).")
@click.option("--resolv-conf", default="/etc/resolv.conf", show_default=True, help="The node's own.")
@click.option("--http-listen", default="", metavar="IP:PORT", help="/metrics, /healthz, /livez, /readyz.")
@click.option("-v", "--verbose", is_flag=True, help="Log decisions too.")
def agent(
    cluster_cidr: tuple[str, ...], service_cidr: tuple[str, ...], verbose: bool, **options: Any
) -> None:
    """Make this node's kernel hold exactly what the objects in the store mean."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname).1s %(name)s: %(message)s",
    )
    cluster = ClusterConfig(cluster_cidrs=cluster_cidr, service_cidrs=service_cidr)
    running = Agent(AgentConfig(cluster=cluster, **options))
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    running.run(stopping)
