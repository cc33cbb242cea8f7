"""The store that the environments use in turn: empty for each of them, and with its statements compiled."""

from __future__ import annotations

import apsw

from qtasks import QTasks
from qtasks.broker.store.connection import MEMORY, connect, run_in_transaction
from qtasks.testing import Environment
from qtasks.testing.brokers import reused_store
from qtasks.testing.brokers.shared_threads import SharedThreads


def test_a_second_environment_compiles_no_statement_again(tasks: QTasks) -> None:
    @tasks.task
    def double(number: int) -> int:
        return 2 * number

    def run() -> None:
        with Environment(tasks) as qtasks:
            result = double.delay(21)
            qtasks.drain()
            assert result.get() == 42

    run()
    compiled: list[str | None] = []

    def note(_action: int, name: str | None, *_: object) -> int:  # SQLite calls it for each part that it compiles
        compiled.append(name)
        return apsw.SQLITE_OK

    db = SharedThreads.of_process().shelf[-1]
    db.authorizer = note  # with it, everything is compiled once more
    run()
    compiled.clear()
    run()
    db.authorizer = None
    assert compiled == []


def test_rows_that_refer_to_each_other_are_removed_too() -> None:
    db = connect(MEMORY)
    new = content(db)
    db.execute("INSERT INTO accounts (name) VALUES ('ours')")
    db.execute("INSERT INTO signing_keys (account, current, next) VALUES (1, 'current-key', 'next-key')")
    run_in_transaction(db, reused_store._empty)
    assert content(db) == new
    db.close()


def content(db: apsw.Connection) -> dict[str, list[tuple[apsw.SQLiteValue, ...]]]:
    """The rows of each table."""
    return {table: db.execute(f'SELECT * FROM "{table}"').fetchall() for table in reused_store._tables()}
