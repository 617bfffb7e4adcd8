"""Rows of kube-proxy's feature table that test_services and test_services_features leave out.

The topology is services_net's: client ── node "n1" ── pods a, b, c on npbr0, each answering on 8080.
"""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request

import pytest

from netplane.kernel import netns
from netplane.model.base import amend
from netplane.model.facts import HealthCheck, Plan
from netplane.model.services import EndpointPort, ServicePort
from netplane.services.health import WEIGHT, HealthChecks
from tests.netns.test_services_features import EXTERNAL, LB, balanced, placed, silent, who
from tests.services_kit import endpoint, endpoints, service
from tests.services_net import FAMILIES, NODE, VIP, Net, pod_ip

pytestmark = pytest.mark.root

WAYS = ((VIP, 80), (LB, 80), (EXTERNAL, 80), (NODE, 30080))


@FAMILIES
def test_without_endpoints_every_address_and_port_refuses(net: Net, family: int) -> None:
    ports = (
        ServicePort(name="web", port=80, target_port=8080, node_port=30080),
        ServicePort(name="dns", protocol="UDP", port=80, target_port=8080, node_port=30080),
    )
    net.node.sync(balanced(ports=ports, external_ips=tuple(EXTERNAL.values())))
    for source in ("client", "a", "node"):
        for address, port in WAYS:
            with pytest.raises(ConnectionRefusedError):
                net.tcp(source, address[family], port)
            with pytest.raises((ConnectionRefusedError, PermissionError)):  # the node's own: EPERM
                net.udp(source, address[family], port)


@FAMILIES
def test_a_node_port_is_not_there_on_localhost(net: Net, family: int) -> None:
    net.node.sync(balanced(), *placed("b"))
    assert who(net.tcp("node", NODE[family], 30080)) == "b"
    with pytest.raises(ConnectionRefusedError):  # nobody listens, and nothing is translated
        net.tcp("node", {4: "127.0.0.1", 6: "::1"}[family], 30080)


@FAMILIES
def test_a_named_target_port_differs_from_pod_to_pod(net: Net, family: int) -> None:
    """One service, a slice for each number; an endpoint that two slices list is one."""
    other = netns.call(net.ns["c"], serve_elsewhere)
    named = service("web", VIP.values(), ports=(ServicePort(name="http", port=80, target_port="http"),))
    places = {"b": (8080, "one"), "c": (9090, "two")}
    slices = [
        endpoints(
            endpoint(pod_ip(pod, family), "n1"), name=name, ports=(EndpointPort(name="http", port=number),)
        )
        for pod, (number, name) in places.items()
    ]
    again = amend(slices[0], metadata=amend(slices[0].metadata, name="again"))
    plan = net.node.sync(named, *slices, again)
    slots = [f for f in plan.add if getattr(f, "of", "") == f"svc-endpoints{family}-tcp"]
    assert len(slots) == 2
    assert {who(net.tcp("a", VIP[family])) for _ in range(40)} == {"b", "elsewhere"}
    other.close()


def serve_elsewhere() -> socket.socket:
    """Answers on 9090 until it is closed."""
    server = socket.create_server(("::", 9090), family=socket.AF_INET6, dualstack_ipv6=True)

    def run() -> None:
        while True:
            try:
                conn, _ = server.accept()
            except OSError:
                return
            with conn:
                conn.sendall(b"elsewhere ::")

    threading.Thread(target=run, daemon=True).start()
    return server


@FAMILIES
def test_a_local_policy_of_one_kind_leaves_the_other_alone(net: Net, family: int) -> None:
    inside = balanced(internal_traffic_policy="Local")
    outside = balanced(external_traffic_policy="Local")
    net.node.sync(inside, *placed("c@n2"))
    silent(net, "a", VIP[family])
    assert who(net.tcp("client", LB[family])) == "c"
    net.node.sync(outside, *placed("c@n2"))
    silent(net, "client", LB[family])
    assert who(net.tcp("a", VIP[family])) == "c"


@pytest.mark.parametrize(
    ("count", "healthy", "code"), [(2, True, 200), (0, True, 503), (2, False, 503)], ids=str
)
def test_a_health_check_port_tells_of_endpoints_and_of_the_proxy(
    net: Net, count: int, healthy: bool, code: int
) -> None:
    checks = HealthChecks(lambda: healthy)
    check = HealthCheck(31999, "default", "web", count)
    netns.call(net.ns["node"], checks.apply, Plan(add=(check,)))

    def fetch() -> tuple[int, str, dict[str, object]]:
        try:
            with urllib.request.urlopen(f"http://{NODE[4]}:31999/", timeout=2) as answer:
                return answer.status, answer.headers[WEIGHT], json.load(answer)
        except urllib.error.HTTPError as exc:
            return exc.code, exc.headers[WEIGHT], json.load(exc)

    try:
        found = netns.call(net.ns["client"], fetch)
    finally:
        checks.close()
    body = {
        "service": {"namespace": "default", "name": "web"},
        "localEndpoints": count,
        "serviceProxyHealthy": healthy,
    }
    assert found == (code, str(count), body)


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "POST"])
def test_a_health_check_port_takes_any_method(net: Net, method: str) -> None:
    """HAProxy asks OPTIONS unless it is told otherwise; kube-proxy never looks at it."""
    checks = HealthChecks()
    netns.call(net.ns["node"], checks.apply, Plan(add=(HealthCheck(31999, "default", "web", 2),)))

    def fetch() -> tuple[int, str, bytes]:
        request = urllib.request.Request(f"http://{NODE[4]}:31999/any", method=method)
        with urllib.request.urlopen(request, timeout=2) as answer:
            return answer.status, answer.headers[WEIGHT], answer.read()

    try:
        code, weight, body = netns.call(net.ns["client"], fetch)
    finally:
        checks.close()
    assert (code, weight, bool(body)) == (200, "2", method != "HEAD")
