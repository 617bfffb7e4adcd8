"""Attachments by what an ADD asks of them, for a process that lives for one request and cannot read them all.

An agent has its snapshot and makes no use of this. The first process that has none adds a table to the file,
and triggers that keep it, whoever writes from then on, an agent included: SQLite itself carries them out.

Rule 1: a term is derived from the record alone; what is looked up here is read again as an object.
Rule 2: a record that cannot be read has no terms, and then there is no table: its address would be free.
"""

from __future__ import annotations

from typing import NamedTuple

from .sqlite import SqliteStore

# Whose addresses a record has: its network's, '' the node's; NULL when they are not of our giving.
_SCRIPT = (
    """CREATE TABLE attachment_terms (
        node TEXT NOT NULL, what TEXT NOT NULL, value TEXT NOT NULL,
        revision INTEGER NOT NULL, name TEXT NOT NULL,
        PRIMARY KEY (node, what, value, revision, name)) WITHOUT ROWID""",
    "CREATE INDEX attachment_terms_by_name ON attachment_terms (name)",
    """CREATE VIEW attachment_bodies AS SELECT
        name,
        body ->> '$.spec.node' AS node,
        CAST(coalesce(body ->> '$.metadata.resourceVersion', '0') AS INTEGER) AS revision,
        CASE coalesce(body ->> '$.spec.ipam', '')
            WHEN '' THEN '' WHEN 'netplane' THEN body ->> '$.spec.network' END AS network,
        body
        FROM (SELECT name, CAST(body AS TEXT) AS body FROM objects
            WHERE kind = 'Attachment' AND namespace = '')""",
    """CREATE VIEW attachment_terms_now AS
        SELECT node, 'made' AS what, network AS value, revision, name
            FROM attachment_bodies WHERE network IS NOT NULL
        UNION ALL SELECT node, 'ip',
            network || ' ' || substr(one.value ->> '$.address', 1, instr(one.value ->> '$.address', '/') - 1),
            revision, name
            FROM attachment_bodies, json_each(coalesce(body -> '$.spec.ips', '[]')) AS one
            WHERE network IS NOT NULL
        UNION ALL SELECT node, 'port',
            lower(coalesce(one.value ->> '$.protocol', 'tcp')) || ' ' || (one.value ->> '$.hostPort'),
            revision, name
            FROM attachment_bodies, json_each(coalesce(body -> '$.spec.ports', '[]')) AS one
        UNION ALL SELECT node, 'pod', (body ->> '$.spec.podNamespace') || '/' || (body ->> '$.spec.podName'),
            revision, name
            FROM attachment_bodies WHERE body ->> '$.spec.podName' IS NOT NULL
        UNION ALL SELECT node, 'phase', coalesce(body ->> '$.phase', 'Pending'), revision, name
            FROM attachment_bodies
        UNION ALL SELECT node, 'boot', body ->> '$.spec.bootID', revision, name
            FROM attachment_bodies WHERE body ->> '$.spec.bootID' IS NOT NULL""",
    """CREATE TRIGGER attachment_terms_put AFTER INSERT ON objects WHEN new.kind = 'Attachment' BEGIN
        DELETE FROM attachment_terms WHERE name = new.name;
        INSERT OR IGNORE INTO attachment_terms SELECT * FROM attachment_terms_now WHERE name = new.name;
        END""",
    """CREATE TRIGGER attachment_terms_gone AFTER DELETE ON objects WHEN old.kind = 'Attachment' BEGIN
        DELETE FROM attachment_terms WHERE name = old.name;
        END""",
    "INSERT OR IGNORE INTO attachment_terms SELECT * FROM attachment_terms_now",
)
_UNREADABLE = "SELECT 1 FROM objects WHERE kind = 'Attachment' AND NOT json_valid(CAST(body AS TEXT))"
_THERE = "SELECT 1 FROM sqlite_schema WHERE name = 'attachment_terms'"
_FIND = "SELECT name FROM attachment_terms WHERE node = ? AND what = ? AND value = ?"
_OF_WHAT = "SELECT 1 FROM attachment_terms WHERE node = ?1 AND what = ?2 AND value"
_OTHER = f"{_OF_WHAT} < ?3 UNION ALL {_OF_WHAT} > ?3 LIMIT 1"
_NEWEST = """SELECT ip.value, ip.revision FROM (
    SELECT name FROM attachment_terms WHERE node = ? AND what = 'made' AND value = ?
    ORDER BY revision DESC LIMIT ?) AS made JOIN attachment_terms AS ip ON ip.name = made.name
    WHERE ip.what = 'ip' AND ip.node = ?"""


class Made(NamedTuple):
    """An address, and the revision of the record that has it."""

    address: str
    revision: int


class AttachmentIndex:
    """The attachments of one node in a store's file. Each question costs the same among 10 and 10,000."""

    def __init__(self, store: SqliteStore, node: str) -> None:
        self._store, self._node = store, node

    def prepare(self) -> bool:
        """Make the table where there is none, from all records, once. False: it cannot be (rule 2)."""
        with self._store.view() as db:
            if db.execute(_THERE).fetchone():
                return True
        with self._store.writing() as db:
            if db.execute(_THERE).fetchone():
                return True
            if db.execute(_UNREADABLE).fetchone():
                return False
            for statement in _SCRIPT:
                db.execute(statement)
        return True

    def names(self, what: str, value: str) -> list[str]:
        """``what``: ip ("NETWORK ADDRESS"), port ("PROTOCOL PORT") or pod ("NAMESPACE/NAME")."""
        with self._store.view() as db:
            return [name for (name,) in db.execute(_FIND, (self._node, what, value))]

    def any_other(self, what: str, value: str) -> bool:
        """Whether a record has another ``what`` (phase, boot) than this value."""
        with self._store.view() as db:
            return db.execute(_OTHER, (self._node, what, value)).fetchone() is not None

    def newest(self, network: str, most: int) -> list[Made]:
        """The addresses of a network's newest records."""
        with self._store.view() as db:
            rows = db.execute(_NEWEST, (self._node, network, most, self._node)).fetchall()
        return [Made(value.partition(" ")[2], revision) for value, revision in rows]
