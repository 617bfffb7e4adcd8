"""Networks of namespaces on one machine, for engineers and for pytest.

    from netplane.lab import Lab

    with Lab(nodes=2) as lab:
        lab.start_agents()
        web = lab.nodes[0].add_pod("web", labels={"app": "web"})
        web.run("ping", "-c1", lab.nodes[1].add_pod("client").ip)

Rule 1: nothing is made in the machine's own network namespace.
Rule 2: everything of a lab lies beneath one directory; what is there is all there is to take away.
Rule 3: agents, the CNI plugin and storageplane are used as programs, as a stranger would use them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cluster import Lab
    from .node import Node, Pod
    from .settings import Settings

__all__ = ["Lab", "Node", "Pod", "Settings"]

_HOMES = {"Lab": "cluster", "Node": "node", "Pod": "node", "Settings": "settings"}


def __getattr__(name: str) -> Any:
    """Loaded at first use: pytest imports this package in every run, for its plugin."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
