"""An agent's state for operators: /status on its run directory's socket, and over HTTP the usual paths.

/livez and /healthz are kube-proxy's: no change waits for longer than a minute and the kernel tells what
it holds; for /healthz, also, the node is not about to go. /readyz: every room is in sync. /metrics:
Prometheus. /status: all of it as JSON, what `netplane status` prints. Controls answer on the socket alone.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from .model.errors import Invalid, NetplaneError, Unavailable

Status = Callable[[], dict[str, Any]]
Control = Callable[[dict[str, str]], dict[str, Any]]  # a query string's words in, JSON out; raises Invalid
Controls = dict[str, Control]
Listen = tuple[int, Any]  # a socket's family and address


class Proxy(Protocol):
    """What the probes ask of an agent."""

    def proxy_healthy(self) -> bool: ...
    def node_eligible(self) -> bool: ...
    def probed(self, path: str, code: int) -> None: ...


SOCKET = "agent.sock"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self._respond(*self.server.answer(self.path.partition("?")[0]))

    do_HEAD = do_OPTIONS = do_GET  # load balancers have their own ways to ask

    def do_POST(self) -> None:
        path, _, query = self.path.partition("?")
        self._respond(*self.server.control(path, query))

    def _respond(self, code: int, content_type: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Probes come every few seconds; they are not news."""

    def address_string(self) -> str:
        return str(self.client_address)


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128  # who comes to a full queue is not held but refused: the default is 5

    def __init__(
        self,
        listen: Listen,
        status: Status,
        registry: CollectorRegistry,
        controls: Controls,
        proxy: Proxy | None,
    ) -> None:
        self.address_family, address = listen
        self._proxy = proxy
        self._status, self._registry, self._controls = status, registry, controls
        super().__init__(address, _Handler)

    def control(self, path: str, query: str) -> tuple[int, str, bytes]:
        if path not in self._controls:
            return 404, "text/plain", f"this agent has no {path} (is its room on?)\n".encode()
        try:
            found = self._controls[path](dict(parse_qsl(query)))
        except NetplaneError as exc:
            return 400, "text/plain", str(exc).encode()
        return 200, "application/json", json.dumps(found).encode()

    def answer(self, path: str) -> tuple[int, str, bytes]:
        if path in ("/livez", "/healthz"):
            return self._probe(path)
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        if path not in ("/readyz", "/status"):
            return 404, "text/plain", b"there are /healthz, /livez, /readyz, /metrics and /status\n"
        status = self._status()
        body = json.dumps(status, indent=2).encode() + b"\n"
        return (200 if status["synced"] or path == "/status" else 503), "application/json", body

    def _probe(self, path: str) -> tuple[int, str, bytes]:
        if self._proxy is None:
            return 200, "text/plain", b"ok\n"
        alive, eligible = self._proxy.proxy_healthy(), self._proxy.node_eligible()
        code = 200 if alive and (eligible or path == "/livez") else 503
        self._proxy.probed(path.removeprefix("/"), code)
        words = "ok" if code == 200 else "the node is leaving" if alive else "changes do not reach the kernel"
        return code, "text/plain", f"{words}\n".encode()


class HealthServer:
    """Serves on RUN_DIR/agent.sock and, when ``listen`` (IP:PORT) is given, over TCP.

    ``controls``: by path, on the socket alone, which is the operator's; more may come while it serves.
    """

    def __init__(
        self,
        run_dir: Path,
        status: Status,
        registry: CollectorRegistry,
        listen: str = "",
        controls: Controls | None = None,
        proxy: Proxy | None = None,
    ) -> None:
        path = run_dir / SOCKET
        path.unlink(missing_ok=True)
        mine = {} if controls is None else controls
        self._servers = [_Server((socket.AF_UNIX, str(path)), status, registry, mine, proxy)]
        os.chmod(path, 0o600)
        if listen:
            host, port = split_listen(listen)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                self._servers.append(_Server((family, (host, port)), status, registry, {}, proxy))
            except OSError as exc:
                raise Invalid(
                    f"--http-listen {listen}: {exc.strerror}; choose another address or port"
                ) from exc

    def start(self) -> None:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, name="health", daemon=True).start()

    def stop(self) -> None:
        for server in self._servers:
            with contextlib.suppress(OSError):
                server.socket.shutdown(socket.SHUT_RDWR)  # wakes its thread, which else looks twice a second
            server.shutdown()
            server.server_close()


def split_listen(text: str) -> tuple[str, int]:
    """ "10.0.0.1:53" or "[fd00::1]:53" as (address, port). Raises Invalid."""
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise Invalid(f"{text!r} is not IP:PORT such as 127.0.0.1:9100 or [::1]:9100")
    return host, int(port)


def read_status(run_dir: Path) -> dict[str, Any]:
    """What the agent of a run directory says of itself. Raises Unavailable when none answers."""
    return _ask(run_dir, "GET", "/status")


def ask_agent(run_dir: Path, path: str, **words: str) -> dict[str, Any]:
    """A control of the agent of a run directory. Raises Invalid (refused), Unavailable (no agent)."""
    return _ask(run_dir, "POST", f"{path}?{urlencode(words)}")


def _ask(run_dir: Path, method: str, path: str) -> dict[str, Any]:
    where = run_dir / SOCKET
    connection = http.client.HTTPConnection("localhost", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(5)
    try:
        connection.sock.connect(str(where))
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read()
        if response.status in (400, 404):
            raise Invalid(body.decode(errors="replace").strip())
        found: dict[str, Any] = json.loads(body)
        return found
    except (OSError, ValueError, http.client.HTTPException) as exc:
        raise Unavailable(f"no agent answers on {where} ({exc}); is `netplane agent` running?") from exc
    finally:
        connection.close()
