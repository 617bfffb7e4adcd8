"""Builds what is not Python: the cffi extension, the static CNI binary and the BPF objects.

A C compiler is needed; clang and libbpf are not: without them the install succeeds, says so once,
and everything but the fast path works. Without nghttp2 everything works but serving CSI.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
BPF_SOURCES = sorted((HERE / "csrc/bpf").glob("*.bpf.c"))


def build_cni(out: Path) -> None:
    """csrc/cni into one static program without dependencies.

    With musl where it is: glibc's start asks the processor what it can (cpuid) some seventy times, and each
    question leaves a virtual machine for its host, which costs more than all that the program does.
    """
    out.mkdir(parents=True, exist_ok=True)
    sources = [str(p) for p in sorted((HERE / "csrc/cni").glob("*.c"))]
    if not sources:
        return
    compiler = shutil.which("musl-gcc") or "cc"
    command = [compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s"]
    subprocess.run([*command, "-D_GNU_SOURCE", "-o", str(out / "netplane-cni"), *sources], check=True)


def build_bpf(out: Path) -> None:
    """csrc/bpf into CO-RE objects; says once what is missing, and goes on without."""
    out.mkdir(parents=True, exist_ok=True)
    clang = shutil.which("clang")
    if clang is None or not Path("/usr/include/bpf/bpf_helpers.h").exists():
        print("netplane: clang or libbpf's headers are missing: no fast path", file=sys.stderr)
        return
    shutil.copy(HERE / "csrc/include/netplane.h", out)  # from which Python has the maps' layouts
    multiarch = subprocess.run(["cc", "-print-multiarch"], capture_output=True, text=True, check=False)
    include = ["-I", str(HERE / "csrc/include"), "-I", f"/usr/include/{multiarch.stdout.strip()}"]
    for source in BPF_SOURCES:
        target = out / source.name.replace(".bpf.c", ".bpf.o")
        command = [clang, "-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3", *include]
        done = subprocess.run([*command, "-c", str(source), "-o", str(target)], check=False)
        if done.returncode:
            target.unlink(missing_ok=True)
            print(f"netplane: clang refused {source.name}: no fast path", file=sys.stderr)


def has_nghttp2() -> bool:
    """Says once what is missing."""
    probe = ["cc", "-fsyntax-only", "-x", "c", "-"]
    text = "#include <nghttp2/nghttp2.h>\n"
    found = not subprocess.run(probe, input=text, text=True, capture_output=True, check=False).returncode
    if not found:
        print("netplane: nghttp2's header is missing (libnghttp2-dev): no storageplane csi", file=sys.stderr)
    return found


class BuildPrograms(build_py):
    def run(self) -> None:
        super().run()
        roots = {HERE / "netplane"} if self.editable_mode else {Path(self.build_lib) / "netplane"}
        for root in roots:
            build_cni(root / "_bin")
            build_bpf(root / "_bpf")


setup(
    cmdclass={"build_py": BuildPrograms},
    cffi_modules=[
        "csrc/rtnl/build_ffi.py:ffi",
        "csrc/nft/build_ffi.py:ffi",
        "csrc/dns/build_ffi.py:ffi",
        *(["csrc/rpc/build_ffi.py:ffi"] if has_nghttp2() else []),
    ],
)
