"""What CreateVolume asks for, decided: backend, file system, size. Pure.

Parameters of a StorageClass: ``backend`` image, btrfs, tmpfs (the size is enforced) or directory (it is
not), ``fsType`` ext4, xfs or btrfs, ``overcommit`` true: admit more than there is room for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import backends
from ..backends import BACKENDS, Choice, Machine
from . import checks
from .refusal import CODE, Refused, invalid

DEFAULT_SIZE = 1 << 30
SECTOR = 512  # bytes
_FOREIGN = "csi.storage.k8s.io/"  # what the external provisioner adds
_MUTABLE = {"provisioning": ("thin", "thick")}


class Wish(NamedTuple):
    choice: Choice
    block: bool
    need: int
    limit: int
    parameters: dict[str, str]
    mutable: dict[str, str]

    def size(self, least: int) -> int:
        """The size to make, not below ``least``. Raises Refused(OUT_OF_RANGE)."""
        want = max(self.need or min(DEFAULT_SIZE, self.limit or DEFAULT_SIZE), least)
        rounded = backends.rounded(want)
        fits = not self.limit or rounded <= self.limit or not exact(self.choice.backend, want)
        size = rounded if fits else want
        if self.limit and size > self.limit:
            what = self.choice.fstype or self.choice.backend
            message = (
                f"capacity_range.limit_bytes {self.limit}: this {what} volume needs {size} bytes; raise it"
            )
            raise Refused(CODE.OUT_OF_RANGE, message)
        return size

    def fits(self, size: int) -> bool:
        return size >= self.need and (not self.limit or size <= self.limit)


def read(request: Any, machine: Machine) -> Wish:
    """Raises Refused for parameters that are not known or do not go together."""
    block = checks.capabilities(request.volume_capabilities)
    known = {k: v for k, v in request.parameters.items() if not k.startswith(_FOREIGN)}
    asked = {c.mount.fs_type for c in request.volume_capabilities if c.mount.fs_type}
    if len(asked) > 1:
        raise invalid(f"volume_capabilities: one file system per volume, not {', '.join(sorted(asked))}")
    choice = backends.choose(known, block, machine, min(asked, default=""))
    need, limit = checks.capacity(request.capacity_range)
    return Wish(choice, block, need, limit, known, mutable(request.mutable_parameters))


def exact(backend: str, size: int) -> bool:
    """Whether it can have just this size: a block device has whole sectors."""
    return not BACKENDS[backend].images or size % SECTOR == 0


def mutable(given: Any) -> dict[str, str]:
    """Mutable parameters: ``provisioning`` thin (blocks as they are written) or thick (all at once)."""
    for key, value in given.items():
        if key not in _MUTABLE:
            raise invalid(f"mutable_parameters[{key}]: not known; there is {', '.join(_MUTABLE)}")
        if value not in _MUTABLE[key]:
            raise invalid(f"mutable_parameters[{key}]: use one of {', '.join(_MUTABLE[key])}")
    return dict(given)
