"""A CSI driver as a program, and a client that calls it as an orchestrator would.

pytest lives in a mount namespace of its own, and the driver started from it shares it: what it mounts
is seen here and by nobody else.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from storageplane.csi import protocol

from .nursery import Life

MIB = 1 << 20
PROGRAM = (str(Path(sys.executable).parent / "storageplane"),)  # as it is installed
WRITER = {"mount": {}, "access_mode": {"mode": 1}}


class Driver:
    """`storageplane csi` on ``root``; `call("CreateVolume", …)` raises grpc.RpcError.

    ``program``: another one than that, or that as it is installed; else it is born in the `nursery`, with the
    environment that the run of the tests began with.
    """

    death: Path | None = None  # for one that is to die (`dying`)

    def __init__(
        self, home: Path, *options: str, socket: Path | None = None, program: tuple[str, ...] = ()
    ) -> None:
        self.home, self.root, self.socket = home, home / "root", socket or home / "csi.sock"
        self._program = program
        self.process: Any = None
        self._options = options
        self._methods = {
            method: (service, kinds)
            for service in ("Identity", "Controller", "GroupController", "Node")
            for method, kinds in protocol.methods(service).items()
        }
        self.start()

    def start(self) -> None:
        where = ("--endpoint", f"unix://{self.socket}", "--root", str(self.root), "--node", "n1")
        self.socket.unlink(missing_ok=True)
        self.launch(["csi", *where, *self._options])
        until_there(self.socket)  # a channel that is refused once waits a second
        self._channel = grpc.insecure_channel(f"unix:{self.socket}")
        grpc.channel_ready_future(self._channel).result(timeout=20)

    def launch(self, argv: list[str]) -> None:
        if self._program:
            with open(self.home / "log", "ab") as log:
                self.process = subprocess.Popen([*self._program, *argv], stderr=log)
        else:
            self.process = Life(self.home / "log", argv, self.death)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self._channel.close()

    def settled(self) -> None:
        """Killed, with a file of every volume: a start empties the journal into them."""
        self.kill()
        self.start()
        self.kill()

    def log(self) -> str:
        return (self.home / "log").read_text()

    def call(self, method: str, **fields: Any) -> Any:
        service, (request, response) = self._methods[method]
        call = self._channel.unary_unary(
            f"/{protocol.PACKAGE}.{service}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        return call(request(**fields), timeout=30)

    def refused(self, method: str, **fields: Any) -> tuple[str, str]:
        """The code's name and the message of a call that must be refused."""
        with pytest.raises(grpc.RpcError) as caught:
            self.call(method, **fields)
        return caught.value.code().name, caught.value.details()

    # --- what an orchestrator does -----------------------------------------------------------------

    def create(self, name: str = "v", size: int = 64 * MIB, capability: Any = WRITER, **fields: Any) -> str:
        made = self.call(
            "CreateVolume",
            name=name,
            capacity_range={"required_bytes": size},
            volume_capabilities=[capability],
            **fields,
        )
        return str(made.volume.volume_id)

    def stage(self, volume: str, capability: Any = WRITER) -> Path:
        path = self.home / f"stage-{volume}"
        self.call(
            "NodeStageVolume", volume_id=volume, staging_target_path=str(path), volume_capability=capability
        )
        return path

    def publish(self, volume: str, target: str = "t", capability: Any = WRITER, **fields: Any) -> Path:
        """Stage and publish at HOME/target; that path."""
        self.stage(volume, capability)
        return self.publish_only(volume, target, capability, **fields)

    def publish_only(self, volume: str, target: str = "t", capability: Any = WRITER, **fields: Any) -> Path:
        """What is staged."""
        staging, path = self.home / f"stage-{volume}", self.home / target
        self.call(
            "NodePublishVolume",
            volume_id=volume,
            staging_target_path=str(staging),
            target_path=str(path),
            volume_capability=capability,
            **fields,
        )
        return path

    def withdraw(self, volume: str, target: str = "t") -> None:
        self.call("NodeUnpublishVolume", volume_id=volume, target_path=str(self.home / target))
        staging = str(self.home / f"stage-{volume}")
        self.call("NodeUnstageVolume", volume_id=volume, staging_target_path=staging)


@contextmanager
def running(
    home: Path, *options: str, kind: Callable[..., Any] = Driver, disk: int = 0, **more: Any
) -> Iterator[Any]:
    """A driver for a while, then nothing that it has left; ``disk``: MiB of a disk that is its root."""
    with ExitStack() as stack:
        stack.callback(tidy, home)
        if disk:
            (home / "root").mkdir()
            argv = ["mount", "-t", "tmpfs", "-o", f"size={disk}M", "disk", str(home / "root")]
            subprocess.run(argv, check=True)
        driver = kind(home, *options, **more)
        stack.callback(driver.kill)
        yield driver


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    with running(tmp_path) as driver:
        yield driver


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Driver]:
    """Another driver beneath TMP/plugins (`foreign`)."""
    from .foreign import beside  # which needs this module

    with running(tmp_path, kind=partial(beside, Driver)) as driver:
        yield driver


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Any]:
    """The same, a `Mortal`."""
    from .foreign import beside
    from .test_kill_steps import Mortal

    with running(tmp_path, kind=partial(beside, Mortal)) as driver:
        yield driver


def tidy(home: Path) -> None:
    """Take away what a driver that was killed has left."""
    for mount in reversed(mounts(home)):
        subprocess.run(["umount", mount], check=False)
    for loop in loops(home):
        subprocess.run(["losetup", "-d", loop], check=False)


def mounts(beneath: Path) -> list[str]:
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [point for point in points if point.startswith(f"{beneath}/")]


def loops(beneath: Path) -> list[str]:
    listed = subprocess.run(
        ["losetup", "-n", "-O", "NAME,BACK-FILE"], capture_output=True, text=True, check=True
    )
    rows = (line.split(None, 1) for line in listed.stdout.splitlines())
    return [row[0] for row in rows if len(row) == 2 and row[1].startswith(f"{beneath}/")]


def until_there(path: Path) -> None:
    give_up = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < give_up, f"{path} does not come"
        time.sleep(0.005)


def grows_ext4() -> bool:
    """Whether the kernel lets us grow a mounted ext4: CAP_SYS_RESOURCE, and not in a user namespace."""
    status = Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0]
    first, _, count = Path("/proc/self/uid_map").read_text().split()[:3]
    return bool(int(status, 16) & 1 << 24) and (first, count) == ("0", "4294967295")


@pytest.fixture
def on_btrfs(tmp_path: Path) -> Iterator[Path]:
    """A directory on a btrfs of 400 MiB."""
    image, place = tmp_path / "btrfs.img", tmp_path / "b"
    with open(image, "wb") as file:
        file.truncate(400 * MIB)
    subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    yield place
    subprocess.run(["umount", "-R", str(place)], check=True)


def qgroups(place: Path) -> list[str]:
    listed = subprocess.run(["btrfs", "qgroup", "show", place], capture_output=True, text=True, check=True)
    return [row.split()[0] for row in listed.stdout.splitlines()[2:]]
