"""What a runtime may say, and the specification's code for what it may not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from netplane.cni import frame as wire
from netplane.cni.errors import Refused, error_json
from netplane.cni.frame import Frame
from netplane.cni.request import PodRef, parse, version_of
from netplane.model.errors import Conflict, Invalid, KernelError, NotFound, Unavailable

GOOD = {"cniVersion": "1.1.0", "name": "netplane", "type": "netplane"}


def ask(config: Any = None, **changes: str) -> Frame:
    base = {"command": "ADD", "container_id": "abc", "netns": "/run/netns/a", "ifname": "eth0"}
    raw = config if isinstance(config, bytes) else json.dumps({**GOOD, **(config or {})}).encode()
    return Frame(**{**base, **changes}, config=raw)


def test_a_full_request_is_understood() -> None:
    request = parse(
        ask(
            {
                "mtu": 1400,
                "ipMasq": False,
                "args": {"cni": {"labels": [{"key": "app", "value": "web"}]}},
                "runtimeConfig": {"ips": ["10.244.1.9/24"], "mac": "02:AA:00:00:00:01"},
                "cni.dev/attachments": [],
                "prevResult": None,
            },
            args="IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u1",
        )
    )
    assert request.pod == PodRef("shop", "web-0", "u1")
    assert request.config.labels == {"app": "web"}
    assert (request.config.mtu, request.config.ip_masq) == (1400, False)
    assert (request.ips, request.mac) == (("10.244.1.9/24",), "02:aa:00:00:00:01")


@pytest.mark.parametrize(
    "words",
    [
        "K8S_POD_NAME=quirky_einstein",  # podman's, which says no namespace
        "K8S_POD_NAMESPACE=default;K8S_POD_NAME=PodSandbox-for-container-1",  # critest's
        "K8S_POD_NAMESPACE=My_Own;K8S_POD_NAME=web",
        "K8S_POD_NAMESPACE=shop",
    ],
)
def test_a_name_that_no_pod_can_have_names_none(words: str) -> None:
    assert parse(ask(args=f"IgnoreUnknown=1;{words}")).pod == PodRef()


def test_labels_may_be_a_map() -> None:
    assert parse(ask({"args": {"cni": {"labels": {"app": "web"}}}})).config.labels == {"app": "web"}


def test_addresses_asked_for_by_three_ways_in_the_order_of_precedence() -> None:
    by_args = {"args": {"cni": {"ips": ["10.244.1.8"]}}}
    assert parse(ask(args="IP=10.244.1.7")).ips == ("10.244.1.7",)
    assert parse(ask(by_args, args="IP=10.244.1.7")).ips == ("10.244.1.8",)
    both = {**by_args, "runtimeConfig": {"ips": ["10.244.1.9"]}}
    assert parse(ask(both, args="IP=10.244.1.7")).ips == ("10.244.1.9",)


def test_what_containerd_sends_in_gos_own_names_is_read() -> None:
    """go-cni's structures have no JSON names, its nil slices are null; Go decodes both."""
    asked = {"dns": {"Servers": ["192.0.2.53"], "Searches": ["example.org"], "Options": None}}
    dns = parse(ask({"runtimeConfig": asked})).config.result_dns
    assert (dns.nameservers, dns.search, dns.options) == (("192.0.2.53",), ("example.org",), ())


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_every_supported_version_is_taken(version: str) -> None:
    assert parse(ask({"cniVersion": version})).config.version == version


@pytest.mark.parametrize(
    ("frame", "code", "names"),
    [
        (ask({"cniVersion": "2.0.0"}), 1, "cniVersion"),
        (ask({"cniVersion": None}), 1, "cniVersion"),
        (ask({"cniVersion": "0.3.1", "prevResult": {}}, command="CHECK"), 1, "0.4.0"),
        (ask({"cniVersion": "1.0.0"}, command="STATUS"), 1, "1.1.0"),
        (ask({"cniVersion": "1.0.0"}, command="GC"), 1, "1.1.0"),
        (ask({"mtuu": 1400}), 2, "mtuu"),
        (ask({"ip_masq": True}), 2, "ipMasq"),
        (ask({"runtimeConfig": {"frobs": [{"hostPort": 1}]}}), 2, "frobs"),
        (ask({"runtimeConfig": {"portMappings": [{"hostPort": 1}]}}), 7, "containerPort"),
        (ask(command="FROB"), 4, "CNI_COMMAND"),
        (ask(container_id=""), 4, "CNI_CONTAINERID"),
        (ask(container_id="../x"), 4, "CNI_CONTAINERID"),
        (ask(container_id="-x"), 4, "CNI_CONTAINERID"),
        (ask(container_id="abc\n"), 4, "CNI_CONTAINERID"),
        (ask(ifname=""), 4, "CNI_IFNAME"),
        (ask(ifname="sixteen-letters-"), 4, "CNI_IFNAME"),
        (ask(ifname=".."), 4, "CNI_IFNAME"),
        (ask(ifname="a/b"), 4, "CNI_IFNAME"),
        (ask(ifname="a b"), 4, "CNI_IFNAME"),
        (ask(ifname="a:b"), 4, "CNI_IFNAME"),
        (ask(ifname="eth%d"), 4, "CNI_IFNAME"),
        (ask(ifname="all"), 4, "CNI_IFNAME"),
        (ask(ifname="lo"), 4, "CNI_IFNAME"),
        (ask(netns=""), 4, "CNI_NETNS"),
        (ask(netns="", command="CHECK", config={"prevResult": {}}), 4, "CNI_NETNS"),
        (ask(netns="run/netns/a"), 4, "CNI_NETNS"),
        (ask(args="K8S_POD_NAME"), 4, "CNI_ARGS"),
        (ask(b"{"), 6, "JSON"),
        (ask(b"[]"), 6, "JSON"),
        (ask(b"\xff\xfe"), 6, "JSON"),
        (ask({"name": ""}), 7, "name"),
        (ask({"name": "a/b"}), 7, "name"),
        (ask({"mtu": "big"}), 7, "mtu"),
        (ask({"mtu": 67}), 7, "68"),
        (ask({"mtu": 67}), 7, "1280"),
        (ask(netns="/n\0"), 4, "CNI_NETNS"),
        (ask(netns="/n\udcff"), 4, "CNI_NETNS"),
        (ask(ifname="e\0"), 4, "CNI_IFNAME"),
        (ask(ifname="e\udcff"), 4, "CNI_IFNAME"),
        (ask(args="IP=\0"), 4, "CNI_ARGS"),
        (ask(path="/opt\0"), 4, "CNI_PATH"),
        (ask({"runtimeConfig": {"mac": "zz"}}), 7, "mac"),
        (ask({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}), 7, "group"),
        (ask({"args": {"cni": {"labels": {"-": "x"}}}}), 7, "args.cni.labels"),
        (ask({"args": {"cni": {"labels": [{"key": "a"}]}}}), 7, "args.cni.labels"),
        (ask(command="CHECK"), 7, "prevResult"),
    ],
)  # fmt: skip
def test_what_is_refused_names_the_fault(frame: Frame, code: int, names: str) -> None:
    with pytest.raises(Refused) as caught:
        parse(frame)
    assert caught.value.code == code
    assert names in str(caught.value)


def test_del_needs_neither_namespace_nor_previous_result_nor_what_add_refused() -> None:
    refused = {"runtimeConfig": {"portMappings": [{}]}, "mtu": "big", "mtuu": 1}
    for netns in ("", "run/netns/a"):
        asked = parse(ask(refused, command="DEL", netns=netns, args="K8S_POD_NAME"))
        assert asked.config.name == "netplane"
    for config, code in (({"name": "a/b"}, 7), ({"cniVersion": "9"}, 1)):
        with pytest.raises(Refused) as caught:
            parse(ask(config, command="DEL"))
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("error", "command", "code"),
    [
        (Refused(4, "x"), "ADD", 4),
        (Invalid("x"), "ADD", 7),
        (NotFound("x"), "ADD", 3),
        (Conflict("x"), "ADD", 11),
        (Unavailable("x"), "ADD", 11),
        (Unavailable("x"), "STATUS", 50),
        (KernelError(17, "link add"), "ADD", 5),
        (RuntimeError("x"), "ADD", 999),
    ],
)
def test_our_errors_as_cni_codes(error: Exception, command: str, code: int) -> None:
    doc = error_json(error, command, "1.0.0")
    assert (doc["cniVersion"], doc["code"]) == ("1.0.0", code)
    assert doc["msg"]


def test_the_frame_carries_any_bytes() -> None:
    frame = Frame("ADD", "id", "/n\udcff", "eth0", "A=1;B=ü", "/bin", b'{"a": ":,5:"}')
    raw = wire.request(frame)
    assert wire.expected(raw[:16]) == len(raw)
    assert wire.parse(raw) == frame


@pytest.mark.parametrize("raw", [b"", b"5:abc,", b"3:abc;", b"3:1:a,", b"x", b"6:1:a,:,"])
def test_a_broken_frame_is_refused(raw: bytes) -> None:
    with pytest.raises(Invalid):
        wire.parse(raw)


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1", b"999999999999:", b":"])
def test_what_is_no_frame_is_known_by_its_head(start: bytes) -> None:
    with pytest.raises(Invalid):
        wire.expected(start)


def test_the_version_of_an_error_is_the_one_asked_for_when_it_can_be_read() -> None:
    assert version_of(b'{"cniVersion": "0.4.0", "x": 1}') == "0.4.0"
    assert version_of(b"{") == "" == version_of(b"[1]") == version_of(b'{"cniVersion": 1}')


def test_an_error_with_words_that_are_no_text_can_be_encoded() -> None:
    doc = error_json(KeyError("\udcff"), "ADD", "1.0.0")
    assert json.dumps(doc, ensure_ascii=False).encode() and doc["msg"] == "KeyError: '\\udcff'"
    assert error_json(Invalid("/n/\udcff"), "ADD", "1.0.0")["msg"] == "/n/\\udcff"
