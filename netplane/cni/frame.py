"""The wire between the CNI binary and the agent: a netstring of netstrings, each way (csrc/cni).

Request: tag, CNI_COMMAND, CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME, CNI_ARGS, CNI_PATH, configuration.
Answer: exit status (one digit), the text for stdout. Pure; raises Invalid for bytes that are neither.
"""

from __future__ import annotations

from typing import NamedTuple

from ..model.errors import Invalid

TAG = b"netplane-cni/1"
LIMIT = 12 << 20  # bytes of a whole request
_HEAD = 9  # digits and colon of the longest length that LIMIT allows


class Frame(NamedTuple):
    """What the runtime said, word for word."""

    command: str
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: str = ""
    path: str = ""
    config: bytes = b"{}"


def expected(start: bytes) -> int | None:
    """The whole length of the frame that begins so; None while its head is not in yet."""
    digits, colon, _ = start[:_HEAD].partition(b":")
    if colon and digits.isdigit() and int(digits) <= LIMIT:
        return len(digits) + 1 + int(digits) + 1
    if not colon and len(start) < _HEAD and (not digits or digits.isdigit()):
        return None
    raise Invalid(f"not a frame of the netplane CNI binary: it begins with {start[:_HEAD]!r}")


def pack(*fields: bytes) -> bytes:
    body = b"".join([b"%d:%b," % (len(field), field) for field in fields])
    return b"%d:%b," % (len(body), body)


def unpack(raw: bytes) -> list[bytes]:
    """The fields of one whole frame. Raises Invalid."""
    (body,) = _split(raw, most=1)
    return _split(body, most=len(Frame._fields) + 1)


def request(frame: Frame) -> bytes:
    """The bytes that the binary sends for this; for tests and for callers without the binary."""
    return pack(TAG, *[word.encode(errors="surrogateescape") for word in frame[:-1]], frame.config)


def parse(raw: bytes) -> Frame:
    tag, *fields = unpack(raw)
    if tag != TAG or len(fields) != len(Frame._fields):
        raise Invalid(
            f"the CNI binary speaks {tag!r:.40}, this agent {TAG.decode()}: run `netplane install` again"
        )
    command, container_id, netns, ifname, args, path = [
        field.decode(errors="surrogateescape") for field in fields[:-1]
    ]
    return Frame(command, container_id, netns, ifname, args, path, fields[-1])


def answer(status: int, text: bytes) -> bytes:
    return pack(str(status).encode(), text)


def _split(data: bytes, most: int) -> list[bytes]:
    found: list[bytes] = []
    at = 0
    while at < len(data):
        colon = data.find(b":", at, at + _HEAD)
        digits = data[at:colon] if colon > 0 else b""
        end = colon + 1 + int(digits) if digits.isdigit() else len(data)
        if data[end : end + 1] != b"," or len(found) == most:
            raise Invalid(f"a CNI frame is broken at byte {at}")
        found.append(data[colon + 1 : end])
        at = end + 1
    if not found:
        raise Invalid("a CNI frame is empty")
    return found
