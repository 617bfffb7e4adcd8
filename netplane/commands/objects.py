"""apply, get, describe, delete: kubectl's habits over any store.

Rule 1: apply reads and checks every document, and merges each onto what is stored, before it writes one.
Rule 2: an error is one line on stderr and exit status 1; wrong usage is 2.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import click
import yaml

from ..model import codec
from ..model.base import Key, Object, amend
from ..model.errors import Conflict, Expired, Invalid, NetplaneError, NotFound
from ..model.selectors import LabelSelector
from ..store import DEFAULT, Store, merge, open_store
from . import kinds, manifests, printing
from .describe import describe

ATTEMPTS = 5


def register(group: click.Group) -> None:
    """Add the commands to netplane's group."""
    for command in (apply_command, get_command, describe_command, delete_command):
        group.add_command(command)


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Errors of ours as one line and exit status 1."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except NetplaneError as exc:
            raise click.ClickException(" ".join(str(exc).split())) from exc

    return run


store_option = click.option(
    "--store", "url", metavar="URL", envvar="NETPLANE_STORE", default=DEFAULT, show_default=True,
    help="Where the objects live: sqlite:///PATH or dir:///PATH.",
)  # fmt: skip
namespace_option = click.option("-n", "--namespace", metavar="NS", help="The namespace [default: default].")
files_option = click.option(
    "-f", "--filename", "files", multiple=True, metavar="FILE",
    help="A manifest, a directory of them, or - for standard input; may be repeated.",
)  # fmt: skip
recursive_option = click.option("-R", "--recursive", is_flag=True, help="Directories with all below them.")


@click.command("apply")
@files_option
@recursive_option
@namespace_option
@store_option
@told
def apply_command(files: tuple[str, ...], recursive: bool, namespace: str | None, url: str) -> None:
    """Make the objects of manifests, or change them to what the manifests say."""
    if not files:
        raise click.UsageError("apply needs -f FILE")
    wanted = manifests.given(files, namespace, recursive)
    with closing(open_store(url)) as store:
        for one in wanted:
            merge.onto(store.get(one.key), one.manifest)  # refuse before anything is written
        for one in wanted:
            click.echo(f"{_slug(one.key)} {_apply(store, one)}")


def _apply(store: Store, one: manifests.Given) -> str:
    for attempt in range(ATTEMPTS):
        live = store.get(one.key)
        try:
            stored = store.put(merge.onto(live, one.manifest), live.revision if live else 0)
        except Conflict:
            if attempt == ATTEMPTS - 1:
                raise
            continue
        if live is None:
            return "created"
        return "unchanged" if stored.revision == live.revision else "configured"
    raise AssertionError("unreachable")


@click.command("get")
@click.argument("words", nargs=-1, required=True, metavar="KIND [NAME]...")
@click.option("-A", "--all-namespaces", is_flag=True, help="Objects of every namespace.")
@click.option("-o", "--output", type=click.Choice(["table", "wide", "yaml", "json", "name"]), default="table")
@click.option("-l", "--selector", metavar="SELECTOR", help="Labels to match: app=web,tier!=db.")
@click.option("-w", "--watch", is_flag=True, help="Go on printing changes until interrupted.")
@click.option("--show-managed-fields", "managed", is_flag=True, help="With managedFields in yaml and json.")
@namespace_option
@store_option
@told
def get_command(
    words: tuple[str, ...], output: str, watch: bool, url: str, **options: Any
) -> None:  # fmt: skip
    """Print objects: KIND is a name such as services or svc, a list such as pv,pvc, or all."""
    query = Query(words, **options)
    printer = Printer(output, query)
    with closing(open_store(url)) as store:
        revision = printer.first(query.select(store))
        if watch:
            _follow(store, query, printer, revision)


class Query:
    """Which objects a command line asks for."""

    def __init__(
        self, words: tuple[str, ...], namespace: str | None = None, all_namespaces: bool = False,
        selector: str | None = None, managed: bool = False,
    ) -> None:  # fmt: skip
        if namespace and all_namespaces:
            raise click.UsageError("-n and -A exclude each other")
        self.resources = kinds.resources(words)
        self.namespace = None if all_namespaces else namespace or "default"
        self.selector: LabelSelector | None = kinds.selector(selector) if selector is not None else None
        self.managed = managed
        self.kinds = tuple(dict.fromkeys(cls for classes, _ in self.resources for cls in classes))
        self.named = all(names for _, names in self.resources)
        if self.named and self.selector:
            raise click.UsageError("a name and -l exclude each other")
        if self.named and all_namespaces:
            raise click.UsageError("a name and -A exclude each other")

    def select(self, store: Store) -> tuple[list[Object], int]:
        """The objects by kind, namespace and name, and the revision. Raises NotFound for a name."""
        objects, revision = store.list([cls.KIND for cls in self.kinds])
        have = {o.key for o in objects}
        for key in self.keys():
            if key not in have:
                raise NotFound(f"{key}: not found")
        order = {cls.KIND: i for i, cls in enumerate(self.kinds)}
        chosen = [o for o in objects if self.wants(o)]
        return sorted(chosen, key=lambda o: (order[o.KIND], o.namespace, o.name)), revision

    def keys(self) -> Iterator[Key]:
        for classes, names in self.resources:
            for cls in classes:
                for name in names:
                    yield Key(cls.KIND, (self.namespace or "") if cls.NAMESPACED else "", name)

    def wants(self, obj: Object) -> bool:
        if self.named:
            return obj.key in set(self.keys())
        here = not obj.NAMESPACED or self.namespace in (None, obj.namespace)
        return here and kinds.matches(self.selector, obj.labels)


class Printer:
    """Prints objects in one of the output forms, first all, then one at a time."""

    def __init__(self, output: str, query: Query) -> None:
        self.output = output
        self.query = query
        self.widths: dict[str, list[int]] = {}

    def first(self, found: tuple[list[Object], int]) -> int:
        """Print a list; returns its revision."""
        objects, revision = found
        if self.output in ("yaml", "json"):
            docs = [shown(o, self.query.managed) for o in objects]
            single = self.query.named and len(docs) == 1
            self._dump(docs[0] if single else {"apiVersion": "v1", "kind": "List", "items": docs})
        elif self.output == "name":
            for obj in objects:
                click.echo(_slug(obj.key))
        elif not objects:
            where = f" in {self.query.namespace} namespace" if self.query.namespace else ""
            namespaced = any(cls.NAMESPACED for cls in self.query.kinds)
            click.echo(f"No resources found{where if namespaced else ''}", err=True)
        else:
            self._tables(objects)
        return revision

    def change(self, obj: Object) -> None:
        """Print one object that changed."""
        if self.output == "name":
            click.echo(_slug(obj.key))
        elif self.output in ("yaml", "json"):
            if self.output == "yaml":
                click.echo("---")
            self._dump(shown(obj, self.query.managed))
        else:
            self._rows(obj.KIND, [obj], header=obj.KIND not in self.widths)

    def _dump(self, doc: dict[str, Any]) -> None:
        if self.output == "json":
            click.echo(json.dumps(doc, indent=4))
        else:
            click.echo(yaml.safe_dump(doc, sort_keys=False, default_flow_style=False), nl=False)

    def _tables(self, objects: list[Object]) -> None:
        present = list(dict.fromkeys(o.KIND for o in objects))
        for i, kind in enumerate(present):
            if i:
                click.echo()
            self._rows(kind, [o for o in objects if kind == o.KIND], header=True)

    def _rows(self, kind: str, objects: list[Object], header: bool) -> None:
        spread = self.query.namespace is None and codec.KINDS[kind].NAMESPACED
        chosen = printing.columns(kind, self.output == "wide", spread)
        now = datetime.now(UTC)
        rows = [printing.row(o, chosen, now) for o in objects]
        if len(self.query.kinds) > 1:
            rows = [self._prefixed(kind, chosen, line) for line in rows]
        widths = self.widths.setdefault(kind, [0] * len(chosen))
        lines = [tuple(c.title for c in chosen), *rows] if header else rows
        for line in printing.table(lines, widths):
            click.echo(line)

    def _prefixed(
        self, kind: str, chosen: tuple[printing.Column, ...], line: tuple[str, ...]
    ) -> tuple[str, ...]:
        return tuple(
            f"{kind.lower()}/{cell}" if column is printing.NAME else cell
            for column, cell in zip(chosen, line, strict=True)
        )


def _follow(store: Store, query: Query, printer: Printer, since: int) -> None:
    names = [cls.KIND for cls in query.kinds]
    try:
        while True:
            try:
                with store.watch(since, names) as watch:
                    while True:
                        for change in watch.next():
                            since = change.revision
                            if query.wants(change.object):
                                printer.change(change.object)
            except Expired:
                since = printer.first(query.select(store))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@click.command("describe")
@click.argument("words", nargs=-1, required=True, metavar="KIND [NAME]...")
@click.option("-l", "--selector", metavar="SELECTOR", help="Labels to match: app=web,tier!=db.")
@namespace_option
@store_option
@told
def describe_command(words: tuple[str, ...], url: str, **options: Any) -> None:
    """Show objects for people, with their endpoints and events."""
    query = Query(words, **options)
    with closing(open_store(url)) as store:
        chosen, _ = query.select(store)
        beside, _ = store.list(["EndpointSlice", "Event"])
    if not chosen:
        click.echo("No resources found", err=True)
    click.echo("\n\n\n".join(describe(obj, beside) for obj in chosen))


@click.command("delete")
@click.argument("words", nargs=-1, metavar="[KIND NAME...]")
@files_option
@recursive_option
@click.option("--ignore-not-found", is_flag=True, help="What is gone already is no error.")
@namespace_option
@store_option
@told
def delete_command(
    words: tuple[str, ...], files: tuple[str, ...], recursive: bool, ignore_not_found: bool, **options: Any
) -> None:
    """Remove objects by name, or those of manifests."""
    namespace, url = options["namespace"], options["url"]
    if bool(words) == bool(files):
        raise click.UsageError("delete needs either KIND NAME or -f FILE")
    if files:
        keys = [one.key for one in manifests.given(files, namespace, recursive)]
    else:
        query = Query(words, namespace)
        if not query.named:
            raise click.UsageError("delete needs a name: KIND NAME, or KIND/NAME")
        keys = list(query.keys())
    with closing(open_store(url)) as store:
        _delete_all(store, keys, ignore_not_found)


def _delete_all(store: Store, keys: list[Key], ignore_not_found: bool) -> None:
    """Delete each; what cannot go does not keep the others, and is named at the end. Raises Invalid."""
    failed: list[str] = []
    for key in keys:
        try:
            last = store.delete(key)
        except NotFound as exc:
            failed += [] if ignore_not_found else [str(exc)]
        except (Invalid, Conflict) as exc:
            failed.append(str(exc))
        else:
            held = ", ".join(last.metadata.finalizers)
            state = f"marked for deletion, held by {held}" if held else "deleted"
            click.echo(f'{key.kind.lower()} "{key.name}" {state}')
    if failed:
        raise Invalid("; ".join(failed))


def shown(obj: Object, managed: bool = False) -> dict[str, Any]:
    """The manifest of an object as ``-o yaml`` prints it: plain JSON types, managedFields on request."""
    kept = obj if managed else amend(obj, metadata=amend(obj.metadata, managed_fields=None))
    plain: dict[str, Any] = json.loads(codec.encode(kept))
    return {"apiVersion": obj.API_VERSION, "kind": obj.KIND, **plain}


def _slug(key: Key) -> str:
    return f"{key.kind.lower()}/{key.name}"
