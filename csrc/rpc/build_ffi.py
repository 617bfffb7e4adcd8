"""cffi build of csrc/rpc into storageplane.rpc._unary."""

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
NAMES = ("text", "call", "conn", "server")

ffi = FFI()
public = (HERE / "rpc.h").read_text().split("/* cdef */")[1].split("/* end */")[0]
ffi.cdef(re.sub(r"/\*.*?\*/", "", public, flags=re.DOTALL))
ffi.set_source(
    "storageplane.rpc._unary",
    '#include "rpc.h"',
    sources=[f"csrc/rpc/{name}.c" for name in NAMES],
    include_dirs=["csrc/rpc"],
    libraries=["nghttp2"],
    define_macros=[("_GNU_SOURCE", "1")],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-pthread"],
    extra_link_args=["-pthread"],
)
