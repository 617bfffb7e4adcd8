"""The checks of csi-check. Each is a function of a Bed that raises Failed; its docstring says the rule.

What green drivers have been found doing (kubernetes-csi/csi-driver-host-path and others) comes first.
"""

from __future__ import annotations

import errno
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from .bed import MIB, Bed, Check, Failed, Skip, capability

SECRET = "csi-check-secret-4711"
SNAPSHOTS = ("Controller", "CREATE_DELETE_SNAPSHOT")


def delete_while_published(bed: Bed) -> None:
    """A published volume is in use: DeleteVolume is refused, and the data stays."""
    volume = bed.create()
    place = bed.shown(volume)
    (place / "precious").write_text("data")
    bed.refused("DeleteVolume", "FAILED_PRECONDITION", volume_id=volume.volume_id)
    if (place / "precious").read_text() != "data":
        raise Failed("DeleteVolume was refused, but the data is gone")


def republish_with_other_arguments(bed: Bed) -> None:
    """The same target with readonly flipped is another publication."""
    staged = bed.stage(bed.create())
    place = bed.publish(staged)
    again = {**staged, "target_path": str(place)}
    bed.call("NodePublishVolume", **again)
    bed.refused("NodePublishVolume", "ALREADY_EXISTS", **again, readonly=True)


def second_target_of_a_single_writer(bed: Bed) -> None:
    """SINGLE_NODE_WRITER allows one target."""
    staged = bed.stage(bed.create())
    bed.publish(staged)
    other = bed.target()
    bed.later("NodeUnpublishVolume", volume_id=staged["volume_id"], target_path=str(other))
    bed.refused("NodePublishVolume", "FAILED_PRECONDITION", **staged, target_path=str(other))


def same_name_with_other_parameters(bed: Bed) -> None:
    """A name that is taken by a volume with other parameters is taken."""
    name = bed.name()
    bed.create(name=name)
    other = bed.asked(name, parameters={**bed.parameters, "csi-check": "other"})
    bed.refused("CreateVolume", "ALREADY_EXISTS", "INVALID_ARGUMENT", **other)


def long_names_and_maps(bed: Bed) -> None:
    """Strings have at most 128 bytes and maps 4 KiB, whatever is in them."""
    for what in ({"name": "n" * 129}, {"name": "é" * 65}):
        fields = bed.asked(what["name"])
        try:
            bed.refused("CreateVolume", "INVALID_ARGUMENT", **fields)
        except Failed:
            bed.later("DeleteVolume", volume_id=_created(bed, fields))
            raise
    bed.refused("CreateVolume", "INVALID_ARGUMENT", **bed.asked(parameters={"k" * 100: "v" * 4096}))


def _created(bed: Bed, fields: dict[str, Any]) -> str:
    try:
        return str(bed.client.raw("CreateVolume", **fields).volume.volume_id)
    except grpc.RpcError:
        return ""


def size_is_enforced(bed: Bed) -> None:
    """No more fits in than the capacity that was promised."""
    volume = bed.create()
    place, limit = bed.shown(volume), int(volume.capacity_bytes) or bed.size
    written = _fill(place, limit + 8 * MIB)
    if written > limit:
        raise Failed(f"{written} bytes went into a volume of {limit}; ENOSPC or EDQUOT is right")


def _fill(place: Path, size: int) -> int:
    """How many bytes went in."""
    done = 0
    try:
        with open(place / "filler", "wb", buffering=0) as file:
            while done < size:
                done += file.write(os.urandom(MIB))
                os.fdatasync(file.fileno())
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    return done


def stats_tell_the_volume(bed: Bed) -> None:
    """NodeGetVolumeStats reports the volume, not the disk that it lies on."""
    bed.needs("Node", "GET_VOLUME_STATS")
    volume = bed.create()
    staged = bed.stage(volume)
    place = bed.publish(staged)
    answer = bed.call("NodeGetVolumeStats", volume_id=volume.volume_id, volume_path=str(place))
    total = max((int(u.total) for u in answer.usage if u.unit == 1), default=0)
    if total > int(volume.capacity_bytes) * 1.05:
        raise Failed(f"a volume of {volume.capacity_bytes} bytes is said to have {total}")


def read_only_is_read_only(bed: Bed) -> None:
    """What is published with readonly takes no write."""
    place = bed.publish(bed.stage(bed.create()), readonly=True)
    try:
        (place / "word").write_text("no")
    except OSError as exc:
        if exc.errno == errno.EROFS:
            return
        raise
    raise Failed("a write into a volume that is published with readonly succeeds; EROFS is right")


def data_outlives_its_mounts(bed: Bed) -> None:
    """Unpublished, unstaged, and published again elsewhere, the data is the same."""
    volume = bed.create()
    want = _written(bed.shown(volume))
    for method, fields in bed.undoing():
        if method != "DeleteVolume":
            bed.call(method, **fields)
    if bed.mounts():
        raise Failed(f"still mounted after NodeUnpublish and NodeUnstage: {bed.mounts()[0]}")
    if _hash(bed.shown(volume)) != want:
        raise Failed("the data is another after unpublish and publish")


def _written(place: Path) -> str:
    (place / "data").write_bytes(os.urandom(MIB))
    return _hash(place)


def _hash(place: Path) -> str:
    try:
        return hashlib.sha256((place / "data").read_bytes()).hexdigest()
    except FileNotFoundError:
        return "missing"


def snapshots_are_of_their_moment(bed: Bed) -> None:
    """A restored snapshot has the data of its moment, and the source's later changes are not in it."""
    bed.needs(*SNAPSHOTS)
    source = bed.create()
    place = bed.shown(source)
    want = _written(place)
    made = bed.call("CreateSnapshot", source_volume_id=source.volume_id, name=bed.name()).snapshot
    bed.later("DeleteSnapshot", snapshot_id=made.snapshot_id)
    (place / "data").write_text("changed after")
    restored = bed.create(volume_content_source={"snapshot": {"snapshot_id": made.snapshot_id}})
    if _hash(bed.shown(restored)) != want:
        raise Failed("a restored snapshot is not what the volume was when it was taken")


def clones_are_apart(bed: Bed) -> None:
    """A clone has the source's data, and a write into it is not seen in the source."""
    bed.needs("Controller", "CLONE_VOLUME")
    source = bed.create()
    place = bed.shown(source)
    want = _written(place)
    clone = bed.shown(bed.create(volume_content_source={"volume": {"volume_id": source.volume_id}}))
    if _hash(clone) != want:
        raise Failed("a clone is not what its source is")
    (clone / "data").write_text("other")
    if _hash(place) != want:
        raise Failed("a write into a clone changes its source")


def everything_twice(bed: Bed) -> None:
    """Every call of a life made twice is the same as once."""
    fields = bed.asked()
    first = bed.call("CreateVolume", **fields).volume
    bed.later("DeleteVolume", volume_id=first.volume_id)
    second = bed.call("CreateVolume", **fields).volume
    if first.volume_id != second.volume_id:
        bed.later("DeleteVolume", volume_id=second.volume_id)
        raise Failed(f"one name has two volumes: {first.volume_id} and {second.volume_id}")
    bed.shown(first)
    for method, again in bed.undoing():
        bed.call(method, **again)
        bed.call(method, **again)


def one_name_at_once(bed: Bed) -> None:
    """Sixteen CreateVolume of one name at once make one volume; who is too early is told ABORTED."""
    fields = bed.asked()

    def ask(_: int) -> str:
        try:
            return str(bed.client.raw("CreateVolume", **fields).volume.volume_id)
        except grpc.RpcError as exc:
            return "" if exc.code().name in ("ABORTED", "UNAVAILABLE") else f"refused {exc.code().name}"

    with ThreadPoolExecutor(16) as pool:
        found = set(pool.map(ask, range(16))) - {""}
    for volume in found:
        bed.later("DeleteVolume", volume_id=volume)
    if len(found) != 1:
        raise Failed(f"one name asked for sixteen times at once: {', '.join(sorted(found)) or 'nothing'}")


def ids_are_no_paths(bed: Bed) -> None:
    """An id that looks like a path leads nowhere."""
    bait = bed.folder / "bait"
    bait.mkdir(exist_ok=True)
    (bait / "file").write_text("stays")
    for strange in (f"../../../..{bait}", str(bait), "../bait", ".", ""):
        try:
            bed.client.raw("DeleteVolume", volume_id=strange)
        except grpc.RpcError as exc:
            if exc.code().name not in ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"):
                why = f"{exc.code().name}; INVALID_ARGUMENT is right"
                raise Failed(f"DeleteVolume of id {strange!r}: {why}") from None
    if not (bait / "file").exists():
        raise Failed("DeleteVolume of an id that is a path removed what lies at that path")


def targets_that_are_links(bed: Bed) -> None:
    """A link at the target leads no mount to another place."""
    staged = bed.stage(bed.create())
    away, link = bed.folder / f"away-{bed.name()}", bed.target()
    away.mkdir()
    link.symlink_to(away)
    bed.later("NodeUnpublishVolume", volume_id=staged["volume_id"], target_path=str(link))
    try:
        bed.client.raw("NodePublishVolume", **staged, target_path=str(link))
    except grpc.RpcError:
        return
    if str(away) in bed.mounts():
        raise Failed(f"a link at the target led the mount to {away}")


def secrets_are_not_told(bed: Bed) -> None:
    """A refusal does not repeat a secret."""
    secrets = {"password": SECRET}
    wrong: tuple[dict[str, Any], ...] = (
        {"volume_capabilities": []},
        {"capacity_range": {"required_bytes": 2, "limit_bytes": 1}},
        {"volume_content_source": {"volume": {"volume_id": "no-such-volume"}}},
    )
    for fields in wrong:
        try:
            made = bed.client.raw("CreateVolume", **bed.asked(**fields), secrets=secrets)
        except grpc.RpcError as exc:
            if SECRET in (exc.details() or ""):
                raise Failed("CreateVolume: the message holds the secret that was sent") from None
        else:
            bed.later("DeleteVolume", volume_id=made.volume.volume_id)


def volumes_never_shrink(bed: Bed) -> None:
    """An expansion to less changes nothing."""
    bed.needs("Controller", "EXPAND_VOLUME")
    volume = bed.create()
    less = {"volume_id": volume.volume_id, "capacity_range": {"required_bytes": MIB}}
    try:
        answer = bed.client.raw("ControllerExpandVolume", **less)
    except grpc.RpcError as exc:
        if exc.code().name != "OUT_OF_RANGE":
            raise Failed(
                f"ControllerExpandVolume to less: {exc.code().name}; OUT_OF_RANGE is right"
            ) from None
        return
    if answer.capacity_bytes < volume.capacity_bytes:
        raise Failed(f"a volume of {volume.capacity_bytes} bytes shrank to {answer.capacity_bytes}")


def topology_is_honest(bed: Bed) -> None:
    """A volume is accessible from the node that made it; one that must lie elsewhere is refused."""
    bed.needs("Identity", "VOLUME_ACCESSIBILITY_CONSTRAINTS")
    here = dict(bed.client.node.accessible_topology.segments)
    volume = bed.create()
    if here not in [dict(t.segments) for t in volume.accessible_topology]:
        raise Failed("a volume is not accessible from the node whose driver made it")
    away = {key: f"{value}-elsewhere"[:63] for key, value in here.items()}
    fields = bed.asked(accessibility_requirements={"requisite": [{"segments": away}]})
    bed.refused("CreateVolume", "RESOURCE_EXHAUSTED", **fields)


def groups_go_as_groups(bed: Bed) -> None:
    """A snapshot of a group is not deleted alone."""
    if not bed.client.can("Identity", "GROUP_CONTROLLER_SERVICE"):
        raise Skip("the driver has no group snapshots")
    volumes = [bed.create().volume_id for _ in range(2)]
    made = bed.call("CreateVolumeGroupSnapshot", name=bed.name(), source_volume_ids=volumes).group_snapshot
    ids = [s.snapshot_id for s in made.snapshots]
    bed.later("DeleteVolumeGroupSnapshot", group_snapshot_id=made.group_snapshot_id, snapshot_ids=ids)
    bed.refused("DeleteSnapshot", "INVALID_ARGUMENT", snapshot_id=ids[0])


def modes_are_kept_apart(bed: Bed) -> None:
    """A second target is fine where the access mode says so."""
    bed.needs("Node", "SINGLE_NODE_MULTI_WRITER")
    mode = "SINGLE_NODE_MULTI_WRITER"
    staged = bed.stage(bed.create(volume_capabilities=[capability(mode)]), mode)
    one, two = bed.publish(staged), bed.publish(staged)
    (one / "data").write_text("seen")
    if (two / "data").read_text() != "seen":
        raise Failed(f"two targets of one {mode} volume show different data")


CHECKS: dict[str, Check] = {
    check.__name__.replace("_", "-"): check
    for check in (
        delete_while_published, republish_with_other_arguments, second_target_of_a_single_writer,
        same_name_with_other_parameters, long_names_and_maps, size_is_enforced, stats_tell_the_volume,
        read_only_is_read_only, data_outlives_its_mounts, snapshots_are_of_their_moment, clones_are_apart,
        everything_twice, one_name_at_once, ids_are_no_paths, targets_that_are_links, secrets_are_not_told,
        volumes_never_shrink, topology_is_honest, groups_go_as_groups, modes_are_kept_apart,
    )
}  # fmt: skip
