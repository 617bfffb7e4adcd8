"""A real glusterd: its volume, published through mount.glusterfs, FUSE and its own network protocol.

    test: publish ── mount.glusterfs ── glusterfs (FUSE) ──┐
                                        lo 192.0.2.1 ──────┴── glusterd, glusterfsd ── TEST/brick

The servers live in mount and process namespaces of their own, with their state in memory; they end with
the first process there. The client is in the run's own namespaces, which no other process sees.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netplane.model.codec import parse
from netplane.model.errors import KernelError
from storageplane.host import mountinfo, syscalls
from storageplane.pods import publish

from .bed import Bed, claim, run, statically_bound, world

pytestmark = [pytest.mark.root, pytest.mark.peer]
SERVER = "192.0.2.1"  # glusterd takes no brick on a loopback address
LOGS = "/var/log/glusterfs"
SERVE = f"""set -e
for place in /run /var/lib/glusterd {LOGS}; do mount -t tmpfs none "$place"; done
glusterd --no-daemon &
until gluster --mode=script volume list >/dev/null 2>&1; do sleep 0.05; done
gluster --mode=script volume create vol {SERVER}:"$0" force
gluster --mode=script volume start vol
echo ready
wait
"""
SOURCE = {"endpoints": "gluster", "path": "vol"}
SLICE = {
    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
    "metadata": {"name": "gluster-1", "labels": {"kubernetes.io/service-name": "gluster"}},
    "endpoints": [{"addresses": [SERVER]}],
}  # fmt: skip


class Gluster:
    """One server with one volume, ``vol``; its files lie in ``brick``."""

    def __init__(self, base: Path) -> None:
        self.brick = base / "brick"
        self.brick.mkdir()
        apart = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        self._process = subprocess.Popen(
            [*apart, "sh", "-c", SERVE, str(self.brick)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if line == "ready\n":
                return
        raise AssertionError("".join(said))

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()  # until the last of them has closed it


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gluster]:
    if not (shutil.which("glusterd") and shutil.which("mount.glusterfs")):
        pytest.skip("glusterd is not installed: apt-get install glusterfs-server glusterfs-client")
    if not syscalls.knows("fuse"):
        pytest.skip("this kernel has no FUSE (CONFIG_FUSE_FS)")
    run("mount", "-t", "tmpfs", "none", LOGS)  # the client's
    run("ip", "link", "set", "lo", "up")
    run("ip", "address", "add", f"{SERVER}/32", "dev", "lo")
    server = Gluster(tmp_path_factory.mktemp("gluster"))
    yield server
    server.end()
    run("ip", "address", "del", f"{SERVER}/32", "dev", "lo")
    run("umount", "-l", LOGS)


@pytest.fixture
def gluster(server: Gluster, tmp_path: Path) -> Iterator[Gluster]:
    """With nothing in it, and no client."""
    yield server
    for pid in clients(tmp_path):
        os.kill(pid, signal.SIGKILL)
    (server.brick / "word").unlink(missing_ok=True)


def clients(beneath: Path) -> list[int]:
    """The processes that serve mounts there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"glusterfs") and str(beneath).encode() in words[-2]:
            found.append(int(path.parent.name))
    return found


def until(true: Callable[[], Any], what: str) -> None:
    give_up = time.monotonic() + 20
    while not true():
        assert time.monotonic() < give_up, what
        time.sleep(0.02)


def error(file: Path) -> int | None:
    """What reading it is refused with; at first (ECONNABORTED) the request that the client had taken."""
    try:
        file.read_text()
    except OSError as exc:
        return exc.errno
    return None


def shared(read_only: bool = False) -> dict[str, Any]:
    return {"name": "v", "glusterfs": {**SOURCE, "readOnly": read_only}}


def test_two_pods_share_what_lies_on_the_server(gluster: Gluster, bed: Bed) -> None:
    before, other = bed.tree(), bed.base / "t" / "other"
    bed.publish(bed.pod(shared()), world(SLICE))
    (bed.target / "v/word").write_text("written through the network")
    assert (gluster.brick / "word").read_text() == "written through the network"
    bed.publish(bed.pod(shared(True), uid="uid-2", name="q"), world(SLICE), other)
    assert (other / "v/word").read_text() == "written through the network"
    with pytest.raises(OSError, match="Read-only file system"):
        (other / "v/word").write_text("x")
    (mounted,) = mountinfo.beneath(str(bed.root / "pods/uid-1"))
    assert mounted.fstype == "fuse.glusterfs"
    for name, target in (("q", other), ("p", bed.target)):
        assert publish.unpublish("default", name, bed.driver, str(target)) == 1
    until(lambda: not clients(bed.base), "a client outlives its mount")
    bed.clean(before)


def test_a_persistent_volume_is_published(gluster: Gluster, bed: Bed) -> None:
    objects = statically_bound({"glusterfs": {**SOURCE, "endpointsNamespace": "default"}})
    bed.publish(bed.pod(claim()), objects.with_put(parse(SLICE)))
    (bed.target / "data/word").write_text("x")
    bed.unpublish()
    assert (gluster.brick / "word").read_text() == "x"


def test_a_client_that_died_is_replaced_by_publishing_again(gluster: Gluster, bed: Bed) -> None:
    (gluster.brick / "word").write_text("kept")
    pod = bed.pod(shared())
    bed.publish(pod, world(SLICE))
    (client,) = clients(bed.base)
    os.kill(client, signal.SIGKILL)
    until(lambda: not clients(bed.base), "it lives")
    until(lambda: error(bed.target / "v/word") == errno.ENOTCONN, "it is still connected")
    bed.publish(pod, world(SLICE))
    assert (bed.target / "v/word").read_text() == "kept"
    bed.unpublish()
    assert bed.points() == bed.mounts


@pytest.mark.usefixtures("gluster")
def test_a_volume_that_the_server_does_not_have_leaves_nothing(bed: Bed) -> None:
    before = bed.tree()
    odd = {"name": "v", "glusterfs": {**SOURCE, "path": "other"}}
    with pytest.raises(KernelError, match=rf"mount\.glusterfs {SERVER}:/other"):
        bed.publish(bed.pod(odd), world(SLICE))
    until(lambda: not clients(bed.base), "a client is left")
    bed.clean(before)
