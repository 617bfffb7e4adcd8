"""gRPC's status codes, and how a call says that it failed."""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """The numbers on the wire. grpc.StatusCode has the same names, and costs the import of all of grpcio."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Failed(Exception):
    """What the client gets instead of an answer; the message is shown to it as it stands."""

    def __init__(self, code: Code, message: str) -> None:
        self.code = code
        super().__init__(message)
