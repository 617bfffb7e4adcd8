"""Health check node ports: an HTTP answer for each load balancer's service with traffic policy Local.

200 if there is a ready endpoint on this node and the proxy is healthy, else 503, with the header
X-Load-Balancing-Endpoint-Weight and kube-proxy's JSON body (KEP-3836 has `serviceProxyHealthy`).

Rule 1: it is a driver like any other: ports open and close by facts, on all addresses of the node.
Rule 2: one thread waits for all ports; an answer has a thread of its own and a second to be read.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ..model.errors import KernelError, NetplaneError
from ..model.facts import Fact, FactKey, HealthCheck, Mark, Plan

WEIGHT = "X-Load-Balancing-Endpoint-Weight"
PATIENCE = 1.0  # seconds for a request to arrive


def answer(check: HealthCheck, healthy: bool) -> tuple[int, bytes]:
    """The status and body for one service."""
    body = {
        "service": {"namespace": check.namespace, "name": check.name},
        "localEndpoints": check.endpoints,
        "serviceProxyHealthy": healthy,
    }
    return 200 if check.endpoints and healthy else 503, json.dumps(body, indent="\t").encode() + b"\n"


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = PATIENCE

    def do_GET(self) -> None:
        check = self.server.check
        code, body = answer(check, self.server.healthy())
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Length", str(len(body)))
        self.send_header(WEIGHT, str(check.endpoints))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_OPTIONS = do_POST = do_GET  # as kube-proxy's: HAProxy's default is OPTIONS

    def log_message(self, format: str, *args: object) -> None:
        """Load balancers ask every few seconds; it is not news."""

    def address_string(self) -> str:
        return str(self.client_address)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    timeout = 0.0  # handle_request is called when there is one

    def __init__(self, check: HealthCheck, healthy: Callable[[], bool]) -> None:
        self.check, self.healthy = check, healthy
        v6 = socket.has_dualstack_ipv6()
        self.address_family = socket.AF_INET6 if v6 else socket.AF_INET
        super().__init__(("::" if v6 else "0.0.0.0", check.port), _Handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks the DNS for the host's name


class HealthChecks:
    """``healthy``: whether the proxy itself is well. Ports open in the namespace of `apply`'s caller."""

    name = "healthchecks"
    accepts: tuple[type[Fact], ...] = (HealthCheck,)
    parallel = False

    def __init__(self, healthy: Callable[[], bool] = lambda: True) -> None:
        self._healthy = healthy
        self._servers: dict[FactKey, _Server] = {}
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._wake, self._stop = os.pipe2(os.O_CLOEXEC)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread: threading.Thread | None = None

    def observe(self) -> Mapping[FactKey, Mark]:
        with self._lock:
            return {key: server.check for key, server in self._servers.items()}

    def apply(self, plan: Plan) -> None:
        """Raises KernelError when a port cannot be opened; then the others are as they should be."""
        failed: NetplaneError | None = None
        with self._lock:
            for key in plan.remove:
                self._close(key)
            for check in (*plan.change, *plan.add):
                try:
                    self._serve(check)
                except OSError as exc:
                    where = f"health check port {check.port} of {check.namespace}/{check.name}"
                    failed = KernelError(exc.errno or 1, f"open {where}")
        if failed is not None:
            raise failed

    def close(self) -> None:
        """Close every port and end the thread."""
        os.write(self._stop, b"x")
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            for key in list(self._servers):
                self._close(key)
        self._selector.close()
        os.close(self._wake)
        os.close(self._stop)

    def _serve(self, check: HealthCheck) -> None:
        server = self._servers.get(check.key)
        if server is not None:
            server.check = check
            return
        server = self._servers[check.key] = _Server(check, self._healthy)
        self._selector.register(server, selectors.EVENT_READ)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="health checks", daemon=True)
            self._thread.start()

    def _close(self, key: FactKey) -> None:
        server = self._servers.pop(key, None)
        if server is not None:
            self._selector.unregister(server)
            server.server_close()

    def _run(self) -> None:
        while True:
            ready = self._selector.select()
            with self._lock:
                for key, _ in ready:
                    if key.fileobj == self._wake:
                        return
                    if isinstance(key.fileobj, _Server) and key.fileobj in self._servers.values():
                        key.fileobj.handle_request()
