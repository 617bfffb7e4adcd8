"""csrc/dns under the sanitizers: any bytes, and readers against the writer. Longer with -m slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from .sanitized import HERE, TIMES, Part, needs_libfuzzer, run

NAMES = ("hash", "reader", "table", "query", "answer", "limit")
DNS = Part(HERE.parent.parent / "csrc/dns", NAMES)


@pytest.mark.parametrize("seconds", TIMES)
def test_mutated_queries_crash_nothing(tmp_path: Path, seconds: int) -> None:
    run(DNS.build(tmp_path / "fuzz", "gcc", "address,undefined", "fuzz_answer.c"), str(seconds))


@pytest.mark.parametrize("seconds", TIMES)
def test_libfuzzer_finds_nothing(tmp_path: Path, seconds: int) -> None:
    needs_libfuzzer(tmp_path)
    program = DNS.build(
        tmp_path / "fuzz", "clang", "fuzzer,address,undefined", "fuzz_answer.c", "-DLIBFUZZER"
    )
    run(program, f"-max_total_time={seconds}", "-max_len=600", "-use_value_profile=1")


@pytest.mark.parametrize("seconds", TIMES)
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_names_change_while_threads_answer(tmp_path: Path, seconds: int, sanitizer: str) -> None:
    more = ["-Wno-tsan"] if sanitizer == "thread" else []  # gcc's TSan does not know fences: see reader.c
    run(DNS.build(tmp_path / "race", "gcc", sanitizer, "race.c", *more), str(seconds))


def test_all_of_it_compiles_without_a_warning(tmp_path: Path) -> None:
    DNS.compile_strictly(tmp_path)
