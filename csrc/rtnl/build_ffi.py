"""cffi build of csrc/rtnl into netplane.kernel._rtnl."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

ffi = FFI()
ffi.cdef((HERE / "rtnl.h").read_text().split("/* cdef */")[1])
ffi.set_source(
    "netplane.kernel._rtnl",
    '#include "rtnl.h"',
    sources=[f"csrc/rtnl/{name}.c" for name in ("rtnl", "netns", "sysctl", "message", "pair", "errand")],
    include_dirs=["csrc/rtnl", "csrc/include"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)
