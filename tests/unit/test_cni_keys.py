"""Every key of the reference plugins: it means here what it means there, or it is refused by its name.

The keys are those of the plugins' documentation (bridge, ptp, macvlan, host-local, portmap, bandwidth,
firewall, tuning, 1.9) and of the conventions for `args` and capabilities. For each that means the same
stands the test that shows it with a kernel; here it is shown that it arrives, and is not passed over.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from netplane.cni.config import NetConf, parse_config
from netplane.cni.errors import Refused
from netplane.cni.frame import Frame
from netplane.cni.request import Request
from netplane.cni.request import parse as parse_request

TESTS = Path(__file__).parents[1]
SUBNET = "10.88.0.0/24"
OWN = {"ipam": {"type": "netplane", "ranges": [[{"subnet": SUBNET}]]}}
MACVLAN = {"kind": "macvlan", "master": "eth9"}
PTP = {"kind": "ptp", **OWN}

FEATURES, PORTS, KINDS, CHAIN = (
    f"netns/test_cni_{name}.py" for name in ("features", "ports", "kinds", "chain")
)
RATES = f"{FEATURES}::test_bandwidth_holds_and_goes"
SEGMENT = f"{PORTS}::test_a_network_of_its_own_has_ports_too"
MAPPED = f"{PORTS}::test_a_port_is_reached_from_everywhere_in_both_families"
CHOSEN = f"{FEATURES}::test_several_addresses_from_several_ranges"
FORCED = "netns/test_cni_bridges.py::test_another_address_on_the_bridge_is_an_error_or_replaced"
STANDALONE = "netns/test_cni_standalone.py::test_host_locals_own_words"
MAC = f"{KINDS}::test_the_mac_that_counts"


def ipam(**more: Any) -> dict[str, Any]:
    return {"ipam": {**OWN["ipam"], **more}}


def one_range(**more: Any) -> dict[str, Any]:
    return {"ipam": {"type": "netplane", "ranges": [[{"subnet": SUBNET, **more}]]}}


def runtime(**more: Any) -> dict[str, Any]:
    return {"runtimeConfig": more}


def mapping(**more: Any) -> dict[str, Any]:
    return runtime(portMappings=[{"hostPort": 80, "containerPort": 80, **more}])


def limit(**more: int) -> dict[str, Any]:
    return runtime(bandwidth={"ingressRate": 9000, "ingressBurst": 9000, **more})


# plugin, key, the configuration without it, with it, where its meaning is shown
SAME: list[tuple[str, str, dict[str, Any], dict[str, Any], str]] = [
    ("bridge", "bridge", OWN, {**OWN, "bridge": "br9"}, SEGMENT),
    ("bridge", "isGateway", OWN, {**OWN, "isGateway": True}, CHOSEN),
    ("bridge", "isDefaultGateway", OWN, {**OWN, "isDefaultGateway": True}, SEGMENT),
    ("bridge", "forceAddress", OWN, {**OWN, "forceAddress": True}, FORCED),
    ("bridge", "ipMasq", OWN, {**OWN, "ipMasq": True}, SEGMENT),
    ("bridge", "ipMasqBackend", OWN, {**OWN, "ipMasqBackend": "nftables"}, SEGMENT),
    ("bridge", "mtu", OWN, {**OWN, "mtu": 1400}, "netns/test_cni_check.py::test_check_names_it"),
    (
        "bridge",
        "hairpinMode",
        OWN,
        {**OWN, "hairpinMode": True},
        f"{KINDS}::test_hairpin_sends_a_pods_frames_back_to_it",
    ),
    (
        "bridge",
        "promiscMode",
        OWN,
        {**OWN, "promiscMode": True},
        f"{FEATURES}::test_promiscuous_and_hairpin_exclude_each_other",
    ),
    (
        "bridge",
        "macspoofchk",
        OWN,
        {**OWN, "macspoofchk": True},
        f"{FEATURES}::test_a_pod_speaks_for_itself_alone",
    ),
    (
        "bridge",
        "portIsolation",
        OWN,
        {**OWN, "portIsolation": True},
        f"{FEATURES}::test_isolated_pods_reach_the_world_and_not_each_other",
    ),
    (
        "bridge",
        "ipam",
        {},
        {"ipam": {"type": "none"}},
        f"{KINDS}::test_a_bridge_without_addresses_is_a_segment",
    ),
    (
        "bridge",
        "ipam.type",
        OWN,
        {"ipam": {"type": "host-local"}},
        f"{CHAIN}::test_addresses_from_host_local",
    ),
    (
        "bridge",
        "dns",
        OWN,
        {**OWN, "dns": {"domain": "d"}},
        "unit/test_cni_render.py::test_dns_is_the_networks_unless_the_runtime_asks",
    ),
    ("bridge", "args.cni.mac", OWN, {**OWN, "args": {"cni": {"mac": "02:00:00:00:00:01"}}}, MAC),
    ("bridge", "runtimeConfig.mac", OWN, {**OWN, **runtime(mac="02:00:00:00:00:01")}, MAC),
    ("ptp", "ipMasq", PTP, {**PTP, "ipMasq": True}, f"{FEATURES}::test_ptp_is_routed_without_a_bridge"),
    ("ptp", "mtu", PTP, {**PTP, "mtu": 1400}, "netns/test_cni_check.py::test_check_names_it"),
    ("ptp", "runtimeConfig.mac", PTP, {**PTP, **runtime(mac="02:00:00:00:00:01")}, MAC),
    (
        "macvlan",
        "master",
        {"kind": "macvlan"},
        MACVLAN,
        f"{FEATURES}::test_macvlan_is_on_the_masters_segment",
    ),
    ("macvlan", "mode", MACVLAN, {**MACVLAN, "mode": "vepa"}, f"{KINDS}::test_macvlans_of_one_master"),
    (
        "macvlan",
        "mtu",
        MACVLAN,
        {**MACVLAN, "mtu": 1400},
        f"{KINDS}::test_an_mtu_above_the_masters_is_refused_with_both",
    ),
    ("macvlan", "runtimeConfig.mac", MACVLAN, {**MACVLAN, **runtime(mac="02:00:00:00:00:01")}, MAC),
    ("host-local", "ranges", {}, OWN, CHOSEN),
    ("host-local", "rangeStart", OWN, one_range(rangeStart="10.88.0.9"), STANDALONE),
    (
        "host-local",
        "rangeEnd",
        OWN,
        one_range(rangeEnd="10.88.0.9"),
        f"{KINDS}::test_addresses_stay_between_the_bounds_of_their_range",
    ),
    ("host-local", "gateway", OWN, one_range(gateway="10.88.0.9"), CHOSEN),
    (
        "host-local",
        "subnet",
        {},
        {"ipam": {"subnet": SUBNET}},
        "unit/test_cni_config.py::test_ipv6_and_bounds_of_ranges",
    ),
    (
        "host-local",
        "routes",
        OWN,
        ipam(routes=[{"dst": "0.0.0.0/0"}]),
        f"{FEATURES}::test_routes_keep_their_properties",
    ),
    ("host-local", "resolvConf", OWN, ipam(resolvConf="/etc/resolv.conf"), STANDALONE),
    ("host-local", "dataDir", OWN, ipam(dataDir="/run/x"), STANDALONE),
    (
        "host-local",
        "args.cni.ips",
        OWN,
        {**OWN, "args": {"cni": {"ips": ["10.88.0.9"]}}},
        "unit/test_cni_request.py::test_addresses_asked_for_by_three_ways_in_the_order_of_precedence",
    ),
    ("host-local", "runtimeConfig.ips", OWN, {**OWN, **runtime(ips=["10.88.0.9"])}, CHOSEN),
    (
        "host-local",
        "runtimeConfig.ipRanges",
        OWN,
        {**OWN, **runtime(ipRanges=[[{"subnet": "10.89.0.0/24"}]])},
        CHOSEN,
    ),
    ("portmap", "runtimeConfig.portMappings", {}, mapping(), MAPPED),
    ("portmap", "hostPort", mapping(), mapping(hostPort=81), MAPPED),
    ("portmap", "containerPort", mapping(), mapping(containerPort=81), MAPPED),
    (
        "portmap",
        "protocol",
        mapping(),
        mapping(protocol="sctp"),
        f"{PORTS}::test_an_sctp_port_leads_to_the_pod_and_back",
    ),
    (
        "portmap",
        "hostIP",
        mapping(),
        mapping(hostIP="10.0.0.1"),
        f"{PORTS}::test_host_ip_and_protocol_belong_to_the_key",
    ),
    ("bandwidth", "runtimeConfig.bandwidth", {}, limit(), RATES),
    ("bandwidth", "ingressRate", limit(), limit(ingressRate=9001), RATES),
    ("bandwidth", "ingressBurst", limit(), limit(ingressBurst=9001), RATES),
    (
        "bandwidth",
        "egressRate",
        limit(egressRate=9000, egressBurst=9000),
        limit(egressRate=9001, egressBurst=9000),
        RATES,
    ),
    (
        "bandwidth",
        "egressBurst",
        limit(egressRate=9000, egressBurst=9000),
        limit(egressRate=9000, egressBurst=9001),
        RATES,
    ),
    (
        "tuning",
        "sysctl",
        {},
        {"sysctl": {"net.core.somaxconn": "500"}},
        f"{FEATURES}::test_sysctls_are_set_in_the_pod_and_only_there",
    ),
    ("tuning", "mtu", {}, {"mtu": 1400}, f"{CHAIN}::test_on_an_interface_that_another_plugin_made"),
    ("tuning", "runtimeConfig.mac", {}, runtime(mac="02:00:00:00:00:01"), MAC),
]

# plugin, key, the configuration with it
REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    ("bridge", "vlan", {**OWN, "vlan": 7}),
    ("bridge", "vlanTrunk", {**OWN, "vlanTrunk": [{"minID": 1, "maxID": 4}]}),
    ("bridge", "enabledad", {**OWN, "enabledad": True}),
    ("bridge", "disableContainerInterface", {**OWN, "disableContainerInterface": True}),
    ("bridge", "ipMasqBackend", {**OWN, "ipMasqBackend": "iptables"}),
    ("macvlan", "linkInContainer", {**MACVLAN, "linkInContainer": True}),
    ("macvlan", "bcqueuelen", {**MACVLAN, "bcqueuelen": 9}),
    ("host-local", "ipam.gateway", {"ipam": {"type": "netplane", "gateway": "10.88.0.1"}}),
    ("host-local", "ipam.rangeStart", {"ipam": {"type": "netplane", "rangeStart": "10.88.0.1"}}),
    ("host-local", "ipam.rangeEnd", {"ipam": {"type": "netplane", "rangeEnd": "10.88.0.1"}}),
    ("portmap", "snat", {"snat": False}),
    ("portmap", "masqAll", {"masqAll": True}),
    ("portmap", "markMasqBit", {"markMasqBit": 13}),
    ("portmap", "externalSetMarkChain", {"externalSetMarkChain": "KUBE-MARK-MASQ"}),
    ("portmap", "conditionsV4", {"conditionsV4": ["-d", "10.0.0.0/8"]}),
    ("portmap", "conditionsV6", {"conditionsV6": ["-d", "fd00::/8"]}),
    ("portmap", "backend", {"backend": "iptables"}),
    ("bandwidth", "ingressRate", {"ingressRate": 9000}),
    ("bandwidth", "ingressBurst", {"ingressBurst": 9000}),
    ("bandwidth", "egressRate", {"egressRate": 9000}),
    ("bandwidth", "egressBurst", {"egressBurst": 9000}),
    ("bandwidth", "shapedSubnets", {"shapedSubnets": ["10.0.0.0/8"]}),
    ("bandwidth", "unshapedSubnets", {"unshapedSubnets": ["10.0.0.0/8"]}),
    ("bandwidth", "shapedSubnets", runtime(bandwidth={"shapedSubnets": ["10.0.0.0/8"]})),
    ("bandwidth", "unshapedSubnets", runtime(bandwidth={"unshapedSubnets": ["10.0.0.0/8"]})),
    ("firewall", "backend", {"backend": "firewalld"}),
    ("firewall", "iptablesAdminChainName", {"iptablesAdminChainName": "CNI-ADMIN"}),
    ("firewall", "firewalldZone", {"firewalldZone": "trusted"}),
    ("firewall", "ingressPolicy", {"ingressPolicy": "same-bridge"}),
    ("tuning", "mac", {"mac": "02:00:00:00:00:01"}),
    ("tuning", "promisc", {"promisc": True}),
    ("tuning", "allmulti", {"allmulti": True}),
    ("tuning", "txQLen", {"txQLen": 5000}),
    ("tuning", "dataDir", {"dataDir": "/run/x"}),
]

# Written out, they ask for nothing, there as here.
OFF: list[dict[str, Any]] = [
    {**OWN, "vlan": 0, "vlanTrunk": [], "preserveDefaultVlan": False, "enabledad": False},
    {**OWN, "disableContainerInterface": False, "promiscMode": False, "hairpinMode": False},
    {**MACVLAN, "linkInContainer": False, "bcqueuelen": 0},
]


def parse(config: dict[str, Any]) -> NetConf:
    doc = {"cniVersion": "1.1.0", "name": "net", "type": "netplane", **config}
    return parse_config(json.dumps(doc).encode())


def understood(config: dict[str, Any]) -> tuple[NetConf, Request]:
    """Without the text that is kept for delegates, which would show every key."""
    doc = {"cniVersion": "1.1.0", "name": "net", "type": "netplane", **config}
    request = parse_request(Frame("ADD", "c", "/n", "eth0", "", "/bin", json.dumps(doc).encode()))
    bare = msgspec.structs.replace(request.config, document={}, ipam={})
    return bare, msgspec.structs.replace(request, config=bare)


@cache
def text_of(name: str) -> str:
    return (TESTS / name).read_text()


@pytest.mark.parametrize(("plugin", "key", "without", "config", "shown"), SAME)
def test_it_means_the_same(
    plugin: str, key: str, without: dict[str, Any], config: dict[str, Any], shown: str
) -> None:
    before, after = understood(without), understood(config)
    kept_elsewhere = key == "dataDir"  # of work without an agent, which reads it itself
    assert kept_elsewhere or before != after, f"{plugin}: {key} is passed over"
    name, _, function = shown.partition("::")
    assert f"def {function}" in text_of(name), shown


@pytest.mark.parametrize(("plugin", "key", "config"), REFUSED)
def test_it_is_refused_by_its_name(plugin: str, key: str, config: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        parse(config)
    assert caught.value.code in (2, 7) and key in str(caught.value), f"{plugin}: {caught.value}"


@pytest.mark.parametrize("config", OFF)
def test_what_is_off_passes(config: dict[str, Any]) -> None:
    assert parse(config).name == "net"
