"""rtnetlink messages as bytes: encode attributes and requests, walk answers. No I/O.

Rule 1: the names are the kernel's (linux/rtnetlink.h, if_link.h, if_addr.h, neighbour.h).
Rule 2: a request is (type, flags, body, what); ``what`` says in words what it does, for errors.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Container, Iterator
from functools import lru_cache
from typing import NamedTuple

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_GETNSID = 90

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_DUMP_INTR = 0x10
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_GROUP, IFLA_NET_NS_FD = 18, 20, 26, 27, 28
IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS = 29, 8
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
VETH_INFO_PEER = 1
IFF_UP, IFF_PROMISC = 0x1, 0x100

IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS, IFA_PROTO = 1, 2, 4, 8, 11
IFA_F_NODAD = 0x02

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_TABLE = 1, 4, 5, 6, 7, 8, 15
RTAX_MTU, RTAX_ADVMSS = 2, 8
RTNH_F_ONLINK = 4
RT_SCOPES = {"global": 0, "site": 200, "link": 253, "host": 254}
RTN_KINDS = {"unicast": 1, "local": 2, "blackhole": 6, "unreachable": 7, "prohibit": 8}

NDA_DST, NDA_LLADDR, NDA_PROTOCOL = 1, 2, 12
NUD_NOARP, NUD_PERMANENT = 0x40, 0x80
NTF_SELF = 0x02

NLMSGHDR = struct.Struct("=IHHII")
IFINFOMSG = struct.Struct("=BxHiII")  # family, type, index, flags, change
IFADDRMSG = struct.Struct("=BBBBi")  # family, prefixlen, flags, scope, index
RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
NDMSG = struct.Struct("=B3xiHBB")  # family, ifindex, state, flags, type
_ATTR = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_PAD = (b"", b"\0\0\0", b"\0\0", b"\0")


class Request(NamedTuple):
    type: int
    flags: int
    body: bytes
    what: str


class Answer(NamedTuple):
    """What became of one request: errno (positive, 0 good), the kernel's words, and its reply's body."""

    errno: int = 0
    text: str = ""
    body: bytes | None = None


def attr(kind: int, payload: bytes) -> bytes:
    size = len(payload)
    return _ATTR.pack(size + 4, kind) + payload + _PAD[size & 3]


def attr32(kind: int, value: int) -> bytes:
    return _ATTR.pack(8, kind) + _U32.pack(value)


def text(kind: int, value: str) -> bytes:
    return attr(kind, value.encode() + b"\0")


def nest(kind: int, *parts: bytes) -> bytes:
    return attr(kind | NLA_F_NESTED, b"".join(parts))


def pack(requests: list[Request], first: int) -> bytes:
    """The requests in one buffer, numbered from ``first``, each to be acknowledged."""
    parts = []
    for number, request in enumerate(requests, first):
        size = 16 + len(request.body)
        flags = request.flags | NLM_F_REQUEST | NLM_F_ACK
        parts.append(NLMSGHDR.pack(size, request.type, flags, number & 0xFFFFFFFF, 0))
        parts.append(request.body)
    return b"".join(parts)


def messages(data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """(type, flags, sequence, portid, body) of every message in a buffer."""
    at = 0
    while at + 16 <= len(data):
        size, kind, flags, seq, portid = NLMSGHDR.unpack_from(data, at)
        if size < 16:
            return
        yield kind, flags, seq, portid, data[at + 16 : at + size]
        at += (size + 3) & ~3


def attrs(data: bytes, at: int = 0) -> dict[int, bytes]:
    """The attributes from offset ``at`` on, by type without flags; of a repeated one the last."""
    found = {}
    while at + 4 <= len(data):
        size, kind = _ATTR.unpack_from(data, at)
        if size < 4:
            break
        found[kind & NLA_TYPE_MASK] = data[at + 4 : at + size]
        at += (size + 3) & ~3
    return found


def pick(data: bytes, at: int, kinds: Container[int], most: int) -> dict[int, bytes]:
    """``most`` attributes of these types, the first of them; what lies behind is not looked at."""
    found: dict[int, bytes] = {}
    end = len(data) - 4
    unpack = _ATTR.unpack_from
    while at <= end and len(found) < most:
        size, kind = unpack(data, at)
        if size < 4:
            break
        if kind in kinds:
            found[kind] = data[at + 4 : at + size]
        at += (size + 3) & ~3
    return found


def first(data: bytes, at: int, kind: int) -> bytes | None:
    """The first attribute of a type, without looking at those behind it."""
    while at + 4 <= len(data):
        size, found = _ATTR.unpack_from(data, at)
        if found & NLA_TYPE_MASK == kind:
            return data[at + 4 : at + size]
        if size < 4:
            break
        at += (size + 3) & ~3
    return None


def u32(data: bytes | None, default: int = 0) -> int:
    return _U32.unpack_from(data)[0] if data else default


def string(data: bytes | None) -> str:
    return data.rstrip(b"\0").decode("utf-8", "replace") if data else ""


def refusal(body: bytes) -> str:
    """The kernel's words in an error message whose request was not echoed (NETLINK_CAP_ACK)."""
    return string(attrs(body, 20).get(NLMSGERR_ATTR_MSG))


@lru_cache(maxsize=4096)
def ip_bytes(address: str) -> bytes:
    """4 or 16 bytes. Raises ValueError."""
    return ipaddress.ip_address(address).packed


def ip_text(data: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)


def family_of(packed: bytes) -> int:
    return int(socket.AF_INET if len(packed) == 4 else socket.AF_INET6)


def mac_bytes(mac: str) -> bytes:
    """Six bytes of "aa:bb:cc:dd:ee:ff". Raises ValueError."""
    packed = bytes.fromhex(mac.replace(":", ""))
    if len(packed) != 6:
        raise ValueError(f"{mac!r} is not a MAC address")
    return packed


def mac_text(data: bytes | None) -> str:
    return data.hex(":") if data else ""
