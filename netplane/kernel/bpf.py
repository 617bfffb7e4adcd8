"""libbpf behind a handful of functions: load an object, run its programs, read its maps.

Rule 1: the layouts of maps are the ABI header's, which is read as it is (`abi`); nothing repeats it.
Rule 2: what cannot be is KernelError with the reason in the kernel's or libbpf's words.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import errno
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cffi

from ..model.errors import KernelError

BUILT = Path(__file__).parent.parent / "_bpf"
OBJECT, HEADER = BUILT / "netplane.bpf.o", BUILT / "netplane.h"
BATCH = 512

_CDEF = """
typedef int (*print_fn)(int level, const char *format, void *args);
int vsnprintf(char *text, size_t size, const char *format, void *args);
print_fn libbpf_set_print(print_fn fn);
void *bpf_object__open_file(const char *path, const void *opts);
int bpf_object__load(void *object);
void bpf_object__close(void *object);
void *bpf_object__next_program(void *object, void *previous);
const char *bpf_program__name(void *program);
int bpf_program__fd(void *program);
void *bpf_object__next_map(void *object, void *previous);
const char *bpf_map__name(void *map);
int bpf_map__fd(void *map);
int bpf_map__reuse_fd(void *map, int fd);
struct attach_opts { size_t sz; unsigned int flags; int replace_prog_fd; };
int bpf_prog_attach_opts(int prog, int target, int type, const struct attach_opts *opts);
int bpf_prog_detach2(int prog, int target, int type);
int bpf_prog_query(int target, int type, uint32_t flags, uint32_t *attach_flags,
                   uint32_t *ids, uint32_t *count);
int bpf_prog_get_fd_by_id(uint32_t id);
int bpf_map_get_fd_by_id(uint32_t id);
int bpf_obj_get_info_by_fd(int fd, void *info, uint32_t *len);
int bpf_map_lookup_elem(int fd, const void *key, void *value);
int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags);
int bpf_map_delete_elem(int fd, const void *key);
int bpf_map_lookup_batch(int fd, void *in, void *out, void *keys, void *values, uint32_t *count,
                         const void *opts);
struct prog_info {  /* the beginning of struct bpf_prog_info */
    uint32_t type, id; uint8_t tag[8]; uint32_t jited_len, xlated_len; uint64_t jited, xlated;
    uint64_t load_time; uint32_t uid, nr_map_ids; uint64_t map_ids; char name[16]; };
struct map_info {  /* the beginning of struct bpf_map_info */
    uint32_t type, id, key_size, value_size, max_entries, map_flags; char name[16]; };
struct test_run {  /* the beginning of struct bpf_test_run_opts */
    size_t sz; const void *data_in; void *data_out; uint32_t data_size_in, data_size_out;
    const void *ctx_in; void *ctx_out; uint32_t ctx_size_in, ctx_size_out, retval;
    int repeat; uint32_t duration, flags, cpu, batch_size; };
struct tc_hook { size_t sz; int ifindex; int attach_point; uint32_t parent; };
struct tc_opts { size_t sz; int prog_fd; uint32_t flags, prog_id, handle, priority; };
int bpf_tc_hook_create(struct tc_hook *hook);
int bpf_tc_hook_destroy(struct tc_hook *hook);
int bpf_tc_attach(const struct tc_hook *hook, struct tc_opts *opts);
int bpf_tc_detach(const struct tc_hook *hook, const struct tc_opts *opts);
int bpf_tc_query(const struct tc_hook *hook, struct tc_opts *opts);
int bpf_prog_test_run_opts(int prog, struct test_run *opts);
"""
_TYPES = "".join(
    f"typedef uint{bits}_t __{kind}{bits};" for kind, bits in (("u", 8), ("u", 16), ("u", 32), ("u", 64))
) + "".join(f"typedef uint{bits}_t __be{bits};" for bits in (16, 32))


@cache
def abi() -> Any:
    """The structs and enums of the header. Raises KernelError when it was not built."""
    ffi = cffi.FFI()
    try:
        text = HEADER.read_text()
    except OSError as exc:
        raise KernelError(exc.errno or 2, "read the packet path's header", f"{HEADER}: not built") from None
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    constants = dict(re.findall(r"^#define (NP_\w+) (\d+)[ \t]*$", text, flags=re.M))
    text = re.sub(r"^#.*$", "", text, flags=re.M)
    for name, value in constants.items():
        text = re.sub(rf"\b{name}\b", value, text)
    ffi.cdef(_TYPES + "".join(f"\n#define {n} {v}\n" for n, v in constants.items()) + text + _CDEF)
    return ffi


@cache
def constants() -> dict[str, int]:
    """The header's numbers: what it defines, and its enums."""
    lib, found = library(), {}
    for name in re.findall(r"\bNP_[A-Z0-9_]+\b", HEADER.read_text()):
        value = getattr(lib, name, None)
        if isinstance(value, int):
            found[name] = value
    return found


@cache
def library() -> Any:
    name = ctypes.util.find_library("bpf")
    if name is None:
        raise KernelError(errno.ENOENT, "open libbpf", "it is not installed: apt install libbpf1")
    lib = abi().dlopen(name)
    lib.libbpf_set_print(_callback())
    return lib


@cache
def number_of_cpus() -> int:
    """Possible CPUs: how many values a per-CPU map has."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().split("-")[-1]
    return int(last.split(",")[-1]) + 1


def check(result: int, operation: str, detail: str = "") -> int:
    """libbpf's own errors are -errno (from 1.0)."""
    if result < 0:
        raise KernelError(-result, operation, detail)
    return result


class Map:
    """A map by its descriptor. Keys and values are cffi structs of the header, or bytes."""

    def __init__(self, fd: int) -> None:
        info = abi().new("struct map_info *")
        _info(fd, info, "ask a map what it is")
        self.fd = fd
        self.name = abi().string(info.name).decode()
        self.id, self.type = int(info.id), int(info.type)
        self.key_size, self.value_size = int(info.key_size), int(info.value_size)
        self.max_entries = int(info.max_entries)
        self.per_cpu = self.type in (5, 6, 10)  # BPF_MAP_TYPE_PERCPU_HASH, _ARRAY, LRU_PERCPU_HASH
        self._span = -(-self.value_size // 8) * 8 * number_of_cpus() if self.per_cpu else self.value_size

    def close(self) -> None:
        os.close(self.fd)

    @property
    def memory(self) -> int:
        """Bytes that the kernel holds for it."""
        words = Path(f"/proc/self/fdinfo/{self.fd}").read_text().split()
        return int(words[words.index("memlock:") + 1])

    def get(self, key: bytes) -> bytes | None:
        """The value of a key; of a per-CPU map all values, one after the other."""
        value = abi().new("char[]", self._span)
        result = library().bpf_map_lookup_elem(self.fd, key, value)
        if result == -errno.ENOENT:
            return None
        check(result, f"look up in {self.name}")
        return bytes(abi().buffer(value, self._span))

    def put(self, key: bytes, value: bytes) -> None:
        """``value`` of a per-CPU map: one for every CPU, or all, as `get` gives them."""
        if self.per_cpu and len(value) != self._span:
            value = value.ljust(-(-self.value_size // 8) * 8, b"\0") * number_of_cpus()
        check(library().bpf_map_update_elem(self.fd, key, value, 0), f"write to {self.name}")

    def drop(self, key: bytes) -> bool:
        """Whether it was there."""
        result = library().bpf_map_delete_elem(self.fd, key)
        if result == -errno.ENOENT:
            return False
        check(result, f"delete from {self.name}")
        return True

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Everything in it, read by batches (Linux 5.6); what changes meanwhile may be there or not."""
        ffi, lib = abi(), library()
        place, last = ffi.new("char[]", max(self.key_size, 8)), None
        keys, values = ffi.new("char[]", BATCH * self.key_size), ffi.new("char[]", BATCH * self._span)
        count, size = ffi.new("uint32_t *"), BATCH
        while True:
            count[0] = size
            result = lib.bpf_map_lookup_batch(self.fd, last or ffi.NULL, place, keys, values, count, ffi.NULL)
            if result == -errno.ENOSPC and count[0] == 0:  # a hash bucket with more entries than that
                size *= 2
                keys = ffi.new("char[]", size * self.key_size)
                values = ffi.new("char[]", size * self._span)
                continue
            if result < 0 and result != -errno.ENOENT:
                check(result, f"read {self.name}")
            for i in range(count[0]):
                yield (
                    bytes(ffi.buffer(keys + i * self.key_size, self.key_size)),
                    bytes(ffi.buffer(values + i * self._span, self._span)),
                )
            if result == -errno.ENOENT:
                return
            last = place


class Program(NamedTuple):
    """A loaded program. ``tag``: the hash of its instructions."""

    fd: int
    id: int
    name: str
    tag: bytes
    map_ids: tuple[int, ...]

    def maps(self) -> Iterator[Map]:
        """The maps that it holds, each with a descriptor of its own."""
        for number in self.map_ids:
            yield Map(check(library().bpf_map_get_fd_by_id(number), "open a map by its id"))

    def run(self, packet: bytes, size: int = 4096) -> tuple[int, bytes]:
        """BPF_PROG_TEST_RUN: the verdict and the packet afterwards, on this namespace's loopback."""
        ffi = abi()
        out = ffi.new("char[]", size)
        options = ffi.new("struct test_run *")
        data = ffi.from_buffer(packet)
        options.sz = ffi.sizeof("struct test_run")
        options.data_in, options.data_size_in = data, len(packet)
        options.data_out, options.data_size_out = out, size
        check(library().bpf_prog_test_run_opts(self.fd, options), f"run {self.name}")
        return int(options.retval), bytes(ffi.buffer(out, options.data_size_out))

    def close(self) -> None:
        os.close(self.fd)


def program(fd: int) -> Program:
    ffi = abi()
    info, ids = ffi.new("struct prog_info *"), ffi.new("uint32_t[64]")
    info.nr_map_ids, info.map_ids = 64, int(ffi.cast("uintptr_t", ids))
    _info(fd, info, "ask a program what it is")
    name = ffi.string(info.name).decode()
    return Program(fd, info.id, name, bytes(ffi.buffer(info.tag)), tuple(ids[0 : info.nr_map_ids]))


class Loaded(NamedTuple):
    programs: Mapping[str, Program]
    maps: Mapping[str, Map]

    def close(self) -> None:
        for program in self.programs.values():
            program.close()
        for one in self.maps.values():
            one.close()


def load(path: Path = OBJECT, reuse: Iterable[Map] = ()) -> Loaded:
    """Verify and load every program; maps of equal name and shape in ``reuse`` are shared, not made.

    Raises KernelError: what the kernel or libbpf has against it.
    """
    ffi, lib = abi(), library()
    known = {m.name: m for m in reuse}
    with told() as words:
        handle = lib.bpf_object__open_file(os.fsencode(path), ffi.NULL)
        if handle == ffi.NULL:
            raise KernelError(errno.ENOENT, f"open {path.name}", _reason(words) or "not built")
        try:
            for one in _each(lib.bpf_object__next_map, handle):
                if old := known.get(ffi.string(lib.bpf_map__name(one)).decode()):
                    lib.bpf_map__reuse_fd(one, old.fd)
            check(lib.bpf_object__load(handle), f"load {path.name}", _reason(words))
            return _kept(handle)
        finally:
            lib.bpf_object__close(handle)


def _kept(handle: Any) -> Loaded:
    """With descriptors of its own: the object closes those it has."""
    ffi, lib = abi(), library()
    programs, maps = {}, {}
    for one in _each(lib.bpf_object__next_program, handle):
        name = ffi.string(lib.bpf_program__name(one)).decode()
        programs[name] = program(os.dup(lib.bpf_program__fd(one)))
    for one in _each(lib.bpf_object__next_map, handle):
        name = ffi.string(lib.bpf_map__name(one)).decode()
        if name.startswith("np_"):  # not libbpf's own
            maps[name] = Map(os.dup(lib.bpf_map__fd(one)))
    return Loaded(programs, maps)


def _each(step: Any, handle: Any) -> Iterator[Any]:
    ffi = abi()
    one = step(handle, ffi.NULL)
    while one != ffi.NULL:
        yield one
        one = step(handle, one)


def _info(fd: int, info: Any, operation: str) -> None:
    length = abi().new("uint32_t *", abi().sizeof(abi().typeof(info).item))
    check(library().bpf_obj_get_info_by_fd(fd, info, length), operation)


_heard = threading.local()  # .words: where libbpf's words of this thread go


@contextlib.contextmanager
def told() -> Iterator[list[str]]:
    """What libbpf says in this thread meanwhile; at other times nobody listens."""
    library()
    _heard.words = words = list[str]()
    try:
        yield words
    finally:
        del _heard.words


def _say(level: int, text: Any, args: Any) -> int:
    words = getattr(_heard, "words", None)
    if words is None or level > 1:  # LIBBPF_DEBUG
        return 0
    ffi = abi()
    line = ffi.new("char[]", 512)
    _libc().vsnprintf(line, 512, text, args)
    words.append(ffi.string(line).decode(errors="replace").strip())
    return 0


@cache
def _libc() -> Any:
    return abi().dlopen(None)


@cache
def _callback() -> Any:
    """Kept for good: libbpf may call it from any thread."""
    return abi().callback("int(int, const char *, void *)", _say)


def _reason(words: list[str]) -> str:
    """The first lines that say something; a verifier's log can be long."""
    telling = [w.removeprefix("libbpf: ") for w in words if "BEGIN PROG LOAD LOG" not in w]
    return "; ".join(" ".join(w.split()) for w in telling[:3])[:300]
