"""Every test run lives in a mount and a network namespace of its own, so the machine stays as it was.

Namespaces that tests make are children of these; when the run ends, even by SIGKILL, all are gone.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netplane.kernel import netns


def pytest_addoption(parser: pytest.Parser) -> None:
    help = "the packet path of every agent that does not ask for another: kernel, fast or auto"
    parser.addoption("--datapath", choices=("auto", "kernel", "fast"), help=help)


def pytest_configure(config: pytest.Config) -> None:
    if mode := config.getoption("--datapath"):
        os.environ["NETPLANE_DATAPATH"] = mode
    if os.geteuid() == 0 and not hasattr(config, "workerinput"):
        netns.make_private(mounts=True, network=True)


def pytest_unconfigure() -> None:
    faulthandler.dump_traceback_later(60, exit=True)  # whatever threads a failed test has left


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root: run with sudo"))


@pytest.fixture
def make_netns(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """``make_netns("a")`` gives the path of a new network namespace with lo up; removed afterwards."""
    made: list[str] = []

    def make(name: str) -> str:
        path = str(tmp_path / f"ns-{name}")
        netns.create(path)
        made.append(path)
        netns.run(path, "ip", "link", "set", "lo", "up")
        return path

    yield make
    for path in made:
        netns.delete(path)
