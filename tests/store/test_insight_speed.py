"""The views of the console are quick whatever is stored: each statement is found by an index, and none is long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any

import apsw
import pytest

from qtasks.broker.console import filter_text
from qtasks.broker.console.views.dead_letters import SCAN_MOST
from qtasks.broker.core.values import DAY_MS, Retention
from qtasks.broker.store.connection import connect, run_in_transaction
from qtasks.broker.store.verbs.insight import failure_reads, index, search, shown, totals
from qtasks.broker.store.verbs.insight.candidates import Part
from qtasks.broker.store.verbs.upkeep import removals
from qtasks.broker.store.verbs.upkeep.removals import HOURS
from qtasks.broker.store.verbs.upkeep.store_sizes import HOUR_MS
from tests.support.broker import ACCOUNT
from tests.support.large_store import fill

VIEW_MS = 300
SEARCH_MS = 200
PAGE = 50
FILTERS = (
    "",
    "task:task7",
    "task:task7 status:failed",
    "status:failed",
    "-status:delivered after:30d",
    "task:task7 status:waiting before:10m",
    "-task:task7 status:delivered",
    "url:http://127.0.0.1:8000/*",
    "ask7",
    "error:valueerror",
    'error:"order 701"',
    "error:nothing_such",
    "arg.user_id:42",
    "arg.order:42",
    "arg.order:42 task:task7",
    "task:nothing",
    "queue:none",
    "msg_77",
)
FEW = (
    "SCAN json_each",
    "SCAN j VIRTUAL TABLE",
    "SCAN (subquery",
    "SCAN accounts",
    "SCAN CONSTANT ROW",
    "SCAN prefixes",
)
"""Steps that read few rows whatever is stored."""


def filled(path: str, count: int) -> tuple[apsw.Connection, int]:
    """A store with `count` messages, all of them counted, and the time."""
    db = connect(path)
    db.execute("PRAGMA synchronous = OFF")
    now_ms = fill(db, count)
    while run_in_transaction(db, index.count_log, now_ms=now_ms).counted:
        pass
    return db, now_ms


def views(db: apsw.Connection, now_ms: int) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """The name of each view, how many milliseconds it may take, and what it reads."""
    for minutes in (60, 1_440, 10_080):
        yield (
            f"overview of {minutes} minutes",
            VIEW_MS,
            partial(totals.totals, db, ACCOUNT, minutes=minutes, now_ms=now_ms),
        )
    for text in FILTERS:
        yield f"messages {text}", SEARCH_MS, partial(listed, db, text, now_ms)
    for text in ("", "task:task1", "error:valueerror"):
        yield f"dead letters {text}", VIEW_MS, partial(dead, db, text, now_ms)
    nothing = filter_text.read("", now_ms=now_ms)
    keep = Retention(delivered_ms=HOURS * HOUR_MS, failed_ms=DAY_MS)
    yield "what retention removes", VIEW_MS, partial(removals.forecast, db, keep, now_ms=now_ms)
    yield "what a message takes", VIEW_MS, partial(removals.bytes_each, db)
    yield "failures", VIEW_MS, lambda: failure_reads.failures(db, ACCOUNT, nothing, hours=24, now_ms=now_ms)


def listed(db: apsw.Connection, text: str, now_ms: int) -> list[shown.ShownMessage]:
    """The first page of a list, as the view reads it."""
    criteria = filter_text.read(text, now_ms=now_ms)
    seqs: list[int] = []
    for part in (None,) if criteria.searchable() is None else Part:
        seqs += search.messages(db, ACCOUNT, criteria, below=None, count=PAGE, part=part).seqs
    return shown.shown(db, ACCOUNT, seqs, now_ms=now_ms)


def dead(db: apsw.Connection, text: str, now_ms: int) -> int:
    """How many dead letters match."""
    criteria = filter_text.read(text, now_ms=now_ms)
    count, looked_at, before = 0, 0, None
    while True:
        matches = search.dead_letters(db, ACCOUNT, criteria, before=before, count=search.SCAN)
        count, looked_at, before = count + len(matches.letters), looked_at + matches.looked_at, matches.before
        if before is None or looked_at >= SCAN_MOST:
            return count


def test_every_statement_of_a_view_is_found_by_an_index() -> None:
    db, now_ms = filled(":memory:", 20_000)
    statements: dict[str, Any] = {}

    def trace(_: apsw.Cursor, sql: str, bindings: Any) -> bool:
        statements[sql] = bindings
        return True

    for name, _, read in views(db, now_ms):
        statements.clear()
        db.exec_trace = trace
        read()
        db.exec_trace = None
        for sql, bindings in statements.items():
            plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", bindings)]
            assert not [step for step in plan if step.startswith("SCAN") and not step.startswith(FEW)], (
                name,
                sql,
                plan,
            )
    db.close()


def test_a_task_whose_calls_are_labelled_is_searched_without_reading_them() -> None:
    db, now_ms = filled(":memory:", 20_000)
    criteria = filter_text.read("arg.order:42 task:task7", now_ms=now_ms)
    labelled, unlabelled = (search.messages(db, ACCOUNT, criteria, below=None, count=PAGE, part=part) for part in Part)
    assert [seq for seq in range(20_000, 0, -1) if seq % 50 == 7 and seq % 997 == 42] == labelled.seqs
    assert (unlabelled.seqs, unlabelled.looked_at, unlabelled.below) == ([], 0, None)
    db.close()


def test_a_page_of_messages_reads_as_many_rows_as_it_shows() -> None:
    db, now_ms = filled(":memory:", 20_000)
    for text in ("", "task:task7", "task:task7 status:waiting", "status:failed", "url:http://127.0.0.1:8000/*"):
        criteria = filter_text.read(text, now_ms=now_ms)
        matches = search.messages(db, ACCOUNT, criteria, below=None, count=PAGE)
        assert matches.looked_at <= PAGE + 1, text
    db.close()


@pytest.mark.release
def test_a_million_messages_are_no_reason_to_wait(tmp_path: Any) -> None:
    db, now_ms = filled(str(tmp_path / "large.db"), 1_000_000)
    took: dict[str, float] = {}
    limits: dict[str, int] = {}
    for name, limit_ms, read in views(db, now_ms):
        read()
        began_s = perf_counter()
        read()
        took[name], limits[name] = (perf_counter() - began_s) * 1000, limit_ms
    db.close()
    assert not {name: span_ms for name, span_ms in took.items() if span_ms >= limits[name]}
