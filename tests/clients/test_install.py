"""What `pip install .` gives a user: the wheel's contents, and an install on a machine without clang."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TREES = ("csrc", "netplane", "storageplane")
FILES = ("README.md", "pyproject.toml", "setup.py")
PROGRAM, BPF = "netplane/_bin/netplane-cni", "netplane/_bpf/netplane.bpf.o"
EXTENSIONS = ("netplane/kernel/_rtnl.abi3.so", "netplane/kernel/_nft.abi3.so")
ASK = """echo '{"cniVersion": "1.0.0"}' | "$0" """
BUILT = ("_bin", "_bpf", "*.so", "__pycache__")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The sources alone, nothing built."""
    to = tmp_path / "source"
    to.mkdir()
    for tree in TREES:
        shutil.copytree(ROOT / tree, to / tree, ignore=shutil.ignore_patterns(*BUILT))
    for name in FILES:
        shutil.copy(ROOT / name, to / name)
    return to


@pytest.fixture
def path_without_clang(tmp_path: Path) -> str:
    """A PATH that has every program of the machine but clang."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for directory in ("/usr/bin", "/bin", "/usr/sbin", "/sbin"):
        for name in os.listdir(directory):
            if not name.startswith("clang") and not (programs / name).is_symlink():
                (programs / name).symlink_to(f"{directory}/{name}")
    return str(programs)


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A fresh one, which finds what we depend on where this Python does: tests have no package index."""
    made = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made)], check=True, timeout=120)
    (site_packages(made) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


def site_packages(venv: Path) -> Path:
    return next(venv.glob("lib/python*/site-packages"))


def run(*words: str, **env: str) -> str:
    """stdout and stderr of a program that has these variables beside ours."""
    merged = {**os.environ, **env}
    done = subprocess.run(words, env=merged, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def test_the_wheel_holds_the_programs(source: Path, tmp_path: Path) -> None:
    words = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    run(sys.executable, "-m", "pip", *words)
    wheel = zipfile.ZipFile(next(tmp_path.glob("netplane-*.whl")))
    modes = {info.filename: info.external_attr >> 16 for info in wheel.infolist()}
    assert modes[PROGRAM] & stat.S_IXUSR
    assert {*EXTENSIONS, "netplane/py.typed", "storageplane/cli.py"} <= modes.keys()
    if shutil.which("clang") and Path("/usr/include/bpf/bpf_helpers.h").exists():
        assert BPF in modes
    assert not [name for name in modes if name.startswith(("tests/", "csrc/", "benchmarks/"))]


def test_without_clang_all_but_the_fast_path_is_there(
    source: Path, venv: Path, path_without_clang: str
) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin/python")]
    words = ["install", "-v", "--no-deps", "--no-build-isolation", str(source)]
    said = run(*pip, *words, PATH=path_without_clang)
    assert said.count("no fast path") == 1
    assert not (site_packages(venv) / BPF).exists()
    assert "Usage: netplane" in run(str(venv / "bin/netplane"), "--help")
    assert "Usage: storageplane" in run(str(venv / "bin/storageplane"), "--help")
    assert "clang" in run(str(venv / "bin/netplane"), "doctor", PATH=path_without_clang)
    answer = run("sh", "-c", ASK, str(site_packages(venv) / PROGRAM), CNI_COMMAND="VERSION")
    assert '"supportedVersions"' in answer and '"1.1.0"' in answer
