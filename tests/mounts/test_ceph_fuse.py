"""CephFS where the kernel has no client for it: by ceph-fuse.

A cluster is more than a test can bring. What ceph-fuse is told is shown by a stand-in of that name, which
notes its words and mounts a tmpfs; that the real one takes them, by asking a monitor that is not there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netplane.model.codec import parse
from netplane.model.errors import KernelError
from storageplane.host import helper, syscalls

from .bed import Bed, claim, secret, statically_bound, world

pytestmark = pytest.mark.root
KEY = "AQBvS2Bk3iRyNBAAX6zS9mQ1m0k8nYc1nq7yYw=="
KEYRING = f"[client.web]\n\tkey = {KEY}\n"
CEPH = {"monitors": ["10.0.0.1:6789", "fd00::1"], "path": "/share", "user": "web"}
STAND_IN = """#!/bin/sh
for word; do printf '%s\\n' "$word"; done > "$0.said"
while [ "$1" != -k ]; do shift; done
cat "$2" > "$0.keyring"
exec mount -t tmpfs tmpfs "$3"
"""
Told = Callable[[], list[str]]


@pytest.fixture
def told(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> Told:
    """What the stand-in was told."""
    no_kernel_client(monkeypatch)
    program = bed.base / "bin/ceph-fuse"
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return lambda: Path(f"{program}.said").read_text().splitlines()


def no_kernel_client(monkeypatch: pytest.MonkeyPatch) -> None:
    if not syscalls.knows("fuse"):
        pytest.skip("this kernel has no FUSE (CONFIG_FUSE_FS)")
    real = syscalls.knows
    monkeypatch.setattr(syscalls, "knows", lambda fstype: fstype != "ceph" and real(fstype))


def shared(**source: Any) -> dict[str, Any]:
    return {"name": "v", "cephfs": {**CEPH, **source}}


def words(command: list[str]) -> list[str]:
    """The words without the number of the keyring's descriptor."""
    return [w if not w.startswith("/proc/self/fd/") else "KEYRING" for w in command]


def test_ceph_fuse_is_told_monitors_path_user_and_options(bed: Bed, told: Told) -> None:
    before, objects = bed.tree(), world(secret(key=KEY))
    bed.publish(bed.pod(shared(secretRef={"name": "s"}, readOnly=True)), objects)
    place = f"{bed.root}/pods/uid-1/volumes/kubernetes.io~cephfs/v"
    assert words(told()) == [
        "-m", "10.0.0.1:6789,[fd00::1]", "-r", "/share", "--id", "web", "-k", "KEYRING", place, "-o", "ro",
    ]  # fmt: skip
    assert (bed.base / "bin/ceph-fuse.keyring").read_text() == KEYRING
    assert KEY not in "".join(p.read_text() for p in (bed.root / "published").iterdir())
    assert os.path.ismount(bed.target / "v")
    bed.unpublish()
    bed.clean(sorted([*before, "bin/ceph-fuse.keyring", "bin/ceph-fuse.said"]))


def test_a_persistent_volume_of_the_whole_tree_has_its_mount_options(bed: Bed, told: Told) -> None:
    source = {**CEPH, "path": "", "secretRef": {"name": "s", "namespace": "default"}}
    objects = statically_bound({"cephfs": source}, mountOptions=["nodev", "nosuid"])
    bed.publish(bed.pod(claim()), objects.with_put(parse(secret(key=KEY))))
    assert told()[2:4] == ["-r", "/"] and told()[-2:] == ["-o", "nodev,nosuid"]
    bed.unpublish()


@pytest.mark.parametrize("content", [f"{KEY}\n", KEYRING], ids=["a key", "a keyring"])
def test_the_secret_file_may_hold_a_key_or_a_keyring(bed: Bed, told: Told, content: str) -> None:
    (bed.host / "web").write_text(content)
    bed.publish(bed.pod(shared(secretFile=str(bed.host / "web"))))
    assert "KEYRING" in words(told())
    assert (bed.base / "bin/ceph-fuse.keyring").read_text() == KEYRING
    bed.unpublish()


def test_a_secret_file_that_is_not_there_is_named(bed: Bed, told: Told) -> None:
    del told
    before = bed.tree()
    with pytest.raises(KernelError, match=r"read cephfs.secretFile /nowhere/web.secret"):
        bed.publish(bed.pod(shared(secretFile="/nowhere/web.secret")))
    bed.clean(before)


@pytest.mark.peer
def test_the_real_one_takes_its_words_and_says_that_nobody_is_there(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("ceph-fuse"):
        pytest.skip("ceph-fuse is not installed: apt-get install ceph-fuse")
    no_kernel_client(monkeypatch)
    monkeypatch.setattr(helper, "TIMEOUT", 2.0)
    before = bed.tree()
    source = shared(monitors=["127.0.0.1:1"], secretRef={"name": "s"})
    with pytest.raises(KernelError, match=r"ceph-fuse 127\.0\.0\.1:1:/share") as caught:
        bed.publish(bed.pod(source), world(secret(key=KEY)))
    assert "is the server reachable" in str(caught.value) or "fetch mon config" in str(caught.value)
    bed.clean(before)
