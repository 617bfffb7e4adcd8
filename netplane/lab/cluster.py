"""A lab: a cluster of network namespaces on one machine, in a few lines, gone without a trace.

Rule 1: a lab that does not persist lives in mounts that are private to this process, so that
        nothing of it can outlive the process, whatever ends it.
Rule 2: `down` may be called at any time, twice, and after any failure.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ..kernel import netns
from ..model import codec
from ..model.errors import Invalid, KernelError
from . import traces, wire
from .node import START_TIMEOUT, Node, Pod
from .place import Place
from .runner import Runner
from .settings import Plan, Settings, families

P = TypeVar("P", bound=Place)
_numbers = itertools.count(1)
_private = threading.Event()


class Lab:
    """A cluster of ``nodes`` nodes on one wire, with a client `outside` that is not of the cluster.

    A context manager; or `up` and `down`. Needs root. ``settings`` has the rarer choices.
    """

    def __init__(self, nodes: int = 2, dual_stack: bool = True, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        name = settings.name or f"lab{next(_numbers)}-{os.getpid()}"
        if not name.replace("-", "").replace("_", "").isalnum():
            raise Invalid(f"a lab's name is letters, digits, '-' and '_', not {name!r}")
        self.settings = replace(settings, name=name)
        self.plan = Plan(nodes, families(dual_stack, settings.family))
        self.name = name
        self.home = settings.root / name
        self.store = f"sqlite://{self.home}/state.db"
        self.nodes: list[Node] = []
        self.pods: list[Pod] = []
        self._signals: dict[int, Any] = {}
        self._claimed = False  # the directory is ours to remove
        self.runner: Runner
        self.outside: Place

    # --- its life ---------------------------------------------------------------------------------

    def up(self) -> Lab:
        """Make the wire, the nodes and the outside. Raises KernelError, Unavailable (name taken)."""
        if os.geteuid() != 0:
            raise KernelError(1, "make a lab", "namespaces need root")
        if not self.settings.persist and not _private.is_set():
            netns.make_private(mounts=True)
            _private.set()
        traces.sweep(self.settings.root)
        traces.claim(self.home)
        self._claimed = True
        atexit.register(self.down)
        self._catch_signals()
        try:
            self._build()
        except BaseException:
            self.down()
            raise
        if self.settings.persist:
            atexit.unregister(self.down)
        return self

    def _build(self) -> None:
        if not self.settings.persist:
            traces.mount_private(self.home)
        (self.home / "ns").mkdir()
        (self.home / "pods").mkdir()
        self.runner = Runner(self.settings.persist)
        self._places()
        shape = {"nodes": self.plan.nodes, "families": self.plan.families, "mtu": self.settings.mtu}
        (self.home / "lab.json").write_text(json.dumps(shape))
        places = {place.name: place.netns for place in (*self.nodes, self.outside)}
        wire.lay(self.namespace("wire"), places, self.plan, self.settings.mtu)

    def _places(self) -> None:
        self.nodes = [Node(self, index) for index in range(self.plan.nodes)]
        self.outside = Place("outside", self.namespace("outside"), self.runner)

    def down(self) -> None:
        """Take everything away: processes, namespaces, mounts, files. Down already: fine."""
        with _no_interrupt():
            if hasattr(self, "runner"):
                self.runner.close()
            if self._claimed and self.home.exists():
                traces.remove(self.home)
            self._claimed = False
            self.nodes, self.pods = [], []
        atexit.unregister(self.down)
        for number, handler in self._signals.items():
            signal.signal(number, handler)
        self._signals = {}

    def __enter__(self) -> Lab:
        return self.up()

    def __exit__(self, *exc: object) -> None:
        self.down()

    def _catch_signals(self) -> None:
        """SIGTERM and SIGHUP end the program as Ctrl-C does: by an exception, so that `down` runs."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                self._signals[number] = signal.signal(number, _exit)

    @classmethod
    def open(cls, settings: Settings) -> Lab:
        """The lab that `netplane lab up` left. Raises Invalid when there is none of this name."""
        home = settings.root / settings.name
        try:
            shape = json.loads((home / "lab.json").read_text())
        except (OSError, ValueError):
            have = ", ".join(sorted(path.name for path in settings.root.glob("*"))) or "none"
            raise Invalid(f"no lab {settings.name!r} beneath {settings.root}; there is {have}") from None
        settings = replace(settings, persist=True, mtu=shape["mtu"], family=shape["families"][0])
        lab = cls(shape["nodes"], len(shape["families"]) == 2, settings)
        lab._claimed = True
        lab.runner = Runner(persist=True)
        lab._places()
        lab.pods = [Pod.load(lab, path) for path in sorted((home / "pods").iterdir())]
        return lab

    # --- what is in it ----------------------------------------------------------------------------

    def namespace(self, name: str) -> Path:
        return self.home / "ns" / name

    def serial(self) -> int:
        """A number that no pod had before, in any process: container IDs never repeat."""
        return time.time_ns()

    def node(self, name: str) -> Node:
        return self._named(self.nodes, name)

    def place(self, name: str) -> Place:
        """A node, a pod ("web-1" or "default/web-1"), `outside` or `wire`. Raises Invalid."""
        pods = {pod.name: pod for pod in self.pods} | {pod.key[1]: pod for pod in self.pods}
        if name in pods:
            return pods[name]
        return self._named(
            [*self.nodes, self.outside, Place("wire", self.namespace("wire"), self.runner)], name
        )

    def _named(self, places: Iterable[P], name: str) -> P:
        found = {place.name: place for place in places}
        if name not in found:
            raise Invalid(f"lab {self.name} has no {name!r}; it has {', '.join(found) or 'nothing'}")
        return found[name]

    # --- the programs ------------------------------------------------------------------------------

    def start_agents(self, timeout: float = START_TIMEOUT) -> None:
        """An agent on every node; returns when all are in sync. Raises Unavailable with a log's end."""
        for node in self.nodes:
            node.agent.start()
        for node in self.nodes:
            node.agent.wait(timeout)

    def netplane(self, *args: str | Path, input: str = "") -> str:
        """Run `netplane ARGS --store <the lab's>` on this machine; its stdout. Raises Invalid."""
        argv = [str(self.settings.programs.netplane), *map(str, args), "--store", self.store]
        done = subprocess.run(argv, input=input, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise Invalid(
                f"netplane {' '.join(map(str, args))}: {done.stderr.strip() or done.stdout.strip()}"
            )
        return done.stdout

    def apply(self, *manifests: str | Path) -> None:
        """Declare what these YAML files (Path, or a str that names one) or YAML texts hold."""
        texts = [m if isinstance(m, str) and "\n" in m else Path(m).read_text() for m in manifests]
        text = "\n---\n".join(texts)
        codec.parse_all(text)
        self.netplane("apply", "-f", "-", input=text)

    def get(self, kind: str, name: str = "", namespace: str = "default") -> Any:
        """What `netplane get -o json` prints: an object, or a List of them without ``name``."""
        names = [name] if name else []
        return json.loads(self.netplane("get", kind, *names, "-n", namespace, "-o", "json"))

    def describe(self) -> dict[str, Any]:
        """What is in the lab, for `netplane lab ls`."""
        return {
            "name": self.name,
            "families": self.plan.families,
            "store": self.store,
            "nodes": {node.name: node.addresses for node in self.nodes},
            "pods": {pod.name: {"node": pod.node.name, "ips": pod.ips} for pod in self.pods},
        }


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Ctrl-C waits while a lab is taken away; only the main thread has the say over signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


def _exit(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)
