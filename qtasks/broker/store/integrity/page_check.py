"""Whether all pages of a database can be read and fit together, as SQLite itself checks it.

Damage of single rows is not found here: rows have checksums of their own.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Final

import apsw

from qtasks.broker.store import storage_errors
from qtasks.broker.store.connection import definitions, definitions_of, schema_version

SMALL_BYTES: Final = 64 * 1024 * 1024
"""Size of a database, in bytes, up to which a start checks it first: about 0.2 s. A larger one is checked meanwhile."""
_SETTINGS: Final = frozenset(
    f"table {name}" for name in ("accounts", "signing_keys", "tokens", "queues", "url_groups", "endpoints", "schedules")
)
_OF_ONE_ROW: Final = re.compile(r"(CHECK constraint failed|(NULL|NUMERIC|TEXT|non-[A-Z]+) value) in ")
"""What SQLite also reports: a value of one row that its column does not allow."""


def is_small(db: apsw.Connection) -> bool:
    """True if a start can wait for the check of all pages."""
    return bool(db.pragma("page_count") * db.pragma("page_size") <= SMALL_BYTES)


def page_findings(db: apsw.Connection, limit: int = 20) -> list[str]:
    """Up to `limit` damages of pages, indices and the schema, one sentence each; an empty list if all is sound.

    Reads every page: about 2 ms for each megabyte. Never raises an error for a damage.
    """
    findings: list[str] = []
    try:
        findings += _schema_findings(db)
        # More than `limit`, because damages of rows are in the list, too.
        for (line,) in db.execute(f"PRAGMA integrity_check({limit + 200})"):
            findings += [text for text in str(line).splitlines() if _is_of_pages(text)]
        findings += _text_findings(db)
    except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError, UnicodeDecodeError) as error:
        findings.append(str(error))
    return findings[:limit]


def fresh_findings(db: apsw.Connection) -> list[str]:
    """As `page_findings`, of what is in the file now, and not of what this connection remembers of it."""
    db.release_memory()
    return page_findings(db)


def note_failure(path: str, *, failed: bool) -> None:
    """Note at the end of a broker whether its storage failed: then the next start checks all pages before it serves."""
    note = _note(path)
    with contextlib.suppress(OSError):  # the disk may be the reason of the failure
        if failed:
            note.touch(mode=0o600)
        else:
            note.unlink(missing_ok=True)


def has_failed(path: str) -> bool:
    """True if the storage had failed when the last broker ended."""
    return _note(path).exists()


def _note(path: str) -> Path:
    return Path(f"{path}.failed")


def sentence(db: apsw.Connection, findings: list[str]) -> str:
    """What a broker says that ends because of `findings` in its database."""
    return storage_errors.sentence_of_damage(db.filename, "; ".join(findings[:3]))


def _text_findings(db: apsw.Connection) -> list[str]:
    """The tables of settings with a text that cannot be decoded. Messages have checksums instead."""
    findings: list[str] = []
    for table in _SETTINGS & definitions(db).keys():
        try:
            db.execute(f"SELECT * FROM {table.removeprefix('table ')}").fetchall()
        except UnicodeDecodeError as error:
            findings.append(f"a text in {table} cannot be read: {error}")
    return findings


def _is_of_pages(text: str) -> bool:
    return text != "ok" and not text.startswith("*** in database") and _OF_ONE_ROW.match(text) is None


def _schema_findings(db: apsw.Connection) -> list[str]:
    """The tables and indices that are missing, or whose text is not that of their version."""
    version = db.pragma("user_version")
    stored = definitions(db)
    if not 0 < version <= schema_version():
        if stored == definitions_of(schema_version()):
            return [f"the number of the schema's version is damaged: {version}"]
        return []  # of a later version, of another program, or new
    return [
        f"the definition of {name} is damaged"
        for name, sql in definitions_of(version).items()
        if stored.get(name) != sql
    ]
