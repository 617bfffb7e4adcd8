"""The BPF object on this kernel: it loads, it runs on a packet and counts it, its ABI is the header's.

packet ──> BPF_PROG_TEST_RUN(np_ingress) ──> TC_ACT_UNSPEC, np_counters[PASS] += 1 packet, 64 bytes
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]
OBJECT = ROOT / "netplane/_bpf/netplane.bpf.o"
HEADER = ROOT / "csrc/include/netplane.h"
BPFTOOL = shutil.which("bpftool", path="/usr/sbin:/usr/bin:/sbin:/bin")
TC_ACT_UNSPEC = 0xFFFFFFFF
SIZES = {"int": 4, "unsigned int": 4, "unsigned long long": 8, "unsigned short": 2, "unsigned char": 1}
SIZES |= {f"__{sign}{bits}": bits // 8 for sign in "us" for bits in (8, 16, 32, 64)}
SIZES |= {f"__be{bits}": bits // 8 for bits in (16, 32, 64)}


@pytest.fixture(scope="module", autouse=True)
def needed() -> None:
    if BPFTOOL is None:
        pytest.skip("needs bpftool: apt install bpftool")
    if not OBJECT.exists():
        pytest.skip("needs the BPF object: apt install clang libbpf-dev, then make build")


def bpftool(*args: object) -> Any:
    done = subprocess.run([str(BPFTOOL), "-j", *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout or "null")


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[Path]:
    """The object loaded and pinned in a bpffs that only this run's mount namespace sees."""
    subprocess.run(["mount", "-t", "bpf", "bpf", str(tmp_path)], check=True)
    try:
        bpftool("prog", "loadall", OBJECT, tmp_path / "progs", "pinmaps", tmp_path / "maps")
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def counters(pins: Path, verdict: int) -> tuple[int, int]:
    """Packets and bytes of a verdict, summed over the CPUs."""
    entry = bpftool("map", "lookup", "pinned", pins / "maps/np_counters", "key", verdict, 0, 0, 0)
    values = [v["value"] for v in entry["formatted"]["values"]]
    return sum(v["packets"] for v in values), sum(v["bytes"] for v in values)


def test_a_packet_in_is_left_to_the_kernel_and_counted(loaded: Path) -> None:
    packet = loaded.parent / f"{loaded.name}.packet"
    packet.write_bytes(bytes.fromhex("02000000000102000000000208004500") + bytes(48))
    assert counters(loaded, 0) == (0, 0)
    ran = bpftool("prog", "run", "pinned", loaded / "progs/np_ingress", "data_in", packet, "repeat", 3)
    assert ran["retval"] == TC_ACT_UNSPEC
    assert counters(loaded, 0) == (3, 3 * 64)
    assert counters(loaded, 1) == counters(loaded, 2) == (0, 0)


def header_sizes() -> dict[str, int]:
    """Every struct of the ABI header with the size that its fields add up to: padding is a fault."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    found = {}
    for name, body in re.findall(r"struct (\w+) \{(.*?)\};", text, flags=re.S):
        found[name] = sum(field_size(field) for field in body.split(";") if field.strip())
    return found


def field_size(field: str) -> int:
    match = re.fullmatch(r"(.+?)\s*(\w+(?:\s*,\s*\w+)*)(?:\[(\d+)\])?", field.strip())
    assert match, field
    return SIZES[match[1]] * len(match[2].split(",")) * int(match[3] or 1)


def test_the_header_s_structs_are_the_object_s() -> None:
    types = bpftool("btf", "dump", "file", OBJECT)["types"]
    built = {t["name"]: t["size"] for t in types if t["kind"] == "STRUCT"}
    expected = header_sizes()
    assert expected == {"np_counter": 16} | expected
    assert {name: size for name, size in built.items() if name in expected}, "no struct of the ABI in BTF"
    for name, size in expected.items():
        assert built.get(name, size) == size, f"struct {name}: {built[name]} bytes in BTF, {size} of fields"


def test_the_verdicts_of_the_header_size_the_counters(loaded: Path) -> None:
    shown = bpftool("map", "show", "pinned", loaded / "maps/np_counters")
    (count,) = re.findall(r"NP_VERDICT_MAX = (\d+)", HEADER.read_text())
    assert (shown["max_entries"], shown["bytes_value"]) == (int(count), header_sizes()["np_counter"])
