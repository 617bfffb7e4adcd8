"""`netplane agent`: the node's daemon, in the foreground, in the network namespace it is started in."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import click

from ..agent import Agent
from ..agentconfig import DATAPATHS, ROOMS, AgentConfig
from ..cluster.config import ClusterConfig
from ..dns import handover
from ..reconcile.signals import on_signals
from ..store import DEFAULT


def register(group: click.Group) -> None:
    group.add_command(agent)


def _split(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in (value or "").split(",") if part.strip())


def _masks(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, int]:
    words = value.split(",")
    if len(words) > 2 or not all(word.isdigit() for word in words):
        raise click.BadParameter(f"{value!r} is not V4 or V4,V6 in bits, such as 24,64")
    return int(words[0]), int(words[1]) if len(words) == 2 else ClusterConfig.node_mask_v6


@click.command()
@click.option("--node", default=socket.gethostname, show_default="the host's name", help="This node's name.")
@click.option("--store", default=DEFAULT, envvar="NETPLANE_STORE", show_default=True, metavar="URL")
@click.option("--run-dir", type=click.Path(path_type=Path), default=Path("/run/netplane"), show_default=True)
@click.option(
    "--state-dir", type=click.Path(path_type=Path), default=Path("/var/lib/netplane"), show_default=True
)
@click.option("--node-ip", "node_ips", callback=_split, default="", metavar="IP[,IP]")
@click.option("--cluster-cidr", callback=_split, default="10.244.0.0/16", metavar="CIDR[,CIDR]")
@click.option("--node-mask", callback=_masks, default="24,64", show_default=True, metavar="V4[,V6]")
@click.option("--service-cidr", callback=_split, default="10.96.0.0/16", metavar="CIDR[,CIDR]")
@click.option(
    "--node-port-addresses",
    callback=_split,
    default="",
    metavar="CIDR[,CIDR]",
    help="Node ports answer at the node's addresses in these networks.  [default: the node IPs]",
)
@click.option("--datapath", type=click.Choice(DATAPATHS), default="auto", show_default=True,
              envvar="NETPLANE_DATAPATH", show_envvar=True)  # fmt: skip
@click.option("--rooms", callback=_split, default=",".join(ROOMS), show_default=True)
@click.option("--domain", default="cluster.local", show_default=True, help="The cluster's DNS domain.")
@click.option("--dns-listen", callback=_split, default="", metavar="IP:PORT[,IP:PORT]")
@click.option("--dns-config", default="", metavar="FILE", help="The DNS server's YAML file (docs/dns.md).")
@click.option("--resolv-conf", default="/etc/resolv.conf", show_default=True, help="The node's own.")
@click.option("--http-listen", default="", metavar="IP:PORT", help="/metrics, /healthz, /livez, /readyz.")
@click.option("-v", "--verbose", is_flag=True, help="Log decisions too.")
def agent(
    cluster_cidr: tuple[str, ...],
    service_cidr: tuple[str, ...],
    node_mask: tuple[int, int],
    verbose: bool,
    **options: Any,
) -> None:
    """Make this node's kernel hold exactly what the objects in the store mean.

    SIGUSR2 starts the program anew in the same process, after an upgrade for instance: DNS queries wait
    in their sockets meanwhile. SIGTERM ends it.
    """
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname).1s %(name)s: %(message)s",
    )
    faulthandler.enable()  # a C library that ends the process says where, in the log
    cluster = ClusterConfig(
        cluster_cidrs=cluster_cidr,
        service_cidrs=service_cidr,
        node_mask_v4=node_mask[0],
        node_mask_v6=node_mask[1],
    )
    running = Agent(AgentConfig(cluster=cluster, **options))
    stopping = threading.Event()

    def told(number: int) -> None:
        if number != signal.SIGUSR2:
            running.dns.restarting = False  # one that is to end does not start anew
        elif not stopping.is_set():
            running.dns.restarting = True
        stopping.set()

    on_signals(told, signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    running.run(stopping)
    if running.dns.restarting:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # until the new one knows what to do with it
        handover.pass_on(running.dns.held, os.environ)
        os.execv(sys.executable, sys.orig_argv)
