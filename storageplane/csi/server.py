"""The gRPC server on a unix socket: one wrapper around every call, one place for errors and logs.

Rule 1: a message that leaves says what to do and never holds a secret; requests are not logged.
Rule 2: a bug is INTERNAL with its name, in the log with its traceback, and never ends the server.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from netplane.model.errors import Invalid, NetplaneError

from . import checks, protocol
from .controller import Controller
from .depot import Depot
from .health import Health
from .identity import DRIVER, Identity
from .node import Node
from .refusal import CODE, code_of
from .snapshots import Snapshots
from .start import Start
from .workers import Workers

log = logging.getLogger(__name__)
WORKERS = 32
PATIENCE = 60.0  # seconds


class Options(NamedTuple):
    """``most``: volumes this node takes, 0 for any number. ``grace``: seconds in the trash."""

    node: str
    most: int = 0
    name: str = DRIVER
    grace: float = 0.0


class CsiServer:
    """``endpoint``: unix:///PATH. Raises Invalid."""

    def __init__(self, endpoint: str, root: str | Path, options: Options) -> None:
        self._path = socket_path(endpoint)
        depot = self._depot = Depot(root, options.grace)
        node, most = options.node, options.most
        self._trash, self._over = depot.trash, threading.Event()
        self.node = Node(depot, node, most)
        self._start = Start(depot, self.node)
        snapshots, health = Snapshots(depot, node), Health(depot)
        services: dict[str, tuple[Any, ...]] = {
            "Identity": (Identity(depot, options.name),),
            "Controller": (Controller(depot, node, most), snapshots, health),
            "GroupController": (snapshots,),
            "Node": (self.node, health),
        }
        self._workers = Workers(WORKERS)
        self._server = grpc.server(self._workers)
        for name, parts in services.items():
            self._server.add_generic_rpc_handlers((_service(name, parts),))

    def start(self) -> None:
        """Reconcile what a crash left, then listen, readable and writable for root alone."""
        for line in self._start.reconcile():
            log.info("%s", line)
        if self._path.exists() and stat.S_ISSOCK(self._path.stat().st_mode):
            self._path.unlink()
        before = os.umask(0o177)
        try:
            if self._server.add_insecure_port(f"unix:{self._path}") == 0:
                raise Invalid(f"--endpoint: {self._path} cannot be listened on")
        except RuntimeError as exc:
            raise Invalid(f"--endpoint: {self._path} cannot be listened on: {exc}") from exc
        finally:
            os.umask(before)
        self._server.start()
        threading.Thread(target=self._empty_trash, name="trash", daemon=True).start()

    def _empty_trash(self) -> None:
        while not self._over.wait(self._trash.pause()):
            for line in self._trash.empty():
                log.info("%s", line)

    def stop(self) -> None:
        self._over.set()
        self._server.stop(grace=5).wait()
        self._workers.rest(PATIENCE)  # what was cancelled goes on to its end
        self._depot.close()
        self._path.unlink(missing_ok=True)


def socket_path(endpoint: str) -> Path:
    path = Path(endpoint.removeprefix("unix://"))
    if not endpoint.startswith("unix://") or not path.is_absolute() or len(str(path)) > 100:
        raise Invalid(f"--endpoint {endpoint!r}: use unix:///PATH of at most 100 bytes")
    if not path.parent.is_dir():
        raise Invalid(f"--endpoint {endpoint!r}: there is no directory {path.parent}")
    return path


def _service(name: str, parts: tuple[Any, ...]) -> Any:
    handlers = {}
    for method, (request, response) in protocol.methods(name).items():
        found = next((getattr(part, method) for part in parts if hasattr(part, method)), None)
        if found is not None:
            handlers[method] = grpc.unary_unary_rpc_method_handler(
                guarded(method, found),
                request_deserializer=request.FromString,
                response_serializer=response.SerializeToString,
            )
    return grpc.method_handlers_generic_handler(f"{protocol.PACKAGE}.{name}", handlers)


def guarded(method: str, call: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """A call as gRPC makes it, by request and context: what is raised becomes a code and a message."""

    def answer(request: Any, context: Any) -> Any:
        try:
            checks.sizes(request)
            return call(request)
        except NetplaneError as exc:
            code, message = code_of(exc), str(exc)
            log.log(logging.ERROR if code == CODE.INTERNAL else logging.INFO, "%s: %s", method, message)
        except Exception as exc:
            log.exception("%s", method)
            code, message = CODE.INTERNAL, f"{type(exc).__name__} in {method}; see the driver's log"
        context.abort(code, message)
        return None

    return answer
