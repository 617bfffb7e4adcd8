"""`netplane doctor`: every lack is one line with its cost and its remedy, and nothing is left behind."""

from __future__ import annotations

import builtins
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from netplane.commands import doctor
from netplane.kernel import probe

from ..descriptors import held


@click.group()
def netplane() -> None:
    """A command line with the doctor alone."""


doctor.register(netplane)


def run(*args: str) -> Result:
    return CliRunner().invoke(netplane, ["doctor", *args])


def finding(name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(run("-o", "json").stdout)
    return next(f for f in found if f["name"] == name)


@pytest.mark.root
def test_one_line_per_check_and_the_exit_status_of_what_is_required(tmp_path: Path) -> None:
    done = run("--state-dir", str(tmp_path))
    lines = done.stdout.splitlines()
    assert all(line.startswith(("ok  ", "missing  ")) for line in lines)
    for name in ("veth", "bridge", "nftables maps", "conntrack", "vxlan", "tcx", "BTF", "libnftables"):
        assert sum(line[9:].startswith(name + " ") for line in lines) == 1
    assert done.exit_code == (1 if "REQUIRED" in done.stdout else 0)
    assert done.exception is None or isinstance(done.exception, SystemExit)


@pytest.mark.root
def test_nothing_is_left_behind() -> None:
    def traces() -> tuple[str, ...]:
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=False).stdout
        left = str(sorted(Path("/tmp").glob("np-probe-*")))
        return (
            links,
            rules,
            Path("/proc/self/mounts").read_text(),
            os.readlink("/proc/self/ns/net"),
            left,
        )

    run()  # imports and caches
    before, open_before = traces(), held()
    run()
    assert traces() == before
    assert held() == open_before


@pytest.mark.root
def test_a_kernel_without_the_thing_says_what_it_costs() -> None:
    kind = doctor.Check(
        "nosuch", lambda: probe.apart(probe.link("nosuch")), doctor.Lack("no nosuch", "modprobe nosuch", True)
    )
    found = doctor.examine(kind)
    assert not found.ok
    assert doctor.line(found).startswith(
        "missing  nosuch             REQUIRED: no nosuch; modprobe nosuch (add a"
    )


@pytest.mark.root
def test_rules_that_the_kernel_refuses_are_a_lack() -> None:
    rules = probe.nft("add rule inet nosuch c accept")
    found = doctor.examine(doctor.Check("nft", lambda: probe.apart(rules), doctor.Lack("", "")))
    assert not found.ok and "No such file" in found.detail


def test_an_old_kernel_is_missing_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "4.19.0-27-amd64")
    assert finding("kernel")["detail"] == "this is 4.19.0-27-amd64"
    assert run().exit_code == 1


def test_a_full_disk_is_missing_and_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "ROOM", 1 << 62)
    done = run("--state-dir", str(tmp_path / "not" / "yet"))
    assert done.exit_code == 1
    assert f"free on {tmp_path})" in done.stdout


def test_a_missing_tool_says_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda *_, **__: None)
    found = finding("mkfs.xfs")
    assert (found["ok"], found["required"]) == (False, False)
    assert found["remedy"] == "apt install xfsprogs" and found["costs"] == "no xfs volumes"


def test_a_missing_library_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "nftables":
            raise ModuleNotFoundError("No module named 'nftables'")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    done = run()
    assert done.exit_code == 1
    assert "No module named 'nftables'" in done.stdout and "Traceback" not in done.output


def test_a_missing_package_is_named() -> None:
    wanted = ["click>=8.1", "no-such-package>=1", 'ruff>=0.6; extra == "dev"']
    assert list(doctor._missing(wanted)) == ["no-such-package"]


def test_without_root_the_remedy_is_root(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied() -> str:
        raise PermissionError(1, "Operation not permitted")

    check = doctor.Check("veth", denied, doctor.Lack("pods get no interface", "modprobe veth", True))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert doctor.examine(check).remedy == "run it with sudo"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert doctor.examine(check).remedy == "modprobe veth"
