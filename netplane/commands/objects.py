"""apply, get, describe, delete: kubectl's habits over any store.

Rule 1: apply reads and checks every document, and merges each onto what is stored, before it writes one.
Rule 2: an error is one line on stderr and exit status 1; wrong usage is 2.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from ..health import read_status
from ..model.base import Key
from ..model.errors import Conflict, Expired, Invalid, NetplaneError, NotFound, Unavailable
from ..model.services import Service
from ..store import DEFAULT, Store, merge, open_store
from . import extra, manifests
from .describe import describe
from .output import Printer, slug
from .query import Query

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
            click.echo(f"{slug(one.key)} {_apply(store, one)}")


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


def _follow(store: Store, query: Query, printer: Printer, since: int) -> None:
    """Until Ctrl-C, which ends it at once: as an exception it could fall into the middle of a wait, whose
    lock CPython then does not hold and gives back all the same (threading.Condition)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    names = [cls.KIND for cls in query.kinds]
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


@click.command("describe")
@click.argument("words", nargs=-1, required=True, metavar="KIND [NAME]...")
@click.option("-l", "--selector", metavar="SELECTOR", help="Labels to match: app=web,tier!=db.")
@namespace_option
@store_option
@click.option("--run-dir", type=click.Path(path_type=Path), default=Path("/run/netplane"), show_default=True)
@told
def describe_command(words: tuple[str, ...], url: str, run_dir: Path, **options: Any) -> None:
    """Show objects for people, with their events, and a service with its endpoints as this node uses them."""
    query = Query(words, **options)
    with closing(open_store(url)) as store:
        chosen, _ = query.select(store)
        beside, _ = store.list(["EndpointSlice", "Event"])
        more = extra.lines(chosen, store)
    if not chosen:
        click.echo("No resources found", err=True)
    asked = any(isinstance(obj, Service) and obj.ejects for obj in chosen)
    ejected = _ejected(run_dir) if asked else None
    texts = (describe(o, beside, ejected=ejected, more=more.get(str(o.key), ())) for o in chosen)
    click.echo("\n\n\n".join(texts))


def _ejected(run_dir: Path) -> list[dict[str, Any]] | None:
    """What the agent of a run directory has taken out of rotation; None when none answers."""
    try:
        found: list[dict[str, Any]] = read_status(run_dir).get("ejected", [])
    except Unavailable:
        return None
    return found


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
