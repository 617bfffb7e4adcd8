"""Sockets that outlive a process: from and to a supervisor, or through an exec of the agent itself.

Rule 1: what waits in a socket that was kept is answered by whoever has it next: nothing is lost but
        what a killed process had already read.
Rule 2: a descriptor is known by what it is (family, type, address), never by its number or name.

Inherited: LISTEN_PID and LISTEN_FDS (sd_listen_fds(3)). Kept: FDSTORE=1 over NOTIFY_SOCKET
(sd_pid_notify_with_fds(3)), with FileDescriptorStoreMax= in the unit. Any supervisor may speak these.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping, Sequence

from .upstreams import Address

FIRST = 3  # SD_LISTEN_FDS_START
PER_MESSAGE = 200  # descriptors; the kernel takes 253 (SCM_MAX_FD)
_log = logging.getLogger("netplane.dns")


class Inherited:
    """The Internet sockets that came with the environment; each is given away once."""

    def __init__(self, sockets: Sequence[socket.socket] = ()) -> None:
        self._sockets = list(sockets)

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> Inherited:
        """Takes the variables out of ``environ``, so that no child of ours believes they are its own."""
        pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
        environ.pop("LISTEN_FDNAMES", None)
        if pid != str(os.getpid()) or not count.isdecimal():
            return cls()
        found = []
        for number in range(FIRST, FIRST + int(count)):
            try:
                os.set_inheritable(number, False)
                sock = socket.socket(fileno=number)
            except OSError:  # no socket: somebody else's
                continue
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setblocking(False)
                found.append(sock)
            else:
                sock.detach()
        return cls(found)

    def take(self, address: Address, kind: socket.SocketKind) -> list[socket.socket]:
        """Those that are bound to this address; they are the caller's now."""
        mine = [s for s in self._sockets if s.type == kind and s.getsockname()[:2] == tuple(address)]
        self._sockets = [s for s in self._sockets if s not in mine]
        return mine

    def close(self) -> None:
        """What nobody took: addresses of a former configuration."""
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()


def keep(sockets: Sequence[socket.socket], environ: MutableMapping[str, str]) -> bool:
    """Give copies to the supervisor, which has them ready for the next start, also after a kill; those of
    before, which it may have, go."""
    path = environ.get("NOTIFY_SOCKET", "")
    if not path or not sockets:
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.connect(address)
            notify.send(b"FDSTOREREMOVE=1\nFDNAME=netplane-dns")
            for at in range(0, len(sockets), PER_MESSAGE):
                numbers = [sock.fileno() for sock in sockets[at : at + PER_MESSAGE]]
                socket.send_fds(notify, [b"FDSTORE=1\nFDNAME=netplane-dns\nFDPOLL=0"], numbers)
    except OSError as exc:
        _log.warning("the supervisor at %s keeps no sockets: %s", path, exc.strerror)
        return False
    return True


def pass_on(sockets: Sequence[socket.socket], environ: MutableMapping[str, str]) -> None:
    """Put them where `Inherited.of` finds them after an exec of this process, and let go of them."""
    high = [os.dup(sock.fileno()) for sock in sockets]  # above all targets, or dup2 could close one
    while high and min(high) < FIRST + len(high):
        high = [os.dup(number) for number in high]
    for number, kept in enumerate(high, FIRST):
        os.dup2(kept, number, inheritable=True)
        os.close(kept)
    environ["LISTEN_PID"], environ["LISTEN_FDS"] = str(os.getpid()), str(len(high))
