"""`netplane dns`: ask a DNS server as a pod would, and show what it said."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

import click
from dnslib import QTYPE, RCODE, DNSError, DNSRecord

from ..dns import wire
from ..dns.upstreams import Address, family, nameservers
from ..model.errors import Invalid

TIMEOUT = 5.0  # seconds, as resolvers wait (resolv.conf(5))


def register(group: click.Group) -> None:
    """Put the group ``dns`` under ``group``."""
    group.add_command(dns)


@click.group()
def dns() -> None:
    """Names of the cluster."""


@dns.command()
@click.argument("name")
@click.argument("kind", metavar="[TYPE]", default="A")
@click.option(
    "--server", metavar="IP[:PORT]", help="[IP]:PORT for IPv6; default: the first of /etc/resolv.conf"
)
@click.option("--tcp", is_flag=True, help="Ask over TCP at once.")
def query(name: str, kind: str, server: str | None, tcp: bool) -> None:
    """Ask for NAME and print the answers; exits 1 unless the name exists (NOERROR)."""
    if kind.upper() not in QTYPE.reverse:
        raise click.UsageError(f"{kind!r} is not a record type such as A, AAAA, SRV, PTR, CNAME or TXT")
    try:
        wire.name(name)
    except Invalid as exc:
        raise click.UsageError(str(exc)) from None
    address = _server(server)
    packet = DNSRecord.question(name.rstrip(".") + ".", kind.upper())
    packet.header.id = secrets.randbelow(65536)
    try:
        reply = _ask(bytes(packet.pack()), address, tcp)
    except (OSError, DNSError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc) or "no answer in time"
        raise click.ClickException(f"DNS server {address[0]} port {address[1]}: {reason}") from None
    for rr in reply.rr:
        click.echo(f"{rr.rname}\t{rr.ttl}\t{QTYPE[rr.rtype]}\t{rr.rdata}")
    rcode = RCODE[reply.header.rcode]
    empty = " (the name exists, without such data)" if rcode == "NOERROR" and not reply.rr else ""
    source = "with authority" if reply.header.aa else "without authority"
    click.echo(f"{rcode}{empty} from {address[0]} port {address[1]}, {source}", err=True)
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
