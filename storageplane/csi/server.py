"""The gRPC server on a unix socket: one wrapper around every call, one place for errors and logs.

Rule 1: a message that leaves says what to do and never holds a secret; requests are not logged.
Rule 2: a bug is INTERNAL with its name, in the log with its traceback, and never ends the server.
"""

from __future__ import annotations

import logging
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from netplane.model.errors import Invalid, NetplaneError

from ..rpc.codes import Failed
from ..rpc.server import Method, Server
from . import checks, protocol
from .controller import Controller
from .depot import Depot
from .health import Health
from .identity import DRIVER, Identity
from .inline import Inline
from .node import Node
from .refusal import CODE, code_of, missing
from .snapshots import Snapshots
from .start import Start

log = logging.getLogger(__name__)
MOST = 32  # calls at a time
_FINE = {"DeleteVolume", "ControllerUnpublishVolume", "ListSnapshots"}  # of what is not there: empty
GRACE, PATIENCE = 5.0, 60.0  # seconds: for answers at the end, for what goes on without


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
        self._server = Server(MOST)
        depot = self._depot = Depot(root, options.grace)
        node, most = options.node, options.most
        self._trash, self._over, self._ended = depot.trash, threading.Event(), False
        self.node = Node(depot, node, most)
        self._start = Start(depot, self.node)
        controller, snapshots, health = Controller(depot, node, most), Snapshots(depot, node), Health(depot)
        inline = Inline(depot, controller, self.node, health)
        services: dict[str, tuple[Any, ...]] = {
            "Identity": (Identity(depot, options.name),),
            "Controller": (controller, snapshots, health),
            "GroupController": (snapshots,),
            "Node": (inline, self.node, health),
        }
        for name, parts in services.items():
            self._server.serve(_service(name, parts, inline.named))

    def start(self) -> None:
        """Reconcile what a crash left, then listen, readable and writable for root alone."""
        for line in self._start.reconcile():
            log.info("%s", line)
        if self._path.exists() and stat.S_ISSOCK(self._path.stat().st_mode):
            self._path.unlink()
        self._server.start(self._path)
        threading.Thread(target=self._empty_trash, name="trash", daemon=True).start()

    def _empty_trash(self) -> None:
        while not self._over.wait(self._trash.pause()):
            for line in self._trash.empty():
                log.info("%s", line)

    def stop(self) -> None:
        """While a call has not ended, the root stays with this process: to its end, or to another `stop`."""
        self._over.set()
        if self._ended:
            return
        self._ended = self._server.stop(GRACE, PATIENCE)
        self._path.unlink(missing_ok=True)  # while it is ours: the next driver listens here
        if self._ended:
            self._depot.close()


def socket_path(endpoint: str) -> Path:
    path = Path(endpoint.removeprefix("unix://"))
    if not endpoint.startswith("unix://") or not path.is_absolute() or len(str(path)) > 100:
        raise Invalid(f"--endpoint {endpoint!r}: use unix:///PATH of at most 100 bytes")
    if not path.parent.is_dir():
        raise Invalid(f"--endpoint {endpoint!r}: there is no directory {path.parent}")
    return path


def _service(name: str, parts: tuple[Any, ...], hidden: Callable[[Any], str]) -> dict[str, Method]:
    """The methods of a service that a part has, by their paths."""
    methods = {}
    for method, (request, response) in protocol.methods(name).items():
        found = next((getattr(part, method) for part in parts if hasattr(part, method)), None)
        if found is not None:
            methods[f"/{protocol.PACKAGE}.{name}/{method}"] = Method(
                request.FromString, guarded(method, found, hidden), response.SerializeToString
            )
    return methods


def guarded(
    method: str, call: Callable[[Any], Any], hidden: Callable[[Any], str] = lambda _: ""
) -> Callable[[Any], Any]:
    """A call by its request: whatever is raised becomes a code and a message.

    ``hidden``: the id in a request of what is not there for whoever calls.
    """

    def answer(request: Any) -> Any:
        try:
            checks.sizes(request)
            if unknown := hidden(request):
                if method in _FINE:
                    return protocol.message(f"{method}Response")()
                raise missing("volume", unknown)
            return call(request)
        except NetplaneError as exc:
            code, message = code_of(exc), str(exc)
            log.log(logging.ERROR if code == CODE.INTERNAL else logging.INFO, "%s: %s", method, message)
        except Exception as exc:
            log.exception("%s", method)
            code, message = CODE.INTERNAL, f"{type(exc).__name__} in {method}; see the driver's log"
        raise Failed(code, message)

    return answer
