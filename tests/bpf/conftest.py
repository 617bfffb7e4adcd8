"""The programs of this tree, or a skip that says how to get them built."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netplane.kernel import bpf
from netplane.model.errors import KernelError

from .kit import Path


@pytest.fixture
def path() -> Iterator[Path]:
    try:
        made = Path()
    except KernelError as exc:
        if bpf.OBJECT.exists():
            raise
        pytest.skip(f"needs the BPF object ({exc}): apt install clang libbpf-dev, then make build")
    yield made
    made.close()
