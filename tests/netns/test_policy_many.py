"""Many policies of one pod: a bounded number of rules, and elements that follow pods and namespaces.

     node-1                      node-2
x/a  x/c  y/b  z/a  z/c     x/b  y/a  y/c  z/b
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from netplane.lab import Lab

from ..policy_cases import A, pod, port
from ..policy_random import policies
from ..policy_world import PolicyWorld

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def world(module_lab: Lab) -> Iterator[PolicyWorld]:
    world = PolicyWorld(module_lab)
    yield world
    world.close()


@pytest.fixture(autouse=True)
def clean(world: PolicyWorld) -> None:
    world.reset()


def many(rng: random.Random) -> list[dict[str, Any]]:
    """Forty policies for one pod: more rules than may stand one after another."""
    found = policies(rng, 60)
    mine = [doc for doc in found if doc["kind"] == "NetworkPolicy"]
    for doc in mine:
        doc["metadata"]["namespace"] = "x"
        doc["spec"]["podSelector"] = A
        for section in ("ingress", "egress"):  # so that something is left to deny
            doc["spec"][section] = [r for r in doc["spec"].get(section, []) if "from" in r or "to" in r]
            for rule in doc["spec"][section]:
                rule.setdefault("ports", [port(80 + rng.randrange(2))])
                word = "from" if section == "ingress" else "to"
                rule[word] = [p for p in rule[word] if "ipBlock" not in p or p["ipBlock"]["cidr"] != "::/0"]
                rule[word] = rule[word][:1] or [pod(pod="b")]
    return mine


@pytest.mark.parametrize("seed", range(6))
def test_many_policies_of_one_pod_are_a_bounded_number_of_rules(world: PolicyWorld, seed: int) -> None:
    rng = random.Random(seed)
    docs = many(rng)[: 6 + 6 * seed]
    world.check(*docs, protocols=("TCP", "UDP"))
    node, ip = world.lab.nodes[0], world.pods["x/a"][0].ip
    element = node.run("nft", "get", "element", "inet", "netplane", "pol-in4", f"{{ {ip} }}")
    name = element.partition("jump ")[2].split()[0]
    rules = node.run("nft", "list", "chain", "inet", "netplane", name).splitlines()
    assert len(rules) <= 12 + 6  # with the braces and names around them
    assert seed < 3 or "pol-flat-doors4" in "".join(rules)
    world.label_pod("x/b", {"pod": "c"})  # elements follow
    world.label_pod("y/a", {"pod": "b"})
    world.label_namespace("z", {"ns": "y"})
    world.settle()
    world.verify(p for p in world.pairs(("TCP", "UDP")) if "x/a" in (p[0], name_of(world, p[2])))
    program = world.lab.settings.programs.netplane
    asked = (program, "policy", "explain", "y/b", "x/a:80", "--check", node.name, "--store", world.lab.store)
    assert "kernel of node-1: holds these rules" in node.run(*asked, check=False)


def name_of(world: PolicyWorld, address: str) -> str:
    """The pod at an address, or behind it."""
    own = world.vips.get(address, address)
    return next(key for key, (found, _) in world.pods.items() if own in found.ips)
