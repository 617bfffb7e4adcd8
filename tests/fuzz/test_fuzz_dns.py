"""csrc/dns under the sanitizers: any bytes, and readers against the writer. Longer with -m slow."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc/dns"
SOURCES = [str(CSRC / f"{name}.c") for name in ("hash", "reader", "table", "query", "answer", "limit")]
STRICT = ["-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}", "-pthread"]
TIMES = [pytest.param(2, id="2s"), pytest.param(60, id="60s", marks=pytest.mark.slow)]


def build(out: Path, compiler: str, sanitize: str, harness: str, *more: str) -> str:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} to build with")
    command = [compiler, *STRICT, f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", *more]
    subprocess.run([*command, "-o", str(out), str(HERE / harness), *SOURCES], check=True)
    return str(out)


def run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=Path(argv[0]).parent)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("seconds", TIMES)
def test_mutated_queries_crash_nothing(tmp_path: Path, seconds: int) -> None:
    run(build(tmp_path / "fuzz", "gcc", "address,undefined", "fuzz_answer.c"), str(seconds))


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


@pytest.mark.parametrize("seconds", TIMES)
def test_libfuzzer_finds_nothing(tmp_path: Path, seconds: int) -> None:
    needs_libfuzzer(tmp_path)
    program = build(tmp_path / "fuzz", "clang", "fuzzer,address,undefined", "fuzz_answer.c", "-DLIBFUZZER")
    run(program, f"-max_total_time={seconds}", "-max_len=600", "-use_value_profile=1")


@pytest.mark.parametrize("seconds", TIMES)
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_names_change_while_threads_answer(tmp_path: Path, seconds: int, sanitizer: str) -> None:
    more = ["-Wno-tsan"] if sanitizer == "thread" else []  # gcc's TSan does not know fences: see reader.c
    run(build(tmp_path / "race", "gcc", sanitizer, "race.c", *more), str(seconds))


def test_all_of_it_compiles_without_a_warning(tmp_path: Path) -> None:
    for source in sorted(CSRC.glob("*.c")):
        subprocess.run(["gcc", *STRICT, "-c", "-o", str(tmp_path / "x.o"), str(source)], check=True)
