"""cffi build of csrc/dns into netplane.dns._answer."""

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
NAMES = ("hash", "reader", "table", "query", "answer", "limit", "batch", "loop")

ffi = FFI()
ffi.cdef(re.sub(r"/\*.*?\*/", "", (HERE / "dns.h").read_text().split("/* cdef */")[1], flags=re.DOTALL))
ffi.set_source(
    "netplane.dns._answer",
    '#include "dns.h"',
    sources=[f"csrc/dns/{name}.c" for name in NAMES],
    include_dirs=["csrc/dns"],
    define_macros=[("_GNU_SOURCE", "1")],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-pthread"],
    extra_link_args=["-pthread"],
)
