"""Builds a folder of csrc with a harness under the sanitizers, and runs it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).parent
STRICT = ["-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
TIMES = [pytest.param(1, id="1s"), pytest.param(60, id="60s", marks=pytest.mark.slow)]


class Part(NamedTuple):
    """``names``: its files that a harness needs."""

    folder: Path
    names: Sequence[str]
    libraries: Sequence[str] = ()

    def build(self, out: Path, compiler: str, sanitize: str, harness: str, *more: str) -> str:
        if shutil.which(compiler) is None:
            pytest.skip(f"no {compiler} to build with")
        command = [
            compiler,
            *STRICT,
            f"-I{self.folder}",
            f"-fsanitize={sanitize}",
            "-fno-sanitize-recover=all",
        ]
        sources = [str(self.folder / f"{name}.c") for name in self.names]
        libraries = [f"-l{name}" for name in self.libraries]
        subprocess.run([*command, *more, "-o", out, str(HERE / harness), *sources, *libraries], check=True)
        return str(out)

    def compile_strictly(self, out: Path) -> None:
        for source in sorted(self.folder.glob("*.c")):
            command = ["gcc", *STRICT, f"-I{self.folder}", "-c", "-o", str(out / "x.o"), str(source)]
            subprocess.run(command, check=True)


def run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=Path(argv[0]).parent)
    assert done.returncode == 0, done.stderr[-4000:]


def needs_libfuzzer(tmp_path: Path) -> None:
    """Clang comes without its run-time libraries."""
    if shutil.which("clang") is None:
        pytest.skip("no clang to build with")
    (tmp_path / "probe.c").write_text(
        "int LLVMFuzzerTestOneInput(const char *data, unsigned long size) { return !data && !size; }"
    )
    command = ["clang", "-fsanitize=fuzzer,address,undefined", "-o", "probe", "probe.c"]
    if subprocess.run(command, capture_output=True, check=False, cwd=tmp_path).returncode:
        version = subprocess.run(["clang", "-dumpversion"], capture_output=True, text=True, check=True).stdout
        pytest.skip(f"needs clang's libraries: apt install libclang-rt-{version.partition('.')[0]}-dev")
