"""Damages single values in a database, as a page does whose bits have flipped: no constraint and no trigger runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import apsw

Value = int | str | bytes | None


@contextlib.contextmanager
def without_rules(db: apsw.Connection, table: str = "messages") -> Iterator[None]:
    """Within it, `table` has neither types nor constraints nor triggers. Indices stay right, as other pages."""
    columns = ", ".join(
        f"{name}{' INTEGER PRIMARY KEY' if is_key else ''}{'' if default is None else f' DEFAULT {default}'}"
        for name, default, is_key in db.execute("SELECT name, dflt_value, pk FROM pragma_table_info(?)", (table,))
    )
    kept = db.execute("SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    definition = db.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,)).get
    db.execute("PRAGMA writable_schema = ON")
    db.execute("DELETE FROM sqlite_schema WHERE type = 'trigger'")
    db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (f"CREATE TABLE {table} ({columns})", table))
    db.execute("PRAGMA writable_schema = RESET")
    try:
        yield
    finally:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (definition, table))
        db.executemany("INSERT INTO sqlite_schema (type, name, tbl_name, rootpage, sql) VALUES (?, ?, ?, ?, ?)", kept)
        db.execute("PRAGMA writable_schema = RESET")


def put(db: apsw.Connection, column: str, value: Value, *, seq: int, table: str = "messages") -> None:
    """Replace one value. Bytes become text, even if they are no UTF-8, save in a body; no bytes become a blob."""
    is_text = isinstance(value, bytes) and value and column != "body"
    # Two rows never become equal in the index of ids: its pages would not fit the table any more.
    with contextlib.suppress(apsw.ConstraintError), without_rules(db, table):
        db.execute(f"UPDATE {table} SET {column} = {'CAST(? AS TEXT)' if is_text else '?'} WHERE seq = ?", (value, seq))


def value_of(db: apsw.Connection, column: str, *, seq: int, table: str = "messages") -> Value:
    """The stored value; text as it is in the column."""
    value: Value = db.execute(f"SELECT {column} FROM {table} WHERE seq = ?", (seq,)).get
    return value


def flips(value: Value, kind: str) -> list[Value]:
    """What may become of a value in a column of type `kind`: bits flipped at both ends, nothing, another type."""
    match value:
        case None:
            return [0, 1, 1 << 40, "x"] if kind == "INTEGER" else ["x", b""]
        case int():
            return [value ^ 1, value ^ 2, value ^ 1 << 40, ~value, None, "x", b""]
        case str():
            raw = value.encode()
            low, high = (b"%c" % (raw[0] ^ bit) + raw[1:] for bit in (0x01, 0x80)) if raw else (b"x", b"\xff")
            return [low, high, raw[:-1] or b"y", None, b""]
        case bytes():
            return [b"%c" % (value[0] ^ 1) + value[1:], value[:-1], b""] if value else [b"x"]
