"""Session affinity ClientIP in shared maps: who came before, and the endpoint that it got.

    svc-affinity4-tcp   client . home . port → token           dynamic: put there and aged by packets
    svc-sticky4-tcp     home . port . token → address . port   which endpoints are there now
    svc-tokens4-tcp     home . port . slot → token             from which a new client's is drawn

Rule 1: a token names an endpoint for as long as it lives, by a hash of its address and port, and not
        its place in a list: others may come and go. A token that svc-sticky does not know is of an
        endpoint that left: it is forgotten, and another one drawn.
Rule 2: affinity is by service port, whichever of its addresses a client uses. So one frontend is its
        *home*, and a flow to any other is first made to look like one to the home: the step HOME
        rewrites the first packet's destination. NAT itself goes by conntrack's tuple, which still
        has the real one, so replies carry the address that the client asked.
Rule 3: a chain exists for each pair of timeout and number of endpoints in use. The class holds both:
        1, local (1 bit), seconds (17), endpoints (13).
Rule 4: the endpoints of traffic policy Local have the same tokens, and sticky elements of their own
        (bit LOCAL), so that no client is led past the policy by what it got elsewhere.
Rule 5: nft 1.0.6 has room for 16 bytes of key in a statement that updates a map, so IPv6's 36 are
        hashed to 12: clients that collide, one pair in 2⁹⁶, would share an endpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from ..model.errors import Invalid
from ..model.facts import Chain, Element, Fact, Set
from .endpoints import Backend
from .frontends import Frontend, family
from .steps import HOME, HOME_LOCAL, after
from .words import PROTOCOLS, WORDS, priority

LOCAL = 1 << 30
TOKENS = LOCAL - 1  # tokens are 1 … TOKENS - 1
MOST = (1 << 13) - 1  # endpoints of one service port, in one class
CLIENTS = 1 << 20  # remembered in one map; beyond that new clients are served without affinity
LOCAL_SLOTS = 1 << 16  # the slots of the Local list begin here
SEEDS = (0x6E70, 0x6C61, 0x6E65)
_KEY_TYPE = {
    "4": "ip saddr . ip daddr . {protocol} dport",
    "6": " . ".join("numgen random mod 2" for _ in SEEDS),
}


def sets(digit: str, ip: str) -> Iterator[Set]:
    key = f"{ip} daddr . meta l4proto . th dport"
    yield Set(f"svc-home{digit}", (f"typeof {key} : {ip} daddr",), map=True)
    yield Set(f"svc-homeport{digit}", (f"typeof {key} : meta priority",), map=True)
    for protocol in PROTOCOLS:
        name, frontend = f"{digit}-{protocol}", f"{ip} daddr . {protocol} dport"
        spec = f"typeof {_KEY_TYPE[digit].format(protocol=protocol)} : meta priority"
        yield Set(f"svc-affinity{name}", (spec, f"size {CLIENTS}", "flags dynamic,timeout"), map=True)
        spec = f"typeof {frontend} . meta priority : {ip} daddr . {protocol} dport"
        yield Set(f"svc-sticky{name}", (spec,), map=True)
        spec = f"typeof {frontend} . numgen random mod 2 : meta priority"
        yield Set(f"svc-tokens{name}", (spec,), map=True)


def base() -> Iterator[Fact]:
    yield Set("svc-ports", ("typeof meta priority : tcp dport",), map=True)
    for digit, ip, _ in WORDS.values():
        key = f"{ip} daddr . meta l4proto . th dport"
        rewrite = (
            f"meta priority set {key} map @svc-homeport{digit}",
            f"{ip} daddr set {key} map @svc-home{digit}",
            *(f"{protocol} dport set meta priority map @svc-ports" for protocol in PROTOCOLS),
        )
        for step, suffix in ((HOME, ""), (HOME_LOCAL, "-local")):
            go = f"meta priority set {step} goto svc-after-home{digit}"
            yield Chain(f"svc-home{digit}{suffix}", (*rewrite, go))


def klass(timeout: int, count: int, local: bool) -> str:
    """The class of a sticky service port. Raises Invalid for more endpoints than it can count."""
    if count > MOST:
        raise Invalid(f"sessionAffinity: {count} endpoints of one port; it can be {MOST} at most")
    return priority(1 << 31 | local * LOCAL | timeout << 13 | count)


def tokens(backends: Iterable[Backend]) -> dict[Backend, int]:
    """A number for each endpoint that depends on itself alone; of two that collide the later moves on."""
    taken: dict[int, Backend] = {}
    for backend in sorted(backends):
        token = _hash(backend)
        while token in taken:
            token = token % (TOKENS - 1) + 1
        taken[token] = backend
    return {backend: token for token, backend in taken.items()}


def _hash(backend: Backend) -> int:
    text = "{} {}".format(*backend).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big") % (TOKENS - 1) + 1


def home(frontend: Frontend, first: Frontend) -> Iterator[Fact]:
    """What rewrites a flow to ``frontend`` into one to ``first``, and where it goes on from there."""
    digit = WORDS[family(frontend.address)][0]
    yield Element(f"svc-home{digit}", frontend.key, (first.address,))
    yield Element(f"svc-homeport{digit}", frontend.key, (priority(first.port),))
    yield Element("svc-ports", (priority(first.port),), (first.port,))


def endpoints(
    first: Frontend, backends: tuple[Backend, ...], names: dict[Backend, int], timeout: int, local: bool
) -> Iterator[Fact]:
    """One list of a service port, Cluster or Local: its chain, slots and tokens."""
    digit, _, _ = WORDS[family(first.address)]
    name, place = f"{digit}-{first.protocol}", (first.address, first.port)
    number = klass(timeout, len(backends), local)
    chain = _chain(first, timeout, len(backends), local)
    yield chain
    yield Element(f"svc-chains{digit}", (first.protocol, number), (f"goto {chain.name}",))
    yield after(first, HOME_LOCAL if local else HOME, number)
    for slot, backend in enumerate(backends, local * LOCAL_SLOTS):
        token = names[backend]
        yield Element(f"svc-tokens{name}", (*place, slot), (priority(token),))
        known = priority(token | local * LOCAL)
        yield Element(f"svc-sticky{name}", (*place, known), backend)


def _client(first: Frontend) -> str:
    """The key of svc-affinity: who asks for what."""
    digit, ip, _ = WORDS[family(first.address)]
    whole = f"{ip} saddr . {ip} daddr . {first.protocol} dport"
    if digit == "4":
        return whole
    return " . ".join(f"jhash {whole} mod {0xFFFFFFFF} seed {seed:#x}" for seed in SEEDS)


def _chain(first: Frontend, timeout: int, count: int, local: bool) -> Chain:
    """The priority is the class when nothing is known of the client, and its token when it is."""
    digit, ip, _ = WORDS[family(first.address)]
    name, frontend = f"{digit}-{first.protocol}", f"{ip} daddr . {first.protocol} dport"
    client, number = _client(first), klass(timeout, count, local)
    keep = f"update @svc-affinity{name} {{ {client} timeout {timeout}s : meta priority }}"
    offset = f" offset {LOCAL_SLOTS}" if local else ""
    here = f"meta priority set meta priority | {priority(LOCAL)}"
    go = f"dnat {ip} to {frontend} . meta priority map @svc-sticky{name}"
    arrive = (here, go) if local else (go,)
    rules = (
        f"meta priority set {client} map @svc-affinity{name}",
        f"meta priority != {number} {keep}",  # each new flow slides the timeout
        *arrive,
        f"delete @svc-affinity{name} {{ {client} : meta priority }}",  # an update leaves the old value
        f"meta priority set {frontend} . numgen random mod {count}{offset} map @svc-tokens{name}",
        keep,
        *arrive,
        "drop",
    )
    suffix = "-local" if local else ""
    return Chain(f"svc-sticky{name}-{count}-{timeout}s{suffix}", rules)
