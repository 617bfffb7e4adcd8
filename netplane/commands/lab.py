"""`netplane lab`: a cluster of network namespaces that stays until it is taken down."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..lab.cluster import Lab

NAME = "lab"
name_option = click.option("--lab", "name", default=NAME, show_default=True, help="The lab's name.")


def register(group: click.Group) -> None:
    """Add `netplane lab up|down|pod|exec|ls`. Errors are NetplaneError; the group tells them."""
    group.add_command(lab)


@click.group()
def lab() -> None:
    """Clusters of network namespaces on this machine."""


@lab.command()
@click.argument("name", default=NAME)
@click.option("--nodes", default=2, show_default=True, help="How many nodes.")
@click.option("--family", type=click.Choice(["dual", "IPv4", "IPv6"]), default="dual", show_default=True)
@click.option("--mtu", default=1500, show_default=True, help="Of the wire.")
@click.option("--agents/--no-agents", default=True, help="Start an agent on every node.")
def up(name: str, nodes: int, family: str, mtu: int, agents: bool) -> None:
    """Make a lab and leave it running."""
    from ..lab import Lab, Settings

    one = "IPv4" if family == "dual" else family
    made = Lab(nodes, family == "dual", Settings(name=name, persist=True, mtu=mtu, family=one)).up()
    try:
        if agents:
            made.start_agents()
    except BaseException:
        made.down()
        raise
    _show(made.describe())


@lab.command()
@click.argument("name", default=NAME)
def down(name: str) -> None:
    """Take a lab away with everything in it, also one that is broken. None there: fine."""
    from ..lab import traces
    from ..lab.settings import ROOT

    if "/" in name or name in ("", ".", ".."):
        raise click.BadParameter(f"{name!r} is not a lab's name")
    if (ROOT / name).exists():
        traces.remove(ROOT / name)


@lab.command()
@name_option
@click.option("--node", default="node-1", show_default=True)
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE")
@click.argument("pod_name", metavar="POD")
def pod(name: str, node: str, namespace: str, labels: tuple[str, ...], pod_name: str) -> None:
    """Add a pod to a node: a namespace that the node's CNI plugin attaches."""
    pairs = dict(label.partition("=")[::2] for label in labels)
    added = _open(name).node(node).add_pod(pod_name, namespace, pairs)
    click.echo(f"{added.name} {' '.join(added.ips)}")


@lab.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@name_option
@click.argument("place", metavar="NODE|POD|outside")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec(name: str, place: str, command: tuple[str, ...]) -> None:
    """Run a command in a node, a pod or the outside, with this terminal and its exit status."""
    from ..kernel import netns
    from ..model.errors import Invalid

    found = _open(name).place(place)
    argv = [str(part) for part in found.command(command[command[0] == "--" :])]
    netns.enter(found.netns)
    try:
        os.execvp(argv[0], argv)
    except OSError as exc:
        raise Invalid(f"cannot run {argv[0]}: {exc.strerror}") from None


@lab.command()
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def ls(output: str) -> None:
    """The labs of this machine: nodes, pods, addresses."""
    from ..lab.settings import ROOT
    from ..model.errors import Invalid

    found: list[dict[str, Any]] = []
    for path in sorted(ROOT.glob("*")):
        try:
            found.append(_open(path.name).describe())
        except Invalid:
            found.append({"name": path.name, "broken": f"netplane lab down {path.name}"})
    if output == "json":
        click.echo(json.dumps(found, indent=2))
        return
    for one in found:
        _show(one)


def _open(name: str) -> Lab:
    from ..lab import Lab, Settings

    return Lab.open(Settings(name=name))


def _show(lab: Mapping[str, Any]) -> None:
    if "broken" in lab:
        click.echo(f"lab {lab['name']}  not whole: take it away with '{lab['broken']}'")
        return
    click.echo(f"lab {lab['name']}  {'+'.join(lab['families'])}  store {lab['store']}")
    for node, addresses in lab["nodes"].items():
        click.echo(f"  {node:<12} {' '.join(addresses)}")
    for name, pod in lab["pods"].items():
        click.echo(f"  {name:<24} {pod['node']}  {' '.join(pod['ips'])}")
