"""Other people's CSI drivers, called through their sockets.

A driver NAME listens at ROOT/plugins/NAME/csi.sock (kubelet's layout; a link to the socket will do).

Rule 1: a driver's answer becomes an error of ours once, here: what stays wrong is Invalid, what is not
        there is NotFound, and everything else may be different next time (Unavailable).
Rule 2: no secret that was sent is ever in an error, whatever the driver says.
Rule 3: a call has a deadline; that it passed says nothing about what the driver did.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc

from netplane.model.errors import Invalid, NetplaneError, NotFound, Unavailable

from . import protocol

SOCKETS = "plugins"  # beneath the root
DEADLINE = 120.0  # seconds
_WORDS = 1000  # of a driver's message are shown
_FINAL = {"INVALID_ARGUMENT", "OUT_OF_RANGE", "ALREADY_EXISTS", "UNIMPLEMENTED", "PERMISSION_DENIED"}
_ENUMS = {
    "Identity": ("GetPluginCapabilities", "PluginCapability.Service.Type", "service"),
    "Controller": ("ControllerGetCapabilities", "ControllerServiceCapability.RPC.Type", "rpc"),
    "Node": ("NodeGetCapabilities", "NodeServiceCapability.RPC.Type", "rpc"),
}


Called = Callable[[str, str, str, float], None]  # (driver, method, gRPC code, seconds): metrics


class Client:
    """One driver behind its socket."""

    def __init__(self, path: Path, deadline: float = DEADLINE, called: Called | None = None) -> None:
        self.path = path
        self._called = called
        self._deadline = deadline
        self._channel = grpc.insecure_channel(f"unix:{path}")
        self._methods = {
            method: (service, kinds)
            for service in ("Identity", "Controller", "GroupController", "Node")
            for method, kinds in protocol.methods(service).items()
        }

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, **fields: Any) -> Any:
        """The response. Raises Invalid, NotFound or Unavailable, naming the call and the driver's words."""
        try:
            return self.raw(method, **fields)
        except grpc.RpcError as exc:
            words = veiled(exc.details() or "", fields.get("secrets") or {})
            raise _translated(f"{self.path.parent.name}: {method}", exc.code().name, words) from None

    def raw(self, method: str, **fields: Any) -> Any:
        """The response. Raises grpc.RpcError as it came."""
        service, (request, response) = self._methods[method]
        send = self._channel.unary_unary(
            f"/{protocol.PACKAGE}.{service}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        begin, code = time.perf_counter(), "OK"
        try:
            return send(request(**fields), timeout=self._deadline)
        except grpc.RpcError as exc:
            code = exc.code().name
            raise
        finally:
            if self._called is not None:
                where = f"/{protocol.PACKAGE}.{service}/{method}"
                self._called(self.path.parent.name, where, code, time.perf_counter() - begin)

    @cached_property
    def name(self) -> str:
        """What it calls itself."""
        return str(self.call("GetPluginInfo").name)

    @cached_property
    def node(self) -> Any:
        """NodeGetInfoResponse."""
        return self.call("NodeGetInfo")

    def can(self, service: str, capability: str) -> bool:
        """Whether it says so: can("Controller", "EXPAND_VOLUME")."""
        return capability in self._capabilities[service]

    @cached_property
    def _capabilities(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {name: set() for name in _ENUMS}
        for service, (method, enum, part) in _ENUMS.items():
            if service == "Controller" and "CONTROLLER_SERVICE" not in found["Identity"]:
                continue
            for one in self.call(method).capabilities:
                if one.WhichOneof("type") == part:
                    found[service].add(protocol.word(enum, getattr(one, part).type))
        return found


class Clients:
    """The drivers of one root, each connected once."""

    def __init__(self, root: str | Path, called: Called | None = None) -> None:
        self._folder = Path(root) / SOCKETS
        self._called = called
        self._lock = threading.Lock()
        self._known: dict[str, Client] = {}

    def names(self) -> tuple[str, ...]:
        """The drivers that have a socket here now."""
        return tuple(sorted(path.parent.name for path in self._folder.glob("*/csi.sock")))

    def get(self, name: str) -> Client:
        """Raises Unavailable while it has no socket, Invalid when another driver answers there."""
        path = self._folder / name / "csi.sock"
        if "/" in name or not path.exists():
            raise Unavailable(f"CSI driver {name!r} is not here: there is no socket at {path}; start it")
        with self._lock:
            client = self._known.setdefault(name, Client(path, called=self._called))
        if client.name != name:
            raise Invalid(f"CSI driver {name!r}: {client.name!r} answers at {path}; correct the path")
        return client


def veiled(words: str, secrets: dict[str, str]) -> str:
    """A message without the secrets that were sent."""
    for value in sorted(secrets.values(), key=len, reverse=True):
        words = words.replace(value, "***") if value else words
    return words if len(words) <= _WORDS else f"{words[:_WORDS]}…"


def _translated(what: str, code: str, words: str) -> NetplaneError:
    text = f"{what}: {words or 'no reason given'} ({code})"
    if code in _FINAL:
        return Invalid(text)
    return NotFound(text) if code == "NOT_FOUND" else Unavailable(text)
