"""How CSI says no: a gRPC code of the specification's tables and a message that says what to do."""

from __future__ import annotations

import errno

from netplane.model.errors import Conflict, Invalid, KernelError, NetplaneError, NotFound, Unavailable

from ..rpc.codes import Code

CODE = Code


class Refused(NetplaneError):
    """One call is refused with this code; nothing was changed."""

    def __init__(self, code: Code, message: str) -> None:
        self.code = code
        super().__init__(message)


def invalid(message: str) -> Refused:
    return Refused(CODE.INVALID_ARGUMENT, message)


def missing(what: str, name: str) -> Refused:
    return Refused(CODE.NOT_FOUND, f"{what} {name!r} is not known to this driver; list what there is")


def in_use(message: str) -> Refused:
    return Refused(CODE.FAILED_PRECONDITION, message)


_BY_ERRNO = {
    errno.EBUSY: CODE.FAILED_PRECONDITION,
    errno.ELOOP: CODE.INVALID_ARGUMENT,  # a link in a path that was given
    errno.ENOTDIR: CODE.INVALID_ARGUMENT,  # or at its end
    errno.ENOSPC: CODE.RESOURCE_EXHAUSTED,
    errno.EDQUOT: CODE.RESOURCE_EXHAUSTED,
}
_CODES: tuple[tuple[type[NetplaneError], Code], ...] = (
    (Invalid, CODE.INVALID_ARGUMENT),
    (NotFound, CODE.NOT_FOUND),
    (Conflict, CODE.ABORTED),
    (Unavailable, CODE.UNAVAILABLE),
)


def code_of(error: NetplaneError) -> Code:
    """The gRPC code of any error of ours."""
    if isinstance(error, Refused):
        return error.code
    if isinstance(error, KernelError):
        return _BY_ERRNO.get(error.errno, CODE.INTERNAL)
    return next((code for kind, code in _CODES if isinstance(error, kind)), CODE.INTERNAL)
