"""The one tree of errors.

Rule 1: a caller decides what to do by the class alone: Invalid is never retried, Conflict means
        read again and decide again, Unavailable means back off, KernelError carries the errno.
Rule 2: the message says what, where and what would be right; it is shown to users as it stands.
Rule 3: errors are translated once, at the edge (CNI codes, gRPC codes, exit status).
"""

from __future__ import annotations

import errno as _errno
import os


class NetplaneError(Exception):
    """The root; never raised itself."""


class Invalid(NetplaneError):
    """The input is wrong and stays wrong: refuse it, change nothing, never retry."""


class Conflict(NetplaneError):
    """Somebody else wrote first: read again and decide again."""


class NotFound(Conflict):
    """The object or resource that was named is not there."""


class Expired(Conflict):
    """A watch asked for history that the store no longer keeps: list again."""


class Unavailable(NetplaneError):
    """Something that we need does not answer now: back off and try again."""


class KernelError(NetplaneError):
    """A kernel call failed. ``errno`` is positive; ``operation`` names what was tried, on what."""

    def __init__(self, errno: int, operation: str, detail: str = "") -> None:
        self.errno = errno
        self.operation = operation
        self.detail = detail
        name = _errno.errorcode.get(errno, str(errno))
        reason = detail or os.strerror(errno)
        super().__init__(f"{operation}: {reason} ({name})")
