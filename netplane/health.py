"""An agent's state for operators: /status on its run directory's socket, and over HTTP the usual paths.

/livez and /healthz are kube-proxy's: no change waits for longer than a minute and the kernel tells what
it holds; for /healthz, also, the node is not about to go. /readyz: every room is in sync. /metrics:
Prometheus. /status: all of it as JSON, what `netplane status` prints. /explain, on the socket alone.
"""

from __future__ import annotations

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
from urllib.parse import parse_qsl

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from .model.errors import Invalid, NetplaneError, Unavailable

Status = Callable[[], dict[str, Any]]


class Proxy(Protocol):
    """What the server asks of an agent that serves services."""

    def proxy_healthy(self) -> bool: ...
    def node_eligible(self) -> bool: ...
    def probed(self, path: str, code: int) -> None: ...
    def explain(self, source: str, destination: str) -> dict[str, Any]: ...


SOCKET = "agent.sock"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        code, content_type, body = self.server.answer(path, query)
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Probes come every few seconds; they are not news."""

    def address_string(self) -> str:
        return str(self.client_address)


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self, address: Any, family: int, status: Status, registry: CollectorRegistry, proxy: Proxy | None
    ) -> None:
        self.address_family = family
        self._status, self._registry, self._proxy = status, registry, proxy
        super().__init__(address, _Handler)

    def answer(self, path: str, query: str) -> tuple[int, str, bytes]:
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        if path in ("/livez", "/healthz"):
            return self._probe(path)
        if path == "/explain" and self._proxy and self.address_family == socket.AF_UNIX:
            return self._explain(self._proxy, query)
        if path not in ("/readyz", "/status"):
            return 404, "text/plain", b"there are /healthz, /livez, /readyz, /metrics and /status\n"
        status = self._status()
        good = status["synced"] or path == "/status"
        return (200 if good else 503), "application/json", _json(status)

    def _probe(self, path: str) -> tuple[int, str, bytes]:
        if self._proxy is None:
            return 200, "text/plain", b"ok\n"
        alive, eligible = self._proxy.proxy_healthy(), self._proxy.node_eligible()
        code = 200 if alive and (eligible or path == "/livez") else 503
        self._proxy.probed(path, code)
        words = (
            b"ok\n" if code == 200 else b"changes wait too long\n" if not alive else b"the node is leaving\n"
        )
        return code, "text/plain", words

    def _explain(self, proxy: Proxy, query: str) -> tuple[int, str, bytes]:
        words = dict(parse_qsl(query))
        try:
            found = proxy.explain(words.get("source", ""), words.get("destination", ""))
        except NetplaneError as exc:
            return 400, "application/json", _json({"refused": str(exc)})
        return 200, "application/json", _json(found)


def _json(found: dict[str, Any]) -> bytes:
    return json.dumps(found, indent=2).encode() + b"\n"


class HealthServer:
    """Serves on RUN_DIR/agent.sock and, when ``listen`` (IP:PORT) is given, over TCP."""

    def __init__(
        self,
        run_dir: Path,
        status: Status,
        registry: CollectorRegistry,
        listen: str = "",
        proxy: Proxy | None = None,
    ) -> None:
        path = run_dir / SOCKET
        path.unlink(missing_ok=True)
        self._servers = [_Server(str(path), socket.AF_UNIX, status, registry, proxy)]
        os.chmod(path, 0o600)
        if listen:
            host, port = split_listen(listen)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                self._servers.append(_Server((host, port), family, status, registry, proxy))
            except OSError as exc:
                raise Invalid(
                    f"--http-listen {listen}: {exc.strerror}; choose another address or port"
                ) from exc

    def start(self) -> None:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, name="health", daemon=True).start()

    def stop(self) -> None:
        for server in self._servers:
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
    return ask(run_dir, "/status")


def ask(run_dir: Path, target: str) -> dict[str, Any]:
    """The agent's answer (JSON) to a path with query. Raises Unavailable, Invalid (what it refused)."""
    path = run_dir / SOCKET
    connection = http.client.HTTPConnection("localhost", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(60 if target != "/status" else 5)
    try:
        connection.sock.connect(str(path))
        connection.request("GET", target)
        answer = connection.getresponse()
        found: dict[str, Any] = json.loads(answer.read())
        if answer.status == 400:
            raise Invalid(found["refused"])
        return found
    except (OSError, ValueError, http.client.HTTPException) as exc:
        raise Unavailable(f"no agent answers on {path} ({exc}); is `netplane agent` running?") from exc
    finally:
        connection.close()
