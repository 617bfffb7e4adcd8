"""Which backend a class means on a machine, and whether there is room: pure tables."""

from __future__ import annotations

import pytest

from netplane.model.errors import Invalid
from storageplane.backends import Choice, Machine, admit, choose, rounded

ALL = Machine({}, {"disk": 1000, "memory": 100})
BARE = Machine(
    {("image", "ext4"): "mkfs.ext4 is needed", ("btrfs", ""): "/r is not on btrfs"},
    {"disk": 1000, "memory": 100},
)


@pytest.mark.parametrize(
    ("parameters", "block", "machine", "asked", "default", "want"),
    [
        ({}, False, ALL, "", "", ("image", "ext4")),
        ({}, False, BARE, "", "", ("directory", "")),
        ({}, False, ALL, "", "directory", ("directory", "")),
        ({}, False, ALL, "xfs", "", ("image", "xfs")),
        ({"fsType": "btrfs"}, False, ALL, "", "", ("image", "btrfs")),
        ({"fsType": "btrfs"}, False, ALL, "xfs", "", ("image", "xfs")),
        ({}, True, BARE, "", "", ("image", "")),
        ({"backend": "image", "fsType": "ext4"}, True, ALL, "", "", ("image", "")),
        ({"backend": "btrfs"}, False, ALL, "", "", ("btrfs", "")),
        ({"backend": "tmpfs"}, False, BARE, "", "directory", ("tmpfs", "")),
    ],
)
def test_what_a_class_means(parameters, block, machine, asked, default, want) -> None:  # type: ignore[no-untyped-def]
    found = choose(parameters, block, machine, asked, default)
    assert (found.backend, found.fstype) == want
    assert found.enforced == (want[0] != "directory")


@pytest.mark.parametrize(
    ("parameters", "block", "asked", "why"),
    [
        ({"backend": "lvm"}, False, "", "use one of directory, image, btrfs, tmpfs"),
        ({"size": "1Gi"}, False, "", "parameters[size]: not known"),
        ({"overcommit": "yes"}, False, "", "true or false"),
        ({"backend": "image"}, False, "", "mkfs.ext4 is needed"),
        ({"backend": "btrfs"}, False, "", "/r is not on btrfs"),
        ({"backend": "directory"}, True, "", "cannot be a block device"),
        ({"backend": "tmpfs"}, False, "ext4", "cannot be file system ext4"),
        ({"fsType": "zfs"}, False, "", "'zfs' is not supported"),
    ],
)
def test_what_cannot_be_had_says_why(parameters, block, asked, why) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Invalid) as caught:
        choose(parameters, block, BARE, asked)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "overcommit", "size", "promised", "fits"),
    [
        ("image", False, 1000, 0, True),
        ("image", False, 1001, 0, False),
        ("image", False, 600, 500, False),
        ("image", True, 5000, 0, True),
        ("btrfs", False, 1001, 0, False),
        ("tmpfs", False, 101, 0, False),
        ("tmpfs", False, 100, 0, True),
        ("directory", False, 5000, 0, True),
    ],
)
def test_no_more_is_promised_than_there_is(backend, overcommit, size, promised, fits) -> None:  # type: ignore[no-untyped-def]
    assert (admit(Choice(backend, "", overcommit), size, ALL, promised) == "") == fits


def test_sizes_are_whole_blocks() -> None:
    assert [rounded(n) for n in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]
