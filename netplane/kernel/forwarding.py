"""Chains of somebody else that drop what this node forwards: what `netplane doctor` looks for.

An accept in our table cannot undo a drop in another's, and what is not ours is never changed. So a base
chain at `forward` with policy drop (Docker sets it with iptables) is to be seen, and said.

Rule 1: it only reads; of the older iptables, which nft does not show, only where its table is there already.
Rule 2: a chain lets pods through by rules for each of their bridges (one by one, or `npbr+`) in both
        directions, in it or in Docker's DOCKER-USER, or by the reference firewall plugin's chain, to which
        that plugin adds each pod.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..model.errors import KernelError, Unavailable
from .nft_dump import TABLE

PLUGIN, USERS = "CNI-FORWARD", "DOCKER-USER"
WAIT = 5  # seconds for the lock that all of iptables share
_FAMILIES = ("ip", "ip6", "inet")
_LEGACY = (("ip", "iptables-legacy"), ("ip6", "ip6tables-legacy"))


class Dropping(NamedTuple):
    """``opened``: by what pods pass all the same; "" when nothing is known that lets them."""

    chain: str
    opened: str


def dropping(bridges: Collection[str]) -> list[Dropping]:
    """All such chains of this namespace; ``bridges`` are those of pods.

    Raises KernelError, ImportError, Unavailable.
    """
    found = []
    chains = [entry["chain"] for entry in _nft("list chains") if "chain" in entry]
    for chain in chains:
        place = (chain["family"], chain["table"])
        if chain.get("hook") != "forward" or chain.get("policy") != "drop":
            continue
        if place[0] in _FAMILIES and place[1] != TABLE:
            there = [c["name"] for c in chains if (c["family"], c["table"]) == place]
            names = [chain["name"], *(name for name in (USERS,) if name in there)]
            rules = [entry for name in names for entry in _nft(f"list chain {' '.join(place)} {name}")]
            found.append(Dropping(f"{' '.join(place)} {chain['name']}", _opened(_words(rules), bridges)))
    return [*found, *_legacy(bridges)]


def _nft(command: str) -> list[dict[str, Any]]:
    import nftables  # a missing one is an answer

    nft = nftables.Nftables()
    nft.set_json_output(True)
    code, out, error = nft.cmd(command)
    if code:
        raise KernelError(95, command, str(error).strip().partition("\n")[0])
    found: list[dict[str, Any]] = json.loads(out)["nftables"] if out else []
    return found


def _words(entries: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Each rule in the words of iptables: "-i npbr0 -j ACCEPT", "-j CNI-FORWARD"."""
    for expressions in (entry["rule"]["expr"] for entry in entries if "rule" in entry):
        words = []
        for one in expressions:
            meta = one.get("match", {}).get("left", {})
            key = meta.get("meta", {}).get("key") if isinstance(meta, dict) else None
            if key in ("iifname", "oifname") and one["match"]["op"] == "==":
                name = str(one["match"]["right"])
                words.append(f"{'-i' if key == 'iifname' else '-o'} {re.sub(r'[*]$', '+', name)}")
            elif "jump" in one:
                words.append(f"-j {one['jump']['target']}")
            elif "accept" in one:
                words.append("-j ACCEPT")
            elif "counter" not in one:
                words.append("…")  # a narrower rule
        yield " ".join(words)


def _opened(rules: Iterable[str], bridges: Collection[str]) -> str:
    there = set(rules)
    if any(rule.endswith(f"-j {PLUGIN}") for rule in there):
        return f"the firewall plugin's {PLUGIN}"
    passed = all(_accepted(there, way, bridge) for way in ("-i", "-o") for bridge in bridges)
    return f"rules for {', '.join(bridges)}" if passed else ""


def _accepted(rules: Collection[str], way: str, link: str) -> bool:
    """By its name, or by the beginning of it."""
    names = (link, *(f"{link[:size]}+" for size in range(len(link) + 1)))
    return any(f"{way} {name} -j ACCEPT" in rules for name in names)


def _legacy(bridges: Collection[str]) -> Iterator[Dropping]:
    for family, name in _LEGACY:
        program = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin")
        tables = Path(f"/proc/thread-self/net/{'ip' if family == 'ip' else 'ip6'}_tables_names")
        if program is None or not tables.exists() or "filter" not in tables.read_text().split():
            continue
        lines = _told([program, "-w", str(WAIT), "-S"]).splitlines()
        if "-P FORWARD DROP" in lines:
            mine = [line.partition(" ")[2].partition(" ") for line in lines if line.startswith("-A ")]
            rules = [rule for chain, _, rule in mine if chain in ("FORWARD", USERS)]
            yield Dropping(f"{name} FORWARD", _opened(rules, bridges))


def _told(words: list[str]) -> str:
    """What the program prints. Raises Unavailable: it does not say what holds."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=2 * WAIT, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(words)}: no end after {2 * WAIT} s") from None
    if done.returncode:
        raise Unavailable(f"{' '.join(words)}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout
