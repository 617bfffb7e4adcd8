"""`netplane explain SRC DST`: what becomes of a connection, and whether the kernel agrees.

Towards a service: where it leads. Straight to a pod or an address: also what policy says.
The agent answers: it knows the objects, its own configuration and the kernel.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..health import ask_agent


def register(group: click.Group) -> None:
    group.add_command(explain)


@click.command()
@click.argument("source", metavar="POD|IP")
@click.argument("destination", metavar="SERVICE:PORT|POD:PORT|IP:PORT[/PROTOCOL]")
@click.option("--run-dir", type=click.Path(path_type=Path), default=Path("/run/netplane"), show_default=True)
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text")
def explain(source: str, destination: str, run_dir: Path, output: str) -> None:
    """Say what applies to a connection and why; exit status 1 if the kernel differs."""
    found = ask_agent(run_dir, "/explain", source=source, destination=destination)
    click.echo(json.dumps(found, indent=2) if output == "json" else "\n".join(describe(found)))
    if found["differs"]:
        raise SystemExit(1)


def describe(found: dict[str, Any]) -> list[str]:
    """The answer in lines."""
    lines = [f"{found['source']} → {found['destination']}"]
    if found["service"]:
        lines.append(f"service    {found['service']}")
    lines.append(f"verdict    {found['verdict']}: {found['reason']}")
    lines += [f"endpoint   {address} port {port}" for address, port in found["endpoints"]]
    lines += [f"policy     {line}" for line in found["policy"]]
    lines += [f"note       {note}" for note in found["notes"]]
    lines += [f"fast path  {found['fast']}"]
    lines += [f"element    {element}" for element in found["elements"]]
    if found["elements"]:
        held = f"holds all {len(found['elements'])} elements"
        lines.append(f"kernel     {'; '.join(found['differs']) if found['differs'] else held}")
    return lines
