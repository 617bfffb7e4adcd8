"""Keys that are not ours, not of this kind, or not supported: each is refused by its name (pure)."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import msgspec

from .errors import CONFIG, UNSUPPORTED, Refused

_LINKS = {"ipMasq", "ipMasqBackend", "macspoofchk", "mtu"}
_NO_EFFECT = {"preserveDefaultVlan"}  # the bridge plugin looks at it with vlan or vlanTrunk alone
_BRIDGE = {
    "bridge", "isGateway", "isDefaultGateway", "forceAddress", "hairpinMode", "promiscMode",
    "portIsolation",
}  # fmt: skip
OF_KIND = {
    "bridge": _BRIDGE | _LINKS,
    "ptp": _LINKS,
    "macvlan": {"master", "mode", "mtu"},
    "loopback": set[str](),
}
_NOT_GIVEN = {
    "vlan": "bridges here do not filter VLANs; use a bridge for each network",
    "vlanTrunk": "bridges here do not filter VLANs; use a bridge for each network",
    "enabledad": "addresses are assigned by this node alone, so there is no duplicate to detect",
    "disableContainerInterface": "an interface always gets its addresses and goes up",
    "linkInContainer": "the master is looked for on the node",
    "bcqueuelen": "the kernel's default is used",
}


def check(doc: dict[str, Any], known: Set[str]) -> None:
    """Raises Refused for a key that would have no effect. Values that mean "off" pass."""
    kind = doc.get("kind", "bridge")
    if not isinstance(kind, str) or kind not in OF_KIND:
        raise Refused(CONFIG, f"kind: {_short(kind)} is not one of {', '.join(OF_KIND)}")
    for key, value in doc.items():
        if key in _NOT_GIVEN:
            if value:
                raise Refused(UNSUPPORTED, f"{key}: {_short(value)}: not supported: {_NOT_GIVEN[key]}")
        elif key in _NO_EFFECT:
            if not isinstance(value, bool):
                raise Refused(CONFIG, f"{key}: {_short(value)} must be true or false")
        elif key not in known and not key.startswith("cni.dev/"):
            hint = _closest(key, known)
            raise Refused(UNSUPPORTED, f"{key}: {_short(value)}: this key is not known; {hint}")
        elif value and key not in OF_KIND[kind]:
            owners = [name for name, keys in OF_KIND.items() if key in keys]
            if owners:
                raise Refused(UNSUPPORTED, f"{key}: belongs to kind {' and '.join(owners)}, not to {kind}")
    for key in _NOT_GIVEN.keys() | _NO_EFFECT:
        doc.pop(key, None)


def _closest(key: str, known: Set[str]) -> str:
    for name in sorted(known):
        if name.lower() == key.lower().replace("_", "").replace("-", ""):
            return f"did you mean {name}?"
    return f"use one of {', '.join(sorted(k for k in known if not k.startswith('cni.dev/')))}"


def _short(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 40 else text[:37] + "..."
