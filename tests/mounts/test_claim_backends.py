"""Claims of a class with a backend: full at their size, in use while published."""

from __future__ import annotations

import errno
import os

import pytest

from netplane.model.snapshot import Snapshot
from storageplane.claims.bind import Binder
from storageplane.claims.provision import Provisioner
from storageplane.host import loops
from storageplane.pods import publish
from storageplane.pods.journal import Journal
from tests.sequences.storage_world import World, pvc, storage_class

from .bed import Bed, claim

pytestmark = pytest.mark.root


def provisioned(bed: Bed, backend: str) -> Snapshot:
    world = World(
        storage_class("d", parameters={"backend": backend}),
        pvc(size="16Mi", storageClassName="d", meta={"uid": "u1"}),
    )
    return world.settle(Binder(), Provisioner("n1", bed.root)).snapshot()


def test_a_claim_in_an_image_is_full_at_its_size_and_keeps_its_data(bed: Bed) -> None:
    snapshot = provisioned(bed, "image")
    home = str(bed.root / "volumes/pvc-u1")
    for uid in ("uid-1", "uid-2"):
        bed.publish(bed.pod(claim(), uid=uid, securityContext={"fsGroup": 77}), snapshot)
        found = os.statvfs(bed.target / "data")
        assert 8 << 20 < found.f_blocks * found.f_frsize <= 16 << 20
        assert os.stat(bed.target / "data").st_gid == 77
        assert Journal(bed.root).user_of(home) == "pod default/p"
        if uid == "uid-1":
            (bed.target / "data/kept").write_text("x")
            with pytest.raises(OSError, match="No space") as caught:
                (bed.target / "data/big").write_bytes(bytes(20 << 20))
            assert caught.value.errno == errno.ENOSPC
        assert (bed.target / "data/kept").read_text() == "x"
        bed.unpublish()
        assert loops.backed_by(bed.base) == [] and Journal(bed.root).user_of(home) == ""


def test_two_pods_share_a_claim_in_an_image(bed: Bed) -> None:
    snapshot = provisioned(bed, "image")
    bed.publish(bed.pod(claim()), snapshot)
    bed.publish(bed.pod(claim(), uid="uid-2", name="q"), snapshot, bed.base / "other")
    (bed.target / "data/word").write_text("x")
    assert (bed.base / "other/data/word").read_text() == "x"
    bed.unpublish()
    assert (bed.base / "other/data/word").read_text() == "x"
    publish.unpublish("default", "q", bed.driver)
    assert loops.backed_by(bed.base) == []
