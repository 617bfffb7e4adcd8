"""Namespaces at paths, on the real kernel."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from netplane.kernel import netns
from netplane.model.errors import KernelError

pytestmark = pytest.mark.root


def test_a_namespace_is_another_one_and_goes_away(make_netns: Callable[[str], str]) -> None:
    before = os.readlink("/proc/thread-self/ns/net")
    path = make_netns("a")
    inside = netns.call(path, os.readlink, "/proc/thread-self/ns/net")
    assert inside != before
    assert os.readlink("/proc/thread-self/ns/net") == before
    assert netns.exists(path)
    netns.delete(path)
    assert not netns.exists(path) and not os.path.exists(path)


def test_a_program_that_fails_says_why(make_netns: Callable[[str], str]) -> None:
    with pytest.raises(KernelError, match="does not exist"):
        netns.run(make_netns("a"), "ip", "link", "show", "nosuch")


def test_a_path_that_holds_no_namespace_is_refused(tmp_path: object) -> None:
    path = f"{tmp_path}/plain"
    open(path, "w").close()
    assert not netns.exists(path)
    with pytest.raises(KernelError):
        netns.call(path, os.getpid)
