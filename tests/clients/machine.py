"""A machine for a container runtime: every namespace of its own, so the real one stays untouched.

Its first process keeps mount, pid, network, uts and ipc namespaces; all that a runtime leaves behind
(shims, monitors, containers) dies with it, and it dies with us. /run, /opt, /var/lib and /var/tmp are
empty there, /etc is a copy. Inside, the agent runs as on any node: default socket, default paths.

outside (ns) 192.0.2.2, 2001:db8::2
   │ veth
machine: w0 192.0.2.1, 2001:db8::1      netplane agent, the runtime, its containers
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from netplane.kernel import netns
from netplane.lab.runner import until

from .peers import PATH, PLUGINS

NETPLANE = str(Path(sys.executable).parent / "netplane")
OUTSIDE, MACHINE = ("192.0.2.2", "2001:db8::2"), ("192.0.2.1", "2001:db8::1")
CONF_DIR, BIN_DIR, SOCKET = "/etc/cni/net.d", "/opt/cni/bin", "/run/netplane/cni.sock"
OPEN = "import sys, urllib.request as r; print(end=r.urlopen(sys.argv[1], timeout=2).read().decode())"
FETCH = (sys.executable, "-Ic", OPEN)
# $1: a directory of ours. Copies come first: what is hidden may hold the checkout's own programs.
SETUP = f"""
set -e
cp -a /etc "$1/etc"
for dir in run opt var-lib var-tmp; do mkdir -p "$1/$dir"; done
mount --bind "$1/etc" /etc
for dir in run opt; do mount --bind "$1/$dir" /$dir; done
mount --bind "$1/var-lib" /var/lib
mount --bind "$1/var-tmp" /var/tmp
rm -rf {CONF_DIR} && mkdir -p {CONF_DIR} {BIN_DIR}
umount /sys/fs/cgroup/unified 2>/dev/null || true  # crun refuses cgroup v1 and v2 at once
ip link set lo up
echo ready
sleep infinity & wait  # which reaps the orphans too
"""


class Machine:
    """A context manager. ``work`` holds its files; ``outside`` is the path of a namespace beside it."""

    def __init__(self, work: Path, outside: str) -> None:
        self.work, self.outside = work, outside
        self._unshare: subprocess.Popen[str] | None = None
        self._inside = 0  # the keeper's pid, as we see it

    def __enter__(self) -> Machine:
        unshare = ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--mount-proc", "--kill-child"]
        command = ["setpriv", "--pdeathsig", "KILL", *unshare, "sh", "-c", SETUP, "setup", str(self.work)]
        self._unshare = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._unshare.stdout is not None
        assert self._unshare.stdout.readline() == "ready\n", "the machine's namespaces were not made"
        pid = self._unshare.pid
        self._inside = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        self._uplink()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._unshare is not None
        self._unshare.kill()  # takes the first of its pid namespace along, and that one all others
        self._unshare.communicate(timeout=30)
        until(self._is_over, "the machine's end", 30)

    def _is_over(self) -> bool:
        """Its first process has let go of everything; whoever inherited it may bury it when they like."""
        try:
            return " Z " in Path(f"/proc/{self._inside}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True

    def _uplink(self) -> None:
        peer = ["type", "veth", "peer", "name", "w0", "netns", str(self._inside)]
        netns.run(self.outside, "ip", "link", "add", "w1", *peer)
        netns.run(self.outside, "ip", "link", "set", "w1", "up")
        for address, mine in zip(OUTSIDE, MACHINE, strict=True):
            length = "64" if ":" in address else "24"
            netns.run(self.outside, "ip", "addr", "add", f"{address}/{length}", "dev", "w1", *_nodad(address))
            self.run("ip", "addr", "add", f"{mine}/{length}", "dev", "w0", *_nodad(mine))
        self.run("ip", "link", "set", "w0", "up")
        for address in OUTSIDE:
            self.run("ip", "route", "add", "default", "via", address)

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """Start a program inside."""
        command = ["nsenter", "--target", str(self._inside), "--all", "--", *argv]
        env = {"PATH": f"{Path(NETPLANE).parent}:{PATH}", "HOME": "/run", **options.pop("env", {})}
        return subprocess.Popen(command, env=env, text=True, **options)

    def run(self, *argv: str, check: bool = True, timeout: float = 60, **options: Any) -> str:
        """Run a program inside to its end; its stdout. AssertionError with its stderr."""
        options = {"stdin": subprocess.DEVNULL, **options}
        process = self.popen(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        assert not check or process.returncode == 0, f"{shlex.join(argv)}: {err}{out}"
        return str(out)

    def daemon(self, name: str, *argv: str) -> None:
        """Start a program that lives as long as the machine; its log is `log(name)`."""
        with (self.work / f"{name}.log").open("wb") as log:
            self.popen(*argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def log(self, name: str) -> str:
        return (self.work / f"{name}.log").read_text(errors="replace")[-3000:]

    def write(self, path: str, text: str) -> None:
        """Make a file inside."""
        self.run("sh", "-c", 'mkdir -p "${1%/*}" && printf %s "$2" > "$1"', "write", path, text)

    def install(self) -> None:
        """`netplane install`, as docs/runtimes.md says; the reference plugins beside."""
        self.run(NETPLANE, "install", "--cni-bin-dir", BIN_DIR, "--cni-conf-dir", CONF_DIR)
        if PLUGINS.exists():
            self.run("sh", "-c", f"ln -sf {PLUGINS}/* {BIN_DIR}/")

    def start_agent(self, *options: str) -> None:
        """`netplane install` and `netplane agent`."""
        self.install()
        ranges = ["--cluster-cidr", "10.244.0.0/16,fd00:10:244::/48", "--rooms", "cni,overlay,services"]
        services = ["--service-cidr", "10.96.0.0/16,fd00:10:96::/112", "--node-ip", ",".join(MACHINE)]
        self.daemon("agent", NETPLANE, "agent", "--node", "n1", *ranges, *services, *options)
        done = self.run(NETPLANE, "status", "--wait", "30", check=False)
        assert "n1" in done or done, self.log("agent")

    def stop_agent(self) -> None:
        self.run("pkill", "-x", "netplane")
        until(lambda: not self.run("pgrep", "-x", "netplane", check=False), "the agent's end", 30)

    def pods(self) -> list[str]:
        """namespace/name of the Pod objects in the store."""
        lines = self.run(NETPLANE, "get", "Pod", "-A").splitlines()[1:]
        return ["/".join(line.split()[:2]) for line in lines]

    def ports(self) -> list[str]:
        """The host ends of pods' links."""
        return re.findall(r"npv[0-9a-f]{11}(?=@)", self.run("ip", "-o", "link"))

    def fetch(self, url: str) -> str:
        """What a web server answers to the machine itself, once it does."""
        return until(lambda: self.run(*FETCH, url, check=False), url, 20)

    def fetch_outside(self, url: str) -> str:
        """What it answers to `outside`."""
        return until(
            lambda: netns.run(self.outside, *FETCH, url, check=False, env={}), f"{url} from outside", 20
        )

    def wait_for(self, path: str, name: str) -> None:
        """Until a daemon's socket is there."""
        until(Path(self.path(path)).exists, f"{path}: {self.log(name)}", 30)

    def path(self, inside: str) -> str:
        """A path inside, as it is reached from outside."""
        return f"/proc/{self._inside}/root{inside}"


def url(address: str, port: int = 8080) -> str:
    return f"http://[{address}]:{port}/" if ":" in address else f"http://{address}:{port}/"


def _nodad(address: str) -> list[str]:
    return ["nodad"] if ":" in address else []
