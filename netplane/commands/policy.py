"""`netplane policy`: why a packet passes or not, and who may reach whom, computed from the objects."""

from __future__ import annotations

import json
from contextlib import closing

import click

from ..kernel.nftables import NftDriver
from ..model.pods import Pod
from ..model.snapshot import Snapshot
from ..policy import explain
from ..policy.room import PolicyRoom
from ..store import open_store
from .objects import store_option, told

KINDS = ("Pod", "Namespace", "Node", "NetworkPolicy", "ClusterNetworkPolicy", "Attachment")
namespace_option = click.option("-n", "--namespace", default="default", show_default=True, metavar="NS")


def register(group: click.Group) -> None:
    """Put the group ``policy`` under ``group``."""
    group.add_command(policy)


@click.group()
def policy() -> None:
    """Network policy: explain, matrix."""


@policy.command("explain")
@click.argument("source", metavar="POD|IP")
@click.argument("target", metavar="POD|IP[:PORT[/PROTO]]")
@namespace_option
@click.option(
    "--check", metavar="NODE", help="Compare with the kernel of NODE, in whose namespace this runs."
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@store_option
@told
def explain_command(
    source: str, target: str, namespace: str, check: str | None, output: str, url: str
) -> None:
    """Say whether policy allows a flow, which policies select each end, and which rule decides.

    Behind a service, name the endpoint's pod and port. Exits 0 when allowed, 1 when denied or when the
    kernel of --check differs.
    """
    snapshot = _snapshot(url)
    host, port, protocol = explain.destination(target)
    ends = (explain.end(source, namespace, snapshot), explain.end(host, namespace, snapshot))
    found = explain.answers(*ends, protocol, port, snapshot)
    differs = _check(check, found, snapshot) if check else []
    if output == "json":
        click.echo(json.dumps([_document(a) for a in found], indent=2))
    else:
        click.echo("\n".join(line for answer in found for line in explain.lines(answer)))
        if check:
            click.echo(f"kernel of {check}: {'; '.join(differs) or 'holds these rules'}")
    if differs or not all(a.allowed for a in found):
        raise SystemExit(1)


@policy.command("matrix")
@namespace_option
@click.option("-A", "--from-all", is_flag=True, help="Sources of all namespaces, not only of this one.")
@click.option("--port", "ports", multiple=True, metavar="PORT[/PROTO]", help="Default: what pods declare.")
@store_option
@told
def matrix_command(namespace: str, from_all: bool, ports: tuple[str, ...], url: str) -> None:
    """Print which pods of a namespace may be reached, by whom: yes, no, or the ports that are allowed."""
    snapshot = _snapshot(url)
    targets = sorted(snapshot.list(Pod, namespace), key=lambda p: p.name)
    sources = sorted(snapshot.list(Pod), key=lambda p: (p.namespace, p.name)) if from_all else targets
    asked = tuple((protocol, port) for _, port, protocol in (explain.destination(f"x:{p}") for p in ports))
    table = explain.matrix(sources, targets, asked, snapshot)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        click.echo("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _snapshot(url: str) -> Snapshot:
    with closing(open_store(url)) as store:
        objects, revision = store.list(KINDS)
    return Snapshot.of(objects, int(revision))


def _check(node: str, found: list[explain.Answer], snapshot: Snapshot) -> list[str]:
    held = dict(NftDriver().observe())
    addresses = [a for answer in found for a in (answer.packet.source, answer.packet.target)]
    return list(explain.differences(PolicyRoom(node), addresses, snapshot, held))


def _document(answer: explain.Answer) -> dict[str, object]:
    sides = {"egress": answer.egress, "ingress": answer.ingress}
    return {
        **answer.packet._asdict(),
        "allowed": answer.allowed,
        **{
            word: {"allowed": r.allowed, "why": r.why, "policies": [str(k) for k in r.policies]}
            for word, r in sides.items()
        },
    }
