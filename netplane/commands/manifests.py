"""Manifest files named on the command line, all read and held to the rules before anything is written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..model import codec
from ..model.base import Key
from ..model.errors import Invalid
from ..store.manifests import SUFFIXES


class Given(NamedTuple):
    key: Key
    manifest: dict[str, Any]  # as written, with its namespace filled in


def given(files: tuple[str, ...], namespace: str | None, recursive: bool = False) -> list[Given]:
    """Every document of ``files`` ("-": stdin; directories: their manifests). Raises Invalid."""
    found: dict[Key, tuple[str, Given]] = {}
    for source, text in _texts(files, recursive):
        documents = codec.documents(text, source)
        for raw in documents:
            try:
                one = _one(raw, namespace)
            except Invalid as exc:
                raise Invalid(f"{source}: {exc}") from None
            if one.key in found:
                raise Invalid(f"{source}: {one.key} stands in {found[one.key][0]} already")
            found[one.key] = (source, one)
    if not found:
        raise Invalid(f"no objects in {', '.join(files)}")
    return [one for _, one in found.values()]


def _one(raw: dict[str, Any], namespace: str | None) -> Given:
    obj = codec.parse(raw, namespace or "default")
    if namespace and obj.NAMESPACED and obj.namespace != namespace:
        raise Invalid(
            f"{obj.key}: metadata.namespace: {obj.namespace!r} is not the namespace {namespace!r} of -n"
        )
    metadata = {**raw["metadata"]}
    if obj.NAMESPACED:
        metadata["namespace"] = obj.namespace
    return Given(obj.key, {**raw, "metadata": metadata})


def _texts(files: tuple[str, ...], recursive: bool) -> Iterator[tuple[str, bytes]]:
    for name in files:
        if name == "-":
            yield "stdin", sys.stdin.buffer.read()
            continue
        path = Path(name)
        if not path.is_dir():
            yield str(path), _read(path)
            continue
        below = path.rglob("*") if recursive else path.glob("*")
        for entry in sorted(p for p in below if p.suffix in SUFFIXES and p.is_file()):
            yield str(entry), _read(entry)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise Invalid(f"{path}: {exc.strerror}") from exc
