"""What the benchmark of volumes reads of filefrag's words."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import volumes_data

SAID = """Filesystem type is: ef53
File size of f is {size} ({blocks} blocks of 4096 bytes)
 ext:     logical_offset:        physical_offset: length:   expected: flags:
"""


def said(*runs: tuple[int, int, int]) -> str:
    rows = [
        f"   {i}:   {at:8}..{at + n - 1:8}:   {to:8}..{to + n - 1:8}:   {n:4}:"
        for i, (at, to, n) in enumerate(runs)
    ]
    return SAID.format(size=1, blocks=1) + "\n".join(rows) + "\nf: 1 extent found\n"


def test_the_longest_run_counts_by_whole_mib() -> None:
    found = volumes_data.longest(said((0, 1000, 300), (300, 34816, 700)))
    assert found == (2 << 20, 300 * 4096, 34816 * 4096)


@pytest.mark.parametrize("text", ["", said(), said((0, 1000, 255), (255, 5000, 3))])
def test_a_file_without_a_run_of_a_mib_is_left_out(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    done = subprocess.CompletedProcess([], 0, stdout=text)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert volumes_data.in_image(Path("f"), Path("image")) is None


def test_nothing_is_divided_by_where_all_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    stretch = volumes_data.Stretch(Path("f"), 0, 1)
    pairs = {"directory": [(stretch, stretch)], "image": []}
    volumes_data.compare(pairs, lambda *_: 2.0, 1, "by nobody", barred=True)
    shown = capsys.readouterr().out
    assert shown.count("1.00 x") == 2 and shown.count("left out") == 2
