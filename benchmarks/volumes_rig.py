"""CSI drivers as programs, a client that lives a volume's life with them, and the floor below both.

Everything is mounted in a mount namespace of the benchmark's own, and gone with it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from storageplane.csi import protocol
from storageplane.csi.client import Client
from storageplane.csi.controller import Controller
from storageplane.csi.depot import Depot, id_of
from storageplane.csi.node import Node
from storageplane.csi.server import guarded
from storageplane.host import images, loops

MIB = 1 << 20
WRITER = {"mount": {}, "access_mode": {"mode": "SINGLE_NODE_WRITER"}}
LIFE = (
    "CreateVolume", "NodeStageVolume", "NodePublishVolume",
    "NodeUnpublishVolume", "NodeUnstageVolume", "DeleteVolume",
)  # fmt: skip
PEER = "hostpathplugin"
HOW = "csi-driver-host-path is not here: `make .venv/.peers` builds it where the Go modules can be had"


STARTED: list[Driver] = []


def end_all() -> None:
    """Whatever came of it, no process stays."""
    for driver in STARTED:
        driver.end()


class Driver:
    """A driver's process and a client; ``cycle(i)`` is one volume's life."""

    def __init__(self, home: Path, argv: list[str], parameters: dict[str, str], size: int = 16 * MIB) -> None:
        self.home, self.parameters, self.size = home, parameters, size
        self.socket = home / "csi.sock"
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        give_up = time.monotonic() + 20
        STARTED.append(self)
        while not self.socket.exists():
            if self.process.poll() is not None or time.monotonic() > give_up:
                raise SystemExit(f"volumes: {argv[0]} does not listen at {self.socket}")
            time.sleep(0.01)
        self.client = Client(self.socket)
        self.staged = self.client.can("Node", "STAGE_UNSTAGE_VOLUME")
        self.stage = home / "stage"
        self.stage.mkdir(exist_ok=True)

    def create(self, name: str, size: int) -> str:
        made = self.client.call(
            "CreateVolume", name=name, capacity_range={"required_bytes": size},
            volume_capabilities=[WRITER], parameters=self.parameters,
        )  # fmt: skip
        return str(made.volume.volume_id)

    def publish(self, volume: str, target: Path) -> None:
        fields: dict[str, Any] = {"volume_id": volume, "volume_capability": WRITER}
        if self.staged:
            fields["staging_target_path"] = self.staging()
            self.client.call("NodeStageVolume", **fields)
        self.client.call("NodePublishVolume", **fields, target_path=str(target))

    def withdraw(self, volume: str, target: Path) -> None:
        self.client.call("NodeUnpublishVolume", volume_id=volume, target_path=str(target))
        if self.staged:
            self.client.call("NodeUnstageVolume", volume_id=volume, staging_target_path=self.staging())

    def staging(self) -> str:
        """Each client thread has a place of its own, which stays."""
        return f"{self.stage}/{threading.get_ident()}"

    def cycle(self, number: int) -> None:
        volume, target = self.create(f"v{number}", self.size), self.home / f"target-{threading.get_ident()}"
        self.publish(volume, target)
        self.withdraw(volume, target)
        self.client.call("DeleteVolume", volume_id=volume)

    def end(self) -> None:
        """Ended already: fine."""
        self.process.terminate()
        self.process.wait(10)


def ours(home: Path, backend: str, size: int = 16 * MIB) -> Driver:
    home.mkdir()
    program = str(Path(sys.executable).parent / "storageplane")
    argv = [program, "csi", "--endpoint", f"unix://{home}/csi.sock", "--root", f"{home}/root", "--node", "n1"]
    return Driver(home, argv, {"backend": backend}, size)


def peer(home: Path) -> Driver | None:
    """csi-driver-host-path, or None where it cannot be had."""
    local = Path(sys.executable).parents[1] / "peers" / "bin" / PEER
    program = str(local) if local.exists() else shutil.which(PEER)
    if not program:
        return None
    home.mkdir()
    argv = [
        program, f"--endpoint=unix://{home}/csi.sock", "--nodeid=n1", f"--statedir={home}/root",
        "--drivername=hostpath.csi.k8s.io",
    ]  # fmt: skip
    return Driver(home, argv, {})


class Handlers:
    """Our driver's calls of a directory's life in this process: what is left of it without gRPC."""

    def __init__(self, home: Path) -> None:
        depot = Depot(home / "root")
        parts = (Controller(depot, "n1"), Node(depot, "n1"))
        self.stage, self.target = home / "stage", home / "target"
        self.stage.mkdir()
        self.calls = {
            method: guarded(method, getattr(part, method))
            for part in parts
            for method in LIFE
            if hasattr(part, method)
        }

    def requests(self, number: int) -> list[tuple[str, Any]]:
        """The messages of one life, which a client would have made."""
        volume, stage, target = id_of("vol", f"v{number}"), str(self.stage), str(self.target)
        fields: list[dict[str, Any]] = [
            {
                "name": f"v{number}", "capacity_range": {"required_bytes": 16 * MIB},
                "volume_capabilities": [WRITER], "parameters": {"backend": "directory"},
            },
            {"volume_id": volume, "volume_capability": WRITER, "staging_target_path": stage},
            {
                "volume_id": volume, "volume_capability": WRITER, "staging_target_path": stage,
                "target_path": target,
            },
            {"volume_id": volume, "target_path": target},
            {"volume_id": volume, "staging_target_path": stage},
            {"volume_id": volume},
        ]  # fmt: skip
        return [
            (method, protocol.message(f"{method}Request")(**words))
            for method, words in zip(LIFE, fields, strict=True)
        ]

    def cycle(self, requests: list[tuple[str, Any]]) -> None:
        for method, request in requests:
            self.calls[method](request)


class Mute(Driver):
    """The same messages to a grpcio server that does nothing: what is gRPC's and protobuf's of a life."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        super().__init__(home, [sys.executable, "-m", "benchmarks.volumes_rig", f"{home}/csi.sock"], {})
        self.staged = True


def mute(socket: str) -> None:
    """Answer every call with what it is answered with, and do nothing."""
    server = grpc.server(ThreadPoolExecutor(32))
    made = protocol.message("CreateVolumeResponse")(volume={
        "volume_id": "vol-" + "0" * 32, "capacity_bytes": 16 * MIB,
        "volume_context": {"backend": "directory", "sizeEnforced": "false"},
        "accessible_topology": [{"segments": {"topology.storageplane.io/node": "n1"}}],
    })  # fmt: skip
    for service in ("Identity", "Controller", "Node"):
        handlers = {}
        for method, (request, response) in protocol.methods(service).items():
            answer = made if method == "CreateVolume" else response()
            handlers[method] = grpc.unary_unary_rpc_method_handler(
                lambda _request, _context, answer=answer: answer,
                request_deserializer=request.FromString,
                response_serializer=response.SerializeToString,
            )
        found = grpc.method_handlers_generic_handler(f"{protocol.PACKAGE}.{service}", handlers)
        server.add_generic_rpc_handlers((found,))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    server.wait_for_termination()


class Floor:
    """mkdir and two binds by system calls: what any driver of directories must at least do."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        self.paths = [os.fsencode(home / name) for name in ("volume", "stage", "target")]
        self.libc = ctypes.CDLL(None, use_errno=True)

    def cycle(self, _number: int) -> None:
        volume, stage, target = self.paths
        for path in self.paths:
            os.mkdir(path)
        for source, place in ((volume, stage), (stage, target)):
            assert self.libc.mount(source, place, None, 4096, None) == 0, os.strerror(ctypes.get_errno())
        for place in (target, stage):
            assert self.libc.umount2(place, 0) == 0, os.strerror(ctypes.get_errno())
        for path in reversed(self.paths):
            os.rmdir(path)


class ImageFloor(Floor):
    """The same for a volume in an image: the same mkfs, and the system calls that mount what it made."""

    def __init__(self, home: Path, size: int) -> None:
        super().__init__(home)
        self.image, self.size = home / "image", size

    def mkfs(self) -> None:
        with open(self.image, "wb") as file:
            file.truncate(self.size)
        subprocess.run([*images.mkfs("ext4"), str(self.image)], check=True, capture_output=True)

    def cycle(self, _number: int) -> None:
        _, stage, target = self.paths
        self.mkfs()
        backing = os.open(self.image, os.O_RDWR)
        os.fsync(backing)
        for path in (stage, target):
            os.mkdir(path)
        device, held = loops._configure(backing, self.image, loops.AUTOCLEAR)
        os.close(backing)
        mounted = self.libc.mount(device.encode(), stage, b"ext4", 0, None)
        assert mounted == 0, os.strerror(ctypes.get_errno())
        os.close(held)
        assert self.libc.mount(stage, target, None, 4096, None) == 0, os.strerror(ctypes.get_errno())
        for place in (target, stage):
            assert self.libc.umount2(place, 0) == 0, os.strerror(ctypes.get_errno())
            os.rmdir(place)
        self.image.unlink()


class Log:
    """What durability costs: an entry written over blocks that are there, and synced, twice a life."""

    SIZE = 1 << 18

    def __init__(self, file: Path) -> None:
        self.fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        self.at = os.write(self.fd, bytes(self.SIZE))
        os.fsync(self.fd)

    def cycle(self, _number: int) -> None:
        for _ in range(2):
            self.at = (self.at + 350) % (self.SIZE - 350)
            os.pwrite(self.fd, b"x" * 350, self.at)
            os.fdatasync(self.fd)


if __name__ == "__main__":
    mute(sys.argv[1])
