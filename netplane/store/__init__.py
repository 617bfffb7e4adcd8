"""Where objects live: one contract (`base`), one file per kind of store, `open_store` by URL."""

from __future__ import annotations

from ..model.errors import Invalid
from .base import Change, Store, Watch

__all__ = ["Change", "Store", "Watch", "open_store"]

DEFAULT = "sqlite:///var/lib/netplane/state.db"


def open_store(url: str) -> Store:
    """Open ``sqlite:///PATH`` or ``dir:///PATH``. Raises Invalid for another URL, Unavailable."""
    scheme, separator, rest = url.partition("://")
    if not separator or not rest:
        raise Invalid(f"store {url!r} is not a URL such as {DEFAULT} or dir:///etc/netplane")
    if scheme == "sqlite":
        from .sqlite import SqliteStore

        return SqliteStore(rest)
    if scheme == "dir":
        from .directory import DirectoryStore

        return DirectoryStore(rest)
    raise Invalid(f"store {url!r}: the scheme {scheme!r} is not known; use sqlite or dir")
