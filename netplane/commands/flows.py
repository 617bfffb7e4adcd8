"""`netplane flows`: what the packet path remembers of this node's flows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..health import ask_agent


def register(group: click.Group) -> None:
    group.add_command(flows)


@click.command()
@click.argument("address", default="")
@click.option("--run-dir", type=click.Path(path_type=Path), default=Path("/run/netplane"), show_default=True)
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text")
def flows(address: str, run_dir: Path, output: str) -> None:
    """List the flows that take the fast path, busiest first, or those of one ADDRESS.

    What arrives, what becomes of it and where it leaves, since when it is known and when the kernel
    was last asked, packets and bytes; then what became of all packets, by verdict.
    """
    found = ask_agent(run_dir, "/flows", **({"address": address} if address else {}))
    click.echo(json.dumps(found, indent=2) if output == "json" else "\n".join(describe(found)))


def describe(found: dict[str, Any]) -> Iterator[str]:
    """One line for each flow, then the verdicts that occurred."""
    for flow in found["flows"]:
        arrives = f"{_end(flow, 'source')} → {_end(flow, 'destination')}"
        leaves = f"{_end(flow, 'new_source')} → {_end(flow, 'new_destination')}"
        way = f"{flow['place']} to {flow['device'] or 'a device that is gone'}"
        age = f"{flow['age']:.0f} s, asked {flow['asked']:.1f} s ago" + ("" if flow["current"] else ", stale")
        counted = f"{flow['packets']} packets {flow['bytes']} bytes"
        rewrite = "" if arrives == leaves else f" becomes {leaves}"
        yield f"{flow['protocol']} {arrives}{rewrite} ({way}; {age}; {counted})"
    verdicts = ", ".join(f"{name} {number}" for name, number in found["verdicts"].items() if number)
    yield f"packets: {verdicts or 'none yet'}"


def _end(flow: dict[str, Any], which: str) -> str:
    address = flow[which]
    return f"{f'[{address}]' if ':' in address else address}:{flow[f'{which}_port']}"
