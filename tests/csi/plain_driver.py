"""A CSI driver that shares nothing with ours but the messages: grpcio, no staging, attached by a controller.

    python -m tests.csi.plain_driver SOCKET HOME

It wants the password in every call that can have secrets, refuses calls that lack what an earlier answer
gave (volume_context, publish_context), names volumes by ids that are no file names, rounds sizes up to
UNIT, and leaves its target's directory behind. HOME/calls has a line of JSON for each call that it was asked.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from storageplane.csi import protocol

NAME = "plain.example"
NODE = "node/of plain:1"
UNIT = 4 << 20
PASSWORD = "open sesame"
CODE = grpc.StatusCode
CAPABILITIES = {
    "GetPluginCapabilities": ("PluginCapability.Service.Type", "service", ("CONTROLLER_SERVICE",)),
    "ControllerGetCapabilities": (
        "ControllerServiceCapability.RPC.Type",
        "rpc",
        ("CREATE_DELETE_VOLUME", "PUBLISH_UNPUBLISH_VOLUME", "EXPAND_VOLUME"),
    ),
    "NodeGetCapabilities": ("NodeServiceCapability.RPC.Type", "rpc", ("EXPAND_VOLUME",)),
}
EPHEMERAL = "csi.storage.k8s.io/ephemeral"


class Refused(Exception):
    def __init__(self, code: Any, words: str) -> None:
        super().__init__(words)
        self.code = code


class Plain:
    """``volumes``: id → size; ``attached``: ids; ``inline``: ids that came and go with a publication."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.volumes: dict[str, int] = {}
        self.attached: set[str] = set()
        self.inline: set[str] = set()

    def answer(self, method: str, request: Any, make: Any) -> Any:
        line = {"method": method, **MessageToDict(request, preserving_proto_field_name=True)}
        with open(self._home / "calls", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if method in CAPABILITIES:
            enum, part, names = CAPABILITIES[method]
            return make(capabilities=[{part: {"type": protocol.number(enum, n)}} for n in names])
        return make(**(getattr(self, method)(request) or {}))

    def GetPluginInfo(self, _request: Any) -> dict[str, Any]:
        return {"name": NAME, "vendor_version": "0"}

    def NodeGetInfo(self, _request: Any) -> dict[str, Any]:
        return {"node_id": NODE}

    # --- controller -------------------------------------------------------------------------------

    def CreateVolume(self, request: Any) -> dict[str, Any]:
        _knows(request)
        volume = f"plain://{request.name}/of everybody"
        size = -(-request.capacity_range.required_bytes // UNIT) * UNIT
        self.volumes.setdefault(volume, size)
        self._data(volume).mkdir(exist_ok=True, parents=True)
        context = {"pool": request.parameters["pool"], "share": "17"}
        return {"volume": {"volume_id": volume, "capacity_bytes": size, "volume_context": context}}

    def DeleteVolume(self, request: Any) -> None:
        _knows(request)
        if request.volume_id in self.attached:
            raise Refused(CODE.FAILED_PRECONDITION, "it is attached")
        if self.volumes.pop(request.volume_id, None) is not None:
            shutil.rmtree(self._data(request.volume_id))

    def ControllerPublishVolume(self, request: Any) -> dict[str, Any]:
        _knows(request)
        self._there(request)
        if request.node_id != NODE or request.volume_context["share"] != "17":
            raise Refused(CODE.INVALID_ARGUMENT, "another node, or not what CreateVolume said")
        self.attached.add(request.volume_id)
        return {"publish_context": {"lun": "3"}}

    def ControllerUnpublishVolume(self, request: Any) -> None:
        if request.volume_id not in self.volumes:
            raise Refused(CODE.NOT_FOUND, "no such volume")
        self.attached.discard(request.volume_id)

    def ControllerExpandVolume(self, request: Any) -> dict[str, Any]:
        _knows(request)
        self._there(request)
        size = -(-request.capacity_range.required_bytes // UNIT) * UNIT
        self.volumes[request.volume_id] = size
        return {"capacity_bytes": size, "node_expansion_required": True}

    # --- node -------------------------------------------------------------------------------------

    def NodePublishVolume(self, request: Any) -> None:
        _knows(request)
        if request.staging_target_path:
            raise Refused(
                CODE.INVALID_ARGUMENT, "staging_target_path: this driver has no STAGE_UNSTAGE_VOLUME"
            )
        if request.volume_context.get(EPHEMERAL) == "true":
            self._inline(request)
            return
        self._there(request)
        if request.publish_context["lun"] != "3" or request.volume_context["share"] != "17":
            raise Refused(CODE.INVALID_ARGUMENT, "not what the controller said")
        self._show(request, str(self._data(request.volume_id)))

    def _inline(self, request: Any) -> None:
        size = request.volume_context.get("size", "")
        if not size:
            raise Refused(CODE.INVALID_ARGUMENT, "volumeAttributes.size: required")
        Path(request.target_path).mkdir(exist_ok=True)
        if request.volume_id not in self.inline:
            _run("mount", "-t", "tmpfs", "-o", f"size={size}", "plain", request.target_path)
            self.inline.add(request.volume_id)

    def _show(self, request: Any, source: str) -> None:
        Path(request.target_path).mkdir(exist_ok=True)
        if _run("mountpoint", "-q", request.target_path, check=False):
            _run("mount", "--bind", *(["-r"] if request.readonly else []), source, request.target_path)

    def NodeUnpublishVolume(self, request: Any) -> None:
        if request.volume_id not in self.inline:
            self._there(request)
        while not _run("mountpoint", "-q", request.target_path, check=False):
            _run("umount", request.target_path)
        self.inline.discard(request.volume_id)

    def NodeExpandVolume(self, request: Any) -> dict[str, Any]:
        _knows(request)
        self._there(request)
        if request.staging_target_path or not request.HasField("volume_capability"):
            raise Refused(CODE.INVALID_ARGUMENT, "staging_target_path or volume_capability")
        return {"capacity_bytes": self.volumes[request.volume_id]}

    def _there(self, request: Any) -> None:
        if request.volume_id not in self.volumes:
            raise Refused(CODE.NOT_FOUND, "no such volume")

    def _data(self, volume: str) -> Path:
        return self._home / "data" / hashlib.sha256(volume.encode()).hexdigest()[:8]


def _knows(request: Any) -> None:
    if dict(request.secrets) != {"password": PASSWORD}:
        raise Refused(CODE.UNAUTHENTICATED, f"wrong secrets: {dict(request.secrets)}")


def _run(*argv: str, check: bool = True) -> int:
    return subprocess.run(argv, check=check, stdout=subprocess.DEVNULL).returncode


def _handlers(driver: Plain) -> list[Any]:
    return [
        grpc.method_handlers_generic_handler(
            f"{protocol.PACKAGE}.{service}",
            {method: _handler(driver, method, *kinds) for method, kinds in protocol.methods(service).items()},
        )
        for service in ("Identity", "Controller", "Node")
    ]


def _handler(driver: Plain, method: str, request: Any, response: Any) -> Any:
    def call(asked: Any, context: Any) -> Any:
        try:
            return driver.answer(method, asked, response)
        except AttributeError:
            context.abort(CODE.UNIMPLEMENTED, method)
        except Refused as exc:
            context.abort(exc.code, str(exc))

    return grpc.unary_unary_rpc_method_handler(
        call, request_deserializer=request.FromString, response_serializer=response.SerializeToString
    )


def main() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(tuple(_handlers(Plain(Path(sys.argv[2])))))
    server.add_insecure_port(f"unix:{sys.argv[1]}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
