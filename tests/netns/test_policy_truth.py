"""The Kubernetes end-to-end cases with packets, judged by an oracle of its own.

     node-1                      node-2
x/a  x/c  y/b  z/a  z/c     x/b  y/a  y/c  z/b        every pod to every pod, both families,
                                                      ports 80 and 81, directly and
                                                      through a service that crosses them
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from netplane.lab import Lab

from ..policy_cases import CLUSTER, TCP, UDP
from ..policy_random import policies
from ..policy_world import PolicyWorld

pytestmark = pytest.mark.root
ROUNDS, EACH = 60, 5  # randomly generated policies: rounds, policies in each


@pytest.fixture(scope="module")
def world(module_lab: Lab) -> Iterator[PolicyWorld]:
    world = PolicyWorld(module_lab)
    yield world
    world.close()


@pytest.mark.parametrize(("name", "docs"), TCP, ids=[name for name, _ in TCP])
def test_tcp(world: PolicyWorld, name: str, docs: list[dict[str, Any]]) -> None:  # noqa: ARG001
    world.check(*docs)


@pytest.mark.parametrize(("name", "docs"), UDP, ids=[name for name, _ in UDP])
def test_udp(world: PolicyWorld, name: str, docs: list[dict[str, Any]]) -> None:  # noqa: ARG001
    world.check(*docs, protocols=("UDP", "TCP"))


@pytest.mark.parametrize(("name", "docs"), CLUSTER, ids=[name for name, _ in CLUSTER])
def test_cluster_network_policy(world: PolicyWorld, name: str, docs: list[dict[str, Any]]) -> None:  # noqa: ARG001
    world.check(*docs, protocols=("TCP", "UDP"))


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 8))])
def test_random_policies(world: PolicyWorld, seed: int) -> None:
    """Hundreds a run; each round on its own seed, so that a failure names what to repeat."""
    for number in range(ROUNDS // 4):
        rng = random.Random(seed * 1000 + number)
        docs = policies(rng, EACH)
        try:
            world.check(*docs, protocols=("TCP", "UDP"))
        except AssertionError as exc:
            raise AssertionError(f"seed {seed * 1000 + number}: {docs}\n{exc}") from None
