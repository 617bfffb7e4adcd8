"""Claims of volumeMode Block that we provision: a loop device of the container, as large as was asked for."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from netplane.model.base import amend
from netplane.model.codec import parse
from netplane.model.errors import Invalid
from storageplane.host import devices, loops
from storageplane.pods import output, publish
from storageplane.pods.journal import Journal
from tests.sequences.storage_world import storage_class
from tests.sequences.test_storage_snapshots import Site, restored, site, volume_snapshot

from .bed import Bed, claim, container, run

pytestmark = pytest.mark.root
MIB = 1 << 20
USER = {"name": "main", "volumeDevices": [{"name": "data", "devicePath": "/dev/disk"}]}


def raw(bed: Bed, **more: Any) -> Site:
    return site(bed.root, "image", volumeMode="Block", **more)


def shown(bed: Bed, node: Site, name: str = "p", uid: str = "uid-1", where: str = "t/pod") -> Any:
    pod = bed.pod(claim(), uid=uid, name=name, containers=[USER])
    return bed.publish(pod, node.world.snapshot(), bed.base / where)


def test_a_claim_is_a_device_that_keeps_its_data(bed: Bed) -> None:
    node = raw(bed)
    volume = node.world.pv("pvc-u1")
    assert (volume.spec.volume_mode, volume.spec.local.fs_type) == ("Block", "")
    for round_ in (1, 2):
        done = shown(bed, node, uid=f"uid-{round_}")
        place = Path(done.paths["data"])
        assert stat.S_ISBLK(place.stat().st_mode)
        described = output.as_spec(done.pod.spec.containers[0], done)["linux"]["devices"][0]
        number = place.stat().st_rdev
        assert (described["path"], described["type"]) == ("/dev/disk", "b")
        assert (described["major"], described["minor"]) == (os.major(number), os.minor(number))
        assert f"--device={place}:/dev/disk:rwm" in output.as_podman(done.pod.spec.containers[0], done)
        with open(place, "r+b", buffering=0) as disk:
            assert disk.seek(0, os.SEEK_END) == 16 * MIB
            if round_ == 1:
                disk.seek(MIB)
                disk.write(b"kept" * 128)
                disk.seek(16 * MIB)
                with pytest.raises(OSError, match="No space") as caught:
                    disk.write(bytes(512))
                assert caught.value.errno == errno.ENOSPC
            disk.seek(MIB)
            assert disk.read(4) == b"kept"
        assert Journal(bed.root).user_of(str(bed.root / "volumes/pvc-u1")) == "pod default/p"
        bed.unpublish()
        assert loops.backed_by(bed.base) == [] and not list((bed.root / "pods").iterdir())
    node.gone("PersistentVolumeClaim", "c")
    assert node.directories() == []


def test_two_pods_of_a_node_share_the_device_until_the_last_goes(bed: Bed) -> None:
    node = raw(bed)
    shown(bed, node)
    second = shown(bed, node, "q", "uid-2", "other")
    assert len(loops.backed_by(bed.base)) == 1
    bed.unpublish()
    with open(second.paths["data"], "rb", buffering=0) as disk:
        assert disk.seek(0, os.SEEK_END) == 16 * MIB
    publish.unpublish("default", "q", bed.driver)
    assert loops.backed_by(bed.base) == []


def test_a_device_of_another_boot_is_made_anew(bed: Bed) -> None:
    """The loop device is another one now: what the pod is shown is that."""
    node = raw(bed)
    done = shown(bed, node)
    place = Path(done.paths["data"])
    before = place.stat().st_rdev
    mine = next((bed.root / "pods/uid-1/volumeDevices").glob("*/*"))
    run("umount", place)
    loops.detach(bed.root / "volumes/pvc-u1/image")
    other = bed.base / "other.img"
    other.write_bytes(bytes(MIB))
    taken = loops.attach(other)  # the number is somebody else's
    assert os.stat(taken).st_rdev == before
    again = publish.again(done.pod, node.world.snapshot(), "n1", bed.driver)
    assert again == []
    assert place.stat().st_rdev == devices.number_at(mine) != before
    with open(place, "rb", buffering=0) as disk:
        assert disk.seek(0, os.SEEK_END) == 16 * MIB
    bed.unpublish()
    assert [image for _, image in loops.backed_by(bed.base)] == [str(other)]
    loops.detach(other)


def test_a_device_grows_under_its_pod(bed: Bed) -> None:
    node = raw(bed)
    node.world.put(amend(node.world.get(parse(storage_class("d")).key), allow_volume_expansion=True))
    place = shown(bed, node).paths["data"]
    asked = node.world.pvc()
    larger = amend(asked.spec, resources=amend(asked.spec.resources, requests={"storage": "24Mi"}))
    node.world.put(amend(asked, spec=larger))
    node.run()
    with open(place, "rb", buffering=0) as disk:
        assert disk.seek(0, os.SEEK_END) == 24 * MIB
    assert node.world.pvc().status.capacity == {"storage": "24Mi"}
    bed.unpublish()


def test_a_snapshot_of_a_device_in_use_is_restored_to_one(bed: Bed) -> None:
    node = raw(bed)
    place = shown(bed, node).paths["data"]
    with open(place, "r+b") as disk:
        disk.write(b"of that moment")
    node.put(volume_snapshot())
    assert node.content().spec.source_volume_mode == "Block"
    with open(place, "r+b") as disk:
        disk.write(b"what came later")
    node.put(restored("r", volumeMode="Block"))
    assert (node.data("pvc-uid-r") / "image").read_bytes()[:14] == b"of that moment"
    node.put(restored("f"))
    assert "is Block" in node.world.note("f.provision").message
    bed.unpublish()


def test_a_device_is_not_mounted_and_a_directory_is_no_device(bed: Bed) -> None:
    node = raw(bed)
    pod = bed.pod(claim(), containers=[container({"name": "data"})])
    with pytest.raises(Invalid, match="is a block device; use volumeDevices"):
        bed.publish(pod, node.world.snapshot())
    assert loops.backed_by(bed.base) == []
