"""Saves what can be read of a damaged database into a new one, and names what is lost.

Tables are read page by page (`page_reader`), because SQLite refuses a table as soon as one page is damaged. Pages that
no sound page refers to any more are recognised by the shape of their rows. Indices are made anew; the one over the ids
of messages tells which messages are lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import apsw

from qtasks.broker.core.rules import Stage
from qtasks.broker.store.connection import MEMORY, create_file, migrate, run_in_transaction, schema_version
from qtasks.broker.store.integrity.page_reader import PageFile, Row, TableReader, Value
from qtasks.broker.store.verbs import admission
from qtasks.broker.store.verbs.rows import fetch

_IDS: Final = "messages_by_id"
_SCHEMA: Final = "the schema"


@dataclass
class Salvage:
    """What was saved, and what was not."""

    saved: dict[str, int] = field(default_factory=dict)
    """Rows by table."""
    lost_messages: dict[str, str] = field(default_factory=dict)
    """The last state in the log of each message that is lost, by its id; ``no entry`` if that is lost, too."""
    lost_bodies: list[str] = field(default_factory=list)
    """The ids of messages without their body: they become dead letters."""
    unreadable: dict[str, int] = field(default_factory=dict)
    """Damaged pages and refused rows by table or index."""


def salvage(path: Path, target: Path, newer: Mapping[int, bytes], *, now_ms: int) -> Salvage:
    """Save the database at `path`, with the pages `newer` from its log, into a new one at `target`.

    No process may have it open in SQLite. `now_ms` is wall time, in Unix milliseconds.
    """
    pages = PageFile(path, newer)
    create_file(str(target))
    db = apsw.Connection(str(target))
    try:
        db.execute("PRAGMA journal_mode = MEMORY")  # the caller syncs the file; until then it is a draft
        db.execute("PRAGMA synchronous = OFF")
        migrate(db, _version(pages))
        salvaged, ids = run_in_transaction(db, _copy, pages)
        migrate(db)
        run_in_transaction(db, _name_losses, ids, salvaged)
        run_in_transaction(db, _settle, now_ms)
    finally:
        db.close()
        pages.close()
    return salvaged


def _version(pages: PageFile) -> int:
    """The version of the schema that the database has: older rows get what a migration gives them.

    If the first page is damaged, the version that has as many columns as the longest row of a message.
    """
    header = pages.page(1)
    version = int.from_bytes(header[60:64], "big")
    if header.startswith(b"SQLite format 3\0") and 0 < version <= schema_version():
        return version
    reader = TableReader(pages)
    rows = (row for number in range(2, pages.count + 1) for row in reader.page_rows(number, pages.page(number)))
    longest = max((len(values) for _, values in rows if _is_message(values)), default=_ANY_MESSAGE)
    for version in range(schema_version(), 1, -1):
        if longest > _columns_of_messages(version - 1):
            return version
    return 1


_ANY_MESSAGE: Final = 1000
"""Columns of a message if there is none: then only the current version makes sense."""


def _is_message(values: tuple[Value, ...]) -> bool:
    match values:
        case (None, int(), str(), int(), int(), *rest):
            return len(rest) > 20
    return False


def _columns_of_messages(version: int) -> int:
    db = apsw.Connection(MEMORY)
    migrate(db, version)
    count = db.execute("SELECT count(*) FROM pragma_table_info('messages')").get
    db.close()
    return int(count)


def _copy(db: apsw.Connection, pages: PageFile) -> tuple[Salvage, dict[int, str]]:
    """Copy the rows into a database of the same version; what was saved, and the ids of all messages by `seq`."""
    salvaged = Salvage()
    reader = TableReader(pages)
    roots = reader.roots()
    _note(salvaged, reader, _SCHEMA)
    tables = {name: _Table.of(db, name) for name in _table_names(db)}
    for name, table in tables.items():
        rows = reader.rows(roots[name]) if name in roots else iter(())
        salvaged.saved[name], refused = table.insert_all(db, rows)
        _note(salvaged, reader, name, refused)
    ids = dict(_ids(reader, roots))
    _note(salvaged, reader, _IDS)
    for name in roots.keys() - tables.keys():
        for _ in reader.rows(roots[name]):  # so that no page of an index counts as an orphan
            pass
        _note(salvaged, reader, name)
    if salvaged.unreadable:
        for _, values in _save_orphans(db, reader, list(tables.values()), salvaged):
            ids.update(_id_of(values))
    return salvaged, ids


def _note(salvaged: Salvage, reader: TableReader, name: str, refused: int = 0) -> None:
    """Count the unreadable pages since the last call, and the rows that the table refused, as damage of `name`."""
    if count := len(reader.unreadable) + refused:
        salvaged.unreadable[name] = salvaged.unreadable.get(name, 0) + count
    reader.unreadable.clear()


def _table_names(db: apsw.Connection) -> list[str]:
    """The tables that are copied. What the console shows is counted again from the log."""
    names = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'insight%' ORDER BY rowid"
    return [name for (name,) in fetch(db, names)]


@dataclass(frozen=True)
class _Table:
    """A table of the new database, and the columns in the order in which a record has their values."""

    name: str
    columns: tuple[str, ...]
    types: tuple[tuple[type, ...], ...]
    """The types of the values that a record may have, by column."""
    has_row_id: bool
    alias: int | None
    """The place of the column that is the row id; a record has NULL there."""

    @classmethod
    def of(cls, db: apsw.Connection, name: str) -> _Table:
        info = fetch(db, 'SELECT name, type, pk, "notnull" FROM pragma_table_info(?) ORDER BY cid', (name,))
        has_row_id = not db.execute("SELECT wr FROM pragma_table_list WHERE name = ?", (name,)).get
        if not has_row_id:  # a record begins with the primary key
            info = sorted(info, key=lambda column: column[2] or len(info) + 1)
        alias = next((place for place, column in enumerate(info) if column[2]), None) if has_row_id else None
        types = tuple(
            (type(None),) if place == alias else (_TYPES[kind],) if filled or key else (_TYPES[kind], type(None))
            for place, (_, kind, key, filled) in enumerate(info)
        )
        return cls(name, tuple(column[0] for column in info), types, has_row_id, alias)

    def insert_all(self, db: apsw.Connection, rows: Iterable[Row]) -> tuple[int, int]:
        """Insert rows; how many were inserted, and how many the table refused."""
        count = refused = 0
        for row in rows:
            if self.insert(db, row, replace=True):
                count += 1
            else:
                refused += 1
        return count, refused

    def insert(self, db: apsw.Connection, row: Row, *, replace: bool) -> bool:
        """Insert a row; False if the table refuses it. `replace`: in place of one with the same key."""
        row_id, values = row
        columns = self.columns[: len(values)]  # an older row has no value for columns that were added later
        stored = [row_id if place == self.alias else value for place, value in enumerate(values[: len(columns)])]
        sql = (
            f"INSERT OR {'REPLACE' if replace else 'IGNORE'} INTO {self.name} ({', '.join(columns)})"
            f" VALUES ({', '.join('?' * len(columns))})"
        )
        try:
            db.execute(sql, stored)
        except (apsw.ConstraintError, apsw.MismatchError, apsw.SQLError):
            return False
        return bool(db.changes())

    def fits(self, row: Row) -> bool:
        """True if a record has the shape of this table's."""
        row_id, values = row
        return (
            (row_id is not None) == self.has_row_id
            and len(self.columns) - _ADDED.get(self.name, 0) <= len(values) <= len(self.columns)
            and all(isinstance(value, types) for value, types in zip(values, self.types, strict=False))
        )


_TYPES: Final = {"INTEGER": int, "TEXT": str, "BLOB": bytes, "REAL": float}
"""Tables of earlier versions that have another name now."""
_ADDED: Final = {"messages": 12, "log": 4, "queues": 2, "flow_keys": 1, "prefixes": 1, "ticks": 1, "stored_bodies": 1}
"""How many columns a table got after its first version, at most."""
_SHAPED_LIKE_INDICES: Final = frozenset({"labels"})


def _ids(reader: TableReader, roots: Mapping[str, int]) -> Iterator[tuple[int, str]]:
    """`seq` and id of all messages, by their index."""
    if _IDS in roots:
        for _, values in reader.rows(roots[_IDS]):
            yield from _id_of(values)


def _id_of(values: tuple[Value, ...]) -> Iterator[tuple[int, str]]:
    match values:
        case (int(), str(message_id), int(seq)) if message_id.startswith("msg_"):
            yield seq, message_id


def _save_orphans(db: apsw.Connection, reader: TableReader, tables: list[_Table], salvaged: Salvage) -> Iterator[Row]:
    """Save the rows on pages that no sound page refers to; yield those that fit no table."""
    free = reader.free_pages()
    for number in range(2, reader.pages.count + 1):
        if number in reader.seen or number in free:
            continue
        for row in reader.page_rows(number, reader.pages.page(number)):
            fitting = [table for table in tables if table.fits(row)]
            if not fitting:
                yield row
            elif len(fitting) == 1 and fitting[0].name not in _SHAPED_LIKE_INDICES:
                salvaged.saved[fitting[0].name] += fitting[0].insert(db, row, replace=False)
    reader.unreadable.clear()


def _name_losses(db: apsw.Connection, ids: Mapping[int, str], salvaged: Salvage) -> None:
    """Note the messages without a row or without a body; remove what belongs to no message."""
    saved = {seq for (seq,) in fetch(db, "SELECT seq FROM messages")}
    for seq in sorted(ids.keys() - saved):
        state = db.execute("SELECT state FROM log WHERE seq = ? ORDER BY n DESC LIMIT 1", (seq,)).get
        salvaged.lost_messages[ids[seq]] = str(state or "no entry")
    for table in ("log", "stored_bodies", "labels", "dead_letters"):
        db.execute(f"DELETE FROM {table} WHERE seq NOT IN (SELECT seq FROM messages)")
    without = "SELECT id FROM messages WHERE seq NOT IN (SELECT seq FROM bodies WHERE body IS NOT NULL)"
    salvaged.lost_bodies = [message_id for (message_id,) in fetch(db, without)]
    # With an empty body its checksum does not match: a claim makes it a dead letter.
    db.execute("UPDATE stored_bodies SET shared = NULL WHERE shared NOT IN (SELECT first FROM shared_bodies)")
    db.execute(
        "INSERT INTO stored_bodies (seq, body)"
        " SELECT seq, x'' FROM messages WHERE seq NOT IN (SELECT seq FROM stored_bodies)"
    )
    if "dead_letters" in salvaged.unreadable:
        db.execute(
            "INSERT INTO dead_letters (failed_ms, n, account, seq, error, response_status)"
            " SELECT finished_ms, 1000000 + seq, account, seq, 'its last response was lost with a damaged page', 0"
            f" FROM messages WHERE stage = {Stage.FAILED} AND seq NOT IN (SELECT seq FROM dead_letters)"
        )


def _settle(db: apsw.Connection, now_ms: int) -> None:
    """Give the places of what is lost to those that wait for them."""
    db.execute(
        "UPDATE messages SET open_callbacks = (SELECT count(*) FROM messages c"
        " WHERE c.parent = messages.seq AND c.finished_ms IS NULL) WHERE open_callbacks > 0 AND slot = 1"
    )
    for (seq,) in fetch(db, "SELECT seq FROM messages WHERE slot = 1 AND finished_ms IS NOT NULL"):
        admission.release_slot(db, seq)
    waiting = "FROM messages WHERE finished_ms IS NULL"
    for account, queue in fetch(db, f"SELECT DISTINCT account, queue {waiting} AND queue IS NOT NULL"):
        admission.ensure_queue(db, account, queue, now_ms)
        admission.fill_slots(db, account, queue)
    held = f"SELECT DISTINCT account, flow_key {waiting} AND flow_key IS NOT NULL"
    for account, key in fetch(db, held):
        db.execute("INSERT OR IGNORE INTO flow_keys (account, key) VALUES (?, ?)", (account, key))
        admission.refresh_key(db, account, key, now_ms)
