"""CNI without an agent: one request, done in this process on the embedded store.

The CNI binary starts this where no agent listens (`python -m netplane.standalone`, with the runtime's
environment and stdin), for podman, nerdctl and cnitool on machines that run no daemon. It is the agent's
own code (verbs, room, drivers, store) without its loops.

Rule 1: one request at a time on a state directory (a lock that dies with its holder), so that addresses
        are unique; an agent that came up in between is asked instead.
Rule 2: every start undoes what a killed one left: an ADD by its record, as the agent does, a DEL by the
        journal. Nothing else in the kernel is swept: it may be that of an agent on another store.
Rule 3: whatever happens, the runtime gets CNI's JSON, never a traceback and never silence.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from .cni import delegate
from .cni import frame as wire
from .cni.errors import NEWEST, error_json
from .cni.names import BRIDGE, headroom
from .cni.render import BASE, CniConfig, CniRoom
from .cni.server import CniServer
from .cnihost import CniHost
from .kernel.nft_guard import GuardDriver
from .kernel.nft_limit import LimitDriver
from .kernel.nftables import NftDriver
from .kernel.rtnetlink import LinkDriver
from .model.base import Object
from .model.changes import Write
from .model.errors import Invalid, Unavailable
from .model.facts import Driver, FactKey, Scope
from .model.own import Attachment
from .narrow import Careful, Narrow, NarrowVerbs, view
from .reconcile.core import Core
from .spare import Spare, ending
from .store.sqlite import SqliteStore

STATE_DIR = "/var/lib/netplane"
SOCKET = "/run/netplane/cni.sock"
PATIENCE = 20.0  # seconds to wait for other requests, below the runtime's own
ANSWER = 30.0  # seconds for an agent, as the binary gives it


def main() -> int:
    """Answer the request of the environment and stdin on stdout; the exit status."""
    logging.basicConfig(handlers=[_Lines()], level=logging.WARNING)
    frame = wire.Frame(
        command=_variable("CNI_COMMAND"),
        container_id=_variable("CNI_CONTAINERID"),
        netns=_variable("CNI_NETNS"),
        ifname=_variable("CNI_IFNAME"),
        args=_variable("CNI_ARGS"),
        path=_variable("CNI_PATH"),
        config=_stdin(),
    )
    status, text = carry_out(frame)
    try:
        with open(1, "wb", closefd=False) as out:
            out.write(text)
    except OSError:  # nobody takes the answer
        return 1
    return status


class _Lines(logging.StreamHandler[Any]):
    """To stderr, a line each: whoever reads the runtime's log has no use for a traceback (rule 3)."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        return record.getMessage() + (f": {type(error).__name__}: {error}" if error else "")


def _stdin() -> bytes:
    """b"", which is no configuration, when there is nothing to read from."""
    try:
        with open(0, "rb", closefd=False) as stdin:
            return stdin.read()
    except OSError:
        return b""


def _variable(name: str) -> str:
    return os.environ.get(name, "")


def carry_out(frame: wire.Frame) -> tuple[int, bytes]:
    """One request; exit status and stdout."""
    config: dict[str, Any] = {}
    try:
        config = _document(frame.config)
        state = Path(_state_dir(config))
        with exclusive(state):
            path = _path("socket", config.get("socket") or SOCKET)
            raw = wire.request(frame)
            answer = _of_agent(path, raw) or _of_ours(path, state, raw)
        status, text = wire.unpack(answer)
        return int(status), text
    except Exception as exc:  # rule 3
        version = config.get("cniVersion")
        error = error_json(exc, frame.command, version if isinstance(version, str) else NEWEST)
        return 1, msgspec.json.encode(error) + b"\n"


def _document(raw: bytes) -> dict[str, Any]:
    try:
        doc = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        doc = None
    if not isinstance(doc, dict):
        raise Invalid("the network configuration on stdin is not a JSON object")
    if not doc.get("standalone", bool(doc.get("ipam"))):
        raise Unavailable(
            f"no netplane agent at {doc.get('socket') or SOCKET}; start one, or give the network"
            ' configuration an ipam section or "standalone": true to do without'
        )
    return doc


def _state_dir(config: dict[str, Any]) -> str:
    """``stateDir``, or ``ipam.dataDir`` as host-local has it, or the agent's default."""
    ipam = config.get("ipam")
    found = config.get("stateDir") or (ipam.get("dataDir") if isinstance(ipam, dict) else "") or STATE_DIR
    return _path("stateDir", found)


def _path(key: str, found: object) -> str:
    if not isinstance(found, str) or not found.startswith("/") or "\0" in found:
        raise Invalid(f"{key}: {found!r:.80} must be an absolute path")
    return found


@contextmanager
def exclusive(state: Path) -> Iterator[None]:
    """Be the only one at work on this directory. Raises Unavailable after `PATIENCE`."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (state / "standalone.lock").open("a") as lock:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Unavailable(f"other CNI requests hold {lock.name} for {PATIENCE:.0f} s") from None
                time.sleep(0.005)
        yield


def _of_agent(path: str, raw: bytes) -> bytes:
    """The agent's answer, if one listens by now; else b""."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return b""
        except OSError as exc:
            raise _silent(path, exc) from exc
        try:
            connection.sendall(raw)
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        except OSError as exc:
            raise _silent(path, exc) from exc
    if not answer:
        raise Unavailable(f"the netplane agent at {path} stopped before it answered")
    return answer


def _silent(path: str, error: OSError) -> Unavailable:
    if isinstance(error, TimeoutError):
        return Unavailable(f"the netplane agent at {path} does not answer within {ANSWER:.0f} s")
    return Unavailable(f"the netplane agent at {path}: {error.strerror or error}")


def _of_ours(path: str, state: Path, raw: bytes) -> bytes:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    node = socket.gethostname().lower()
    with ExitStack() as stack:
        stack.enter_context(delegate.clocked())
        store = SqliteStore(str(state / "state.db"))
        stack.callback(store.close)
        spare, journal = Spare(Path(path).parent, store), Journal(state / "standalone.journal")
        links = LinkDriver()
        stack.callback(links.close)
        # as an agent with an overlay made them: what goes with a bridge goes by our hand, too
        tunnel, mtu = links.link_exists("", headroom(0)), links.asked_mtu(BRIDGE)
        config = CniConfig(boot_id=boot, tunnel=tunnel, pod_mtu=mtu)
        work = Work(path, node, config, store, spare, journal, links)
        if spare.is_settled() and not journal.read():
            narrow = view(store, node, boot, raw)
            answer = work.narrowly(raw, narrow) if narrow is not None else b""
            if answer:
                return answer
        spare.settle(node, boot)
        return work.wholly(raw)


class Work(NamedTuple):
    """One request by the agent's own parts, put together for it."""

    path: str
    node: str
    config: CniConfig
    store: SqliteStore
    spare: Spare
    journal: Journal
    links: LinkDriver

    def wholly(self, raw: bytes) -> bytes:
        """On all records, after what others left undone."""
        room, core = self._core(self.store, self._drivers())
        core.load()
        core.sweep(self.journal.read().__contains__)
        host = self._host(room, core)
        host.finish()
        server = CniServer(self.path, host, self.config)
        server.verbs.recover()
        answer = server.answer(raw)
        if _is_well(answer):
            self.journal.clear()
        return answer

    def narrowly(self, raw: bytes, narrow: Narrow) -> bytes:
        """A request on what it needs; b"" when it is to be done wholly: it left nothing.

        Where another plugin has taken the time for that, what it was refused for stands.
        """
        room, core = self._core(narrow, [Careful(driver, narrow) for driver in self._drivers()])
        core.load()
        host = self._host(room, core)
        server = CniServer(self.path, host, self.config)

        def read_all() -> None:
            if not narrow.complete:
                narrow.complete = True
                core.load()

        host.read_all = read_all
        server.verbs = NarrowVerbs(host, self.config, narrow, read_all, self.links.pairs_on)
        server.verbs.recover()
        answer = server.answer(raw)
        return answer if _is_well(answer) or delegate.spent() else b""

    def _drivers(self) -> list[Driver]:
        return [self.links, NftDriver(), LimitDriver(), GuardDriver()]

    def _core(self, store: Any, drivers: Sequence[Any]) -> tuple[CniRoom, Core]:
        room = CniRoom(self.node, self.config)
        return room, Core(store, [(room, drivers)])

    def _host(self, room: CniRoom, core: Core) -> Host:
        host = Host(room, core, self.links)
        host.journal, host.spare = self.journal, self.spare
        return host


def _is_well(answer: bytes) -> bool:
    return wire.unpack(answer)[0] == b"0"


class Journal:
    """What the kernel holds of records that are being deleted: after a kill nothing else tells."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> set[FactKey]:
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return set()
        found = set()
        for line in lines:
            with suppress(msgspec.DecodeError):  # the last line of a process that was killed
                found.add(_tuple(msgspec.json.decode(line)))
        return found

    def add(self, keys: Iterable[FactKey]) -> None:
        """Raises Unavailable."""
        try:
            with self._path.open("ab") as out:
                out.write(b"".join(msgspec.json.encode(key) + b"\n" for key in keys))
        except OSError as exc:
            raise Unavailable(f"{self._path}: {exc.strerror}") from exc

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


class Host(CniHost):
    """The agent's, but that a deletion is written down first."""

    journal: Journal
    read_all: Callable[[], None] = staticmethod(lambda: None)

    def withdraw(self, name: str) -> None:
        self.read_all()
        super().withdraw(name)

    def towards(self, address: str) -> str:
        """None: what opens a link of somebody else's must live to shut it, and this process ends."""
        del address
        return ""

    def localnet(self, link: str) -> bool:
        """As if somebody else had opened it: left alone, for the same reason."""
        del link
        return True

    def draft(self, record: Attachment) -> None:
        """Written: no start of ours sweeps what a killed one left without a record."""
        self.put(record, 0)

    def write(self, writes: Sequence[Write]) -> list[Object]:
        for name in ending(writes):
            self.journal.add(fact.key for fact in self._core.wanted(Scope(BASE.room, name)))
        return super().write(writes)


if __name__ == "__main__":
    sys.exit(main())
