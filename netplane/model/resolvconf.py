"""What a pod's resolv.conf says: the node's name servers, and the Pod's dnsPolicy and dnsConfig. Pure.

Source: Kubernetes, "DNS for Services and Pods"; the merging is kubelet's (pkg/kubelet/network/dns).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .pods import Pod

NDOTS = "ndots:5"
MAX_SERVERS = 3  # resolv.conf(5); kubelet cuts there too
MAX_SEARCHES = 32
POLICIES = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")


class Resolv(NamedTuple):
    """The contents of a resolv.conf, CNI's ``dns``."""

    nameservers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def parse(text: str) -> Resolv:
    """A resolv.conf; of several search lines the last counts, of an option too."""
    servers: list[str] = []
    searches: tuple[str, ...] = ()
    options: dict[str, None] = {}
    for line in text.splitlines():
        words = line.partition("#")[0].partition(";")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            servers.append(words[1])
        elif words[0] in ("search", "domain"):
            searches = tuple(word.rstrip(".").lower() for word in words[1:] if word != ".")
        elif words[0] == "options":
            options.update(dict.fromkeys(words[1:]))
    return Resolv(tuple(servers), searches, tuple(options))


def domain(text: str) -> str:
    """What the last domain line of a resolv.conf says, which `parse` takes for a search; "" without one."""
    lines = [line.split() for line in text.splitlines()]
    return next((words[1] for words in reversed(lines) if words[:1] == ["domain"] and words[1:]), "")


def resolv(pod: Pod, servers: Iterable[str], domain: str, host: Resolv) -> Resolv:
    """What ``pod`` gets. ``servers``: where the node answers names of the cluster's ``domain``;
    ``host``: the node's own resolv.conf, which "Default" takes over and whose searches all have.

    A pod on the host's network that says ClusterFirst gets the node's, as Kubernetes does.
    """
    policy = pod.spec.dns_policy or "ClusterFirst"
    if policy == "Default" or (policy == "ClusterFirst" and pod.spec.host_network):
        base = host
    elif policy == "None":
        base = Resolv()
    else:
        inside = (f"{pod.namespace}.svc.{domain}", f"svc.{domain}", domain)
        base = Resolv(tuple(servers), (*inside, *host.searches), (NDOTS,))
    return _merged(base, pod)


def _merged(base: Resolv, pod: Pod) -> Resolv:
    """dnsConfig's servers and searches come after; its options replace those of the same name."""
    more = pod.spec.dns_config
    if more is None:
        return _cut(base)
    options = {text.partition(":")[0]: text for text in base.options}
    for option in more.options:
        options[option.name] = f"{option.name}:{option.value}" if option.value else option.name
    return _cut(
        Resolv(
            (*base.nameservers, *more.nameservers),
            (*base.searches, *(s.rstrip(".").lower() for s in more.searches)),
            tuple(options.values()),
        )
    )


def _cut(found: Resolv) -> Resolv:
    return Resolv(
        tuple(dict.fromkeys(found.nameservers))[:MAX_SERVERS],
        tuple(dict.fromkeys(found.searches))[:MAX_SEARCHES],
        found.options,
    )
