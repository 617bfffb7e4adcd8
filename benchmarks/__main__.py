"""`make bench`: run every benchmark (or those named) and print ratios; see docs/benchmarks.md."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main(names: list[str]) -> int:
    here = Path(__file__).parent
    known = sorted(p.stem.removeprefix("bench_") for p in here.glob("bench_*.py"))
    unknown = set(names) - set(known)
    if unknown:
        print(
            f"no benchmark named {', '.join(sorted(unknown))}; there are {', '.join(known)}", file=sys.stderr
        )
        return 2
    return max([importlib.import_module(f"benchmarks.bench_{n}").main() for n in names or known], default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
