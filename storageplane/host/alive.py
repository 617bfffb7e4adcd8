"""Whether what is mounted somewhere still answers: a FUSE server may be dead, an NFS server gone.

Rule 1: ENOTCONN, ESTALE, EIO, EACCES and EHOSTDOWN mean that the mount is broken for good: it is replaced.
Rule 2: a file system behind which somebody else stands may never answer, and a process that waits for it
        cannot be killed. Such a one is asked by a child, which is left behind after a while. No answer is
        no proof: the mount stays.
Rule 3: stat may be answered from memory, for as long as a FUSE server said (its attr_timeout); statvfs never
        is. But a server may not have statvfs, so of that only what says that nobody is there counts.
Source: kubernetes staging/src/k8s.io/mount-utils (IsCorruptedMnt).
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys

from netplane.model.errors import KernelError

from .corrupt import DEAD

BROKEN = (*DEAD, errno.EHOSTDOWN)
REMOTE = ("nfs", "nfs4", "ceph", "cifs", "smb3", "9p", "afs")
PATIENCE = 10.0  # seconds
_ASK = """import errno, os, sys
try: os.stat(sys.argv[1])
except OSError as e: sys.exit(e.errno)
try: os.statvfs(sys.argv[1])
except OSError as e: sys.exit(e.errno if e.errno in (errno.ENOTCONN, errno.ESTALE) else 0)
"""


def broken(path: str, fstype: str) -> bool:
    """Whether the mount at ``path`` must be replaced. Raises KernelError when it does not answer."""
    if fstype in REMOTE or fstype.startswith("fuse"):
        return _asked(path) in BROKEN
    try:
        os.stat(path)
    except OSError as exc:
        return exc.errno in BROKEN
    return False


def _asked(path: str) -> int:
    """The errno of a stat in a child; 0 for none."""
    child = subprocess.Popen([sys.executable, "-ISc", _ASK, path], stderr=subprocess.DEVNULL)
    try:
        return child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()  # and no wait: it may be in the kernel until the server is back
        raise KernelError(errno.ETIMEDOUT, f"look at {path}", "its server does not answer") from None
