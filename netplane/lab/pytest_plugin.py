"""pytest fixtures over the lab; installed with netplane, and free until a test asks for one.

    def test_ping(lab):                     # two nodes, dual stack, agents in sync, for this test
        a, b = (node.add_pod(f"pod-{node.name}") for node in lab.nodes)
        a.run("ping", "-c1", b.ip)

    def test_one_node(make_lab):            # a lab of another shape, without agents until started
        lab = make_lab(nodes=1, dual_stack=False)

    @pytest.fixture(scope="module")
    def web(module_lab):                    # one lab for all tests of a file
        module_lab.apply("web.yaml")

A fixture takes its labs away when its scope ends, after a failure too; a test run that is killed
takes them along. Tests that use one need root and are skipped without.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .cluster import Lab
    from .settings import Settings

    MakeLab = Callable[..., Lab]


def _labs() -> Iterator[MakeLab]:
    if os.geteuid() != 0:
        pytest.skip("a lab needs root: run with sudo")
    from .cluster import Lab

    labs: list[Lab] = []

    def make(nodes: int = 2, dual_stack: bool = True, settings: Settings | None = None) -> Lab:
        """A lab that is up; its agents start with `lab.start_agents()`."""
        labs.append(Lab(nodes, dual_stack, settings))
        return labs[-1].up()

    try:
        yield make
    finally:
        for lab in reversed(labs):
            lab.down()


make_lab = pytest.fixture(name="make_lab")(_labs)
make_module_lab = pytest.fixture(name="make_module_lab", scope="module")(_labs)


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    """A cluster of two nodes, dual stack, whose agents are in sync; of this test alone."""
    return _ready(make_lab())


@pytest.fixture(scope="module")
def module_lab(make_module_lab: MakeLab) -> Lab:
    """The same cluster, one for all tests of a module."""
    return _ready(make_module_lab())


def _ready(lab: Lab) -> Lab:
    lab.start_agents()
    return lab
