"""Every backend keeps the same promises; waiting wakes at once in the process and soon across processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import qtasks.tasks.results.redis
from qtasks.errors import ConfigurationError, ResultError, ResultsDisabled, ResultTimeout, TaskFailed
from qtasks.tasks.results.backend import (
    POLL_FIRST_S,
    POLL_LAST_S,
    PRUNE_EVERY_MS,
    Lock,
    ResultBackend,
    ResultRecord,
    ResultStatus,
    pauses,
    replaces,
    stored_ms,
)
from qtasks.tasks.results.open_backend import open_results
from qtasks.tasks.results.postgres import PostgresResults
from qtasks.tasks.results.redis import RedisResults
from qtasks.tasks.results.sqlite import SQLiteResults
from tests.support.results import BACKENDS, place_for_results, postgres, redis_keys, redis_prefix
from tests.support.tasks import application

DAY_MS = 86_400_000
NOW_MS = 1_800_000_000_000


STORED = [status for status in ResultStatus if status is not ResultStatus.UNKNOWN]


def record(status: ResultStatus = ResultStatus.SUCCEEDED, **changes: Any) -> ResultRecord:
    facts: dict[str, Any] = {
        "call_id": "call_1",
        "message_id": "msg_1",
        "task": "work",
        "status": status,
        "attempt": 1,
        "updated_ms": NOW_MS,
        "value": "5" if status is ResultStatus.SUCCEEDED else None,
        "error": "ValueError: no" if status in (ResultStatus.RETRYING, ResultStatus.FAILED) else None,
        **changes,
    }
    return ResultRecord(**facts)


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with place_for_results(request.param, tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def backend(url: str) -> Iterator[ResultBackend]:
    made = open_results(url, ttl_ms=DAY_MS)
    yield made
    made.close()


def keep(backend: ResultBackend, *records: ResultRecord) -> None:
    backend.write(records)


def test_a_record_is_found_by_its_call_and_by_its_message(backend: ResultBackend) -> None:
    kept = record(value='{"deep":["grüße",1e3]}')
    keep(backend, kept)
    assert backend.read("call_1") == kept
    assert backend.read("msg_1") == kept
    assert backend.read("call_2") is None


def test_the_records_of_many_calls_are_read_in_their_order(backend: ResultBackend) -> None:
    assert backend.read_calls(["call_1"]) == [None]
    records = [record(call_id=f"call_{number}", message_id=f"msg_{number}") for number in range(200)]
    keep(backend, *records)
    call_ids = [f"call_{number}" for number in (150, 3, 999, 0, 3)]
    assert backend.read_calls(call_ids) == [records[150], records[3], None, records[0], records[3]]
    assert backend.read_calls([]) == []


def test_the_states_of_many_calls_are_read_without_their_values(backend: ResultBackend) -> None:
    states = {f"call_{number}": status for number, status in enumerate(STORED)}
    keep(backend, *(record(status, call_id=call_id, message_id=f"msg_{call_id}") for call_id, status in states.items()))
    assert backend.statuses([*states, "call_none"]) == states
    assert backend.statuses([]) == {}


def test_there_is_no_record_before_one_is_written(backend: ResultBackend) -> None:
    assert backend.read("call_1") is None


@pytest.mark.parametrize(
    ("order", "last"),
    [
        (["running", "succeeded"], "succeeded"),
        (["running", "retrying", "running", "failed"], "failed"),
        (["succeeded", "running"], "succeeded"),  # a duplicate delivery begins after the first has ended
        (["succeeded", "failed"], "succeeded"),
        (["failed", "running"], "running"),  # a dead letter sent again
        (["failed", "succeeded"], "succeeded"),
    ],
)
@pytest.mark.parametrize("one_by_one", [True, False])
def test_the_latest_state_stands_but_a_success_stays(
    backend: ResultBackend, order: list[str], last: str, one_by_one: bool
) -> None:
    records = [record(ResultStatus(status)) for status in order]
    if one_by_one:
        for entry in records:
            keep(backend, entry)
    else:
        keep(backend, *records)
    stored = backend.read("call_1")
    assert stored is not None
    assert stored.status == last


def test_every_backend_has_the_same_rules_for_what_replaces_what(backend: ResultBackend) -> None:
    for old, new in itertools.product(STORED, STORED):
        call_id = f"call_{old}_{new}"
        for status in (old, new):
            keep(backend, replace(record(status), call_id=call_id, message_id=call_id))
        stored = backend.read(call_id)
        assert stored is not None
        assert stored.status == (new if replaces(new, old) else old), (old, new)


@pytest.mark.parametrize(
    ("new", "stand"),
    [
        ("running", "cancelling cancelled succeeded"),  # the run does not know yet, or its lease was lost
        ("retrying", "cancelling cancelled succeeded"),
        ("cancelling", "succeeded failed cancelled expired"),  # it has ended in the meantime
        ("failed", "cancelled succeeded"),
        ("cancelled", "succeeded"),
        ("succeeded", ""),
    ],
)
def test_a_cancel_stands_until_the_call_ends_and_does_not_change_one_that_has(new: str, stand: str) -> None:
    assert {old for old in ResultStatus if not replaces(ResultStatus(new), old)} == set(stand.split())


def test_finished_records_are_dropped_a_day_later_and_unfinished_ones_are_not(backend: ResultBackend) -> None:
    if isinstance(backend, RedisResults):  # it counts the time itself: see below
        return
    keep(
        backend,
        record(call_id="old", message_id="m1"),
        record(ResultStatus.RUNNING, call_id="long", message_id="m2"),
        record(call_id="younger", message_id="m3", updated_ms=NOW_MS + 1),
    )
    keep(backend, record(call_id="new", message_id="m4", updated_ms=NOW_MS + DAY_MS))
    assert backend.read("old") is None
    assert backend.read("m1") is None
    assert backend.read("long") is not None
    assert backend.read("younger") is not None
    assert backend.read("new") is not None


def test_a_watcher_is_woken_for_its_call_until_it_stops(backend: ResultBackend) -> None:
    woken: list[str] = []
    with (
        backend.watchers.watching("call_1", lambda: woken.append("call")),
        backend.watchers.watching("msg_1", lambda: woken.append("message")),
        backend.watchers.watching("call_2", lambda: woken.append("other")),
    ):
        keep(backend, record(ResultStatus.RUNNING))
    keep(backend, record())
    assert woken == ["call", "message"]


def test_threads_may_write_at_once(backend: ResultBackend) -> None:
    names = [f"call_{number}" for number in range(40)]

    def write(name: str) -> None:
        keep(backend, record(call_id=name, message_id=f"m_{name}"))

    threads = [threading.Thread(target=write, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(backend.read(name) is not None for name in names)


@pytest.mark.parametrize("status", STORED)
def test_every_state_and_field_is_kept(backend: ResultBackend, status: ResultStatus) -> None:
    kept = record(status, value='"grüße 🎉"', error="x\n'\"\\", progress='{"done":1}', attempt=1000)
    keep(backend, kept)
    assert backend.read("call_1") == kept


@pytest.mark.parametrize("status", [ResultStatus.FAILED, ResultStatus.CANCELLED, ResultStatus.RETRYING])
def test_an_error_that_no_encoder_takes_is_kept_escaped(backend: ResultBackend, status: ResultStatus) -> None:
    keep(backend, record(status, error="no file caf\udce9.csv\0 grüße"))
    stored = backend.read("call_1")
    assert stored is not None
    assert stored.error == "no file caf\\udce9.csv\\u0000 grüße"


# --- records that a flow needs


def test_a_kept_record_is_not_dropped_until_it_is_released(backend: ResultBackend) -> None:
    if isinstance(backend, RedisResults):  # it counts the time itself: see below
        return
    keep(backend, record(call_id="member", message_id="m1", kept=True), record(call_id="other", message_id="m2"))
    keep(backend, record(call_id="new", message_id="m3", updated_ms=NOW_MS + 30 * DAY_MS))
    assert backend.read("member") == record(call_id="member", message_id="m1", kept=True)
    assert backend.read("other") is None
    backend.write((), released=["member", "never seen"])
    assert backend.read("member") == record(call_id="member", message_id="m1")
    keep(backend, record(call_id="newer", message_id="m4", updated_ms=NOW_MS + 31 * DAY_MS))
    assert backend.read("member") is None
    assert backend.read("m1") is None


@pytest.mark.parametrize("one_by_one", [True, False])
def test_a_later_write_leaves_a_record_kept(backend: ResultBackend, one_by_one: bool) -> None:
    records = [record(ResultStatus.RUNNING, kept=True), record(ResultStatus.RETRYING), record()]
    if one_by_one:
        for entry in records:
            keep(backend, entry)
    else:
        keep(backend, *records)
    assert backend.read("call_1") == record(kept=True)


def test_a_record_becomes_kept_when_a_later_write_says_so(backend: ResultBackend) -> None:
    keep(backend, record(ResultStatus.RUNNING))
    keep(backend, record(kept=True))
    assert backend.read("call_1") == record(kept=True)


def test_a_record_may_be_written_and_released_at_once(backend: ResultBackend) -> None:
    keep(backend, record(ResultStatus.RUNNING, kept=True))
    backend.write([record(kept=True)], released=["call_1"])
    assert backend.read("call_1") == record()


def test_a_success_that_is_reported_again_after_its_release_is_not_kept_again(backend: ResultBackend) -> None:
    keep(backend, record(kept=True))
    backend.write((), released=["call_1"])
    keep(backend, record(kept=True))
    assert backend.read("call_1") == record()


def test_a_failure_that_runs_again_after_its_release_is_kept_again(backend: ResultBackend) -> None:
    keep(backend, record(ResultStatus.FAILED, kept=True))
    backend.write((), released=["call_1"])
    keep(backend, record(ResultStatus.RUNNING, kept=True))
    assert backend.read("call_1") == record(ResultStatus.RUNNING, kept=True)


def flow(name: str, status: ResultStatus = ResultStatus.RUNNING, **changes: Any) -> ResultRecord:
    return record(status, call_id=f"flow_{name}", message_id=f"flow_{name}", **{"kept": True, **changes})


def test_open_flows_are_the_kept_records_of_flows_that_have_not_ended(backend: ResultBackend) -> None:
    open_flow, cancelled = flow("a", value='{"calls":[]}'), flow("b", ResultStatus.CANCELLING)
    keep(backend, open_flow, cancelled, flow("c"), flow("d"), flow("e", kept=False))
    keep(backend, record(ResultStatus.RUNNING, kept=True), record(ResultStatus.RUNNING, call_id="flow", kept=True))
    keep(backend, flow("c", ResultStatus.SUCCEEDED), flow("f", ResultStatus.FAILED))
    keep(backend, flow("c"))  # a duplicate delivery does not open it again
    backend.write((), released=["flow_d"])
    assert {found.call_id: found for found in backend.open_flows(10)} == {"flow_a": open_flow, "flow_b": cancelled}


def test_of_many_open_flows_those_unchanged_for_the_longest_time_come_first(backend: ResultBackend) -> None:
    assert backend.open_flows(10) == []
    keep(backend, *(flow(str(age), updated_ms=NOW_MS - age) for age in (1, 3, 2)))
    assert [found.call_id for found in backend.open_flows(2)] == ["flow_3", "flow_2"]
    keep(backend, flow("3", updated_ms=NOW_MS))
    assert [found.call_id for found in backend.open_flows(10)] == ["flow_2", "flow_1", "flow_3"]


def test_a_failed_flow_whose_dead_letter_was_retried_is_open_again(backend: ResultBackend) -> None:
    backend.write([flow("a", ResultStatus.FAILED)], released=["flow_a"])
    assert backend.open_flows(10) == []
    keep(backend, flow("a"))
    assert backend.open_flows(10) == [flow("a")]


def test_writers_that_release_what_others_write_do_not_stop_each_other(url: str) -> None:
    names = [f"call_{number}" for number in range(30)]
    backends = [open_results(url, ttl_ms=DAY_MS) for _ in range(2)]

    def write(backend: ResultBackend, written: list[str], released: list[str]) -> None:
        for _ in range(5):
            backend.write([record(call_id=name, message_id=f"m_{name}", kept=True) for name in written], (), released)

    halves = (names[:15], names[15:])
    threads = [
        threading.Thread(target=write, args=(backends[0], halves[0], halves[1])),
        threading.Thread(target=write, args=(backends[1], halves[1], halves[0])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if url != "memory://":
        assert all(backends[0].read(name) is not None for name in names)
    for backend in backends:
        backend.close()


# --- locks


def test_a_lock_is_its_owner_s_until_it_expires(backend: ResultBackend) -> None:
    first, second = Lock("k", "me", NOW_MS + 60_000), Lock("k", "you", NOW_MS + 90_000)
    assert backend.lock([first], now_ms=NOW_MS) == [first]
    (valid,) = backend.lock([second], now_ms=NOW_MS)
    assert valid.owner == "me"
    assert abs(valid.until_ms - first.until_ms) < 5_000  # Redis counts the time itself
    if not isinstance(backend, RedisResults):
        assert backend.lock([second], now_ms=NOW_MS + 60_000) == [second]


def test_an_owner_may_extend_and_end_its_lock(backend: ResultBackend) -> None:
    lock, longer = Lock("k", "me", NOW_MS + 1_000), Lock("k", "me", NOW_MS + 90_000)
    backend.lock([lock], now_ms=NOW_MS)
    assert backend.lock([longer], now_ms=NOW_MS) == [longer]
    backend.write((), [Lock("k", "you", 0)])
    other = Lock("k", "you", NOW_MS + 2_000)
    assert backend.lock([other], now_ms=NOW_MS)[0].owner == "me"
    backend.write((), [lock])
    assert backend.lock([other], now_ms=NOW_MS) == [other]


def test_several_locks_are_answered_in_their_order(backend: ResultBackend) -> None:
    backend.lock([Lock("b", "you", NOW_MS + 9_000)], now_ms=NOW_MS)
    locks = [Lock(key, "me", NOW_MS + 9_000) for key in ("c", "b", "a")]
    assert [(lock.key, lock.owner) for lock in backend.lock(locks, now_ms=NOW_MS)] == [
        ("c", "me"),
        ("b", "you"),
        ("a", "me"),
    ]


def test_of_many_who_try_to_lock_one_succeeds(url: str) -> None:
    if url == "memory://":
        backends = [open_results(url, ttl_ms=DAY_MS)] * 4
    else:
        backends = [open_results(url, ttl_ms=DAY_MS) for _ in range(4)]
    got: list[str] = []

    def want(number: int) -> None:
        backend = backends[number % 4]
        (held,) = backend.lock([Lock("k", f"owner {number}", NOW_MS + 60_000)], now_ms=NOW_MS)
        got.append(held.owner)

    threads = [threading.Thread(target=want, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 12
    assert len(set(got)) == 1
    for backend in backends:
        backend.close()


def test_what_another_process_wrote_is_found(url: str) -> None:
    if url == "memory://":
        return
    writer, reader = open_results(url, ttl_ms=DAY_MS), open_results(url, ttl_ms=DAY_MS)
    assert reader.read("call_1") is None
    keep(writer, record())
    assert reader.read("call_1") == record()
    writer.close()
    assert reader.read("msg_1") == record()
    reader.close()


def test_postgres_that_drops_a_connection_is_asked_again() -> None:
    psycopg = pytest.importorskip("psycopg")
    with postgres() as url:
        backend = open_results(url, ttl_ms=DAY_MS)
        keep(backend, record())
        assert backend.read("call_1") == record()
        assert isinstance(backend, PostgresResults)
        with psycopg.connect(url, autocommit=True) as other:
            for connection in (backend._writer, backend._reader):
                assert connection is not None
                other.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
        keep(backend, record(call_id="call_2", message_id="msg_2"))
        assert backend.read("call_2") is not None
        backend.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres"])
@pytest.mark.parametrize(
    ("status", "days"),
    [
        (ResultStatus.QUEUED, 401),
        (ResultStatus.RETRYING, 401),
        (ResultStatus.RUNNING, 31),
        (ResultStatus.CANCELLING, 31),
        (ResultStatus.SUCCEEDED, 1),
    ],
)
def test_a_record_of_a_call_that_never_ends_goes_long_after_its_last_sign_of_life(
    kind: str, status: ResultStatus, days: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with place_for_results(kind, tmp_path, monkeypatch) as url:
        backend = open_results(url, ttl_ms=DAY_MS)
        keep(backend, record(status), record(status, call_id="kept", message_id="msg_2", kept=True))

        def write_at(now_ms: int) -> None:
            keep(backend, record(call_id="other", message_id="msg_3", updated_ms=now_ms))

        write_at(NOW_MS + days * DAY_MS - 2 * PRUNE_EVERY_MS)
        assert backend.read("call_1") is not None
        write_at(NOW_MS + days * DAY_MS)
        assert (backend.read("call_1"), backend.read("msg_1")) == (None, None)
        assert backend.read("kept") is not None
        backend.close()


@pytest.mark.parametrize("status", [ResultStatus.QUEUED, ResultStatus.RUNNING])
def test_redis_forgets_records_that_never_end(monkeypatch: pytest.MonkeyPatch, status: ResultStatus) -> None:
    redis = pytest.importorskip("redis")
    with redis_prefix(monkeypatch) as url, redis.Redis.from_url(url) as client:
        backend = RedisResults(url, ttl_ms=DAY_MS)
        keep(backend, record(status))
        for key in redis_keys(client, "*_1"):
            assert 0 <= stored_ms(status, DAY_MS) - client.pttl(key) < 60_000
        backend.close()


def test_redis_forgets_finished_records_soonest(monkeypatch: pytest.MonkeyPatch) -> None:
    redis = pytest.importorskip("redis")
    with redis_prefix(monkeypatch) as url, redis.Redis.from_url(url) as client:
        backend = RedisResults(url, ttl_ms=DAY_MS)
        keep(backend, record(ResultStatus.RUNNING))
        (key,) = redis_keys(client, "*result:call_1")
        assert client.pttl(key) > 30 * DAY_MS
        keep(backend, record())
        assert DAY_MS - 60_000 < client.pttl(key) <= DAY_MS
        keep(backend, record(ResultStatus.RUNNING))
        assert client.pttl(key) > 0
        backend.close()


def test_redis_keeps_what_a_flow_needs_and_counts_from_its_release(monkeypatch: pytest.MonkeyPatch) -> None:
    redis = pytest.importorskip("redis")
    with redis_prefix(monkeypatch) as url, redis.Redis.from_url(url) as client:
        backend = RedisResults(url, ttl_ms=DAY_MS)
        keep(backend, record(kept=True))
        (result,), (message,) = redis_keys(client, "*result:call_1"), redis_keys(client, "*message:msg_1")
        assert (client.pttl(result), client.pttl(message)) == (-1, -1)
        backend.write((), released=["call_1"])
        assert DAY_MS - 60_000 < client.pttl(result) <= DAY_MS
        assert DAY_MS - 60_000 < client.pttl(message) <= DAY_MS
        keep(backend, record(ResultStatus.RUNNING, call_id="call_2", message_id="msg_2", kept=True))
        backend.write((), released=["call_2"])
        (running,) = redis_keys(client, "*result:call_2")
        assert client.pttl(running) > 400 * DAY_MS
        backend.close()


def test_redis_reads_records_of_an_earlier_version(monkeypatch: pytest.MonkeyPatch) -> None:
    redis = pytest.importorskip("redis")
    with redis_prefix(monkeypatch) as url, redis.Redis.from_url(url) as client:
        backend = RedisResults(url, ttl_ms=DAY_MS)
        earlier = json.dumps(["call_1", "msg_1", "work", "succeeded", 1, NOW_MS, "5", None, None])
        prefix = qtasks.tasks.results.redis.PREFIX
        client.hset(f"{prefix}result:call_1", mapping={"status": "succeeded", "record": earlier})
        assert backend.read("call_1") == record()
        backend.close()


def test_postgres_tables_of_an_earlier_version_get_the_new_column() -> None:
    psycopg = pytest.importorskip("psycopg")
    with postgres() as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE qtasks_results (call_id TEXT NOT NULL PRIMARY KEY, message_id TEXT NOT NULL, "
            "task TEXT NOT NULL, status TEXT NOT NULL, attempt INTEGER NOT NULL, updated_ms BIGINT NOT NULL, "
            "value TEXT, error TEXT, progress TEXT)"
        )
        connection.execute(
            "INSERT INTO qtasks_results VALUES ('call_1', 'msg_1', 'work', 'succeeded', 1, %s, '5')", (NOW_MS,)
        )
        backend = open_results(url, ttl_ms=DAY_MS)
        assert backend.read("call_1") == record()
        keep(backend, flow("a"))
        assert backend.open_flows(1) == [flow("a")]
        backend.close()


@pytest.mark.parametrize("url", ["postgresql://user@127.0.0.1:1/none", "redis://127.0.0.1:1/0"])
def test_a_service_that_is_not_there_is_a_named_error(url: str) -> None:
    backend = open_results(url, ttl_ms=DAY_MS)
    with pytest.raises(ResultError, match="cannot be reached"):
        backend.read("call_1")
    with pytest.raises(ResultError, match="cannot be reached"):
        backend.lock([Lock("k", "me", NOW_MS)], now_ms=0)
    backend.close()


def test_pauses_grow_from_two_to_fifty_milliseconds() -> None:
    first = list(itertools.islice(pauses(), 12))
    assert first[0] == POLL_FIRST_S == 0.002
    assert first == sorted(first)
    assert first[-1] == POLL_LAST_S == 0.05


# --- the SQLite file


def test_the_file_belongs_to_its_owner_alone_and_uses_a_rollback_journal(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "r.db"
    backend = SQLiteResults(path, ttl_ms=DAY_MS)
    keep(backend, record())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(entry.name for entry in path.parent.iterdir()) in (["r.db"], ["r.db", "r.db-journal"])
    backend.close()


def test_a_closed_file_opens_again_and_still_has_its_records(tmp_path: Path) -> None:
    backend = SQLiteResults(tmp_path / "r.db", ttl_ms=DAY_MS)
    backend.write([record()])
    backend.close()
    backend.close()
    assert backend.read("call_1") == record()
    backend.close()


def test_reading_a_file_that_is_not_there_makes_none(tmp_path: Path) -> None:
    assert SQLiteResults(tmp_path / "r.db", ttl_ms=DAY_MS).read("call_1") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", [2, 3])
def test_a_file_of_an_earlier_version_gets_the_new_states_and_columns(tmp_path: Path, version: int) -> None:
    with sqlite3.connect(tmp_path / "r.db") as connection:
        connection.executescript(
            f"""
            CREATE TABLE results (call_id TEXT NOT NULL PRIMARY KEY, message_id TEXT NOT NULL, task TEXT NOT NULL,
                status TEXT NOT NULL CHECK (
                    status IN ('queued', 'running', 'retrying', 'succeeded', 'failed', 'cancelled', 'expired')
                ),
                attempt INTEGER NOT NULL CHECK (attempt >= 1), updated_ms INTEGER NOT NULL,
                value TEXT, error TEXT, progress TEXT
            ) WITHOUT ROWID;
            CREATE INDEX results_by_message ON results (message_id);
            CREATE INDEX results_by_age ON results (updated_ms)
                WHERE status IN ('succeeded', 'failed', 'cancelled', 'expired');
            INSERT INTO results VALUES ('call_1', 'msg_1', 'work', 'succeeded', 1, {NOW_MS}, '5', NULL, NULL);
            PRAGMA user_version = {version};
            """
        )
    connection.close()
    backend = SQLiteResults(tmp_path / "r.db", ttl_ms=DAY_MS)
    assert backend.read("call_1") == record()
    keep(backend, record(ResultStatus.CANCELLING, call_id="call_2", message_id="msg_2", kept=True))
    assert backend.read("call_2") == record(ResultStatus.CANCELLING, call_id="call_2", message_id="msg_2", kept=True)
    backend.close()


def test_a_file_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "r.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    backend = SQLiteResults(tmp_path / "r.db", ttl_ms=DAY_MS)
    with pytest.raises(ResultError, match="newer version") as caught:
        backend.read("call_1")
    assert caught.value.code == "QT432"


@pytest.mark.parametrize(
    ("statements", "why"),
    [
        (["CREATE TABLE orders (id)"], "it has the table orders"),
        (["CREATE TABLE results (score)", "PRAGMA user_version = 3"], "it has the table results"),
        (["CREATE TABLE results (call_id)", "CREATE VIEW x AS SELECT 1"], "it has the table x"),
        (["PRAGMA application_id = 1903455091"], "its application id is 0x71746b73, not 0x71746b72"),
    ],
)
@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize("is_open", [False, True])
def test_the_database_of_another_program_is_refused_and_not_changed(
    tmp_path: Path, statements: list[str], why: str, journal: str, is_open: bool
) -> None:
    path = tmp_path / "shop.db"
    shop = sqlite3.connect(path, isolation_level=None)
    for statement in (f"PRAGMA journal_mode = {journal}", *statements):
        shop.execute(statement)
    if not is_open:
        shop.close()

    def contents() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in tmp_path.iterdir() if not file.name.endswith("-shm")}

    before = contents()
    backend = SQLiteResults(path, ttl_ms=DAY_MS)
    with pytest.raises(ResultError, match=f"is a database of another program: {why}; nothing") as caught:
        backend.read("call_1")
    assert caught.value.code == "QT504"
    with pytest.raises(ResultError, match="another program"):
        backend.write([record()])
    backend.close()
    assert contents() == before
    shop.close()


def test_a_results_file_is_marked_and_one_of_an_earlier_release_is_too(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    for _ in range(2):
        backend = SQLiteResults(path, ttl_ms=DAY_MS)
        keep(backend, record())
        backend.close()
        assert path.read_bytes()[68:72] == b"qtkr"
        with contextlib.closing(sqlite3.connect(path)) as earlier:
            earlier.execute("PRAGMA application_id = 0")
        assert path.read_bytes()[68:72] == bytes(4)
    backend = SQLiteResults(path, ttl_ms=DAY_MS)
    assert backend.read("call_1") == record()
    backend.close()


def test_a_file_that_is_no_database_is_a_named_error(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    path.write_bytes(b"this is a text and no database at all" * 40)
    backend = SQLiteResults(path, ttl_ms=DAY_MS)
    with pytest.raises(ResultError, match="cannot be reached"):
        backend.write([record()])
    with pytest.raises(ResultError, match="cannot be reached"):
        backend.read("call_1")


@pytest.mark.parametrize("is_replaced", [False, True])
def test_what_is_written_after_the_file_was_removed_or_replaced_is_in_the_file_that_others_open(
    tmp_path: Path, is_replaced: bool
) -> None:
    path = tmp_path / "r.db"
    backend, other = SQLiteResults(path, ttl_ms=DAY_MS), SQLiteResults(path, ttl_ms=DAY_MS)
    backend.write([record(call_id="before")])
    assert other.read("before") is not None
    if is_replaced:
        shutil.copy(path, tmp_path / "copy")
        (tmp_path / "copy").replace(path)
    else:
        path.unlink()
    backend.write([record(call_id="after", message_id="msg_2")])
    assert other.read("after") is not None
    assert backend.lock([Lock("k", "me", NOW_MS + 9_000)], now_ms=NOW_MS)[0].owner == "me"
    assert other.lock([Lock("k", "you", NOW_MS + 9_000)], now_ms=NOW_MS)[0].owner == "me"
    backend.close()
    other.close()


def test_a_second_use_in_the_process_leaves_the_lock_of_a_transaction_alone(tmp_path: Path) -> None:
    """Closing any descriptor of a file ends all locks of the process on it."""
    path = tmp_path / "r.db"
    backend, other = SQLiteResults(path, ttl_ms=DAY_MS), SQLiteResults(path, ttl_ms=DAY_MS)
    backend.write([record()])
    transaction = backend._opened()
    transaction.execute("BEGIN IMMEDIATE")
    assert other.read("call_1") == record()
    program = (
        f"import sqlite3; sqlite3.connect({str(path)!r}, timeout=0, isolation_level=None).execute('BEGIN IMMEDIATE')"
    )
    third = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "database is locked" in third.stderr
    transaction.execute("ROLLBACK")
    backend.close()
    other.close()


WRITER = """
import sys
from qtasks.tasks.results.backend import ResultRecord, ResultStatus
from qtasks.tasks.results.sqlite import SQLiteResults
path, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
backend = SQLiteResults(path, ttl_ms=86_400_000)
for number in range(first, first + count):
    backend.write([ResultRecord(call_id=f"call_{number}", message_id=f"msg_{number}", task="work",
                                status=ResultStatus.SUCCEEDED, attempt=1, updated_ms=1, value=str(number))])
backend.close()
"""


def test_two_processes_write_one_file_and_a_third_waits_for_a_result(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    tasks = application(results=f"sqlite:///{path}")

    @tasks.task
    def work() -> int:
        return 0

    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(first), "25"], cwd=Path.cwd(), env=_environment()
        )
        for first in (0, 25)
    ]
    assert work.result("call_49").get(timeout=30) == 49
    assert [process.wait(30) for process in processes] == [0, 0]
    assert [work.result(f"msg_{number}").get(timeout=5) for number in range(50)] == list(range(50))
    tasks.close()


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": ""}


# --- the handle


def test_a_result_comes_back_in_the_declared_type(backend: ResultBackend) -> None:
    tasks = application()
    tasks.runtime.results = lambda: backend  # type: ignore[method-assign]

    @tasks.task
    def work() -> dict[int, set[str]]:
        raise NotImplementedError

    keep(backend, record(value='{"1":["a"]}'))
    assert work.result("call_1").get(timeout=0) == {1: {"a"}}


def test_a_waiter_is_woken_by_the_process_that_writes(backend: ResultBackend) -> None:
    tasks = application()
    tasks.runtime.results = lambda: backend  # type: ignore[method-assign]

    @tasks.task
    def work() -> int:
        raise NotImplementedError

    waiting = threading.Event()
    original = backend.read

    def read(key: str) -> ResultRecord | None:
        waiting.set()
        return original(key)

    backend.read = read  # type: ignore[method-assign]
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.append(work.result("call_1").get(timeout=20)))
    thread.start()
    assert waiting.wait(10)
    keep(backend, record(ResultStatus.RUNNING))
    keep(backend, record())
    thread.join(20)
    assert got == [5]


@pytest.mark.anyio
async def test_async_code_waits_without_blocking(backend: ResultBackend) -> None:
    tasks = application()
    tasks.runtime.results = lambda: backend  # type: ignore[method-assign]

    @tasks.task
    async def work() -> int:
        raise NotImplementedError

    waiter = asyncio.create_task(work.result("call_1").aget(timeout=20))
    await asyncio.sleep(0)
    assert await work.result("call_1").astatus() == "queued"
    await asyncio.to_thread(keep, backend, record())
    assert await waiter == 5
    assert await work.result("call_1").astatus() == "succeeded"


@pytest.mark.anyio
async def test_time_that_is_up_says_where_the_call_stands(backend: ResultBackend) -> None:
    tasks = application()
    tasks.runtime.results = lambda: backend  # type: ignore[method-assign]

    @tasks.task
    def work() -> int:
        raise NotImplementedError

    with pytest.raises(ResultTimeout, match="not finished within 0 s; it is queued"):
        work.result("call_1").get(timeout=0)
    keep(backend, record(ResultStatus.RETRYING, attempt=2))
    with pytest.raises(TimeoutError, match="it is retrying after attempt 2: ValueError: no"):
        await work.result("call_1").aget(timeout=0.001)
    assert work.result("call_1").status is ResultStatus.RETRYING


def test_a_task_that_failed_for_good_raises_what_it_said(backend: ResultBackend) -> None:
    tasks = application()
    tasks.runtime.results = lambda: backend  # type: ignore[method-assign]

    @tasks.task
    def work() -> int:
        raise NotImplementedError

    keep(backend, record(ResultStatus.FAILED, attempt=4))
    with pytest.raises(TaskFailed, match="failed on attempt 4: ValueError: no") as caught:
        work.result("call_1").get()
    assert caught.value.error == "ValueError: no"


def test_a_result_that_no_longer_fits_its_type_is_a_named_error() -> None:
    tasks = application()

    @tasks.task
    def work() -> int:
        raise NotImplementedError

    keep(tasks.runtime.results(), record(value='"five"'))
    with pytest.raises(ResultError, match="does not fit the declared type"):
        work.result("call_1").get(timeout=0)


def test_without_a_backend_every_accessor_names_the_setting() -> None:
    tasks = application(results=None)

    @tasks.task
    def work() -> int:
        raise NotImplementedError

    result = work.result("call_1")
    for ask in (lambda: result.get(timeout=0), lambda: result.status):
        with pytest.raises(ResultsDisabled, match="QTASKS_RESULTS"):
            ask()


@pytest.mark.parametrize("url", ["mysql://localhost", "sqlite://r.db", "sqlite:///", "sqlite:///:memory:", "r.db", ""])
def test_a_url_that_names_no_backend_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="QTASKS_RESULTS"):
        open_results(url, ttl_ms=DAY_MS)


@pytest.mark.parametrize(("url", "path"), [("sqlite:///a/r.db", "a/r.db"), ("sqlite:////a/r.db", "/a/r.db")])
def test_three_slashes_are_relative_and_four_absolute(url: str, path: str) -> None:
    backend = open_results(url, ttl_ms=DAY_MS)
    assert isinstance(backend, SQLiteResults)
    assert str(backend.path) == path
