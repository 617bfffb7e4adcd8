"""How a fresh process recognises which links, addresses, routes and neighbours are ours.

Rule 1: a link of ours has an alias that begins with "netplane:", or, for the instant between its
        creation and its alias, the group GROUP_NEW (a group can be set while creating, an alias
        cannot). Addresses, routes and neighbours carry protocol 78.
Rule 2: the alias also says what the link was asked to be: "netplane:cni:web #<mark> mtu=1450 …", so
        that a fresh process compares the kernel with the wish, and adopts what agrees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..model.facts import ALIAS, Link, Mark

GROUP_NEW = 0x6E700001  # being made
GROUP_DOOMED = 0x6E700002  # about to be deleted, with all others of this group, in one request
_LIMIT = 255  # IFALIASZ - 1
_ALIAS = re.compile(r"(netplane:.*?) #([0-9a-f]{16})((?: \S+=\S*)*)")


def alias_of(fact: Link, wish: Mapping[str, str]) -> str:
    """The alias of a link that is to be as ``wish`` says; a wish that is too long is left out."""
    owner = fact.alias or ALIAS + "link"
    base = f"{owner[: _LIMIT - 18]} #{fact.mark}"
    text = base + "".join(f" {name}={value}" for name, value in wish.items())
    return text if len(text.encode()) <= _LIMIT else base


def wish_of(alias: str) -> tuple[Mark, dict[str, str]] | None:
    """The mark and the wish that an alias of ours keeps; None when it keeps none."""
    match = _ALIAS.fullmatch(alias)
    if match is None:
        return None
    return match[2], dict(pair.split("=", 1) for pair in match[3].split())


def is_ours(alias: str, group: int) -> bool:
    return alias.startswith(ALIAS) or group in (GROUP_NEW, GROUP_DOOMED)
