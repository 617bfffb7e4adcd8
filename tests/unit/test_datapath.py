"""The packet path's room, and what an agent does where there is no fast path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from netplane.agentconfig import AgentConfig
from netplane.cluster.config import ClusterConfig
from netplane.datapath.room import BASE, LIBERAL, PathConfig, PathRoom
from netplane.kernel import bpf
from netplane.model.base import ObjectMeta, amend
from netplane.model.errors import Invalid
from netplane.model.facts import Fact, FastPath, Hook, Scope, Sysctl
from netplane.model.nodes import Node, NodeSpec
from netplane.model.own import Attachment, AttachmentSpec, Bandwidth
from netplane.model.snapshot import Snapshot
from netplane.pathedge import PathEdge

MAC = "02:00:00:00:00:0a"
PATH = FastPath(
    gateway_mac="02:00:00:00:00:01",
    tunnel="npvx0",
    tunnel_mac="02:00:00:00:00:02",
    vni=1,
    port=8472,
)
CONFIG = PathConfig(("eth0",), PATH, "npbr0", "boot-1")
NODE = Node(metadata=ObjectMeta(name="n1"), spec=NodeSpec(pod_cidrs=("10.244.0.0/24",)))
SPEC = AttachmentSpec(
    node="n1", container_id="c", ifname="eth0", netns="/n", network="x", host_ifname="npv1", bridge="npbr0"
)
POD_HOOK = Hook("npv1", "pod", bridge="npbr0")
POD = Attachment(metadata=ObjectMeta(name="a.n1"), spec=SPEC, phase="Ready")


def rendered(*objects: Any, config: PathConfig | None = CONFIG, name: str = "a.n1") -> list[Fact]:
    snapshot = Snapshot()
    for number, obj in enumerate(objects, 1):
        snapshot = snapshot.with_put(amend(obj, metadata=amend(obj.metadata, resource_version=str(number))))
    return list(PathRoom("n1", config).render(Scope("datapath", name), snapshot))


def test_the_node_has_hooks_at_its_bridge_tunnel_and_uplinks_once_it_has_pod_cidrs() -> None:
    hooks = [Hook("npbr0", "bridge"), Hook("npvx0", "tunnel"), Hook("eth0", "wire")]
    wanted = [Sysctl(LIBERAL, "1"), PATH, *hooks]
    assert rendered(NODE, name="") == wanted
    assert rendered(amend(NODE, spec=NodeSpec()), name="") == rendered(name="") == []


@pytest.mark.parametrize(
    ("changes", "hook"),
    [
        ({}, POD_HOOK),
        ({"bridge": ""}, POD_HOOK),
        ({"mac": MAC}, replace(POD_HOOK, mac=MAC)),
        ({"config": {"macspoofchk": True}}, replace(POD_HOOK, barred=True)),
        ({"bandwidth": Bandwidth(egress_rate=8)}, replace(POD_HOOK, barred=True)),
        ({"bandwidth": Bandwidth(ingress_rate=8)}, replace(POD_HOOK, shaped=True)),
        ({"boot_id": "boot-1"}, POD_HOOK),
        ({"boot_id": "boot-0"}, None),
        ({"kind": "ptp", "bridge": ""}, None),
        ({"bridge": "cni0", "ipam": "netplane"}, None),
        ({"kind": "macvlan", "bridge": "eth0"}, None),
        ({"node": "n2"}, None),
    ],
)
def test_a_pod_s_hook_follows_from_its_attachment(changes: dict[str, Any], hook: Hook | None) -> None:
    attachment = amend(POD, spec=amend(SPEC, **changes))
    assert rendered(attachment) == ([hook] if hook else [])


def test_a_pod_on_a_further_bridge_has_that_bridge_s_hook_along() -> None:
    further = amend(POD, spec=amend(SPEC, bridge="npbr3"))
    assert rendered(further) == [Hook("npbr3", "bridge"), replace(POD_HOOK, bridge="npbr3")]


def test_a_pod_has_no_hook_before_its_add_is_over_and_none_when_the_path_is_off() -> None:
    assert rendered(amend(POD, phase="Pending")) == []
    assert rendered(POD, config=None) == rendered(NODE, config=None, name="") == []
    assert PathRoom("n1", None).scopes(None, Snapshot()) == [BASE]


def test_without_libbpf_auto_goes_on_and_fast_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bpf.ctypes.util, "find_library", lambda _: None)
    bpf.library.cache_clear()

    def edge(mode: str) -> PathEdge:
        config = AgentConfig("n1", "sqlite://", tmp_path, tmp_path, (), ClusterConfig(), datapath=mode)
        return PathEdge(config, CollectorRegistry(), {})

    try:
        auto = edge("auto")
        auto.open()
        assert "apt install libbpf1" in auto.driver.problem
        assert auto.driver.observe() == {} and auto.driver.counters() == {}
        assert auto.room((), "boot").config is None
        assert "libbpf" in auto.explain("10.244.0.2", "10.0.0.1:80/tcp", "pass", Snapshot())
        with pytest.raises(Invalid, match="there is no fast path: open libbpf"):
            auto.flows({})
        with pytest.raises(Invalid, match=r"--datapath fast: open libbpf.*--datapath auto does without"):
            edge("fast").open()
    finally:
        bpf.library.cache_clear()
