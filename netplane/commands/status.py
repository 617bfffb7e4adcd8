"""`netplane status`: is the agent of this run directory in sync, and if not, what is in the way."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from ..health import read_status
from ..model.errors import Unavailable


def register(group: click.Group) -> None:
    group.add_command(status)


@click.command()
@click.option("--run-dir", type=click.Path(path_type=Path), default=Path("/run/netplane"), show_default=True)
@click.option("--wait", type=float, default=0.0, metavar="SECONDS", help="Wait so long for it to be in sync.")
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text")
def status(run_dir: Path, wait: float, output: str) -> None:
    """Show whether every room is in sync; exit status 0 only if so."""
    found = _wait_for(run_dir, wait)
    if output == "json":
        click.echo(json.dumps(found, indent=2))
    else:
        for line in describe(found):
            click.echo(line)
    if not found["synced"]:
        raise SystemExit(1)


def _wait_for(run_dir: Path, wait: float) -> dict[str, Any]:
    give_up = time.monotonic() + wait
    while True:
        try:
            found = read_status(run_dir)
            if found["synced"] or time.monotonic() >= give_up:
                return found
        except Unavailable:
            if time.monotonic() >= give_up:
                raise
        time.sleep(0.05)


def describe(status: dict[str, Any]) -> list[str]:
    """The status in lines: the store, then a line per room, then a line per failing scope."""
    lines = [f"{'node':<12} {status.get('node', '')}"] if status.get("node") else []
    lines.append(f"{'store':<12} {status['store']} (revision {status['revision']})")
    for name, room in status["rooms"].items():
        failing = room["failing"]
        state = f"{len(failing)} failing" if failing else "in sync"
        lines.append(
            f"{name:<12} {state}, {room['scopes']} scopes" if room["scopes"] else f"{name:<12} {state}"
        )
        lines += [f"  {scope or name}: {why}" for scope, why in failing.items()]
    lines += [
        f"{'ejected':<12} {e['service']} {e['endpoint']}: {e['reason']}; {until(e)}"
        for e in status.get("ejected", ())
    ]
    if status["pending"]:
        lines.append(f"{'pending':<12} {status['pending']}")
    return lines


def until(ejected: dict[str, Any]) -> str:
    """What becomes of an endpoint that fails."""
    if ejected["tried"]:
        return "tried all the same, because most endpoints fail"
    return f"back in {ejected['seconds']} s"
