"""Publishing: every volume of a pod prepared on this node, and taken away again.

Rule 1: facts are a pure function of the pod and the snapshot (`wants`); the journal knows their keys
        before the first is made.
Rule 2: the first publication is whole, or leaves nothing: a failure undoes what was begun.
Rule 3: publishing again is a repair, volume by volume: what stands stays, what is gone comes back, what
        follows an object follows it, and a volume that cannot be had does not stop the others.
Rule 4: unpublishing again is nothing; neither verb needs the other's success.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from netplane.model.errors import Invalid, KernelError, NetplaneError, Unavailable
from netplane.model.facts import Fact, Plan
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage_facts import (
    CsiVolume,
    NetworkMount,
    Ownership,
)  # fmt: skip
from netplane.model.volume_checks import NAME_MAX, PATH_MAX
from netplane.model.volumes import Volume

from ..host import mountinfo
from ..volumes.base import Context
from . import podlock, recording, wants
from .journal import Journal, Record
from .wants import Place, Wanted

Found = dict[str, Wanted]
Failures = dict[str, NetplaneError]


class Applier(Protocol):
    """The mounts driver, as publishing needs it."""

    root: Path

    def apply(self, plan: Plan) -> None: ...
    def where(self, path: str) -> str: ...


class Publication(NamedTuple):
    """``paths``: volume name → absolute path on this node that shows it; ``views``: a container's own."""

    pod: Pod
    target: str
    paths: dict[str, str]
    read_only: frozenset[str]
    views: dict[Place, str]


def publish(pod: Pod, snapshot: Snapshot, node: str, driver: Applier, target: str = "") -> Publication:
    """Prepare every volume; bind each at TARGET/<volume> when a target is given.

    Raises Invalid (wrong or impossible), Unavailable (a claim is not bound yet), KernelError.
    """
    target = _real(target, driver.root)
    wants.check(pod, node)
    context = Context(node, str(driver.root), snapshot)
    with podlock.alone(driver.root, pod.metadata.uid):
        work = _recorded(pod, context, driver, target)
        if work.old is None:
            _make_whole(work, driver)
        else:
            _raise(work.failed | _make_each(work, driver))
    return _publication(pod, target, work.found, driver)


def again(
    pod: Pod, snapshot: Snapshot, node: str, driver: Applier, far: bool | None = None
) -> list[str] | None:
    """Repair the publication of a pod; None when it has none here, or one that is being taken away.

    ``far``: only the volumes for which somebody else must answer, a server or a CSI driver (True), or only
    the others (False); the names of those left out are returned. Waits for nobody else at work on it, and
    raises Unavailable then; else as `publish`.
    """
    uid = pod.metadata.uid
    old = Journal(driver.root).read(uid)
    if old is None or old.leaving:
        return None
    context = Context(node, str(driver.root), snapshot)
    with podlock.alone(driver.root, uid, wait=False):
        if Journal(driver.root).read(uid) != old:
            return []  # somebody else has just worked on it
        wants.check(pod, node)
        work = _recorded(pod, context, driver, old.target)
        chosen = {n: w for n, w in work.found.items() if far is None or _is_far(w) is far}
        failed = {} if far else work.failed
        _raise(failed | _make_each(work._replace(found=chosen), driver))
    return sorted(work.found.keys() - chosen.keys())


def _is_far(wanted: Wanted) -> bool:
    return any(isinstance(fact, (NetworkMount, CsiVolume)) for fact in wanted.facts)


class _Work(NamedTuple):
    """One publication under way. ``shared``: what other pods have in use."""

    journal: Journal
    old: Record | None
    record: Record
    base: list[Fact]
    found: Found
    failed: Failures
    shared: set[str]


def _recorded(pod: Pod, context: Context, driver: Applier, target: str) -> _Work:
    """What is to be done, and the record of it written. Raises Invalid, Unavailable, KernelError.

    The caller has the pod's lock, so nobody else touches its record; all records are looked at, and this
    one written, under the journal's.
    """
    journal = Journal(driver.root)
    old = journal.read(pod.metadata.uid)
    if old is not None and old.target != target:
        raise Invalid(f"{pod.key} is published at {old.target or 'no target'}; unpublish it there first")
    found, failed = _found(pod, target, context, old)
    base = wants.base(pod, target)
    facts = [*base, *(f for w in found.values() for f in w.facts)]
    sources = [s for w in found.values() for s in _sources(w, driver)]
    record = recording.record(pod, target, context, (facts, sources), old)
    with journal.locked():
        others = [r for r in journal.records() if r.uid != record.uid]
        recording.check_exclusive(record, others)
        if old is None:
            recording.check_modes(record, others)
        if record != old:
            journal.write(record)
    return _Work(journal, old, record, base, found, failed, {s for r in others for s in r.sources})


def _found(pod: Pod, target: str, context: Context, old: Record | None) -> tuple[Found, Failures]:
    """What each volume takes. The first time every one must be had."""
    found: Found = {}
    failed: Failures = {}
    for volume in pod.spec.volumes:
        try:
            found[volume.name] = wants.volume(pod, volume, target, context)
        except NetplaneError as exc:
            if old is None:
                raise
            if not _stands(volume, target):
                failed[volume.name] = exc
    return found, failed


def _stands(volume: Volume, target: str) -> bool:
    """Whether a claim's volume is there: what becomes of its objects later does not concern a pod."""
    if not (volume.persistent_volume_claim or volume.ephemeral):
        return False
    return not target or any(m.point == f"{target}/{volume.name}" for m in mountinfo.read())


def _make_whole(work: _Work, driver: Applier) -> None:
    facts = [f for w in work.found.values() for f in _spared(w, driver, work.shared, True)]
    try:
        _make_base(work, driver)
        driver.apply(Plan(add=tuple(facts)))
    except NetplaneError:
        _undo(work.journal, driver, work.record)
        raise


def _make_base(work: _Work, driver: Applier) -> None:
    """Directories that pods share come and go under the journal's lock, so that none goes in between."""
    with work.journal.locked():
        driver.apply(Plan(add=tuple(work.base)))


def _make_each(work: _Work, driver: Applier) -> Failures:
    failed: Failures = {}
    _make_base(work, driver)
    for name, wanted in work.found.items():
        try:
            driver.apply(Plan(add=tuple(_spared(wanted, driver, work.shared, False))))
        except NetplaneError as exc:
            failed[name] = exc
    return failed


def _spared(wanted: Wanted, driver: Applier, shared: set[str], first: bool) -> Iterable[Fact]:
    """The facts, with fsGroup left out while another pod has the volume, and eased when it is a repair."""
    for fact in wanted.facts:
        if not isinstance(fact, Ownership):
            yield fact
        elif not shared.intersection(_sources(wanted, driver)):
            yield fact if first else msgspec.structs.replace(fact, always=False)


def _raise(failed: Mapping[str, NetplaneError]) -> None:
    """The failures of a repair as one error: worth another try unless all of them are Invalid."""
    errors = list(failed.values())
    if len(errors) == 1:
        raise errors[0]
    if errors:
        kind = Invalid if all(isinstance(e, Invalid) for e in errors) else Unavailable
        raise kind("; ".join(f"volume {name}: {exc}" for name, exc in failed.items()))


def _sources(wanted: Wanted, driver: Applier) -> list[str]:
    """What is in use by it, as records have it: absolute, a user's own path without links."""
    paths = (wanted.prepared.source, wanted.prepared.home)
    return [os.path.realpath(p) if p.startswith("/") else driver.where(p) for p in paths if p]


def _publication(pod: Pod, target: str, found: Found, driver: Applier) -> Publication:
    paths = {n: f"{target}/{n}" if target else driver.where(w.prepared.source) for n, w in found.items()}
    views = {place: driver.where(path) for w in found.values() for place, path in w.views.items()}
    read_only = frozenset(n for n, w in found.items() if w.prepared.read_only)
    return Publication(pod, target, paths, read_only, views)


def _real(target: str, root: Path) -> str:
    """The target without links, once and for all. Raises Invalid for one inside our own root."""
    names = os.fsencode(target).split(b"/")
    if max(map(len, names)) > NAME_MAX or len(os.fsencode(target)) > PATH_MAX - NAME_MAX:
        raise KernelError(errno.ENAMETOOLONG, f"--target {target[:60]}…")
    real = os.path.realpath(target) if target else ""
    if real and (Path(real) == root or root in Path(real).parents):
        raise Invalid(f"--target {target} lies in the root {root}; choose a place outside")
    return real


def unpublish(namespace: str, name: str, driver: Applier, target: str = "") -> int:
    """Take away what was published for the pod, by the journal; returns how many publications.

    Raises Invalid when it is published at another target, KernelError(EBUSY) while it is in use.
    """
    target = os.path.realpath(target) if target else ""
    journal = Journal(driver.root)
    with journal.locked():
        records = [r for r in journal.records() if (r.namespace, r.name) == (namespace, name)]
        damaged = journal.damaged()
        if damaged and not records:
            raise Invalid(f"Pod {namespace}/{name}: its record may be this one: {damaged[0]}")
        chosen = [r for r in records if not target or r.target == target]
        if records and not chosen:
            where = records[0].target or "no target"
            raise Invalid(f"Pod {namespace}/{name} is published at {where}, not at {target}")
    for record in chosen:
        with podlock.alone(driver.root, record.uid):
            current = journal.read(record.uid)
            if current is not None:
                _undo(journal, driver, current)
    return len(chosen)


def _undo(journal: Journal, driver: Applier, record: Record) -> None:
    shared = tuple(k for k in record.keys if k[0] == "directory" and k[1].startswith("/"))
    with journal.locked(), suppress(KernelError):  # on a full disk it goes on without: this makes room
        journal.write(msgspec.structs.replace(record, leaving=True))
    driver.apply(Plan(remove=tuple(k for k in record.keys if k not in shared)))
    with journal.locked():
        driver.apply(Plan(remove=shared))
        journal.remove(record.uid)
