"""The agent as a program: what it refuses, survives, adopts, mends and takes away.

outside ── wire ──┬── node-1: agent, npbr0, npvx0 ── pods
                  └── node-2: agent, npbr0, npvx0
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netplane.health import read_status
from netplane.lab.settings import Settings

pytestmark = pytest.mark.root
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: %s}
spec: {ports: [{port: 80}]}
"""


def eventually(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    give_up = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < give_up, "it did not come about"
        time.sleep(0.02)
    return found


def second_agent(node: Any, tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Another agent in the node's namespace, with directories of its own; run to its end."""
    argv = [str(a) for a in node.agent.argv()]
    argv[argv.index("--run-dir") + 1] = str(tmp_path / "run")
    argv[argv.index("--state-dir") + 1] = str(tmp_path / "state")
    for name, value in zip(options[::2], options[1::2], strict=True):
        argv[argv.index(name) + 1] = value
    return node.python(
        lambda: subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False),
    )


def state_of(node: Any) -> str:
    """Every link, address, route and rule, with the kernel's own numbers."""
    links = node.run("ip", "-j", "addr")
    rules = node.run("nft", "-a", "list", "table", "inet", "netplane")
    routes = node.run("ip", "route") + node.run("ip", "-6", "route")
    return f"{links}\n{routes}\n{rules}"


def test_a_second_agent_with_a_living_nodes_name_is_refused(lab: Any, tmp_path: Path) -> None:
    done = second_agent(lab.nodes[0], tmp_path)
    assert done.returncode == 1
    assert re.search(r"node-1.*", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_second_agent_on_one_state_directory_is_refused(lab: Any, tmp_path: Path) -> None:
    node = lab.nodes[0]
    done = second_agent(node, tmp_path, "--node", "other", "--state-dir", str(node.state_dir))
    assert done.returncode == 1
    assert "in use by another agent" in done.stderr


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--cluster-cidr", "10.96.0.0/12"), "overlaps service CIDR"),
        (("--cluster-cidr", "10.244.0.0/33"), "not a CIDR"),
        (("--node-ip", "192.168.77.300"), "not an IPv4 or IPv6 address"),
        (("--node-ip", "192.168.99.1"), "no device of this node has the address"),
        (("--node", "No_Such"), "--node"),
        (("--store", "mysql://x"), "scheme"),
    ],
    ids=["overlap", "cidr", "ip", "foreign ip", "name", "store"],
)
def test_a_wrong_configuration_is_refused_in_one_line(
    make_lab: Any, tmp_path: Path, options: tuple[str, str], reason: str
) -> None:
    lab = make_lab(nodes=1)
    done = second_agent(lab.nodes[0], tmp_path, *options)
    assert done.returncode == 1
    assert reason in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_restart_changes_nothing_in_the_kernel(lab: Any) -> None:
    node = lab.nodes[0]
    lab.apply(str(Path(__file__).parents[2] / "docs/examples/web.yaml"))
    node.add_pod("web-1", labels={"app": "web"})
    node.agent.wait()
    before = state_of(node)
    node.agent.kill()
    assert state_of(node) == before, "what the kernel holds outlives the agent"
    node.agent.start()
    node.agent.wait()
    assert state_of(node) == before


def test_an_agent_that_is_to_end_does_not_start_anew(make_lab: Any) -> None:
    lab = make_lab(nodes=1)
    lab.start_agents()
    process = lab.nodes[0].agent.process
    process.send_signal(signal.SIGUSR2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_a_store_that_goes_away_and_comes_back_is_survived(lab: Any) -> None:
    node, path = lab.nodes[0], Path(lab.store.removeprefix("sqlite://"))
    hidden = path.with_name("hidden")
    path.rename(hidden)
    eventually(lambda: read_status(node.run_dir)["store"] != "ok")
    hidden.rename(path)
    eventually(lambda: read_status(node.run_dir)["synced"])
    lab.netplane("apply", "-f", "-", input=SERVICE % "after")
    eventually(lambda: lab.get("service", "after")["spec"].get("clusterIP"))


@pytest.mark.parametrize("link", ["npvx0", "npbr0"])
def test_a_link_that_somebody_removes_comes_back(lab: Any, link: str) -> None:
    node, other = lab.nodes
    here, there = node.add_pod("here"), other.add_pod("there")
    node.run("ip", "link", "del", link)
    eventually(lambda: link in node.run("ip", "-br", "link"))
    node.agent.wait()
    for family in ("IPv4", "IPv6"):
        eventually(lambda f=family: not _ping_fails(here, there.ip_of(f)))


def _ping_fails(pod: Any, address: str) -> bool:
    try:
        pod.run("ping", "-c1", "-W1", address)
    except Exception:
        return True
    return False


def test_services_alone_touch_no_links(make_lab: Any) -> None:
    lab = make_lab(nodes=1, settings=Settings(agent_args=("--rooms", "services")))
    before = lab.nodes[0].run("ip", "-br", "addr")
    lab.start_agents()
    lab.netplane("apply", "-f", "-", input=SERVICE % "web")
    ip = eventually(lambda: lab.get("service", "web")["spec"].get("clusterIP"))
    eventually(lambda: ip in lab.nodes[0].run("nft", "list", "table", "inet", "netplane"))
    assert lab.nodes[0].run("ip", "-br", "addr") == before


def test_health_and_metrics_over_http(make_lab: Any) -> None:
    lab = make_lab(nodes=1, settings=Settings(agent_args=("--http-listen", "127.0.0.1:9080")))
    lab.start_agents()

    def fetch(path: str) -> tuple[int, str]:
        with urllib.request.urlopen(f"http://127.0.0.1:9080{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()

    node = lab.nodes[0]
    assert node.python(fetch, "/livez") == (200, "ok\n")
    assert node.python(fetch, "/healthz")[0] == 200
    code, body = node.python(fetch, "/readyz")
    assert code == 200 and json.loads(body)["node"] == "node-1"
    assert "netplane_dns" in node.python(fetch, "/metrics")[1]

    def asked(method: str) -> tuple[int, bytes]:
        request = urllib.request.Request("http://127.0.0.1:9080/healthz", method=method)
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read()

    assert node.python(asked, "HEAD") == (200, b"")
    assert node.python(asked, "OPTIONS")[0] == 200


def test_clean_takes_everything_of_ours_and_nothing_else(make_lab: Any) -> None:
    lab = make_lab(nodes=1)
    node = lab.nodes[0]
    node.run("nft", "add", "table", "inet", "theirs")
    before = node.run("ip", "-br", "addr") + node.run("ip", "route")
    lab.start_agents()
    node.add_pod("one")
    program = str(lab.settings.programs.netplane)
    command = [program, "clean", "--run-dir", str(node.run_dir), "--state-dir", str(node.state_dir)]
    refused = node.python(lambda: subprocess.run(command, capture_output=True, text=True, check=False))
    assert refused.returncode == 1 and "in use" in refused.stderr
    node.agent.kill()
    node.run(*command)
    assert node.run("ip", "-br", "addr") + node.run("ip", "route") == before
    assert node.run("nft", "list", "ruleset").split() == ["table", "inet", "theirs", "{", "}"]
    assert not node.run_dir.exists() and not node.state_dir.exists()
