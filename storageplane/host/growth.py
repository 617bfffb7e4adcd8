"""A volume's data made, and grown to its size where that can be done now, mounted or not."""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path

from netplane.model.errors import KernelError
from netplane.model.storage_facts import Data

from .. import backends
from . import images, loops, mountinfo

log = logging.getLogger(__name__)
LONG = 1.0  # seconds after which a format or growth is worth a line in the log


def ensure(root: Path, data: Data) -> bool:
    """Make the data, let it grow; False while the file system in it has to wait for its next stage.

    Raises KernelError, Invalid, Unavailable.
    """
    begin = time.monotonic()
    backends.ensure(root, data)
    device = loops.find(_image(root, data)) if data.block else ""
    if device:
        loops.resize(device)
    done = data.backend != "image" or _whole(root, data) or _online(root, data)
    took = time.monotonic() - begin
    if took > LONG:
        log.info("%s: %s of %d bytes made or grown in %.1f s", data.path, data.backend, data.size, took)
    return done


def _image(root: Path, data: Data) -> Path:
    return root / data.path / "image"


def _whole(root: Path, data: Data) -> bool:
    return not data.fstype or images.size_of(data.fstype, _image(root, data)) >= data.size - images.SLACK


def _online(root: Path, data: Data) -> bool:
    """Where it is mounted: ext4 needs CAP_SYS_RESOURCE for that, and else waits."""
    device = loops.find(_image(root, data))
    number = os.stat(device).st_rdev if device else 0
    where = f"{os.major(number)}:{os.minor(number)}"
    points = [m.point for m in mountinfo.read() if m.device == where]
    if not device or not points:
        return False
    try:
        backends.grow_shown(root, data, points[0])
    except KernelError as exc:
        if exc.errno not in (errno.EPERM, errno.EACCES, errno.EIO):
            raise
        log.info("%s: grows when it is next published: %s", data.path, exc)
        return False
    return _whole(root, data)
