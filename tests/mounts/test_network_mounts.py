"""NFS, CephFS, GlusterFS, ephemeral and csi volumes.

What the helpers are told, for all of them, is tested with a helper of ours that notes its arguments and
mounts a tmpfs; what is said without a client, on the kernel as it is. A real server is in test_gluster, and
CephFS without the kernel's client in test_ceph_fuse.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from netplane.model.codec import parse
from netplane.model.errors import Invalid, KernelError, NetplaneError, Unavailable
from netplane.model.storage_facts import Ownership
from storageplane.claims.bind import Binder
from storageplane.host import helper, mountinfo, syscalls
from storageplane.pods import wants
from storageplane.volumes.base import Context
from tests.sequences.storage_world import World, pv, pvc

from .bed import Bed, claim, mounts, secret, statically_bound, world

pytestmark = pytest.mark.root
NFS = {"server": "nfs.example", "path": "/export"}
CEPH = {"monitors": ["10.0.0.1:6789", "fd00::1"], "path": "/share", "user": "web"}
GLUSTER = {"endpoints": "gluster", "path": "vol"}
SLICE = {
    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
    "metadata": {"name": "gluster-1", "labels": {"kubernetes.io/service-name": "gluster"}},
    "endpoints": [{"addresses": ["10.0.0.2"]}, {"addresses": ["10.0.0.1"]}],
}  # fmt: skip
STAND_IN = """#!/bin/sh
for word; do printf '%s\\n' "$word"; done > "$0.said"
for o in $(echo "$4" | tr , ' '); do
    case $o in secretfile=/proc*) cat "${o#secretfile=}" > "$0.secret";; esac
done
env > "$0.env"
"""


@pytest.fixture
def told(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a stand-in for a helper; gives what it was told."""
    folder = bed.base / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(syscalls, "knows", lambda _: True)

    def install(fstype: str, then: str = 'exec mount -t tmpfs tmpfs "$2"') -> Any:
        path = folder / f"mount.{fstype}"
        path.write_text(STAND_IN + then + "\n")
        path.chmod(0o755)
        return lambda: (folder / f"mount.{fstype}.said").read_text().splitlines()

    return install


def volume(kind: str, source: dict[str, Any]) -> dict[str, Any]:
    return {"name": "v", kind: source}


@pytest.mark.parametrize(
    ("kind", "source", "fstype", "words"),
    [
        ("nfs", NFS, "nfs", ["nfs.example:/export"]),
        ("nfs", {**NFS, "server": "fd00::1", "readOnly": True}, "nfs", ["[fd00::1]:/export", "-o", "ro"]),
        ("cephfs", CEPH, "ceph",
         ["10.0.0.1:6789,[fd00::1]:/share", "-o", "name=web,secretfile=/etc/ceph/user.secret"]),
        ("glusterfs", GLUSTER, "glusterfs",
         ["10.0.0.1:/vol", "-o", "log-level=ERROR,backup-volfile-servers=10.0.0.1:10.0.0.2"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("persistent", [False, True], ids=["inline", "persistent"])
def test_the_helper_gets_source_target_and_options(
    bed: Bed, told: Any, persistent: bool, kind: str, source: dict[str, Any], fstype: str, words: list[str]
) -> None:
    before, said = bed.tree(), told(fstype)
    if persistent:
        objects = statically_bound({kind: source}, mountOptions=["nodev"]).with_put(parse(SLICE))
        bed.publish(bed.pod(claim()), objects)
        options = words[2].split(",") if len(words) > 1 else []
        options.insert(len(options) - ("ro" in options), "nodev")
        words, name, plugin = [words[0], "-o", ",".join(options)], "data", "v"
    else:
        bed.publish(bed.pod(volume(kind, source)), world(SLICE))
        name, plugin = "v", "v"
    place = f"{bed.root}/pods/uid-1/volumes/kubernetes.io~{kind}/{plugin}"
    assert said() == [words[0], place, *words[1:]]
    assert os.path.ismount(bed.target / name) and place in mounts()
    assert mountinfo.beneath(str(bed.target / name))[0].read_only is ("ro" in ",".join(words).split(","))
    bed.unpublish()
    assert bed.points() == bed.mounts
    assert bed.tree() == sorted({*before, *(f"bin/mount.{fstype}{e}" for e in ("", ".said", ".env"))})


def test_a_ceph_key_is_handed_over_in_a_file_and_stands_nowhere(bed: Bed, told: Any) -> None:
    said = told(
        "ceph", 'grep -l hunter2 /proc/$$/cmdline /proc/$$/environ && exit 1; exec mount -t tmpfs tmpfs "$2"'
    )
    source = {**CEPH, "secretRef": {"name": "s"}}
    bed.publish(bed.pod(volume("cephfs", source)), world(secret(key="hunter2")))
    assert (bed.base / "bin/mount.ceph.secret").read_text() == "hunter2"
    assert "hunter2" not in " ".join(said())
    assert "hunter2" not in "".join(p.read_text() for p in (bed.root / "published").iterdir())
    bed.unpublish()
    told("ceph", 'echo "bad key hunter2" >&2; exit 5')
    with pytest.raises(KernelError, match=r"mount\.ceph .*bad key \*\*\*") as caught:
        bed.publish(bed.pod(volume("cephfs", source)), world(secret(key="hunter2")))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ("echo first; echo 'access denied by server' >&2; exit 32", "access denied by server"),
        ("exit 3", "exit status 3"),
        ("exit 0", "nothing is mounted"),
    ],
)
def test_a_helper_that_fails_is_quoted_and_leaves_nothing(bed: Bed, told: Any, then: str, said: str) -> None:
    told("nfs", then)
    with pytest.raises(KernelError, match=said):
        bed.publish(bed.pod(volume("nfs", NFS)))
    assert bed.points() == bed.mounts and os.listdir(bed.root / "pods") == []


def test_a_helper_that_hangs_is_ended_with_all_that_it_started(
    bed: Bed, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helper, "TIMEOUT", 0.5)
    told("nfs", 'mount -t tmpfs tmpfs "$2"; sleep 600 & echo $! > "$0.child"; wait')
    with pytest.raises(KernelError, match="is the server reachable"):
        bed.publish(bed.pod(volume("nfs", NFS)))
    assert bed.points() == bed.mounts
    child = int((bed.base / "bin/mount.nfs.child").read_text())
    give_up = time.monotonic() + 10
    while _lives(child) and time.monotonic() < give_up:
        time.sleep(0.01)
    assert not _lives(child)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("kind", "source", "fstype", "words"),
    [
        ("nfs", NFS, "nfs", ("(Debian: nfs-common)", "(CONFIG_NFS_FS)")),
        ("cephfs", CEPH, "ceph", ("(Debian: ceph-common)", "(CONFIG_CEPH_FS)")),
        ("glusterfs", GLUSTER, "glusterfs", ("(Debian: glusterfs-client)", "(CONFIG_FUSE_FS)")),
    ],
)
def test_what_the_machine_lacks_is_named(
    bed: Bed, monkeypatch: Any, kind: str, source: dict[str, Any], fstype: str, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PATH", "/usr/sbin:/sbin")  # mount helpers are there, and ceph-fuse is not
    have = [shutil.which(f"mount.{fstype}"), syscalls.knows(helper.NEEDS[fstype].fstype)]
    if all(have):
        pytest.skip(f"this machine has a {fstype} client")
    before = bed.tree()
    with pytest.raises(Invalid, match="cannot be had here") as caught:
        bed.publish(bed.pod(volume(kind, source)), world(SLICE))
    assert [word in str(caught.value) for word in words] == [not there for there in have]
    assert ("without it, ceph-fuse would do" in str(caught.value)) is (fstype == "ceph")
    bed.clean(before)


def test_gluster_without_servers_waits(bed: Bed) -> None:
    with pytest.raises(Unavailable, match="no EndpointSlice of default/gluster has an address"):
        bed.publish(bed.pod(volume("glusterfs", GLUSTER)))


# --- ephemeral ------------------------------------------------------------------------------------

EPHEMERAL = {"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"]}}}}
OWNER = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "uid-1", "controller": True}


def owned_claim(bed: Bed, *owners: dict[str, Any], bind: bool = True) -> Any:
    volumes = [pv("v", hostPath={"path": str(bed.host)})] if bind else []
    made = World(*volumes, pvc("p-v", storageClassName="", meta={"ownerReferences": list(owners)}))
    return made.settle(Binder()).snapshot()


def test_an_ephemeral_volume_is_its_pods_own_claim(bed: Bed) -> None:
    bed.publish(bed.pod(EPHEMERAL), owned_claim(bed, OWNER))
    (bed.target / "v/file").write_text("x")
    bed.unpublish()
    assert (bed.host / "file").read_text() == "x"


@pytest.mark.parametrize(
    ("owners", "bind", "error", "said"),
    [
        (None, True, Unavailable, "default/p-v is not made yet"),
        ([OWNER], False, Unavailable, "PersistentVolumeClaim default/p-v is Pending"),
        ([], True, Invalid, "was not created for this pod"),
        ([{**OWNER, "uid": "uid-2"}], True, Invalid, "was not created for this pod"),
        ([{**OWNER, "controller": False}], True, Invalid, "was not created for this pod"),
        ([{**OWNER, "kind": "ReplicaSet"}], True, Invalid, "was not created for this pod"),
    ],
)
def test_a_claim_that_is_not_the_pods_or_not_bound_is_not_used(
    bed: Bed, owners: Any, bind: bool, error: type[NetplaneError], said: str
) -> None:
    before = bed.tree()
    snapshot = world() if owners is None else owned_claim(bed, *owners, bind=bind)
    with pytest.raises(error, match=said):
        bed.publish(bed.pod(EPHEMERAL), snapshot)
    bed.clean(before)


# --- csi ------------------------------------------------------------------------------------------


def test_a_csi_volume_of_a_driver_that_is_not_here_is_refused_by_name(bed: Bed) -> None:
    before = bed.tree()
    with pytest.raises(NetplaneError, match=r"inline\.example\.io"):
        bed.publish(bed.pod(volume("csi", {"driver": "inline.example.io"})))
    bed.clean(before)


def test_fs_group_reaches_a_csi_volume_of_one_writer_with_a_file_system(bed: Bed) -> None:
    source = {"driver": "d", "volumeHandle": "h", "fsType": "ext4"}
    pod = bed.pod(claim(), securityContext={"fsGroup": 7})
    for spec, given in (({}, 1), ({"accessModes": ["ReadWriteMany"]}, 0)):
        objects = statically_bound({"csi": source}, **spec)
        made = wants.volume(pod, pod.spec.volumes[0], "", Context("n1", str(bed.root), objects))
        assert len([f for f in made.facts if isinstance(f, Ownership)]) == given
