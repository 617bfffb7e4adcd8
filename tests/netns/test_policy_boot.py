"""Before an agent's first pass: no pod comes to be, and what passed unjudged is judged afterwards.

node-1: agent (its store is away at first) ── npbr0 ── x/web, x/client
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from netplane.lab import Lab
from netplane.model import codec
from netplane.model.errors import Unavailable
from netplane.store import open_store

from ..policy_cases import labels, np
from ..policy_world import wait
from .test_policy_live import Talk

pytestmark = pytest.mark.root
DENY = np("deny", podSelector=labels(app="web"), ingress=[])


@contextmanager
def store_away(lab: Lab) -> Iterator[None]:
    """The store's file cannot be opened; afterwards it is as it was."""
    home, aside = Path(lab.home), Path(lab.home, "aside")
    aside.mkdir()
    for file in home.glob("state.db*"):
        file.rename(aside / file.name)
    (home / "state.db").mkdir()
    yield
    (home / "state.db").rmdir()
    for file in aside.iterdir():
        file.rename(home / file.name)
    aside.rmdir()


def start_in_vain(node: Any) -> None:
    """An agent that waits for its store."""
    before = node.agent.log.stat().st_size if node.agent.log.exists() else 0
    node.agent.start()
    wait(lambda: "trying again" in node.agent.log.read_text()[before:], 20, "the agent misses its store")


def write(lab: Lab, *docs: dict[str, Any]) -> None:
    with closing(open_store(lab.store)) as store:
        for doc in docs:
            store.put(codec.parse(doc))


def connects(source: Any, address: str, number: int = 8080) -> bool:
    def ask() -> bool:
        try:
            with socket.create_connection((address, number), 0.3):
                return True
        except OSError:
            return False

    return bool(source.python(ask))


def test_no_pod_comes_to_be_before_the_first_pass(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(nodes=1)
    node = lab.nodes[0]
    write(lab, DENY)
    with store_away(lab):
        start_in_vain(node)
        assert not node.socket.exists()
        with pytest.raises(Unavailable, match=r"code 11\)"):
            node.add_pod("web", "x", {"app": "web"})
    node.agent.wait()
    web, client = node.add_pod("web", "x", {"app": "web"}), node.add_pod("client", "x")
    first = Talk(client, client, 8080)
    assert first.works(), "a pod that nothing selects"
    server = web.popen("python3", "-I", "-S", "-m", "http.server", "8080", "--bind", "::")
    wait(functools.partial(connects, web, web.ip), 10, "the server, by the pod itself")
    assert not any(connects(client, address) for address in web.ips)
    first.server.kill(), server.kill()


def test_what_passed_while_table_agent_and_store_were_away_is_cut_by_the_first_pass(
    make_lab: Callable[..., Lab],
) -> None:
    lab = make_lab(nodes=1)
    lab.start_agents()
    node = lab.nodes[0]
    write(lab, DENY)
    web, client = node.add_pod("web", "x", {"app": "web"}), node.add_pod("client", "x")
    node.agent.kill()
    node.run("nft", "delete", "table", "inet", "netplane")
    with store_away(lab):
        start_in_vain(node)
        with pytest.raises(Unavailable, match=r"code 11\)"):
            node.add_pod("late", "x")
        talk = Talk(client, web, 8080)
        assert talk.works(), "without a table there is nothing that could deny"
    node.agent.wait()
    assert not any(connects(client, address) for address in web.ips), "nothing new"
    wait(lambda: not talk.works(), 15, "the flow that came meanwhile is cut")
    talk.server.kill()
