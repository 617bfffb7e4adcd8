"""A place in a lab: one network namespace, and running things in it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

from ..kernel import netns
from .runner import Process, Runner, finish

T = TypeVar("T")
TEXT = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
PROBE = Path(__file__).parent / "probe.py"
PYTHON = ("-I", "-S")  # neither site-packages nor the environment: starts in a few milliseconds


class Place:
    """``netns`` is the path that holds the namespace; a CNI plugin may be given it as it stands."""

    def __init__(self, name: str, path: Path, runner: Runner) -> None:
        self.name = name
        self.netns = path
        self._runner = runner

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def command(self, argv: tuple[str | Path, ...]) -> tuple[str | Path, ...]:
        """What to execute inside so that ``argv`` runs as this place wants it (see Pod)."""
        return argv

    def popen(self, *argv: str | Path, **options: Any) -> Process:
        """Start a program inside; options are subprocess.Popen's. It ends with the lab at the latest."""
        return self._runner.popen(self.netns, self.command(argv), **options)

    def run(self, *argv: str | Path, check: bool = True, timeout: float = 60, input: str = "") -> str:
        """Run a program inside to its end; its stdout. Raises KernelError with its stderr, Unavailable."""
        process = self.popen(*argv, **TEXT)
        if input:
            assert process.stdin
            process.stdin.write(input)
        what = f"{' '.join(map(str, argv))} in {self.name}"
        return finish(process, what, timeout, check)

    @overload
    def python(self, program: Callable[..., T], *args: Any) -> T: ...
    @overload
    def python(self, program: str | Path, *args: Any) -> str: ...
    def python(self, program: Any, *args: Any) -> Any:
        """A function runs inside in a thread of ours, and its result is returned; a script (its text
        or its Path) runs as a process of its own, and its stdout is returned."""
        if callable(program):
            return netns.call(self.netns, program, *args)
        script = (program,) if isinstance(program, Path) else ("-c", program)
        return self.run(sys.executable, *PYTHON, *script, *map(str, args))

    def probe(self, *args: str | int, **options: Any) -> Process:
        """Start the lab's own test program inside (see probe.py); text pipes unless options say else."""
        argv: list[str | Path] = [sys.executable, *PYTHON, PROBE, *map(str, args)]
        return self._runner.popen(self.netns, argv, **{**TEXT, **options})
