"""The end of a driver whose last call does not end: what that call needs is nobody else's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from netplane.model.errors import Invalid
from storageplane.csi import protocol, server, volumes
from storageplane.csi.controller import Controller
from storageplane.csi.depot import Depot

from .conftest import MIB, WRITER

pytestmark = pytest.mark.root
SOON = 10.0  # seconds


@pytest.fixture
def beyond() -> Iterator[ExitStack]:
    """What is to be done whatever becomes of the test."""
    with ExitStack() as stack:
        yield stack


def test_the_root_stays_with_a_call_that_has_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beyond: ExitStack
) -> None:
    gate, begun, ended = threading.Event(), threading.Event(), threading.Event()
    create = Controller.CreateVolume

    def slow(controller: Controller, request: Any) -> Any:
        begun.set()
        gate.wait(SOON)
        answer = create(controller, request)
        ended.set()
        return answer

    monkeypatch.setattr(Controller, "CreateVolume", slow)
    monkeypatch.setattr(server, "GRACE", 0.0)
    monkeypatch.setattr(server, "PATIENCE", 0.05)
    monkeypatch.setattr(volumes, "PATIENCE", 0.05)
    root, path = tmp_path / "root", tmp_path / "csi.sock"
    driver = server.CsiServer(f"unix://{path}", root, server.Options("n1"))
    driver.start()
    beyond.callback(driver.stop)
    request, response = protocol.methods("Controller")["CreateVolume"]
    with grpc.insecure_channel(f"unix:{path}") as channel:
        method = f"/{protocol.PACKAGE}.Controller/CreateVolume"
        call = channel.unary_unary(method, request.SerializeToString, response.FromString)
        size = {"required_bytes": MIB}
        asked = request(
            name="v", capacity_range=size, volume_capabilities=[WRITER], parameters={"backend": "directory"}
        )
        _under_way = call.future(asked)  # without a name it would be cancelled at once
        assert begun.wait(SOON)
        driver.stop()
        assert not path.exists()
        with pytest.raises(Invalid, match="another driver has these volumes"):
            Depot(root)
        gate.set()
        assert ended.wait(SOON)
    driver.stop()
    again = Depot(root)
    assert [volume.name for volume in again.volumes.all()] == ["v"]
    again.close()
