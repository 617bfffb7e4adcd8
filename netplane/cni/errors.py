"""The one place where our errors become CNI's: code, message, details (specification 1.1, "Error")."""

from __future__ import annotations

from typing import Any

from ..model.errors import Conflict, Invalid, KernelError, NetplaneError, NotFound, Unavailable

VERSION, UNSUPPORTED, UNKNOWN, ENVIRONMENT, IO, DECODE, CONFIG = 1, 2, 3, 4, 5, 6, 7
LATER, NOT_READY, LIMITED = 11, 50, 51
DIFFERS = 100  # ours: CHECK found something else than ADD made
INTERNAL = 999  # the reference plugins' own for what should not happen
NEWEST = "1.1.0"


class Refused(Invalid):
    """Invalid, with the specification's code where `CONFIG` would be too vague."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        self.code = code
        self.details = details
        super().__init__(message)


def code_of(error: BaseException, command: str) -> int:
    match error:
        case Refused(code=code):
            return int(code)
        case Invalid():
            return CONFIG
        case NotFound():
            return UNKNOWN
        case Unavailable():
            return NOT_READY if command == "STATUS" else LATER
        case Conflict():
            return LATER
        case KernelError() | OSError():
            return IO
    return INTERNAL


def _words(error: BaseException) -> str:
    """Of ours, and of the system, what they say; of a bug its name too. Always text that JSON can hold."""
    text = str(error)
    if not isinstance(error, NetplaneError | OSError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return (text or type(error).__name__).encode(errors="backslashreplace").decode()


def error_json(error: BaseException, command: str, version: str) -> dict[str, Any]:
    """The error object for stdout, in the version asked for when that is known."""
    return {
        "cniVersion": version or NEWEST,
        "code": code_of(error, command),
        "msg": _words(error),
        "details": getattr(error, "details", ""),
    }
