"""kill -9 at every step of every call of the driver: what is left is what there was before.

    before ── call, killed at step N ── start ── the same call ── its opposite ── before

Compared: mounts, loop devices with what backs them, the tree beneath the root, the bytes of the disk that
are promised and of memory, the driver's open descriptors, and on btrfs the qgroups that nobody has or
remembers. The root is a disk of its own, where nobody else takes room.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from netplane.model.errors import Unavailable
from storageplane import backends

from .conftest import MIB, WRITER, Driver, loops, mounts, qgroups, running

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
STEPS = 200  # more than there are
BLOCK = {"block": {}, "access_mode": {"mode": 1}}
Call = tuple[str, dict[str, Any]]


class Mortal(Driver):
    """A driver that dies at the step that is written to HOME/death."""

    death: Path

    def __init__(self, home: Path, *options: str, socket: Path | None = None) -> None:
        self.death = home / "death"
        super().__init__(home, *options, socket=socket)

    def dies(self, step: int, call: Call) -> bool:
        """Whether a call dies at its ``step``-th operation; else it was carried out."""
        return self.dies_while(step, lambda: self.call(call[0], **call[1]))

    def dies_while(self, step: int, do: Callable[..., Any], *args: Any) -> bool:
        """The same of something that calls it; then it lives again. Other refusals of a call are not told."""
        self.death.write_text(str(step))
        died = False
        try:
            do(*args)
        except Unavailable:
            died = True
        except grpc.RpcError as exc:
            died = exc.code() is grpc.StatusCode.UNAVAILABLE
        self.death.unlink()
        if died:
            self.kill()
            self.start()
        return died

    def gone(self, call: Call) -> None:
        """Undo something that may not be there."""
        try:
            self.call(call[0], **call[1])
        except grpc.RpcError as exc:
            if exc.code() is not grpc.StatusCode.NOT_FOUND:
                raise

    def world(self) -> dict[str, Any]:
        """Everything that could be left over."""
        fds = Path(f"/proc/{self.process.pid}/fd")
        held = [os.readlink(fd) for fd in fds.iterdir() if os.path.lexists(fd)]
        return {
            "mounts": mounts(self.home),
            "loops": loops(self.home),
            "tree": sorted(str(p.relative_to(self.home)) for p in self._files()),
            "promised": (self._promised(), backends.promised(self.root, "memory")),
            "qgroups": self._qgroups(),
            "open": sorted(p for p in held if p.startswith(str(self.home)) and not p.endswith("/log")),
        }

    def _promised(self) -> int:
        """Bytes of the disk that the driver holds for somebody, once btrfs has given back what is gone."""
        before, after, left = -1, 0, 0
        while before != after:
            before, left = _free(self.root), self.call("GetCapacity").available_capacity
            after = _free(self.root)
        return after - left

    def _qgroups(self) -> list[str]:
        """Those without a subvolume that are not noted for removal either: leaks."""
        if not (self.root / "qgroups.gone").exists():
            return []
        noted = {f"0/{number}" for number in (self.root / "qgroups.gone").read_text().split()}
        listed = subprocess.run(
            ["btrfs", "subvolume", "list", self.root], capture_output=True, text=True, check=True
        )
        live = {f"0/{line.split()[1]}" for line in listed.stdout.splitlines()} | {"0/5"}
        return sorted(set(qgroups(self.root)) - noted - live)

    def _files(self) -> Iterator[Path]:
        for top, folders, files in os.walk(self.root):
            yield from (Path(top) / name for name in (*folders, *files) if name != "qgroups.gone")
        yield from (p for p in self.home.iterdir() if p.name.startswith(("stage", "target")))


def _free(root: Path) -> int:
    found = os.statvfs(root)
    return found.f_bavail * found.f_frsize


@pytest.fixture
def mortal(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Mortal]:
    kind = request.node.callspec.params.get("kind")
    home: Path = request.getfixturevalue("on_btrfs") if kind == "btrfs" else tmp_path
    (home / "stage").mkdir()  # the orchestrator's
    with running(home, kind=Mortal, disk=0 if kind == "btrfs" else 256) as driver:
        yield driver


class Life:
    """One volume's calls, and what has to stand before each."""

    def __init__(self, driver: Mortal, kind: str) -> None:
        self.driver = driver
        self.capability = BLOCK if kind == "block" else WRITER
        backend = {"block": "image", "ext4": "image"}.get(kind, kind)
        self.create: Call = (
            "CreateVolume",
            {
                "name": "v",
                "capacity_range": {"required_bytes": 8 * MIB},
                "volume_capabilities": [self.capability],
                "parameters": {"backend": backend},
            },
        )

    def undo(self) -> list[Call]:
        """The opposites, outermost first; each may have nothing to do."""
        volume, stage, target = self.names()
        clone = self.id("clone")
        return [
            ("NodeUnpublishVolume", {"volume_id": volume, "target_path": target}),
            ("NodeUnstageVolume", {"volume_id": volume, "staging_target_path": stage}),
            ("ControllerUnpublishVolume", {"volume_id": volume, "node_id": "n1"}),
            ("DeleteVolumeGroupSnapshot", {"group_snapshot_id": self.id("g", "group")}),
            ("DeleteSnapshot", {"snapshot_id": self.id("s", "snap")}),
            ("DeleteVolume", {"volume_id": clone}),
            ("DeleteVolume", {"volume_id": self.id("w")}),
            ("DeleteVolume", {"volume_id": volume}),
        ]

    @staticmethod
    def id(name: str, kind: str = "vol") -> str:
        from storageplane.csi.depot import id_of

        return id_of(kind, name)

    def names(self) -> tuple[str, str, str]:
        return self.id("v"), str(self.driver.home / "stage"), str(self.driver.home / "target")

    def calls(self) -> dict[str, tuple[Call, list[Call]]]:
        """Call → (itself, what is called before it)."""
        volume, stage, target = self.names()
        here = {"volume_id": volume, "volume_capability": self.capability}
        attach: Call = ("ControllerPublishVolume", {**here, "node_id": "n1"})
        staged: Call = ("NodeStageVolume", {**here, "staging_target_path": stage})
        shown: Call = ("NodePublishVolume", {**staged[1], "target_path": target})
        snap: Call = ("CreateSnapshot", {"source_volume_id": volume, "name": "s"})
        second: Call = ("CreateVolume", {**self.create[1], "name": "w"})
        both = [volume, self.id("w")]
        group: Call = ("CreateVolumeGroupSnapshot", {"source_volume_ids": both, "name": "g"})
        source = {"volume_content_source": {"volume": {"volume_id": volume}}}
        clone: Call = ("CreateVolume", {**self.create[1], "name": "clone", **source})
        grow: Call = (
            "ControllerExpandVolume",
            {"volume_id": volume, "capacity_range": {"required_bytes": 16 * MIB}},
        )
        nodegrow: Call = (
            "NodeExpandVolume",
            {"volume_id": volume, "volume_path": target, "capacity_range": {"required_bytes": 16 * MIB}},
        )
        thick = {"volume_id": volume, "mutable_parameters": {"provisioning": "thick"}}
        made, up = [self.create], [self.create, attach, staged, shown]
        undo = dict(zip(("unpublish", "unstage", "detach", "ungroup", "unsnap"), self.undo(), strict=False))
        return {
            "create": (self.create, []),
            "attach": (attach, made),
            "stage": (staged, made),
            "publish": (shown, [self.create, staged]),
            "snapshot": (snap, up),
            "group": (group, [*up, second]),
            "clone": (clone, up),
            "grow": (grow, made),
            "nodegrow": (nodegrow, [self.create, grow, staged, shown]),
            "modify": (("ControllerModifyVolume", thick), made),
            "unpublish": (undo["unpublish"], up),
            "unstage": (undo["unstage"], [self.create, staged]),
            "detach": (undo["detach"], [self.create, attach]),
            "unsnap": (undo["unsnap"], [self.create, snap]),
            "ungroup": (undo["ungroup"], [self.create, second, group]),
            "delete": (("DeleteVolume", {"volume_id": volume}), made),
        }


CALLS = [
    "create", "attach", "stage", "publish", "snapshot", "group", "clone", "grow", "nodegrow", "modify",
    "unpublish", "unstage", "detach", "unsnap", "ungroup", "delete",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["directory", "ext4", "block", "tmpfs", "btrfs"])
@pytest.mark.parametrize("name", CALLS)
def test_killed_at_every_step(mortal: Mortal, kind: str, name: str) -> None:
    if name == "nodegrow" and kind in ("directory", "tmpfs", "btrfs"):
        pytest.skip("its node has nothing to do")
    walk(mortal, kind, name, lambda step: step + 1)


@pytest.mark.parametrize("kind", ["directory", "ext4"])
@pytest.mark.parametrize("name", ["create", "publish", "delete"])
def test_killed_here_and_there(mortal: Mortal, kind: str, name: str) -> None:
    walk(mortal, kind, name, lambda step: step + 4)


@pytest.mark.parametrize(("kind", "name"), [("ext4", "modify"), ("btrfs", "snapshot"), ("btrfs", "delete")])
def test_killed_while_taking_blocks_and_making_subvolumes(mortal: Mortal, kind: str, name: str) -> None:
    walk(mortal, kind, name, lambda step: step + 3)


def walk(mortal: Mortal, kind: str, name: str, following: Callable[[int], int]) -> None:
    life = Life(mortal, kind)
    for call in life.undo():
        with contextlib.suppress(grpc.RpcError):
            mortal.call(call[0], **call[1])
    before = mortal.world()
    step, died = 1, True
    while died:
        assert step < STEPS
        call, first = life.calls()[name]
        for one in first:
            mortal.call(one[0], **one[1])
        died = mortal.dies(step, call)
        mortal.call(call[0], **call[1])
        for one in life.undo():
            mortal.gone(one)
        assert mortal.world() == before, f"{name} of {kind} killed at step {step}"
        step = following(step)
    assert step > 2, "nothing was ever killed"
