"""What the console shows is counted from the log: exactly, in slices of any size, and again after any damage."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from qtasks.broker.core.observed import error_texts
from qtasks.broker.core.rules import Trigger
from qtasks.broker.core.values import DAY_MS, Claim, DeadLetterCriteria, Retention
from qtasks.broker.store.connection import connect
from qtasks.broker.store.integrity.salvage import salvage
from qtasks.broker.store.verbs import accept, dead_letters, retention
from qtasks.broker.store.verbs.insight import destinations, failure_groups, forget, index, totals
from qtasks.protocol.messages import PublishOptions, Response
from tests.support.broker import ACCOUNT, START_MS, publication
from tests.support.insight import add_account, count_all, counted, ledger, rows
from tests.support.store import InlineStore

MINUTE_MS = 60_000
KEEP = Retention(delivered_ms=DAY_MS, failed_ms=2 * DAY_MS, max_bytes=None)
URLS = tuple(f"http://127.0.0.1:8000/app/task{number}" for number in range(4))
ERRORS = ("card 17 declined", "card 4711 declined", "no route to 'db1'", "timed out")


@pytest.fixture
def store() -> Iterator[InlineStore]:
    made = InlineStore()
    add_account(made.db)
    yield made
    made.close()


class Life:
    """Random things that happen to messages. `everything` is what was counted in this store from the beginning."""

    def __init__(self, store: InlineStore, seed: int) -> None:
        self.store = store
        self.chance = random.Random(seed)
        self.number = 0
        self.active: list[Claim] = []

    def step(self) -> None:
        """One thing that can happen."""
        acts = [self.accept, self.claim, self.end, self.advance, self.cancel, self.crash, self.drop, self.prune]
        self.chance.choices(acts, [30, 30, 50, 20, 3, 1, 2, 2])[0]()

    def accept(self) -> None:
        options = PublishOptions(call_id=f"call_{self.number}") if self.chance.random() < 0.5 else PublishOptions()
        self.number += 1
        delay_ms = self.chance.choice([0, 0, 0, 40_000])
        url = self.chance.choice(URLS) + self.chance.choice(["", "?a=1"])
        due_ms = self.store.now_ms + delay_ms
        self.store.accept(self.number, url=url, not_before_ms=due_ms, options=options)

    def claim(self) -> None:
        self.active += self.store.claims(limit=self.chance.choice([1, 5]))

    def end(self) -> None:
        if not self.active:
            return
        claim = self.active.pop(self.chance.randrange(len(self.active)))
        trigger = self.chance.choice([Trigger.SUCCEED, Trigger.SUCCEED, Trigger.RETRY, Trigger.FAIL])
        error = self.chance.choice(ERRORS)
        answer = None if trigger is Trigger.SUCCEED else Response(status=500, body=b'{"error":"%s"}' % error.encode())
        self.store.end(claim, trigger, after_ms=self.chance.choice([0, 9_000]), outcome=answer)

    def advance(self) -> None:
        self.store.now_ms += self.chance.choice([1, 700, 30_000, 3_000_000])

    def cancel(self) -> None:
        self.store.cancel(f"msg_{self.chance.randrange(self.number + 1)}")

    def crash(self) -> None:
        self.store.crash()
        self.active = []

    def drop(self) -> None:
        letters = self.store.dead()
        if letters:
            which = DeadLetterCriteria(ids=(self.chance.choice(letters).id,))
            dead_letters.delete_dead_letters(self.store.db, ACCOUNT, which, cursor=None, limit=1)

    def prune(self) -> None:
        """Retention. What it removes must have been counted before, to be in the figures."""
        count_all(self.store.db, self.store.now_ms)
        retention.prune(self.store.db, KEEP, now_ms=self.store.now_ms)


@pytest.mark.parametrize("seed", range(8))
def test_the_counts_equal_the_log_at_any_time(store: InlineStore, seed: int) -> None:
    life = Life(store, seed)
    for number in range(400):
        life.step()
        index.count_log(store.db, now_ms=store.now_ms, most=life.chance.choice([1, 2, 3, 50]))
        if number % 40 == 0:
            count_all(store.db, store.now_ms)
            assert counted(store.db) == ledger(store.db, store.now_ms)
    count_all(store.db, store.now_ms)
    assert counted(store.db) == ledger(store.db, store.now_ms)


@pytest.mark.parametrize("seed", range(8))
def test_slices_of_any_size_count_the_same_as_one(store: InlineStore, seed: int) -> None:
    life = Life(store, seed)
    life.prune = lambda: None  # type: ignore[method-assign]  # it counts everything
    for _ in range(400):
        life.step()
        if life.chance.random() < 0.3:
            index.count_log(store.db, now_ms=store.now_ms, most=life.chance.choice([1, 2, 7]))
    count_all(store.db, store.now_ms)
    in_slices = rows(store.db)
    index.start_again(store.db)
    count_all(store.db, store.now_ms, most=100_000)
    assert rows(store.db) == in_slices


def test_a_retry_after_an_error_is_one_change_although_a_slice_ends_between_them(store: InlineStore) -> None:
    store.accept(1)
    store.end(store.claim(), Trigger.FAIL)
    index.count_log(store.db, now_ms=store.now_ms, most=3)
    assert counted(store.db)["running"] == 1, "the error waits for the entry that follows it"
    count_all(store.db, store.now_ms)
    [(is_last,)] = store.db.execute("SELECT is_last FROM insight_failure_messages")
    assert is_last == 1
    assert counted(store.db)["dead"] == 1


def test_a_message_waits_from_the_time_on_that_it_was_scheduled_for(store: InlineStore) -> None:
    store.accept(1, 2, not_before_ms=store.now_ms + 5_000)
    count_all(store.db, store.now_ms)
    assert counted(store.db)["scheduled"] == 2
    store.now_ms += 5_000
    shown = totals.totals(store.db, ACCOUNT, minutes=60, now_ms=store.now_ms)
    assert {status.name: count for status, count in shown.counts.items() if count} == {"WAITING": 2}
    assert shown.oldest_waiting == (1, store.now_ms)
    count_all(store.db, store.now_ms)
    assert (counted(store.db)["scheduled"], counted(store.db)["waiting"]) == (0, 2)


def test_an_entry_that_gets_the_number_of_a_removed_one_is_counted(store: InlineStore) -> None:
    store.accept(1)
    store.end(store.claim())
    count_all(store.db, store.now_ms)
    store.now_ms += 2 * DAY_MS
    assert retention.prune_messages(store.db, KEEP, now_ms=store.now_ms) == 1
    assert store.db.execute("SELECT count(*) FROM log").get == 0
    store.accept(2)
    assert count_all(store.db, store.now_ms) == 1
    assert counted(store.db)["waiting"] == 1


def test_a_message_that_goes_before_its_end_is_counted_leaves_no_count_behind(store: InlineStore) -> None:
    store.accept(1)
    claim = store.claim()
    count_all(store.db, store.now_ms)
    store.end(claim, Trigger.FAIL)
    store.now_ms += 9 * DAY_MS
    assert retention.prune_messages(store.db, KEEP, now_ms=store.now_ms) == 1
    count_all(store.db, store.now_ms)
    assert set(counted(store.db).values()) == {0}
    assert rows(store.db)["insight_messages"] == []


@pytest.mark.parametrize("damage", ["DROP TABLE insight_spans", "DROP TABLE insight_messages", "no row"])
def test_tables_that_are_missing_are_made_again_from_the_log(store: InlineStore, damage: str) -> None:
    life = Life(store, 1)
    life.prune = lambda: None  # type: ignore[method-assign]
    for _ in range(200):
        life.step()
    count_all(store.db, store.now_ms)
    whole = rows(store.db)
    if damage == "no row":
        store.db.execute("DELETE FROM insight_counts")
    else:
        store.db.execute("DROP TRIGGER insight_dead_letter_gone")
        store.db.execute(damage)
    index.start_again(store.db)
    count_all(store.db, store.now_ms)
    assert rows(store.db) == whole


def test_destinations_beyond_a_number_are_counted_together_and_each_is_still_searched(
    store: InlineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destinations, "MAX_COUNTED", 3)
    for number in range(1, 8):
        store.accept(number, url=f"http://127.0.0.1:8000/{number}")
    count_all(store.db, store.now_ms)
    shown = totals.totals(store.db, ACCOUNT, minutes=60, now_ms=store.now_ms).destinations
    assert sum(each.figures.created for each in shown) == 7
    assert next(each for each in shown if not each.url).figures.created == 4
    assert store.db.execute("SELECT count(*) FROM insight_destinations").get == 8


def test_failures_beyond_a_number_are_counted_together(store: InlineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_groups, "MAX_GROUPS", 2)
    for number, word in enumerate(("ant", "bee", "cow", "dog"), 1):
        store.accept(number, options=PublishOptions(call_id=f"call_{number}"))
        answer = Response(status=500, body=b'{"error":"%s"}' % word.encode())
        store.end(store.claim(), Trigger.FAIL, outcome=answer)
    count_all(store.db, store.now_ms)
    groups = store.db.execute("SELECT error FROM insight_failures ORDER BY id").fetchall()
    assert [error for (error,) in groups] == ["ant", "bee", failure_groups.OTHER_ERRORS]


def test_old_figures_go_and_unused_destinations_with_them(store: InlineStore) -> None:
    store.accept(1)
    store.end(store.claim(), Trigger.FAIL)
    count_all(store.db, store.now_ms)

    def left() -> tuple[int, ...]:
        while forget.forget_old(store.db, now_ms=store.now_ms):
            pass
        assert forget.forget_destinations(store.db, after=0) is None
        names = ("spans", "failure_spans", "failures", "destinations", "answers")
        return tuple(store.db.execute(f"SELECT count(*) FROM insight_{name}").get for name in names)

    assert left() == (6, 1, 1, 1, 1)
    store.now_ms += 5 * 3_600_000
    assert left() == (5, 1, 1, 1, 1), "the minutes of each destination"
    store.now_ms += DAY_MS
    assert left() == (4, 1, 1, 1, 1), "the minutes of all"
    store.now_ms += 9 * DAY_MS
    retention.prune_messages(store.db, KEEP, now_ms=store.now_ms)
    assert left() == (1, 0, 0, 0, 0), "what all destinations have done ever"


def test_rates_durations_and_waits_of_a_series(store: InlineStore) -> None:
    store.accept(1, 2, 3)
    store.now_ms += 2_000
    claims = store.claims()
    store.now_ms += 100
    store.end(claims[0])
    store.now_ms += MINUTE_MS
    store.end(claims[1])
    store.end(claims[2], Trigger.RETRY)
    count_all(store.db, store.now_ms)
    shown = totals.totals(store.db, ACCOUNT, minutes=5, now_ms=store.now_ms)
    created, second = shown.series[-2].figures, shown.series[-1].figures
    assert (created.created, created.delivered) == (3, 1)
    assert (second.created, second.delivered, second.retried, second.failed) == (0, 1, 1, 0)
    [destination] = shown.destinations
    assert destination.delivered_lately == 2
    assert len(shown.series) == 5


@pytest.mark.parametrize(
    ("minutes", "step_min", "points"),
    [(5, 1, 5), (60, 1, 60), (120, 1, 120), (180, 2, 90), (1_440, 15, 96), (2_880, 60, 48), (10_080, 120, 84)],
)
def test_a_series_has_at_most_120_points(store: InlineStore, minutes: int, step_min: int, points: int) -> None:
    shown = totals.totals(store.db, ACCOUNT, minutes=minutes, now_ms=store.now_ms)
    assert (shown.step_ms, len(shown.series)) == (step_min * MINUTE_MS, points)


@pytest.mark.parametrize(
    ("error", "other"),
    [
        ("user 17 not found", "user 4711 not found"),
        ("KeyError: 'alice'", "KeyError: 'bob'"),
        ('no row "x y"', 'no row ""'),
        ("cannot reach http://10.0.0.1:80/a?b", "cannot reach https://db.example/z"),
        ("host 10.0.0.1 is down", "host 192.168.2.77 is down"),
        ("msg_1a2b failed", "msg_99 failed"),
        ("call 3f2504e0-4f89-11d3-9a0c-0305e82c3301", "call 00000000-4f89-11d3-9a0c-0305e82c3301"),
        ("<object at 0x7f3a>", "<object at 0xdeadbeef>"),
    ],
)
def test_errors_are_one_failure_if_they_differ_only_in_what_changes(error: str, other: str) -> None:
    assert error_texts.pattern_of(error) == error_texts.pattern_of(other)


@pytest.mark.parametrize(
    ("error", "other"),
    [
        ("the destination answered 500", "the destination answered 404"),
        ("ValueError: no", "KeyError: no"),
        ("can't open it", "won't open it"),
    ],
)
def test_other_errors_are_different_failures(error: str, other: str) -> None:
    assert error_texts.pattern_of(error) != error_texts.pattern_of(other)


@pytest.mark.parametrize(
    ("error", "body", "is_task", "text"),
    [
        ("it answered 500", b'{"error":"KeyError: 1","code":"x"}', True, "KeyError: 1"),
        ("it answered 500", b'{"error":"KeyError: 1","code":"x"}', False, "it answered 500"),
        ("it answered 500", b'{"error":"half of a te... (cut: this is', True, "half of a te... (cut: this is"),
        ("it answered 500", b"<html>", True, "it answered 500"),
        ("timeout", None, True, "timeout"),
        (None, None, True, "no reason is known"),
    ],
)
def test_the_error_of_a_task_is_what_its_dispatcher_says(
    error: str | None, body: bytes | None, is_task: bool, text: str
) -> None:
    assert error_texts.text_of(error, body, is_task=is_task) == text


def test_every_statement_of_the_loop_is_found_by_an_index(store: InlineStore) -> None:
    life = Life(store, 3)
    for _ in range(100):
        life.step()
    statements: list[tuple[str, Any]] = []

    def trace(_: apsw.Cursor, sql: str, bindings: Any) -> bool:
        statements.append((sql, bindings))
        return True

    store.db.exec_trace = trace
    count_all(store.db, store.now_ms)
    forget.forget_old(store.db, now_ms=store.now_ms)
    forget.forget_destinations(store.db, after=0)
    store.db.exec_trace = None
    assert statements
    for sql, bindings in statements:
        plan = [row[3] for row in store.db.execute(f"EXPLAIN QUERY PLAN {sql}", bindings)]
        scans = [step for step in plan if step.startswith("SCAN") and step not in _SHORT]
        assert not scans, (sql, plan)
        assert not [step for step in plan if "TEMP B-TREE" in step], (sql, plan)


_SHORT = ("SCAN json_each VIRTUAL TABLE INDEX 1:", "SCAN accounts", "SCAN CONSTANT ROW", "SCAN (subquery-1)")


def test_a_repaired_database_is_counted_again_from_its_log(tmp_path: Path) -> None:
    path, target = tmp_path / "broken.db", tmp_path / "saved.db"
    db = connect(str(path))
    add_account(db)
    accept.accept(db, [publication(number) for number in range(1, 4)], now_ms=START_MS)
    count_all(db, START_MS)
    before = rows(db)
    db.close()
    saved = salvage(path, target, {}, now_ms=START_MS)
    assert saved.unreadable == {}
    db = connect(str(target))
    assert db.execute("SELECT n FROM insight_progress").get == 0
    count_all(db, START_MS)
    assert rows(db) == before
    db.close()
