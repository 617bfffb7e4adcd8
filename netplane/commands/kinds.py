"""How users name kinds: singular, plural and short names, KIND/NAME, lists and "all"; label selectors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ..model import codec
from ..model.base import Object
from ..model.errors import Invalid
from ..model.selectors import LabelSelector, Requirement

# kind -> (plural, short names), in the order that "get a,b" and "all" print
NAMES: dict[str, tuple[str, ...]] = {
    "Pod": ("pods", "po"),
    "Service": ("services", "svc"),
    "EndpointSlice": ("endpointslices", "eps"),
    "Node": ("nodes", "no"),
    "Namespace": ("namespaces", "ns"),
    "Lease": ("leases",),
    "Event": ("events", "ev"),
    "NetworkPolicy": ("networkpolicies", "netpol"),
    "ClusterNetworkPolicy": ("clusternetworkpolicies", "cnp"),
    "PersistentVolume": ("persistentvolumes", "pv"),
    "PersistentVolumeClaim": ("persistentvolumeclaims", "pvc"),
    "StorageClass": ("storageclasses", "sc"),
    "VolumeSnapshot": ("volumesnapshots", "vs"),
    "VolumeSnapshotContent": ("volumesnapshotcontents", "vsc", "vscs"),
    "VolumeSnapshotClass": ("volumesnapshotclasses", "vsclass", "vsclasses"),
    "ConfigMap": ("configmaps", "cm"),
    "Secret": ("secrets",),
    "Allocation": ("allocations", "alloc"),
    "Attachment": ("attachments", "att"),
}
Resource = tuple[tuple[type[Object], ...], tuple[str, ...]]  # kinds, names
ALL = ("Pod", "Service")
_KIND = {alias: kind for kind, aliases in NAMES.items() for alias in (kind.lower(), *aliases)}


def kinds(text: str) -> tuple[type[Object], ...]:
    """The kinds that a user's word such as "svc", "pv,pvc" or "all" names. Raises Invalid."""
    found: dict[str, None] = {}
    for word in filter(None, text.split(",")):
        if word == "all":
            found.update(dict.fromkeys(ALL))
            continue
        kind = _KIND.get(word.lower().split(".")[0])
        if kind is None:
            plurals = ", ".join(names[0] for names in NAMES.values())
            raise Invalid(f"there is no kind {word!r}; use one of {plurals}, or all")
        found[kind] = None
    if not found:
        raise Invalid("a kind is required, such as services")
    return tuple(codec.KINDS[kind] for kind in found)


def resources(words: tuple[str, ...]) -> list[Resource]:
    """Command-line words as (kinds, names): ("svc", "a", "b") or ("svc/a", "pod/b"). Raises Invalid."""
    if any("/" in word for word in words):
        found: list[Resource] = []
        for word in words:
            kind, slash, name = word.partition("/")
            if not (kind and slash and name):
                raise Invalid(f"{word!r}: beside KIND/NAME every word must have that form")
            found.append((kinds(kind), (name,)))
        return found
    return [(kinds(words[0]), words[1:])]


_SETS = re.compile(r"(?P<key>\S+)\s+(?P<not>not)?in\s*\((?P<values>[^)]*)\)", re.I)


def selector(text: str) -> LabelSelector:
    """kubectl's -l: "a=b,c!=d,e,!f,g in (x,y)". Raises Invalid."""
    needs = tuple(_requirement(part.strip()) for part in re.split(r",(?![^(]*\))", text) if part.strip())
    found = LabelSelector(match_expressions=needs)
    faults = [*found.check("selector"), *_bad_keys(needs)]
    if faults or not needs:
        reason = faults[0][1] if faults else "it is empty"
        raise Invalid(f"selector {text!r}: {reason}; write it as app=web,tier!=db or 'env in (a,b)'")
    return found


def _requirement(part: str) -> Requirement:
    match = _SETS.fullmatch(part)
    if match:
        values = tuple(v.strip() for v in match["values"].split(","))
        return Requirement(key=match["key"], operator="NotIn" if match["not"] else "In", values=values)
    for sign, operator in (("!=", "NotIn"), ("==", "In"), ("=", "In")):
        key, found, value = part.partition(sign)
        if found:
            return Requirement(key=key.strip(), operator=operator, values=(value.strip(),))
    if part.startswith("!"):
        return Requirement(key=part[1:].strip(), operator="DoesNotExist")
    return Requirement(key=part, operator="Exists")


def _bad_keys(needs: tuple[Requirement, ...]) -> Iterator[tuple[str, str]]:
    for need in needs:
        yield from LabelSelector(match_labels=dict.fromkeys((need.key,), "")).check("selector")
        for value in need.values:
            yield from LabelSelector(match_labels={"key": value}).check("selector")


def matches(wanted: LabelSelector | None, labels: Mapping[str, str]) -> bool:
    return wanted is None or wanted.matches(labels)
