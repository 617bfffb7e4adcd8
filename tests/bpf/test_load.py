"""The BPF object on this kernel: it loads, and C, BPF and Python agree on every byte of the ABI header."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path as File

import pytest

from netplane.kernel import bpf
from netplane.model.errors import KernelError
from netplane.services.words import KERNEL_PATH

from .kit import UNSPEC, Path

pytestmark = pytest.mark.root

HEADER = File(__file__).parents[2] / "csrc/include/netplane.h"
BPFTOOL = shutil.which("bpftool", path="/usr/sbin:/usr/bin:/sbin:/bin")
STRUCTS = re.findall(r"^struct (\w+) \{", HEADER.read_text(), flags=re.M)


def layout() -> dict[str, dict[str, int]]:
    """By Python: {struct: {field: offset, "": size}}."""
    ffi = bpf.abi()
    found = {}
    for name in STRUCTS:
        kind = ffi.typeof(f"struct {name}")
        found[name] = {field: inner.offset for field, inner in kind.fields} | {"": ffi.sizeof(kind)}
    return found


def test_a_packet_of_no_known_kind_is_left_to_the_kernel_and_counted(path: Path) -> None:
    packet = bytes(12) + bytes.fromhex("0800") + bytes(50)
    for _ in range(3):
        assert path.run("np_from_wire", packet) == (UNSPEC, packet)
    assert path.counted("UNUSUAL") == 3
    assert path.counted("FAST") == 0


def test_python_s_layout_is_c_s(tmp_path: File) -> None:
    fields = [(s, f) for s, inner in layout().items() for f in inner if f]
    lines = [f'printf("%zu\\n", offsetof(struct {s}, {f}));' for s, f in fields]
    lines += [f'printf("%zu\\n", sizeof(struct {s}));' for s in STRUCTS]
    source = tmp_path / "layout.c"
    source.write_text(
        '#include <stddef.h>\n#include <stdio.h>\n#include "netplane.h"\nint main(void){'
        + "".join(lines)
        + "}"
    )
    subprocess.run(["cc", "-I", HEADER.parent, "-o", tmp_path / "layout", source], check=True)
    said = subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True).stdout.split()
    offsets = [layout()[s][f] for s, f in fields] + [layout()[s][""] for s in STRUCTS]
    assert [int(word) for word in said] == offsets


def test_python_s_layout_is_the_object_s() -> None:
    if BPFTOOL is None:
        pytest.skip("needs bpftool: apt install bpftool")
    dumped = subprocess.run(
        [BPFTOOL, "-j", "btf", "dump", "file", bpf.OBJECT], capture_output=True, text=True, check=True
    )
    built = {
        t["name"]: {m["name"]: m["bits_offset"] // 8 for m in t["members"]} | {"": t["size"]}
        for t in json.loads(dumped.stdout)["types"]
        if t["kind"] == "STRUCT" and t["name"] in STRUCTS
    }
    assert built == layout()


@pytest.mark.parametrize("name", STRUCTS)
def test_no_struct_has_padding(name: str) -> None:
    kind = bpf.abi().typeof(f"struct {name}")
    assert sum(bpf.abi().sizeof(field.type) for _, field in kind.fields) == bpf.abi().sizeof(kind)


def test_the_packaged_header_is_the_source_s() -> None:
    assert bpf.HEADER.read_text() == HEADER.read_text()


def test_what_is_no_object_is_refused_in_libbpf_s_words() -> None:
    with pytest.raises(KernelError, match=r"open netplane.h.*not a proper ELF"):
        bpf.load(bpf.HEADER)


def test_a_later_load_shares_the_maps_of_an_earlier_one(path: Path) -> None:
    other = bpf.load(reuse=path.loaded.maps.values())
    assert {n: m.id for n, m in other.maps.items()} == {n: m.id for n, m in path.loaded.maps.items()}
    other.close()


def test_the_mark_that_keeps_a_packet_to_the_kernel_is_one_number() -> None:
    assert f"#define NP_MARK_KERNEL {KERNEL_PATH:#x} " in HEADER.read_text()
