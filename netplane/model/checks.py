"""Field rules shared by kinds: names, addresses, ports, quantities. Each yields (path, reason).

Sources: RFC 1123 (labels), Kubernetes apimachinery's validation (qualified names), CNI 1.1 (names).
"""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
from collections.abc import Iterable, Iterator
from decimal import Decimal, InvalidOperation

from .base import Fault

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([-a-z0-9]*[a-z0-9])?")
DATA_KEY = re.compile(r"[-._a-zA-Z0-9]+")
NOWHERE = re.compile(r"0\.0\.0\.0$|127\.|169\.254\.|224\.0\.0\.|::1?$|fe[89ab].:|ff.2:", re.IGNORECASE)
PROTOCOLS = ("TCP", "UDP", "SCTP")
FAMILIES = ("IPv4", "IPv6")


def dns_label(path: str, value: str) -> Iterator[Fault]:
    if len(value) > 63 or not LABEL.fullmatch(value):
        yield path, f"{value!r} is not a DNS label: 1 to 63 of a-z, 0-9 and '-', not at an end"


def dns_subdomain(path: str, value: str) -> Iterator[Fault]:
    if len(value) > 253 or not SUBDOMAIN.fullmatch(value):
        yield path, f"{value!r} is not a DNS name: lower-case labels joined by '.', at most 253"


def label_map(path: str, labels: dict[str, str]) -> Iterator[Fault]:
    for key, value in labels.items():
        prefix, slash, name = key.rpartition("/")
        if (slash and not SUBDOMAIN.fullmatch(prefix)) or len(name) > 63 or not QUALIFIED.fullmatch(name):
            yield f"{path}[{key}]", "a label key is [DNS name/]name, name at most 63 of A-Za-z0-9-_."
        if value and (len(value) > 63 or not QUALIFIED.fullmatch(value)):
            yield f"{path}[{key}]", f"{value!r}: a label value is at most 63 of A-Za-z0-9-_."


def data_keys(path: str, keys: Iterable[str]) -> Iterator[Fault]:
    """The keys of a ConfigMap or Secret; each becomes a file's name."""
    for key in keys:
        if len(key) > 253 or not DATA_KEY.fullmatch(key) or key.startswith("..") or key == ".":
            yield (
                f"{path}[{key}]",
                "a key is at most 253 of A-Za-z0-9-_., and neither '.' nor begins with '..'",
            )


def base64_values(path: str, data: dict[str, str]) -> Iterator[Fault]:
    """Never quotes a value: it may be a secret."""
    for key, value in data.items():
        try:
            base64.b64decode(value.replace("\n", ""), validate=True)
        except ValueError:
            yield f"{path}[{key}]", "is not base64 (plain text of a Secret goes under stringData)"


def one_of(path: str, value: str, allowed: Iterable[str]) -> Iterator[Fault]:
    allowed = tuple(allowed)
    if value not in allowed:
        yield path, f"{value!r} is not supported; use one of {', '.join(repr(a) for a in allowed)}"


def port(path: str, value: int, low: int = 1) -> Iterator[Fault]:
    if not low <= value <= 65535:
        yield path, f"{value} is not a port: it must be {low} to 65535"


def port_name(path: str, value: str) -> Iterator[Fault]:
    if len(value) > 15 or not PORT_NAME.fullmatch(value) or "--" in value:
        yield path, f"{value!r} is not a port name: at most 15 of a-z, 0-9 and '-', with a letter"


def port_or_name(path: str, value: int | str) -> Iterator[Fault]:
    if isinstance(value, int):
        yield from port(path, value)
    else:
        yield from port_name(path, value)


def ip(path: str, value: str) -> Iterator[Fault]:
    if _is_plain_ip(value):
        return
    try:
        if str(ipaddress.ip_address(value)) != value.lower():
            yield path, f"{value!r} is not in canonical form: use {ipaddress.ip_address(value)}"
    except ValueError:
        yield path, f"{value!r} is not an IPv4 or IPv6 address"


def routed_ip(path: str, value: str) -> Iterator[Fault]:
    """An address that a packet can be sent to from anywhere, as endpoints and external IPs must be."""
    yield from ip(path, value)
    if NOWHERE.match(value):
        yield path, f"{value!r} is unspecified, loopback or link-local"


def _is_plain_ip(value: str) -> bool:
    """IPv4 as the C library writes it, which is much quicker than to look closer."""
    try:
        return socket.inet_ntoa(socket.inet_pton(socket.AF_INET, value)) == value
    except (OSError, ValueError):
        return False


def cidr(path: str, value: str) -> Iterator[Fault]:
    try:
        if "/" not in value:
            raise ValueError("no prefix length")
        ipaddress.ip_network(value)
    except ValueError as exc:
        hint = f" ({exc})" if "host bits" in str(exc) else ""
        yield path, f"{value!r} is not a CIDR such as 10.0.0.0/16 or fd00::/64{hint}"


def unique(path: str, values: Iterable[object], what: str = "") -> Iterator[Fault]:
    """``path`` holds one ``{}`` for the index of the duplicate."""
    seen: dict[object, int] = {}
    for index, value in enumerate(values):
        if value in seen:
            yield path.format(index), f"duplicate {what}{value!r}, first at index {seen[value]}"
        else:
            seen[value] = index


_SUFFIX = {"": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18, "m": -3, "u": -6, "n": -9}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_QUANTITY = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([KMGTPE]i|[numkMGTPE]?)")


def parse_quantity(value: str | int | float) -> int:
    """A Kubernetes quantity ("1Gi", "500M", 1024, "1e3") in whole units, rounded up.

    Raises ValueError when it is not one (apimachinery resource.Quantity).
    """
    return int(exact_quantity(value).to_integral_value(rounding="ROUND_CEILING"))


def exact_quantity(value: str | int | float) -> Decimal:
    """The same, not rounded: "250m" is 0.25."""
    match = _QUANTITY.fullmatch(str(value))
    if not match:
        raise ValueError(f"{value!r} is not a quantity such as 1Gi, 500Mi or 1000000")
    try:
        number = Decimal(match[1])
    except InvalidOperation as exc:
        raise ValueError(f"{value!r} is not a quantity such as 1Gi, 500Mi or 1000000") from exc
    unit = match[2]
    return number * (1 << _BINARY[unit]) if unit in _BINARY else number.scaleb(_SUFFIX[unit])


def quantity(path: str, value: str | int | float) -> Iterator[Fault]:
    try:
        if parse_quantity(value) < 0:
            yield path, f"{value!r} is negative"
    except ValueError as exc:
        yield path, str(exc)
