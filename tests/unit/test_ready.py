"""Descriptors beyond select(2)'s 1,023, which an agent with a thousand pods has."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterator

import pytest

from netplane.kernel.ready import readable

FAR = 2000


@pytest.fixture
def far() -> Iterator[int]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard <= FAR:
        pytest.skip(f"a process may have {hard} descriptors only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FAR + 100), hard))
    near = os.eventfd(0)
    found = fcntl.fcntl(near, fcntl.F_DUPFD, FAR)
    yield found
    os.close(found)
    os.close(near)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_descriptor_beyond_1023_is_waited_for(far: int) -> None:
    assert readable(far, timeout=0.01) == []
    os.eventfd_write(far, 1)
    assert readable(far) == [far]
