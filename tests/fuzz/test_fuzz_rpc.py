"""csrc/rpc under the sanitizers: any bytes; clients, threads and ends all at once. Longer with -m slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from .sanitized import HERE, TIMES, Part, needs_libfuzzer, run

RPC = Part(HERE.parent.parent / "csrc/rpc", ("text", "call", "conn", "server"), ("nghttp2",))


@pytest.mark.parametrize("seconds", TIMES)
def test_mutated_frames_crash_nothing(tmp_path: Path, seconds: int) -> None:
    run(RPC.build(tmp_path / "fuzz", "gcc", "address,undefined", "fuzz_rpc.c"), str(seconds))


@pytest.mark.parametrize("seconds", TIMES)
def test_libfuzzer_finds_nothing(tmp_path: Path, seconds: int) -> None:
    needs_libfuzzer(tmp_path)
    program = RPC.build(tmp_path / "fuzz", "clang", "fuzzer,address,undefined", "fuzz_rpc.c", "-DLIBFUZZER")
    run(program, f"-max_total_time={seconds}", "-max_len=2000", "-use_value_profile=1")


@pytest.mark.parametrize("seconds", TIMES)
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_clients_come_and_go_while_servers_do(tmp_path: Path, seconds: int, sanitizer: str) -> None:
    run(RPC.build(tmp_path / "race", "gcc", sanitizer, "race_rpc.c"), str(seconds))


def test_all_of_it_compiles_without_a_warning(tmp_path: Path) -> None:
    RPC.compile_strictly(tmp_path)
