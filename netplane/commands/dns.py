"""`netplane dns`: what a name is answered and why, and the query log's switch."""

from __future__ import annotations

import secrets
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import click
from dnslib import QTYPE, RCODE, DNSError, DNSRecord

from ..dns import wire
from ..dns.controls import DnsControls
from ..dns.names import LocalNames
from ..dns.querylog import QueryLog
from ..dns.table import NameTable
from ..dns.upstreams import Address, family, nameservers
from ..dns.zone import DnsRoom
from ..health import SOCKET, ask_agent
from ..model.errors import Invalid
from ..model.facts import Facts, Plan, Scope
from ..model.snapshot import Snapshot
from ..store import open_store

TIMEOUT = 5.0  # seconds, as resolvers wait (resolv.conf(5))
RUN_DIR = click.option(
    "--run-dir", type=click.Path(path_type=Path), default=Path("/run/netplane"), show_default=True
)


def register(group: click.Group) -> None:
    """Put the group ``dns`` under ``group``."""
    group.add_command(dns)


@click.group()
def dns() -> None:
    """Names of the cluster."""


@dns.command()
@click.argument("name")
@click.argument("kind", metavar="[TYPE]", default="A")
@click.option("--server", metavar="IP[:PORT]", help="Ask this server; [IP]:PORT for IPv6.")
@click.option("--tcp", is_flag=True, help="Ask over TCP at once.")
@click.option("--client", default="", metavar="IP", help="As this client: short names depend on who asks.")
@click.option("--store", metavar="URL", help="Answer from this store's objects, without an agent.")
@RUN_DIR
def query(name: str, kind: str, run_dir: Path, client: str, **ask: Any) -> None:
    """What NAME is answered, and why; exits 1 unless the name exists (NOERROR).

    The node's agent says so, or a store's objects with --store, or any server with --server (then
    without the reasons); where no agent runs, the first server of /etc/resolv.conf.
    """
    kind = kind.upper()
    if kind not in wire.TYPES:
        raise click.UsageError(f"{kind!r} is not a record type such as A, AAAA, SRV, PTR, CNAME or TXT")
    try:
        wire.name(name)
    except Invalid as exc:
        raise click.UsageError(str(exc)) from None
    words = {"name": name, "type": kind, "client": client}
    if ask["store"] is not None:
        _explained(_from_store(ask["store"], words), f"store {ask['store']}")
    elif ask["server"] is None and (run_dir / SOCKET).exists():
        _explained(ask_agent(run_dir, "/dns/query", **words), f"agent {run_dir}")
    else:
        _ask_server(name, kind, _server(ask["server"]), ask["tcp"])


@dns.command()
@click.argument("switch", type=click.Choice(["on", "off"]), required=False)
@click.option("--sample", type=click.IntRange(1), default=1, metavar="N", help="One of every N queries.")
@RUN_DIR
def log(switch: str | None, sample: int, run_dir: Path) -> None:
    """Switch the query log of the node's agent on or off; without a word, say how it stands."""
    words = {} if switch is None else {"every": str(sample if switch == "on" else 0)}
    every = ask_agent(run_dir, "/dns/log", **words)["every"]
    click.echo("off" if not every else "on: every query" if every == 1 else f"on: one of {every} queries")


def _from_store(url: str, words: dict[str, str]) -> dict[str, Any]:
    """The answer that an agent on this store gives with its defaults, computed here."""
    with closing(open_store(url)) as store:
        objects, revision = store.list()
    snapshot = Snapshot.of(objects, revision)
    room, table = DnsRoom(""), NameTable()
    table.apply(Plan(add=tuple(f for s in room.scopes(None, snapshot) for f in _rendered(room, s, snapshot))))
    table.mark_synced()
    names = LocalNames(lambda: snapshot, room.domain)
    return DnsControls(table, names, QueryLog(), lambda: snapshot).query(words)


def _rendered(room: DnsRoom, scope: Scope, snapshot: Snapshot) -> Facts:
    """An object that is refused has no records; the agent says the same."""
    try:
        return room.render(scope, snapshot)
    except Invalid as exc:
        click.echo(f"{scope}: {exc}", err=True)
        return ()


def _explained(found: dict[str, Any], source: str) -> None:
    for line in found["why"]:
        click.echo(f"; {line}", err=True)
    if "forward" in found:
        click.echo(f"forwarded: the upstreams are asked for {found['forward']}", err=True)
        return
    _print(DNSRecord.parse(bytes.fromhex(found["answer"])), source)


def _ask_server(name: str, kind: str, address: Address, tcp: bool) -> None:
    packet = wire.HEADER.pack(secrets.randbelow(65536), wire.RD, 1, 0, 0, 0) + wire.name(name)
    packet += wire.TYPES[kind].to_bytes(2, "big") + wire.A_IN[2:]
    try:
        reply = _ask(packet, address, tcp)
    except (OSError, DNSError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc) or "no answer in time"
        raise click.ClickException(f"DNS server {address[0]} port {address[1]}: {reason}") from None
    _print(reply, f"{address[0]} port {address[1]}")


def _print(reply: DNSRecord, source: str) -> None:
    for rr in reply.rr:
        click.echo(f"{rr.rname}\t{rr.ttl}\t{QTYPE[rr.rtype]}\t{rr.rdata}")
    rcode = RCODE[reply.header.rcode]
    empty = " (the name exists, without such data)" if rcode == "NOERROR" and not reply.rr else ""
    authority = "with authority" if reply.header.aa else "without authority"
    click.echo(f"{rcode}{empty} from {source}, {authority}", err=True)
    if rcode != "NOERROR":
        raise SystemExit(1)


def _server(text: str | None) -> Address:
    if text is None:
        conf = Path("/etc/resolv.conf")
        found = nameservers(conf.read_text(errors="replace")) if conf.is_file() else []
        if not found:
            raise click.UsageError("no nameserver in /etc/resolv.conf: name one with --server")
        return found[0]
    ip, port = text, "53"
    if text.startswith("["):
        ip, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif text.count(":") == 1:
        ip, _, port = text.partition(":")
    if not family(ip) or not port.isdigit() or not 0 < int(port) < 65536:
        raise click.UsageError(f"--server {text!r}: it takes IP, IP:PORT or [IPv6]:PORT")
    return ip, int(port)


def _ask(packet: bytes, address: Address, tcp: bool) -> DNSRecord:
    """Over UDP, and over TCP when the answer was cut. Raises OSError."""
    if not tcp:
        with socket.socket(family(address[0]), socket.SOCK_DGRAM) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(address)
            sock.send(packet)
            reply = DNSRecord.parse(sock.recv(65535))
        if not reply.header.tc:
            return reply
    with socket.create_connection(address, TIMEOUT) as stream, stream.makefile("rb") as file:
        stream.sendall(len(packet).to_bytes(2, "big") + packet)
        return DNSRecord.parse(file.read(int.from_bytes(file.read(2), "big")))
