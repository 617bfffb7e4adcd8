"""The checks of pods, services, names and agents."""

from __future__ import annotations

import time
from collections.abc import Callable

from .. import Pod
from ..runner import until
from .job import FAMILIES, Check, Job, expect, spread

CONNECTIONS = 300
ZONE = "default.svc.cluster.local"


def _figures(job: Job, source: Pod, target: Pod, family: str) -> str:
    address = target.ip_of(family)
    ping = job.ask(source, "ping", address, 20)
    expect(ping["lost"] == 0, f"{ping['lost']} of 20 pings to {address} lost")
    tcp = job.ask(source, "connect", address, 8080, 50)
    expect(not tcp["errors"], f"connect to {address}: {tcp['errors']}")
    expect(
        tcp["peers"] == [source.ip_of(family)], f"seen from {tcp['peers']}, not from the pod's own address"
    )
    return f"ping {ping['p50_us']:.0f} µs, connect {tcp['p50_us']:.0f} µs"


def same_node(job: Job, family: str) -> str:
    return _figures(job, job.client, next(p for p in job.web.values() if p.node is job.client.node), family)


def across(job: Job, family: str) -> str:
    """Also that it is the VXLAN device that carries it: it counts what the check sent."""
    node = job.client.node
    before = _carried(node.run("ip", "-s", "-o", "link", "show", "npvx0"))
    figures = _figures(job, job.client, job.pods["client-2"], family)
    more = _carried(node.run("ip", "-s", "-o", "link", "show", "npvx0")) - before
    expect(more >= 20, f"npvx0 carried {more} packets, not the check's")
    return figures


def _carried(line: str) -> int:
    """Packets sent, of `ip -s -o link`: the second figure after the header that starts with TX."""
    words = line.partition("TX:")[2].partition("\\")[2].split()
    return int(words[1])


def internet(job: Job) -> str:
    """What leaves the cluster leaves as its node."""
    server = job.lab.outside.probe("serve", "internet", "--tcp", 443)
    assert server.stdout and server.stdout.readline()
    try:
        for address, node in zip(job.lab.plan.internet, job.client.node.addresses, strict=True):
            seen = job.ask(job.client, "connect", address, 443, 5)
            expect(seen["names"] == {"internet": 5}, f"{address}: {seen['errors']}")
            expect(seen["peers"] == [node], f"{address} saw {seen['peers']}, not the node's {node}")
    finally:
        server.kill()
    return f"seen as {' and '.join(job.client.node.addresses)}"


def by_vip(job: Job, family: str) -> str:
    vip = job.vip(family)
    until(lambda: _complete(job, vip), f"service web at {vip} answered by all its pods")
    seen = job.ask(job.client, "connect", vip, 80, CONNECTIONS)
    expect(not seen["errors"], f"{vip}: {seen['errors']}")
    return f"{spread(seen['names'], set(job.web))}, connect {seen['p50_us']:.0f} µs"


def _complete(job: Job, vip: str) -> bool:
    seen = job.ask(job.client, "connect", vip, 80, 60)
    return not seen["errors"] and set(seen["names"]) == set(job.web)


def second_port(job: Job) -> str:
    for family in FAMILIES:
        seen = job.ask(job.pods["client-2"], "connect", job.vip(family), 9090, 40)
        expect(sum(seen["names"].values()) == 40, f"{family}: {seen['errors']}")
        expect(set(seen["names"]) <= set(job.web), f"{family}: answered by {sorted(seen['names'])}")
    return "80 connections to port metrics"


def hairpin(job: Job) -> str:
    pod = next(iter(job.web.values()))
    seen = job.ask(pod, "connect", job.vip("IPv4"), 80, 60)
    expect(not seen["errors"], f"from {pod.name}: {seen['errors']}")
    expect(pod.key[1] in seen["names"], f"{pod.name} never met itself: {seen['names']}")
    return f"{seen['names'][pod.key[1]]} of 60 came back to the caller"


def _resolve(job: Job, name: str, kind: str, count: int = 1) -> list[list[str]]:
    reply = job.ask(job.client, "resolve", job.client.resolvers[0], name, kind, count)
    expect(reply["rcode"] == 0, f"{name} {kind}: rcode {reply['rcode']}")
    return list(reply["answers"])


def by_name(job: Job) -> str:
    for name in ("web", "web.default", f"web.{ZONE}"):
        seen = job.ask_by_name(job.client, "connect", name, 80, 40)
        expect(not seen["errors"] and set(seen["names"]) <= set(job.web), f"{name}: {seen}")
    for family, kind in zip(FAMILIES, ("A", "AAAA"), strict=True):
        found = _resolve(job, f"web.{ZONE}", kind)
        expect(found == [[job.vip(family)]], f"web {kind} is {found}, not {job.vip(family)}")
    missing = job.ask(job.client, "resolve", job.client.resolvers[0], f"nosuch.{ZONE}", "A")
    expect(missing["rcode"] == 3, f"a service that is not there: rcode {missing['rcode']}, not NXDOMAIN")
    reply = job.ask(job.client, "resolve", job.client.resolvers[0], f"web.{ZONE}", "A", 50)
    return f"120 connections, lookup {reply['p50_us']:.0f} µs"


def dnsrr(job: Job) -> str:
    wanted = {pod.ip_of("IPv4") for pod in job.web.values()}
    answers = _resolve(job, f"web-rr.{ZONE}", "A", 4 * len(wanted))
    expect(all(set(found) == wanted for found in answers), f"answers {answers[0]}, not {sorted(wanted)}")
    first = {found[0] for found in answers}
    expect(first == wanted, f"only {sorted(first)} ever came first in {len(answers)} answers")
    v6 = {pod.ip_of("IPv6") for pod in job.web.values()}
    expect(set(_resolve(job, f"web-rr.{ZONE}", "AAAA")[0]) == v6, "AAAA is not the pods' addresses")
    return f"{len(answers)} answers, each of {len(wanted)} pods came first"


def headless(job: Job) -> str:
    peers = job.named("peers-")
    for family, kind in zip(FAMILIES, ("A", "AAAA"), strict=True):
        wanted = {pod.ip_of(family) for pod in peers.values()}
        found = _resolve(job, f"peers.{ZONE}", kind)[0]
        expect(set(found) == wanted, f"peers {kind} is {found}, not {sorted(wanted)}")
        for name, pod in peers.items():
            own = _resolve(job, f"{name}.peers.{ZONE}", kind)
            expect(own == [[pod.ip_of(family)]], f"{name}.peers {kind} is {own}")
    return f"{len(peers)} pods, and each by its own name"


def node_port(job: Job) -> str:
    took = []
    for node in job.lab.nodes:
        for address in node.addresses:
            seen = job.ask(job.lab.outside, "connect", address, 30080, 40)
            expect(not seen["errors"], f"{address}:30080: {seen['errors']}")
            expect(set(seen["names"]) <= set(job.web), f"{address}:30080 answered by {seen['names']}")
            took.append(seen["p50_us"])
    return f"{len(took)} addresses, connect {max(took):.0f} µs at most"


def killed_agents(job: Job) -> str:
    """Every agent dies by SIGKILL and starts again while a stream of each kind flows."""
    pod = job.pods["client-2"]
    with (
        job.stream(job.client, "udp", pod.ip_of("IPv4"), 8080) as udp4,
        job.stream(job.client, "udp", pod.ip_of("IPv6"), 8080) as udp6,
        job.stream(job.client, "tcp", job.vip("IPv4"), 80) as tcp,
    ):
        start = time.perf_counter()
        for node in job.lab.nodes:
            node.agent.kill()
        for node in job.lab.nodes:
            node.agent.start()
        for node in job.lab.nodes:
            node.agent.wait()
        took = time.perf_counter() - start
    figures = {"udp v4": udp4, "udp v6": udp6, "tcp via VIP": tcp}
    text = ", ".join(f"{name} {seen['lost']}/{seen['sent']}" for name, seen in figures.items())
    expect(not any(seen["lost"] for seen in figures.values()), f"lost/sent: {text} {tcp['errors']}")
    return f"lost/sent: {text}; in sync again after {took:.1f} s"


def pod_goes(job: Job) -> str:
    name, pod = sorted(job.web.items())[-1]
    address = pod.ip_of("IPv4")
    start = time.perf_counter()
    pod.delete()
    del job.pods[name]
    until(lambda: _complete(job, job.vip("IPv4")), f"service web without {name}")
    took = time.perf_counter() - start
    for target, port in (
        (job.vip("IPv4"), 80),
        (job.vip("IPv6"), 80),
        (job.lab.nodes[0].addresses[0], 30080),
    ):
        source = job.client if port == 80 else job.lab.outside
        seen = job.ask(source, "connect", target, port, 100)
        expect(not seen["errors"] and name not in seen["names"], f"{target} after {name} went: {seen}")
    found = _resolve(job, f"web-rr.{ZONE}", "A")[0]
    expect(address not in found, f"web-rr still answers {address} of the pod that went")
    return f"300 connections met the other {len(job.web)}; settled within {took * 1e3:.0f} ms"


def _per_family(title: str, run: Callable[[Job, str], str]) -> list[Check]:
    def of(family: str) -> Check:
        return Check(f"{title}, {family}", lambda job: run(job, family))

    return [of(family) for family in FAMILIES]


CHECKS = [
    *_per_family("pod to pod, one node", same_node),
    *_per_family("pod to pod over VXLAN", across),
    Check("pod to the internet", internet),
    *_per_family("service by virtual IP", by_vip),
    Check("its second named port", second_port),
    Check("a pod calls its own service", hairpin),
    Check("service by name", by_name),
    Check("dnsrr rotation", dnsrr),
    Check("headless service", headless),
    Check("NodePort from outside", node_port),
    Check("agents killed -9, packets flow", killed_agents),
    Check("a pod goes, traffic follows", pod_goes),
]
