"""What the reference plugins' keys mean here, and what is refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from netplane.cni import tuning
from netplane.cni.config import NetConf, parse_config
from netplane.cni.errors import Refused
from netplane.cni.ranges import Range

RANGES = {"ranges": [[{"subnet": "10.88.0.0/24"}]]}


def parse(only_identity: bool = False, **config: Any) -> NetConf:
    doc = {"cniVersion": "1.1.0", "name": "net", "type": "netplane", **config}
    return parse_config(json.dumps(doc).encode(), only_identity)


def mapped(**more: Any) -> dict[str, Any]:
    return {"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, **more}]}}


def test_a_conflist_of_the_bridge_plugin_moves_over_by_its_type() -> None:
    config = parse(
        bridge="cni0", isGateway=True, isDefaultGateway=True, forceAddress=False, ipMasq=True, mtu=1400,
        hairpinMode=True, promiscMode=False, vlan=0, preserveDefaultVlan=False, macspoofchk=True,
        enabledad=False, disableContainerInterface=False, portIsolation=True,
        ipam={"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "dataDir": "/run/x"},
    )  # fmt: skip
    assert (config.bridge, config.is_gateway, config.leases.type) == ("cni0", True, "host-local")
    assert config.leases.delegated and config.own_range


@pytest.mark.parametrize(
    ("config", "code", "names"),
    [
        ({"vlan": 100}, 2, "vlan"),
        ({"vlanTrunk": [{"id": 1}]}, 2, "vlanTrunk"),
        ({"enabledad": True}, 2, "enabledad"),
        ({"disableContainerInterface": True}, 2, "disableContainerInterface"),
        ({"kind": "ipvlan"}, 7, "kind"),
        ({"bcqueuelen": 9}, 2, "bcqueuelen"),
        ({"preserveDefaultVlan": "no"}, 7, "preserveDefaultVlan"),
        ({"runtimeConfig": {"deviceID": "0000:01:00.1"}}, 2, "runtimeConfig.deviceID"),
        ({"runtimeConfig": {"infinibandGUID": "c2:11"}}, 2, "runtimeConfig.infinibandGUID"),
        ({"runtimeConfig": {"bandwidth": {"unshapedSubnets": ["10.0.0.0/8"]}}}, 2, '.unshapedSubnets: ["10.'),
        (mapped(range=3), 2, "runtimeConfig.portMappings[0].range: 3"),
        ({"dns": {"server": "192.0.2.53"}}, 2, 'dns.server: "192.0.2.53"'),
        ({"ipam": {**RANGES, "exclude": ["10.88.0.9"]}}, 2, "ipam.exclude: ['10.88.0.9']"),
        ({"ipam": {**RANGES, "socket": "/run/x"}}, 2, "ipam.socket: '/run/x'"),
        ({"ipam": {"ranges": [[{"subnet": "10.0.0.0/24", "vlan": 7}]]}}, 2, "ipam.ranges[0][0].vlan: 7"),
        ({"ipam": {**RANGES, "resolvConf": "/etc/\0resolv"}}, 7, "ipam.resolvConf: holds a NUL"),
        ({"sysctl": {"net.core.somaxconn": "1\0net/ipv4/ip_forward"}}, 7, "somaxconn: holds a NUL"),
        ({"ipam": {"type": "host-local\0"}}, 7, "ipam.type: holds a NUL"),
        ({"bridge": "br\0", "ipam": RANGES}, 7, "bridge: holds a NUL"),
        ({"prevResult": {"ips": [{"address": "\0"}]}}, 7, "prevResult.ips[0].address: holds a NUL"),
        ({"prevResult": {"ips": 7}}, 7, "prevResult.ips: 7 must be a list"),
        ({"prevResult": {"interfaces": {"name": "eth0"}}}, 7, "prevResult.interfaces"),
        ({"prevResult": {"interfaces": [5]}}, 7, "prevResult.interfaces"),
        ({"prevResult": {"routes": ["10.0.0.0/8"]}}, 7, "prevResult.routes"),
        ({"master": "eth0"}, 2, "master: belongs to kind macvlan"),
        ({"kind": "ptp", "bridge": "b"}, 2, "bridge: belongs to kind bridge"),
        ({"bridge": "b"}, 7, "bridge"),
        ({"isGateway": False}, 7, "isGateway"),
        ({"bridge": "npbr0", "ipam": RANGES}, 7, "bridge: npbr0 is the node's own"),
        ({"bridge": "npbr12", "ipam": RANGES}, 7, "bridge: npbr12 is the node's own (npbr*)"),
        ({"bridge": "a name", "ipam": RANGES}, 7, "bridge"),
        ({"bridge": "br%d", "ipam": RANGES}, 7, "bridge: 'br%d'"),
        ({"bridge": "*", "ipam": RANGES}, 7, "bridge: '*'"),
        ({"bridge": "default", "ipam": RANGES}, 7, "bridge: 'default'"),
        ({"ipMasqBackend": "iptables"}, 7, "ipMasqBackend"),
        ({"kind": "macvlan", "mode": "tunnel"}, 7, "mode"),
        ({"ipam": {"type": "netplane", "resolvConf": 7}}, 7, "ipam.resolvConf"),
        ({"ipam": {"type": "../sh"}}, 7, "ipam.type"),
        ({"ipam": {"ranges": [{"subnet": "10.0.0.0/24"}]}}, 7, "ipam.ranges"),
        ({"ipam": {"ranges": [[{"subnet": "10.0.0.1/24"}]]}}, 7, "host bits"),
        ({"ipam": {"ranges": [[{"subnet": "10.0.0.0/31"}]]}}, 7, "no room"),
        ({"ipam": {"ranges": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.1.0.1"}]]}}, 7, "rangeStart"),
        ({"ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/25"}]]}}, 7, "overlaps"),
        ({"ipam": {**RANGES, "routes": [{"dst": "::/0", "gw": "10.0.0.1"}]}}, 7, "family"),
        ({"ipam": {**RANGES, "routes": [{"dst": "10.0.0.0/8", "scope": 7}]}}, 7, "scope"),
        ({"sysctl": {"kernel.msgmax": "1"}}, 7, "kernel.msgmax"),
        (mapped(hostPort=0), 7, "hostPort"),
        (mapped(protocol="x"), 7, "protocol"),
        (mapped(hostIP="::1"), 7, "::1"),
        ({"kind": "macvlan", **mapped()}, 7, "macvlan"),
        ({"runtimeConfig": {"bandwidth": {"ingressRate": 1000}}}, 7, "ingressRate"),
        ({"runtimeConfig": {"bandwidth": {"egressRate": 1, "egressBurst": 1}}}, 7, "egressRate"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_its_name(config: dict[str, Any], code: int, names: str) -> None:
    with pytest.raises(Refused) as caught:
        parse(**config)
    assert (caught.value.code, names in str(caught.value)) == (code, True), str(caught.value)


def test_del_reads_whose_addresses_they_were_and_nothing_that_could_be_wrong() -> None:
    config = parse(True, vlan=7, kind="tunnel", ipam={"type": "host-local", "ranges": 7}, bridge=3)
    assert (config.leases.type, config.is_ipam) == ("host-local", False)
    assert parse(True, type="bridge", ipam={"type": "netplane"}).is_ipam
    assert parse(True, ipam=3).leases.type == ""
    with pytest.raises(Refused, match="name: ''"):
        parse(True, name={})


def test_under_another_plugin_its_keys_are_not_ours_to_judge() -> None:
    config = parse(type="bridge", vlan=7, isGateway="yes", ipam={"type": "netplane", **RANGES})
    assert config.is_ipam
    assert config.leases.sets == ((Range("10.88.0.0/24", "10.88.0.1", "10.88.0.254", "10.88.0.1"),),)


def test_ipv6_and_bounds_of_ranges() -> None:
    one = {"subnet": "fd00::/64", "rangeStart": "fd00::10", "rangeEnd": "fd00::1f", "gateway": "fd00::1"}
    config = parse(ipam={"type": "netplane", **one, "routes": [{"dst": "::/0"}]})
    assert config.leases.sets == ((Range("fd00::/64", "fd00::10", "fd00::1f", "fd00::1"),),)
    assert config.leases.routes[0].dst == "::/0"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.core.somaxconn", "net/core/somaxconn"),
        ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ("net.ipv4.conf.IFNAME.arp_filter", "net/ipv4/conf/eth7/arp_filter"),
    ],
)
def test_names_of_sysctls(name: str, path: str) -> None:
    assert tuning.settings({name: "1"}, "eth7") == {path: "1"}


def test_the_administrators_list_is_obeyed() -> None:
    allowed = "# allowed\n^net\\.core\\.somaxconn$\n^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\n"
    fine = {"net.core.somaxconn": "1", "net/ipv4/conf/IFNAME/arp_filter": "1"}
    assert tuning.refused(fine, allowed) == ""
    assert "net.ipv4.ip_forward" in tuning.refused({"net.ipv4.ip_forward": "1"}, allowed)
    assert tuning.refused(fine, "somaxconn\narp_") == ""  # anywhere in the name, as Go's MatchString
    assert "line 3" in tuning.refused(fine, "\n# a comment\n[a-\n.*")


@pytest.mark.parametrize("value", [True, False])
def test_a_default_of_the_bridge_plugin_that_asks_for_nothing_passes(value: bool) -> None:
    """Without vlan and vlanTrunk, which are refused, it has no effect in the bridge plugin either."""
    assert parse(preserveDefaultVlan=value).kind == "bridge"


@pytest.mark.parametrize(
    "empty",
    [
        {
            "runtimeConfig": {
                "portMappings": None,
                "ips": None,
                "ipRanges": None,
                "bandwidth": None,
                "mac": None,
            }
        },
        {"dns": {"nameservers": None, "search": None}},
        {"args": {"cni": None}},
        {"args": {"cni": {"ips": None, "labels": None}}},
        {"ipam": {**RANGES, "routes": [{"dst": "10.0.0.0/8", "gw": None}], "resolvConf": None}},
        {"prevResult": {"interfaces": None, "ips": [{"address": "10.88.0.2/24", "interface": None}]}},
    ],
)
def test_null_is_what_is_not_there(empty: dict[str, Any]) -> None:
    """Go's nil slices and pointers, anywhere."""
    assert parse(**empty).kind == "bridge"


def test_what_a_runtime_has_for_other_plugins_of_the_chain_is_not_ours_to_judge() -> None:
    given = {"deviceID": "0000:01:00.1", "ips": ["10.88.0.9"]}
    asked = parse(type="sriov", ipam={"type": "netplane", **RANGES}, runtimeConfig=given)
    assert asked.runtime_ips == ("10.88.0.9",)
    assert parse(capabilities={"deviceID": True}, runtimeConfig={"deviceID": ""}).type == "netplane"


def repeated(*ports: dict[str, Any]) -> dict[str, Any]:
    return {
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, **one} for one in ports]}
    }


@pytest.mark.parametrize(
    ("ports", "words"),
    [
        ([{}, {}], "portMappings[1]: tcp 8080 repeats portMappings[0]"),
        ([{}, {"protocol": "udp"}, {"protocol": "TCP"}], "[2]: tcp 8080 repeats portMappings[0]"),
        ([{"hostIP": "10.0.0.1"}, {"hostIP": "10.0.0.1"}], "tcp 10.0.0.1:8080 repeats"),
        ([{"hostIP": "fd00::1"}, {"hostIP": "fd00::1"}], "tcp [fd00::1]:8080 repeats"),
        ([{}, {"hostIP": "0.0.0.0"}], "tcp 0.0.0.0:8080 repeats"),
        ([{"hostIP": "::"}, {}], "[1]: tcp 8080 repeats portMappings[0]"),
    ],
)  # fmt: skip
def test_a_host_port_twice_names_both_entries(ports: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(Refused) as caught:
        parse(**repeated(*ports))
    assert (caught.value.code, words in str(caught.value)) == (7, True), str(caught.value)


def test_ports_that_only_look_alike_pass() -> None:
    fine = [{}, {"protocol": "udp"}, {"hostPort": 8081}, {"hostIP": "10.0.0.1"}, {"hostIP": "10.0.0.2"}]
    assert len(parse(**repeated(*fine)).runtime_config.port_mappings) == 5
    assert parse(**repeated({"hostIP": "0.0.0.0"}, {"hostIP": "::"}))
