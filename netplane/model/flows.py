"""Tracked flows that somebody wants forgotten, as a pattern. Pure; `kernel.conntrack` carries it out."""

from __future__ import annotations

from typing import NamedTuple


class Flows(NamedTuple):
    """Flows of one protocol and family: to ``dst``:``dport`` as the client sees it, answered from
    ``backend``:``backend_port`` behind the translation. "" and 0 are any."""

    protocol: str
    version: int  # 4, 6
    dst: str = ""
    dport: int = 0
    backend: str = ""
    backend_port: int = 0
