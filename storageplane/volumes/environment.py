"""A container's environment, as far as subPathExpr needs it: $(VAR) becomes its value. Pure.

Rule 1: kubelet's order: envFrom, then env, each value seeing what stands before it; the last one wins.
Rule 2: a variable that cannot be had is an error only for who uses it.
Rule 3: a variable from a Secret makes no path: paths stand in mount tables and messages.
Source: kubernetes pkg/kubelet/kubelet_pods.go, third_party/forked/golang/expansion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import msgspec
from msgspec import field

from netplane.model.base import Struct
from netplane.model.errors import Invalid, NetplaneError
from netplane.model.nodes import Node
from netplane.model.pods import Container, Pod
from netplane.model.volumes import ObjectFieldSelector, ResourceFieldSelector

from . import config_map, fields
from .base import Context


class _Key(Struct, frozen=True, kw_only=True):
    key: str
    name: str = ""
    optional: bool = False


class _Reference(Struct, frozen=True, kw_only=True):
    name: str = ""
    optional: bool = False


class _Source(Struct, frozen=True, kw_only=True):
    field_ref: ObjectFieldSelector | None = None
    resource_field_ref: ResourceFieldSelector | None = None
    config_map_key_ref: _Key | None = None
    secret_key_ref: _Key | None = None
    file_key_ref: Any = None


class _Variable(Struct, frozen=True, kw_only=True):
    name: str
    value: str = ""
    value_from: _Source | None = None


class _From(Struct, frozen=True, kw_only=True):
    prefix: str = ""
    config_map_ref: _Reference | None = None
    secret_ref: _Reference | None = None


class _Container(Struct, frozen=True, kw_only=True):
    env: tuple[_Variable, ...] = ()
    env_from: tuple[_From, ...] = field(default=(), name="envFrom")


Variables = dict[str, "str | NetplaneError"]


def sub_path(expression: str, pod: Pod, container: Container, context: Context) -> str:
    """The expanded subPathExpr. Raises Invalid, Unavailable, naming the variable."""
    known = _variables(pod, container, context)

    def value(name: str) -> str:
        found = known.get(name)
        if isinstance(found, NetplaneError):
            raise found
        if found is None:
            raise Invalid(f"{pod.key}: container {container.name}: subPathExpr: no value for {name!r}")
        return found

    return expand(expression, value)


def expand(text: str, value: Callable[[str], str]) -> str:
    """$(NAME) by its value, $$ by $; anything else after a $ stays as it is."""
    return "".join(_pieces(text, value))


def _pieces(text: str, value: Callable[[str], str]) -> Iterator[str]:
    while text:
        before, dollar, rest = text.partition("$")
        yield before
        if not rest:
            yield dollar
            return
        name, closed, after = rest[1:].partition(")")
        if rest[0] == "$":
            yield "$"
            text = rest[1:]
        elif rest[0] == "(" and closed:
            yield value(name)
            text = after
        else:
            yield "$" + rest[0]
            text = rest[1:]


def _variables(pod: Pod, container: Container, context: Context) -> Variables:
    try:
        raw = {"env": container.env or (), "envFrom": container.env_from or ()}
        typed = msgspec.convert(raw, _Container)
    except msgspec.ValidationError as exc:
        raise Invalid(f"{pod.key}: container {container.name}: {exc}") from None
    known: Variables = {}
    for source in typed.env_from:
        known.update(_from(source, pod, context))
    for variable in typed.env:
        known[variable.name] = _value(variable, known, pod, container, context)
    return known


def _from(source: _From, pod: Pod, context: Context) -> Variables:
    if source.config_map_ref is None:
        return {}  # a Secret's keys: no value for them
    ref = source.config_map_ref
    data = config_map.content(pod.namespace, ref.name, ref.optional, context.snapshot)
    return {source.prefix + k: v.decode(errors="replace") for k, v in data.items()}


def _value(
    variable: _Variable, known: Variables, pod: Pod, container: Container, context: Context
) -> str | NetplaneError:
    try:
        if variable.value_from is not None:
            return _taken(variable, pod, container, context)
        return expand(variable.value, lambda name: _earlier(name, known))
    except NetplaneError as exc:
        return exc


def _earlier(name: str, known: Variables) -> str:
    found = known.get(name)
    if isinstance(found, NetplaneError):
        raise found
    return f"$({name})" if found is None else found


def _taken(variable: _Variable, pod: Pod, container: Container, context: Context) -> str:
    source = variable.value_from
    assert source is not None
    if source.field_ref is not None:
        return fields.field(pod, source.field_ref.field_path)
    if source.resource_field_ref is not None:
        ref = source.resource_field_ref
        node = context.snapshot.get(Node, "", context.node)
        allocatable = node.status.allocatable if node else {}
        return fields.resource(
            _named(pod, container, ref.container_name), ref.resource, ref.divisor, allocatable
        )
    if source.config_map_key_ref is not None:
        key = source.config_map_key_ref
        data = config_map.content(pod.namespace, key.name, key.optional, context.snapshot)
        if key.key in data:
            return data[key.key].decode(errors="replace")
        _refuse(pod, container, f"ConfigMap {key.name} has no key {key.key!r} for {variable.name}")
    if source.secret_key_ref is not None:
        _refuse(pod, container, f"{variable.name} is a Secret's, and a path is no secret; use a ConfigMap")
    return _refuse(pod, container, f"the source of {variable.name} is not supported")


def _named(pod: Pod, own: Container, name: str) -> Container:
    every = (*pod.spec.init_containers, *pod.spec.containers)
    return next((c for c in every if c.name == name), own)


def _refuse(pod: Pod, container: Container, why: str) -> NoReturn:
    raise Invalid(f"{pod.key}: container {container.name}: subPathExpr: {why}")
