"""More of the upstream binder's cases: named volumes, bound claims, syncVolume, volume modes.

Each: (objects, {volume: phase}, claim phase, volume that the claim has).
"""

from __future__ import annotations

from itertools import product
from typing import Any

from storageplane import names

from .storage_world import pod, pv, pvc, storage_class

Case = tuple[list[dict[str, Any]], dict[str, str], str, str]
BOUND = {names.BIND_COMPLETED: "yes", names.BOUND_BY_CONTROLLER: "yes"}
DONE: dict[str, Any] = {"meta": {"annotations": BOUND, "uid": "u"}, "status": {"phase": "Bound"}}
OURS = {"annotations": {names.BOUND_BY_CONTROLLER: "yes"}}
MADE = {"annotations": {names.PROVISIONED_BY: "x", names.BOUND_BY_CONTROLLER: "yes"}}
GOING = {"deletionTimestamp": "x", "finalizers": ["somebody/else"]}
LATE = storage_class("late", "kubernetes.io/no-provisioner", volumeBindingMode="WaitForFirstConsumer")
ELSEWHERE = [pv("w", claim="c:u"), pvc(volumeName="w", **DONE)]

NAMED: dict[str, Case] = {
    "named, and its by uid": (
        [pv("a", claim="c:u"), pvc(volumeName="a", meta={"uid": "u"})], {"a": "Bound"}, "Bound", "a",
    ),
    "named, but its predecessor's": (
        [pv("a", claim="c:old"), pvc(volumeName="a", meta={"uid": "new"})], {"a": "Released"}, "Pending", "a",
    ),
    "named, being deleted": ([pv("a", meta=GOING), pvc(volumeName="a")], {"a": "Available"}, "Pending", "a"),
    "named, of another attributes class": (
        [pv("a"), pvc(volumeName="a", volumeAttributesClassName="gold")], {"a": "Available"}, "Pending", "a",
    ),
    "named, waits for no pod": (
        [pv("a", storageClassName="late"), LATE, pvc(volumeName="a", storageClassName="late")],
        {"a": "Bound"}, "Bound", "a",
    ),
    "named, both attributes classes alike": (
        [pv("a", volumeAttributesClassName="gold"), pvc(volumeName="a", volumeAttributesClassName="gold")],
        {"a": "Bound"}, "Bound", "a",
    ),
}  # fmt: skip

BOUND_CLAIMS: dict[str, Case] = {
    "bound, all is well": (
        [pv("v", claim="c:u", status={"phase": "Bound"}), pvc(volumeName="v", **DONE)],
        {"v": "Bound"}, "Bound", "v",
    ),
    "bound, volume prebound to another": (
        [pv("v", claim="d"), pvc(volumeName="v", **DONE)], {"v": "Available"}, "Lost", "v",
    ),
    "bound, volume released by another": (
        [pv("v", claim="d:9", status={"phase": "Released"}), pvc(volumeName="v", **DONE)],
        {"v": "Released"}, "Lost", "v",
    ),
    "bound, deleting, still used": (
        [pv("v", claim="c:u"), pod(),
         pvc(volumeName="v", status={"phase": "Bound"},
             meta={"annotations": BOUND, "uid": "u", "deletionTimestamp": "x",
                   "finalizers": [names.PVC_PROTECTION]})],
        {"v": "Bound"}, "Bound", "v",
    ),
}  # fmt: skip

VOLUMES: dict[str, Case] = {
    "volume: new": ([pv("v")], {"v": "Available"}, "", ""),
    "volume: Pending": ([pv("v", status={"phase": "Pending"})], {"v": "Available"}, "", ""),
    "volume: prebound, claim absent": ([pv("v", claim="c")], {"v": "Available"}, "", ""),
    "volume: its claim not bound yet": (
        [pv("v", claim="c:u"), pvc(meta={"uid": "u"})], {"v": "Bound"}, "Bound", "v",
    ),
    "volume: Available though its claim names it": (
        [pv("v", claim="c:u", status={"phase": "Available"}), pvc(volumeName="v", **DONE)],
        {"v": "Bound"}, "Bound", "v",
    ),
    "volume: Released though its claim is back": (
        [pv("v", claim="c:u", status={"phase": "Released"}), pvc(volumeName="v", **DONE)],
        {"v": "Bound"}, "Bound", "v",
    ),
    "volume: Failed though its claim is back": (
        [pv("v", claim="c:u", status={"phase": "Failed"}), pvc(volumeName="v", **DONE)],
        {"v": "Bound"}, "Bound", "v",
    ),
    "volume: Retain, claim gone": (
        [pv("v", claim="c:u", status={"phase": "Released"})], {"v": "Released"}, "", "",
    ),
    "volume: provisioned, claim elsewhere": (
        [pv("v", claim="c:u", meta=MADE, persistentVolumeReclaimPolicy="Delete"), *ELSEWHERE],
        {"v": "Released", "w": "Bound"}, "Bound", "w",
    ),
    "volume: provisioned, failed, claim elsewhere": (
        [pv("v", claim="c:u", meta=MADE, persistentVolumeReclaimPolicy="Delete", status={"phase": "Failed"}),
         *ELSEWHERE],
        {"v": "Failed", "w": "Bound"}, "Bound", "w",
    ),
    "volume: provisioned to be kept, claim elsewhere": (
        [pv("v", claim="c:u", meta=MADE), *ELSEWHERE], {"v": "Available", "w": "Bound"}, "Bound", "w",
    ),
    "volume: being deleted": ([pv("v", meta=GOING)], {"v": "Available"}, "", ""),
    "volume: Failed without a claim": ([pv("v", status={"phase": "Failed"})], {"v": "Available"}, "", ""),
    "volume: given up with its node": (
        [pv("v", meta={"annotations": {names.LOST: "n9"}}), pvc()], {"v": "Available"}, "Pending", "",
    ),
}  # fmt: skip


def _modes() -> dict[str, Case]:
    """Every pair of volume modes (absent is Filesystem), for any, a named and a prebound volume."""
    cases: dict[str, Case] = {}
    for how, ours, theirs in product(("any", "named", "prebound"), *[("", "Filesystem", "Block")] * 2):
        mine = {"volumeMode": ours} if ours else {}
        its: dict[str, Any] = {"volumeMode": theirs} if theirs else {}
        if how == "prebound":
            its["claim"] = "c"
        if how == "named":
            mine["volumeName"] = "v"
        fits = (ours or "Filesystem") == (theirs or "Filesystem")
        has = "v" if fits or how == "named" else ""
        phases = ("Bound", "Bound") if fits else ("Available", "Pending")
        name = f"modes: {how}, claim {ours or 'none'}, volume {theirs or 'none'}"
        cases[name] = ([pv("v", **its), pvc(**mine)], {"v": phases[0]}, phases[1], has)
    return cases


MORE: dict[str, Case] = {**NAMED, **BOUND_CLAIMS, **VOLUMES, **_modes()}
