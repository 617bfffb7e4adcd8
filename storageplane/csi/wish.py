"""What CreateVolume asks for, decided: backend, file system, size. Pure but for what the machine has.

Parameters of a StorageClass: ``backend`` image (the size is enforced) or directory (it is not),
``fsType`` ext4, xfs or btrfs, ``overcommit`` true: admit more than there is room for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from netplane.model.errors import Invalid

from .. import images
from . import checks
from .refusal import CODE, Refused, invalid

DEFAULT_SIZE = 1 << 30
BLOCK = 4096
BACKENDS = ("image", "directory")
_FOREIGN = "csi.storage.k8s.io/"  # what the external provisioner adds
_MUTABLE = {"provisioning": ("thin", "thick")}


class Wish(NamedTuple):
    backend: str
    fstype: str
    block: bool
    need: int
    limit: int
    parameters: dict[str, str]
    mutable: dict[str, str]

    def size(self, least: int) -> int:
        """The size to make, not below ``least``. Raises Refused(OUT_OF_RANGE)."""
        want = max(self.need or min(DEFAULT_SIZE, self.limit or DEFAULT_SIZE), least)
        rounded = -(-want // BLOCK) * BLOCK
        size = rounded if not self.limit or rounded <= self.limit else want
        if self.limit and size > self.limit:
            what = self.fstype or self.backend
            message = f"capacity_range.limit_bytes {self.limit}: this {what} volume needs {size} bytes"
            raise Refused(CODE.OUT_OF_RANGE, message)
        return size

    def fits(self, size: int) -> bool:
        return size >= self.need and (not self.limit or size <= self.limit)


def read(request: Any) -> Wish:
    """Raises Refused for parameters that are not known or do not go together."""
    block = checks.capabilities(request.volume_capabilities)
    given = dict(request.parameters)
    known = {key: given.pop(key) for key in ("backend", "fsType", "overcommit") if key in given}
    strange = [key for key in given if not key.startswith(_FOREIGN)]
    if strange:
        raise invalid(f"parameters[{strange[0]}]: not known; there are backend, fsType and overcommit")
    asked = {c.mount.fs_type for c in request.volume_capabilities if c.mount.fs_type}
    fstype = min(asked) if asked else known.get("fsType", "")
    backend = known.get("backend") or ("image" if block or images.tools(fstype or "ext4") else "directory")
    _check(backend, fstype, block, known, asked)
    if backend == "image" and not block:
        fstype = fstype or "ext4"
    need, limit = checks.capacity(request.capacity_range)
    return Wish(backend, fstype, block, need, limit, known, mutable(request.mutable_parameters))


def _check(backend: str, fstype: str, block: bool, known: dict[str, str], asked: set[str]) -> None:
    if backend not in BACKENDS:
        raise invalid(f"parameters[backend]: {backend!r}; use one of {', '.join(BACKENDS)}")
    if known.get("overcommit", "false") not in ("true", "false"):
        raise invalid("parameters[overcommit]: true or false")
    if len(asked) > 1:
        raise invalid(f"volume_capabilities: one file system per volume, not {', '.join(sorted(asked))}")
    if backend == "directory" and (block or fstype):
        what = "a block device" if block else f"file system {fstype}"
        raise invalid(f"parameters[backend]: a directory cannot be {what}; use image")
    if fstype and not block:
        try:
            images.check(1 << 40, fstype)
        except Invalid as exc:
            raise invalid(f"volume_capabilities.mount.fs_type: {exc}") from None


def mutable(given: Any) -> dict[str, str]:
    """Mutable parameters: ``provisioning`` thin (blocks as they are written) or thick (all at once)."""
    for key, value in given.items():
        if key not in _MUTABLE:
            raise invalid(f"mutable_parameters[{key}]: not known; there is {', '.join(_MUTABLE)}")
        if value not in _MUTABLE[key]:
            raise invalid(f"mutable_parameters[{key}]: use one of {', '.join(_MUTABLE[key])}")
    return dict(given)
