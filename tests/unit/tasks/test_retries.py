"""Retries: policies, control exceptions such as `Snooze`, and calls that have expired."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtasks import Cancel, NonRetryable, QTasks, RetryAfter, RetryPolicy, Snooze, TaskContext, injected
from qtasks.errors import DefinitionError, PayloadError, TaskCancelled, TaskExpired
from qtasks.protocol import expressions
from qtasks.tasks.control import AttemptTimeout
from qtasks.tasks.encode import envelope
from qtasks.tasks.results.sqlite import SQLiteResults
from qtasks.tasks.retries import jittered_ms
from qtasks.tasks.send.outgoing import Outgoing
from tests.unit.tasks.manual_broker import ManualBroker, json_of

pytestmark = pytest.mark.anyio


def waits(policy: RetryPolicy, count: int) -> list[int]:
    expression = expressions.parse(policy.expression)
    return [expression.delay_ms(retried) for retried in range(count)]


# --- the policy


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (RetryPolicy(initial="1s"), [1000, 2000, 4000, 8000]),
        (RetryPolicy(initial=10, factor=1), [10_000, 10_000, 10_000, 10_000]),
        (RetryPolicy(initial="1m", factor=3, max_delay="5m"), [60_000, 180_000, 300_000, 300_000]),
        (RetryPolicy(initial="2s", factor=1.5), [2000, 3000, 4500, 6750]),
        (RetryPolicy(initial=0), [0, 0, 0, 0]),
        (RetryPolicy(initial="1h", max_delay="1m", factor=1), [60_000] * 4),
    ],
)
async def test_a_policy_s_waits_are_those_the_broker_computes(policy: RetryPolicy, expected: list[int]) -> None:
    assert waits(policy, 4) == expected


async def test_the_wait_before_the_last_of_a_thousand_retries_is_still_a_day_at_most() -> None:
    assert expressions.parse(RetryPolicy(max=999).expression).delay_ms(998) == 86_400_000


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max": -1}, "max is -1"),
        ({"max": True}, "max is True"),
        ({"max": 1000}, "max is 1000"),
        ({"initial": "soon"}, "initial='soon'"),
        ({"initial": "2d"}, "longer than a day"),
        ({"max_delay": "2d"}, "longer than a day"),
        ({"factor": 0.5}, "factor is 0.5"),
        ({"factor": "2"}, "factor is '2'"),
        ({"jitter": 1.1}, "jitter is 1.1"),
        ({"jitter": True}, "jitter is True"),
        ({"on": "ValueError"}, "on names 'ValueError'"),
        ({"give_up_on": (ValueError, 3)}, "give_up_on names 3"),
    ],
)
async def test_a_policy_that_cannot_work_is_refused_where_it_is_made(options: dict[str, Any], text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        RetryPolicy(**options)


@settings(max_examples=200)
@given(
    initial_ms=st.integers(1, 86_400_000),
    retried=st.integers(0, 20),
    jitter=st.floats(0, 1),
    chance=st.floats(0, 1),
)
async def test_jitter_stays_in_its_part_and_never_rounds_to_zero(
    initial_ms: int, retried: int, jitter: float, chance: float
) -> None:
    expression = RetryPolicy(initial=timedelta(milliseconds=initial_ms)).expression
    plain_ms = expressions.parse(expression).delay_ms(retried)
    wait_ms = jittered_ms(expression, retried, jitter, chance)
    assert 1 <= wait_ms <= 86_400_000
    assert abs(wait_ms - plain_ms) <= plain_ms * jitter + 1


async def test_jitter_leans_neither_way() -> None:
    expression = RetryPolicy(initial="100s").expression
    assert [jittered_ms(expression, 0, 0.5, chance) for chance in (0, 0.5, 1)] == [50_000, 100_000, 150_000]


# --- what a policy comes to on the wire and in the dispatcher


async def test_a_policy_travels_as_a_number_and_an_expression(broker: ManualBroker) -> None:
    @broker.tasks.task(retries=RetryPolicy(max=5, initial="2s"))
    def work() -> None: ...

    work.delay()
    message = broker.take()
    assert message.options.retries == 5
    assert message.options.retry_delay == "min(86400000, 2000 * pow(2, retried))"
    assert message.envelope["retries"] == 5


async def test_jitter_is_asked_for_with_every_failed_answer(broker: ManualBroker) -> None:
    @broker.tasks.task(retries=RetryPolicy(max=5, initial="100s", jitter=0.2))
    def work() -> None:
        raise OSError("no")

    work.delay()
    message = broker.take()
    asked = [dict((await broker.deliver(message, retried=n)).headers)["Retry-After"] for n in (0, 1, 0)]
    assert asked[0] != asked[2]
    for text, plain_ms in zip(asked, (100_000, 200_000, 100_000), strict=True):
        wait_ms = int(text.removesuffix("ms")) * (1 if text.endswith("ms") else 1000)
        assert plain_ms * 0.8 <= wait_ms <= plain_ms * 1.2


async def test_without_jitter_the_broker_s_own_backoff_counts(broker: ManualBroker) -> None:
    @broker.tasks.task(retries=RetryPolicy(initial="100s"))
    def work() -> None:
        raise OSError("no")

    work.delay()
    answer = await broker.deliver()
    assert (answer.status, answer.headers) == (500, ())


class BadError(Exception):
    pass


class WorseError(BadError):
    pass


@pytest.mark.parametrize(
    ("policy", "raised", "status"),
    [
        (RetryPolicy(give_up_on=BadError), BadError(), 489),
        (RetryPolicy(give_up_on=(BadError,)), WorseError(), 489),
        (RetryPolicy(give_up_on=BadError), OSError(), 500),
        (RetryPolicy(on=OSError), FileNotFoundError(), 500),
        (RetryPolicy(on=(OSError, KeyError)), ValueError(), 489),
        (RetryPolicy(on=BadError, give_up_on=WorseError), WorseError(), 489),
        (RetryPolicy(on=BadError, give_up_on=WorseError), BadError(), 500),
        (RetryPolicy(), asyncio.CancelledError(), 500),
        (RetryPolicy(on=OSError), NonRetryable("x"), 489),
    ],
)
async def test_a_permanent_error_does_not_burn_all_retries(
    broker: ManualBroker, policy: RetryPolicy, raised: BaseException, status: int
) -> None:
    @broker.tasks.task(retries=policy)
    async def work() -> None:
        raise raised

    work.delay()
    assert (await broker.deliver()).status == status


async def test_a_call_keeps_the_errors_of_the_declaration_and_changes_the_rest(broker: ManualBroker) -> None:
    @broker.tasks.task(retries=RetryPolicy(max=5, give_up_on=BadError))
    def work() -> None:
        raise BadError

    work.using(retries=RetryPolicy(max=1, initial="3s")).delay()
    message = broker.take()
    assert (message.options.retries, message.options.retry_delay) == (1, "min(86400000, 3000 * pow(2, retried))")
    assert (await broker.deliver(message)).status == 489
    work.using(retries=9).delay()
    message = broker.take()
    assert (message.options.retries, message.options.retry_delay) == (9, None)
    work.using(retry_delay="5s").delay()
    message = broker.take()
    assert (message.options.retries, message.options.retry_delay) == (5, "5000")
    work.using(retry_delay="5s").using(retries=RetryPolicy(initial=1, factor=1)).delay()
    assert broker.take().options.retry_delay == "1000"


async def test_contradictions_are_refused() -> None:
    tasks = QTasks()
    with pytest.raises(DefinitionError, match="contradict"):

        @tasks.task(retries=RetryPolicy(), retry_delay="5s")
        def one() -> None: ...

    @tasks.task
    def two() -> None: ...

    with pytest.raises(DefinitionError, match="cannot depend on the type of error"):
        two.using(retries=RetryPolicy(on=OSError))


# --- groups


@pytest.mark.parametrize(
    ("raised", "status"), [(OSError(), 500), (NonRetryable("x"), 489), (Snooze(1), 200), (RetryAfter(1), 503)]
)
async def test_a_wish_raised_inside_a_task_group_is_not_swallowed(
    broker: ManualBroker, raised: Exception, status: int
) -> None:
    async def inner() -> None:
        raise raised

    @broker.tasks.task
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(inner())

    work.delay()
    assert (await broker.deliver()).status == status


# --- snoozed


async def test_a_snoozed_call_comes_again_under_its_own_id_and_keeps_its_options(broker: ManualBroker) -> None:
    seen: list[TaskContext] = []

    @broker.tasks.task(timeout="1m", label="a")
    def work(n: int, ctx: TaskContext = injected) -> int:
        seen.append(ctx)
        if ctx.snoozed < 2:
            raise Snooze("2h", "too early")
        return n

    result = work.using(label="b", retries=1, delay="5m", deduplication_id="mine").delay(7)
    answer = await broker.deliver()
    assert (answer.status, json_of(answer)) == (200, {"snoozed": "Snooze: too early", "code": "QT414"})
    assert result.status == "queued"
    message = broker.take()
    assert message.options.delay_ms == 7_200_000
    assert (message.options.labels, message.options.retries, message.options.timeout_ms) == (("b",), 1, 60_000)
    assert message.options.deduplication_id not in (None, "mine")
    await broker.deliver(message)
    again = broker.take()
    assert again.options.deduplication_id != message.options.deduplication_id
    assert (await broker.deliver(again)).body == b"7"
    assert result.get(timeout=0) == 7
    assert [(ctx.snoozed, ctx.attempt, ctx.call_id, ctx.retries) for ctx in seen] == [
        (0, 1, result.id, 1),
        (1, 1, result.id, 1),
        (2, 1, result.id, 1),
    ]


async def test_a_delivery_made_twice_is_put_off_once(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None:
        raise Snooze(60)

    work.delay()
    message = broker.take()
    await broker.deliver(message)
    await broker.deliver(message)
    assert len({sent.options.deduplication_id for sent in broker.messages}) == 1


async def test_where_the_broker_cannot_be_reached_it_is_asked_to_come_back(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None:
        raise Snooze("3d")

    work.delay()
    message = broker.take()
    dispatcher = broker.tasks.runtime.dispatcher()
    dispatcher._executor._continuation._publish = None
    answer = await broker.deliver(message)
    assert (answer.status, answer.headers) == (503, (("Retry-After", "86400"),))
    assert "cannot publish" in json_of(answer)["error"]


async def test_what_becomes_of_a_snoozed_call_before_its_delivery_is_answered_stands(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work(ctx: TaskContext = injected) -> int:
        if not ctx.snoozed:
            raise Snooze("1s")
        return 1

    result = work.delay()
    message = broker.take()
    dispatcher = broker.tasks.runtime.dispatcher()
    publish = dispatcher._executor._continuation._publish
    assert publish is not None

    async def publish_and_deliver(message: Outgoing) -> object:
        sent = await publish(message)
        assert result.status == "queued"
        await broker.deliver()
        return sent

    dispatcher._executor._continuation._publish = publish_and_deliver
    assert (await broker.deliver(message)).status == 200
    assert result.status == "succeeded"


async def test_a_snooze_of_more_than_a_year_is_refused() -> None:
    with pytest.raises(ValueError, match="at most a year"):
        Snooze("500d")


# --- cancelled, and too late


async def test_a_cancelled_call_is_neither_a_result_nor_a_failure(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> int:
        raise Cancel("the order is paid")

    result = work.delay()
    answer = await broker.deliver()
    assert (answer.status, json_of(answer)) == (200, {"cancelled": "the order is paid", "code": "QT411"})
    assert result.status == "cancelled"
    with pytest.raises(TaskCancelled, match="the order is paid") as caught:
        result.get(timeout=0)
    assert caught.value.reason == "the order is paid"


@pytest.mark.parametrize("expires", ["1m", 60, timedelta(minutes=1)])
async def test_a_call_that_comes_after_its_time_is_not_run(broker: ManualBroker, expires: Any) -> None:
    ran: list[int] = []

    @broker.tasks.task
    def work(n: int) -> None:
        ran.append(n)

    result = work.using(expires=expires).delay(1)
    message = broker.take()
    broker.clock.advance(60_000)
    assert (await broker.deliver(message)).status == 200
    assert ran == [1]
    broker.clock.advance(1)
    late = work.using(expires=expires).delay(2)
    message = broker.take()
    broker.clock.advance(61_000)
    answer = await broker.deliver(message)
    assert answer.status == 200
    assert json_of(answer)["code"] == "QT412"
    assert ran == [1]
    assert (result.status, late.status) == ("succeeded", "expired")
    with pytest.raises(TaskExpired, match=r"Expired: 1\.000 s after"):
        late.get(timeout=0)


async def test_a_moment_may_be_given_and_a_retry_may_come_too_late(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None:
        raise OSError

    moment = datetime.fromtimestamp(broker.clock.now_ms() / 1000, UTC) + timedelta(seconds=10)
    result = work.using(expires=moment).delay()
    message = broker.take()
    assert (await broker.deliver(message)).status == 500
    broker.clock.advance(11_000)
    assert (await broker.deliver(message, retried=1)).status == 200
    assert result.status == "expired"


@pytest.mark.parametrize("expires", ["soon", -1, "400d", datetime(2030, 1, 1)])  # noqa: DTZ001
async def test_an_expiry_that_means_nothing_is_refused(expires: Any) -> None:
    tasks = QTasks()

    @tasks.task
    def work() -> None: ...

    with pytest.raises(DefinitionError, match="expires="):
        work.using(expires=expires)


# --- deadlines


async def test_the_context_knows_how_much_time_is_left(broker: ManualBroker) -> None:
    seen: list[tuple[float, bool]] = []
    contexts: list[TaskContext] = []

    @broker.tasks.task(timeout="20s")
    def work(ctx: TaskContext = injected) -> None:
        contexts.append(ctx)
        seen.append((ctx.time_left_s, ctx.should_stop))

    work.delay()
    await broker.deliver()
    assert 15 < seen[0][0] <= 19
    assert seen[0][1] is False
    assert contexts[0].deadline == datetime.fromtimestamp(broker.clock.now_ms() / 1000 + 19, UTC)


async def test_an_async_body_is_stopped_when_its_time_is_up_and_closes_what_it_opened(broker: ManualBroker) -> None:
    steps: list[str] = []
    broker.tasks.runtime.clock = broker.clock  # its monotonic time stands still, so the text does not vary

    @broker.tasks.task(timeout=timedelta(milliseconds=20))
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            steps.append("closed")

    result = work.delay()
    answer = await broker.deliver()
    assert answer.status == 500
    assert json_of(answer)["code"] == "QT410"
    assert json_of(answer)["error"] == "AttemptTimeout: work was stopped after 0.018 s, its time for one attempt"
    assert steps == ["closed"]
    assert result.status == "retrying"


async def test_a_timeout_of_the_task_s_own_is_an_ordinary_error(broker: ManualBroker) -> None:
    @broker.tasks.task
    async def work() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    work.delay()
    assert json_of(await broker.deliver())["code"] == "QT407"


async def test_a_policy_may_give_up_on_slow_attempts(broker: ManualBroker) -> None:
    @broker.tasks.task(timeout=timedelta(milliseconds=5), retries=RetryPolicy(give_up_on=AttemptTimeout))
    async def work() -> None:
        await asyncio.Event().wait()

    work.delay()
    assert (await broker.deliver()).status == 489


async def test_a_thread_is_told_when_its_time_is_up_and_its_late_result_counts(broker: ManualBroker) -> None:
    broker.tasks.runtime.clock = broker.clock

    @broker.tasks.task(timeout="1h")
    def work(ctx: TaskContext = injected) -> tuple[bool, bool]:
        before = ctx.should_stop
        broker.clock.advance(60 * 60 * 1000 - 900)
        return before, ctx.should_stop

    work.delay()
    assert (await broker.deliver()).body == b"[false,true]"


async def test_a_thread_is_told_that_the_process_stops(broker: ManualBroker) -> None:
    begun = threading.Event()

    @broker.tasks.task
    def work(ctx: TaskContext = injected) -> str:
        begun.set()
        pause = threading.Event()
        while not ctx.should_stop:
            pause.wait(0.001)
        return "stopped"

    work.delay()
    running = asyncio.create_task(broker.deliver())
    await asyncio.to_thread(begun.wait, 10)
    assert await broker.tasks.runtime.dispatcher().drain(0.01) is False
    assert (await running).body == b'"stopped"'


# --- the envelope and the store


@pytest.mark.parametrize(
    "member",
    [
        '"timeout_ms":0',
        '"expires_ms":"x"',
        '"jitter":2',
        '"retry_delay":"import os"',
        '"snoozed":-1',
        '"options":{"a":1}',
    ],
)
async def test_members_of_an_envelope_are_checked(member: str) -> None:
    with pytest.raises(PayloadError, match=member.split('"')[1]):
        envelope.decode(f'{{"v":1,{member}}}'.encode())


async def test_results_of_an_older_version_are_carried_over(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    old = sqlite3.connect(path)
    old.executescript(
        """
        CREATE TABLE results (call_id TEXT NOT NULL PRIMARY KEY, message_id TEXT NOT NULL, task TEXT NOT NULL,
            status TEXT NOT NULL CHECK (status IN ('running', 'retrying', 'succeeded', 'failed')),
            attempt INTEGER NOT NULL CHECK (attempt >= 1), updated_ms INTEGER NOT NULL, value TEXT, error TEXT
        ) WITHOUT ROWID;
        CREATE INDEX results_by_message ON results (message_id);
        CREATE INDEX results_by_age ON results (updated_ms) WHERE status IN ('succeeded', 'failed');
        INSERT INTO results VALUES ('call_1', 'msg_1', 'work', 'succeeded', 1, 5, '7', NULL);
        PRAGMA user_version = 1;
        """
    )
    old.close()
    store = SQLiteResults(path, ttl_ms=1000)
    found = store.read("call_1")
    assert found is not None
    assert (found.value, found.progress) == ("7", None)
    store.close()
