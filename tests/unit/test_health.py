"""The agent's own socket under many askers at once."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prometheus_client import CollectorRegistry

from netplane.health import HealthServer, read_status


def test_many_who_ask_a_busy_agent_at_once_wait_for_its_answer(tmp_path: Path) -> None:
    """A connection to a unix socket whose queue is full is refused at once, not held (unix(7), EAGAIN)."""
    server = HealthServer(tmp_path, lambda: {"synced": True}, CollectorRegistry())
    asked = threading.Barrier(41)

    def ask() -> bool:
        asked.wait()
        return bool(read_status(tmp_path)["synced"])

    with ThreadPoolExecutor(40) as pool:
        answers = [pool.submit(ask) for _ in range(40)]
        asked.wait()
        deadline = time.monotonic() + 2
        while _queued(tmp_path) < 40 and not any(a.done() for a in answers) and time.monotonic() < deadline:
            time.sleep(0.01)
        server.start()
        assert [answer.result() for answer in answers] == [True] * 40
    server.stop()


def _queued(run_dir: Path) -> int:
    """Connections to the agent's socket that wait to be accepted (/proc/net/unix)."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum(line.endswith(str(run_dir / "agent.sock")) for line in lines) - 1


def test_a_stop_does_not_wait_for_the_next_look(tmp_path: Path) -> None:
    """socketserver looks twice a second whether it is to end, counted from the last request."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    server = HealthServer(tmp_path, lambda: {"synced": True}, CollectorRegistry(), listen)
    server.start()
    assert read_status(tmp_path)["synced"]
    begin = time.monotonic()
    server.stop()
    assert time.monotonic() - begin < 0.3
