"""An agent's state for operators: /status on its run directory's socket, and over HTTP the usual paths.

/livez: the process answers. /healthz: the store answers and no kernel driver is refused. /readyz: every
room is in sync. /metrics: Prometheus. /status: all of it as JSON, what `netplane status` prints.
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
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from .model.errors import Invalid, Unavailable

Status = Callable[[], dict[str, Any]]
SOCKET = "agent.sock"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        code, content_type, body = self.server.answer(self.path.partition("?")[0])
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

    def __init__(self, address: Any, family: int, status: Status, registry: CollectorRegistry) -> None:
        self.address_family = family
        self._status, self._registry = status, registry
        super().__init__(address, _Handler)

    def answer(self, path: str) -> tuple[int, str, bytes]:
        if path == "/livez":
            return 200, "text/plain", b"ok\n"
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        if path not in ("/healthz", "/readyz", "/status"):
            return 404, "text/plain", b"there are /healthz, /livez, /readyz, /metrics and /status\n"
        status = self._status()
        body = json.dumps(status, indent=2).encode() + b"\n"
        good = (
            status["synced"] if path == "/readyz" else status["store"] == "ok" and not _kernel_failing(status)
        )
        return (200 if good or path == "/status" else 503), "application/json", body


def _kernel_failing(status: dict[str, Any]) -> bool:
    return bool(status["rooms"].get("kernel", {}).get("failing"))


class HealthServer:
    """Serves on RUN_DIR/agent.sock and, when ``listen`` (IP:PORT) is given, over TCP."""

    def __init__(self, run_dir: Path, status: Status, registry: CollectorRegistry, listen: str = "") -> None:
        path = run_dir / SOCKET
        path.unlink(missing_ok=True)
        self._servers = [_Server(str(path), socket.AF_UNIX, status, registry)]
        os.chmod(path, 0o600)
        if listen:
            host, port = split_listen(listen)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                self._servers.append(_Server((host, port), family, status, registry))
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
    path = run_dir / SOCKET
    connection = http.client.HTTPConnection("localhost", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(5)
    try:
        connection.sock.connect(str(path))
        connection.request("GET", "/status")
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found
    except (OSError, ValueError, http.client.HTTPException) as exc:
        raise Unavailable(f"no agent answers on {path} ({exc}); is `netplane agent` running?") from exc
    finally:
        connection.close()
