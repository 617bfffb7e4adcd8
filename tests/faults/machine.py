"""A node whose agent can be killed at any step, a runtime that calls the plugin, and the host in words."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from netplane.commands.install import BINARY
from netplane.kernel import netns
from netplane.store import open_store

NETPLANE = str(Path(sys.executable).parent / "netplane")
ROOT = Path(__file__).parents[2]
NODE = "n1"


class Machine:
    """The node lives in the namespace ``at``; ``prefix`` is put before the agent's command.

    ``fate`` is the module that the agent is run by: what happens to it, once the file ``death`` says so.
    """

    fate = "tests.faults.dying"

    def __init__(self, at: str, work: Path, prefix: tuple[str, ...] = (), **config: Any) -> None:
        self.at, self.work, self.prefix = at, work, prefix
        self.run_dir, self.state, self.death = work / "run", work / "state", work / "death"
        self.binary = str(BINARY)
        self.process: subprocess.Popen[bytes] | None = None
        self.others: tuple[str, ...] = ()  # addresses whose flows `host` leaves out
        self.config: dict[str, Any] = {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "netplane",
            "socket": str(self.run_dir / "cni.sock"),
            **config,
        }
        self.state.mkdir(exist_ok=True)
        netns.run(at, "ip", "link", "add", "w0", "up", "type", "bridge")
        netns.run(at, "ip", "addr", "add", "192.0.2.1/24", "dev", "w0")

    @property
    def store(self) -> str:
        return f"sqlite://{self.state / 'state.db'}"

    def start(self) -> None:
        """And wait until it is in sync."""
        self.launch()
        self.netplane("status", "--run-dir", str(self.run_dir), "--wait", "30")

    def launch(self) -> None:
        options = {
            "--node": NODE,
            "--store": self.store,
            "--run-dir": str(self.run_dir),
            "--state-dir": str(self.state),
            "--node-ip": "192.0.2.1",
            "--cluster-cidr": "10.244.0.0/16,fd00:10:244::/48",
            "--service-cidr": "10.96.0.0/16,fd00:10:96::/112",
            "--rooms": "cni",
        }
        words = [word for pair in options.items() for word in pair]
        argv = [*self.prefix, sys.executable, "-m", self.fate, str(self.death), "agent", *words]
        with (self.work / "agent.log").open("ab") as log:
            self.process = netns.popen(self.at, argv, stdout=log, stderr=log, cwd=ROOT)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(30)
            self.process = None

    def died(self) -> bool:
        """Whether the death that was sown has come; the agent is gone then."""
        assert self.process is not None
        try:
            self.process.wait(0.3)
        except subprocess.TimeoutExpired:
            return False
        self.process = None
        return True

    def netplane(self, *words: str) -> str:
        done = subprocess.run([NETPLANE, *words], capture_output=True, text=True, timeout=60, check=False)
        assert not done.returncode, done.stderr + self.log()[-3000:]
        return done.stdout

    def log(self) -> str:
        path = self.work / "agent.log"
        return path.read_text() if path.exists() else ""

    def begin(self, command: str, pod: str, **more: Any) -> subprocess.Popen[bytes]:
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": os.path.basename(pod),
            "CNI_NETNS": pod,
            "CNI_IFNAME": "eth0",
            "NETPLANE_CNI_TIMEOUT": "15",
            "PATH": os.environ["PATH"],
        }
        stdin = self.work / f"stdin-{os.path.basename(pod)}-{threading.get_ident()}"
        stdin.write_text(json.dumps({**self.config, **more}))
        with stdin.open("rb") as config:
            return netns.popen(
                self.at, [self.binary], env=environment, stdin=config, stdout=subprocess.PIPE, cwd=ROOT
            )

    def __call__(self, command: str, pod: str, **more: Any) -> Any:
        text = self.begin(command, pod, **more).communicate(timeout=60)[0]
        return json.loads(text) if text.strip() else ""

    def host(self) -> dict[str, Any]:
        """Everything of the host that an attachment may touch, in a form that can be compared."""
        run = netns.run
        listed: dict[str, Any] = {
            "links": sorted(one["ifname"] for one in json.loads(run(self.at, "ip", "-j", "link"))),
            "routes": sorted(run(self.at, "ip", "route", "show", "table", "all").splitlines()),
            "routes6": sorted(run(self.at, "ip", "-6", "route", "show", "table", "all").splitlines()),
            "neighbours": sorted(run(self.at, "ip", "neigh", "show", "nud", "permanent").splitlines()),
            "qdiscs": sorted(run(self.at, "tc", "qdisc", "show").splitlines()),
            "rules": run(self.at, "nft", "list", "ruleset"),
            "addresses": sorted(
                f"{one['ifname']} {ip['local']}/{ip['prefixlen']}"
                for one in json.loads(run(self.at, "ip", "-j", "addr"))
                for ip in one["addr_info"]
            ),
            "flows": self.flows(),
            "objects": self.objects(),
        }
        # the packet path's comes a moment after an ADD, and goes with its link, which is compared
        listed["qdiscs"] = [line for line in listed["qdiscs"] if not line.startswith("qdisc clsact")]
        for table in ("routes", "routes6"):  # the kernel's own come and go with a bridge's carrier
            listed[table] = [r for r in listed[table] if "proto kernel" not in r]
        return listed

    def flows(self) -> list[str]:
        """What is tracked, but for flows of others and what bridges tell of groups: protocol and tuples."""
        lines = [
            re.sub(r"^(\S+).*? src=", r"\1 src=", line)
            for version in ("ipv4", "ipv6")
            for line in netns.run(self.at, "conntrack", "-L", "-f", version).splitlines()
        ]
        others = (*self.others, "224.0.0.22")
        return sorted(line for line in lines if not any(f"={a} " in line for a in others))

    def talk(self, pod: str, port: int, host_port: bool) -> None:
        """Leave tracked flows: from the node to the pod, directly and by its host port, and from the pod."""
        host = ("192.0.2.1",) if host_port else ()
        netns.call(self.at, _send, (*host, *plain_addresses(pod)), port)
        netns.call(pod, _send, ("192.0.2.1", "10.99.0.1", "fd00:99::1"), port)

    def objects(self) -> list[str]:
        store = open_store(self.store)
        try:
            return sorted(f"{o.KIND} {o.name}" for o in store.list(["Attachment", "Pod"])[0])
        finally:
            store.close()


def _send(targets: tuple[str, ...], port: int) -> None:
    """A datagram and the beginning of a connection to each."""
    for to in targets:
        family = socket.AF_INET6 if ":" in to else socket.AF_INET
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with socket.socket(family, kind) as client, contextlib.suppress(OSError):
                client.setblocking(False)
                client.connect((to, port))
                client.send(b"x")


def plain_addresses(pod: str) -> list[str]:
    """What eth0 of the pod has; [] without one."""
    text = netns.run(pod, "ip", "-j", "addr", "show", "dev", "eth0", "scope", "global", check=False)
    return [ip["local"] for one in json.loads(text or "[]") for ip in one.get("addr_info", ()) if ip]


def plain(result: Any) -> list[str]:
    assert "ips" in result, result
    return [ip["address"].partition("/")[0] for ip in result["ips"]]
