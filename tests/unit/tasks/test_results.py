"""Every backend keeps the same promises; waiting wakes at once in the process and soon across processes."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qtasks.errors import ConfigurationError, ResultError, ResultsDisabled, ResultTimeout, TaskFailed
from qtasks.tasks.results.backend import (
    POLL_FIRST_S,
    POLL_LAST_S,
    Lock,
    ResultBackend,
    ResultRecord,
    ResultStatus,
    pauses,
)
from qtasks.tasks.results.open_backend import open_results
from qtasks.tasks.results.postgres import PostgresResults
from qtasks.tasks.results.redis import RedisResults
from qtasks.tasks.results.sqlite import SQLiteResults
from tests.support.results import BACKENDS, place_for_results, postgres, redis_prefix
from tests.support.tasks import application

DAY_MS = 86_400_000
NOW_MS = 1_800_000_000_000


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


@pytest.mark.parametrize("status", list(ResultStatus))
def test_every_state_and_field_is_kept(backend: ResultBackend, status: ResultStatus) -> None:
    kept = record(status, value='"grüße 🎉"', error="x\n'\"\\", progress='{"done":1}', attempt=1000)
    keep(backend, kept)
    assert backend.read("call_1") == kept


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


def test_redis_forgets_finished_records_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    redis = pytest.importorskip("redis")
    with redis_prefix(monkeypatch) as url, redis.Redis.from_url(url) as client:
        backend = RedisResults(url, ttl_ms=DAY_MS)
        keep(backend, record(ResultStatus.RUNNING))
        (key,) = client.scan_iter("*result:call_1")
        assert client.pttl(key) == -1
        keep(backend, record())
        assert DAY_MS - 60_000 < client.pttl(key) <= DAY_MS
        keep(backend, record(ResultStatus.RUNNING))
        assert client.pttl(key) > 0
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


def test_a_file_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "r.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    backend = SQLiteResults(tmp_path / "r.db", ttl_ms=DAY_MS)
    with pytest.raises(ResultError, match="newer version") as caught:
        backend.read("call_1")
    assert caught.value.code == "QT432"


def test_a_file_that_is_no_database_is_a_named_error(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    path.write_bytes(b"this is a text and no database at all" * 40)
    backend = SQLiteResults(path, ttl_ms=DAY_MS)
    with pytest.raises(ResultError, match="cannot be reached"):
        backend.write([record()])
    with pytest.raises(ResultError, match="cannot be reached"):
        backend.read("call_1")


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
