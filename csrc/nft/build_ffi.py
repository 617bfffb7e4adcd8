"""cffi build of csrc/nft into netplane.kernel._nft."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

ffi = FFI()
ffi.cdef((HERE / "nft.h").read_text().split("/* cdef */")[1])
ffi.set_source(
    "netplane.kernel._nft",
    '#include "nft.h"',
    sources=["csrc/nft/nft.c", "csrc/nft/field.c", "csrc/nft/list.c"],
    include_dirs=["csrc/nft"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)
