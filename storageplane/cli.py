"""The command line of storageplane. Exit status: 0 done, 1 refused or failed (one line), 2 wrong usage."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from prometheus_client import CollectorRegistry

from netplane.commands.status import describe
from netplane.health import HealthServer, read_status
from netplane.model.base import Key
from netplane.model.errors import NetplaneError, Unavailable
from netplane.model.snapshot import Snapshot
from netplane.reconcile.signals import on_signals
from netplane.store import DEFAULT, open_store

from . import agent as wiring
from . import csi_commands, doctor, names, trash_commands
from .claims import lost
from .host import growth, progress
from .host.mounts import Mounts
from .pods import holds, publish, session
from .pods.journal import Journal
from .pods.output import as_ctr, as_json, as_oci, as_podman, as_spec
from .pods.wants import all_containers

FORMS: dict[str, Callable[..., Any]] = {"oci": as_oci, "spec": as_spec, "podman": as_podman, "ctr": as_ctr}
ROOT = "/var/lib/storageplane"
RUN = "/run/storageplane"

_store = click.option("--store", envvar="NETPLANE_STORE", default=DEFAULT, show_default=True, metavar="URL")
_root = click.option("--root", type=click.Path(path_type=Path), default=Path(ROOT), show_default=True)
_run_dir = click.option("--run-dir", type=click.Path(path_type=Path), default=Path(RUN), show_default=True)
_node = click.option("--node", default=socket.gethostname, show_default="the host's name", metavar="NAME")
_also = click.option(
    "--provisioner", "provisioners", multiple=True, metavar="NAME",
    help=f"Serve StorageClasses of this provisioner too (always: {names.DIRECTORY}, {names.LOCAL}).",
)  # fmt: skip
_namespace = click.option("-n", "--namespace", default="default", show_default=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Volumes for the pods of one node."""


@cli.command()
@_node
@_store
@_root
@_run_dir
@_also
@click.option("--csi-endpoint", default="", metavar="unix:///PATH", help="Be the CSI driver too.")
@click.option(
    "--trash", type=float, default=0.0, metavar="SECONDS",
    help="Keep the data of deleted volumes for so long, in ROOT/trash and ROOT/csi/trash.",
)  # fmt: skip
@click.option("--http-listen", default="", metavar="IP:PORT", help="/metrics, /healthz, /livez, /readyz.")
def agent(
    node: str, store: str, root: Path, run_dir: Path, provisioners: tuple[str, ...], **more: Any
) -> None:
    """Bind claims, provision and reclaim volumes, in the foreground, until SIGTERM."""
    _log(False)
    stop = _until_told()
    config = _config(node, root, provisioners)._replace(trash=more["trash"])
    (run_dir / "storage").mkdir(parents=True, exist_ok=True)
    opened = open_store(store)
    registry = CollectorRegistry()
    running = wiring.Agent(opened, config, registry)
    health = HealthServer(
        run_dir / "storage", lambda: {"node": node, **running.core.status()}, registry, more["http_listen"]
    )
    endpoint = more["csi_endpoint"]
    options = (node, 0, names.CSI, config.trash)
    driver = _driver(endpoint, config.root, *options) if endpoint else None
    running.start()
    health.start()
    stop.wait()
    if driver is not None:
        driver.stop()
    health.stop()
    running.stop()
    opened.close()


@cli.command()
@click.option("--endpoint", required=True, metavar="unix:///PATH", help="Where the orchestrator calls.")
@_root
@_node
@click.option(
    "--max-volumes", type=int, default=0, metavar="N", help="How many this node takes; 0: any number."
)
@click.option(
    "--driver-name", default="csi.storageplane.io", show_default=True, metavar="NAME",
    help="What it calls itself; for a second one on another root.",
)  # fmt: skip
@click.option(
    "--trash", type=float, default=0.0, metavar="SECONDS",
    help="Keep the data of deleted volumes for so long, in ROOT/csi/trash.",
)  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Log refused calls too.")
def csi(endpoint: str, root: Path, node: str, verbose: bool, **more: Any) -> None:
    """Be the CSI driver, alone, without a store, until SIGTERM."""
    _log(verbose)
    stop = _until_told()
    driver = _driver(
        endpoint, wiring.prepare_root(root), node, more["max_volumes"], more["driver_name"], more["trash"]
    )
    stop.wait()
    driver.stop()


cli.add_command(csi_commands.csi_check)
cli.add_command(trash_commands.trash)


@cli.command()
@_run_dir
@click.option("--wait", type=float, default=0.0, metavar="SECONDS", help="Wait so long for it to be in sync.")
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text")
def status(run_dir: Path, wait: float, output: str) -> None:
    """Show whether the agent is in sync; exit status 0 only if so."""
    found = _status(run_dir / "storage", time.monotonic() + wait)
    lines = [json.dumps(found, indent=2)] if output == "json" else describe(found)
    for line in lines:
        click.echo(line)
    if not found["synced"]:
        raise SystemExit(1)


@cli.command("publish")
@click.argument("pod")
@_namespace
@click.option("--target", default="", metavar="DIR", help="Bind each volume at DIR/<volume>.")
@click.option("-o", "output", type=click.Choice(["json", *FORMS]), default="json", show_default=True)
@click.option("--container", default="", metavar="NAME", help="Whose mounts; not with -o json.")
@click.option("--wait", type=float, default=30.0, show_default=True, metavar="SECONDS")
@_node
@_store
@_root
@_also
def publish_command(pod: str, namespace: str, target: str, output: str, container: str, **rest: Any) -> None:
    """Prepare every volume of POD and print the mounts of its containers.

    \b
    json    all containers, and where each volume is
    oci     one container's mounts, as in an OCI runtime's config.json
    spec    the same with its block devices: the parts of a config.json
    podman  options of podman run and docker run, one to a line
    ctr     options of ctr run, one to a line
    """
    config = _config(rest["node"], rest["root"], rest["provisioners"])
    opened = open_store(rest["store"])
    found = session.ready(
        opened,
        Key("Pod", namespace, pod),
        config.node,
        str(config.root),
        wiring.controllers(config),
        rest["wait"],
    )
    chosen = _container(found[0], container) if output != "json" else None
    driver = Mounts(config.root)
    done = session.publish(
        opened,
        found,
        (config.node, str(config.root)),
        lambda pod, snapshot: publish.publish(pod, snapshot, config.node, driver, target),
    )
    shown = FORMS[output](chosen, done) if chosen else as_json(done)
    lines = shown if output in ("podman", "ctr") else [json.dumps(shown, indent=2)]
    for line in lines:
        click.echo(line)
    opened.close()


def _container(pod: Any, name: str) -> Any:
    every = all_containers(pod)
    chosen = [c for c in every if c.name == name] if name else every
    if len(chosen) != 1:
        have = ", ".join(c.name for c in every)
        raise click.UsageError(f"this form prints one container's mounts; name it with --container: {have}")
    return chosen[0]


@cli.command()
@click.argument("pod")
@_namespace
@click.option("--target", default="", metavar="DIR", help="Only what is published at DIR.")
@_root
@click.option(
    "--store", envvar="NETPLANE_STORE", default="", metavar="URL",
    help="Not needed; with it other nodes know at once.",
)  # fmt: skip
def unpublish(pod: str, namespace: str, target: str, root: Path, store: str) -> None:
    """Take away what publish made for POD; its Pod object need not exist any more.

    Other nodes may use its volumes at once with --store, else when this node's agent has noticed.
    """
    if not root.exists():
        return
    records = [r for r in Journal(root).records() if (r.namespace, r.name) == (namespace, pod)]
    publish.unpublish(namespace, pod, Mounts(root), target)
    if store and any(record.modes for record in records):
        try:
            opened = open_store(store)
            holds.let_go(opened, Snapshot.of(*opened.list(["PersistentVolume"])), records, root)
            opened.close()
        except NetplaneError as exc:
            click.echo(
                f"storageplane: unpublished; the store is not told: {exc}; the agent of this node will",
                err=True,
            )


@cli.group("node")
def node_group() -> None:
    """What concerns a whole node."""


@node_group.command("lost")
@click.argument("name")
@_store
@click.option("--rebind", is_flag=True, help="Its claims start anew, with other volumes, and empty.")
@click.option("--retain", is_flag=True, help="Nothing goes: its volumes are kept for when it is back.")
@click.option("--force", is_flag=True, help="Although its lease is alive.")
def lost_command(name: str, store: str, rebind: bool, retain: bool, force: bool) -> None:
    """Give up node NAME and the volumes that only it could reach; their data counts as lost.

    The volumes' objects are removed and their claims become Lost, or, with --rebind, wait for new ones. Pods
    placed there that use them are deleted. Everything else is left alone.

    With --retain nothing is removed: the volumes get reclaim policy Retain, and their claims stay bound.
    """
    if rebind and retain:
        raise click.UsageError("--rebind and --retain: a claim starts anew, or keeps its volume; choose one")
    opened = open_store(store)
    try:
        said = lost.retain(opened, name, force) if retain else lost.give_up(opened, name, rebind, force)
        for line in said:
            click.echo(line)
    finally:
        opened.close()


@cli.command("doctor")
@_root
def doctor_command(root: Path) -> None:
    """Say what this machine can do, and what is left over beneath the root."""
    good = True
    for ok, line in doctor.findings(root):
        good = good and ok
        click.echo(f"{'ok  ' if ok else 'FAIL'} {line}")
    if not good:
        raise SystemExit(1)


def _log(verbose: bool) -> None:
    """To stderr: warnings, and how far long work is; all that is said when ``verbose``."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname).1s %(message)s")
    for module in (progress, growth):
        module.log.setLevel(logging.INFO)


def _until_told() -> threading.Event:
    stop = threading.Event()
    on_signals(lambda _: stop.set(), signal.SIGTERM, signal.SIGINT)
    return stop


def _driver(endpoint: str, root: Path, *options: Any) -> Any:
    """``options``: as in `csi.server.Options`."""
    from .csi.server import CsiServer, Options  # protobuf and CSI's messages: for drivers only

    driver = CsiServer(endpoint, root, Options(*options))
    driver.start()
    return driver


def _config(node: str, root: Path, provisioners: tuple[str, ...]) -> wiring.Config:
    names_served = tuple(dict.fromkeys((names.DIRECTORY, names.LOCAL, *provisioners)))
    top = wiring.prepare_root(root)
    drivers = tuple(sorted(path.parent.name for path in top.glob("plugins/*/csi.sock")))
    return wiring.Config(node, top, names_served, drivers)


def _status(run_dir: Path, give_up: float) -> dict[str, Any]:
    while True:
        try:
            found = read_status(run_dir)
            if found["synced"] or time.monotonic() >= give_up:
                return found
        except Unavailable:
            if time.monotonic() >= give_up:
                raise Unavailable(f"no storageplane agent answers in {run_dir.parent}") from None
        time.sleep(0.05)


def main() -> None:
    os.umask(0o022)
    try:
        cli(standalone_mode=True)
    except NetplaneError as exc:
        click.echo(f"storageplane: {exc}", err=True)
        sys.exit(1)
