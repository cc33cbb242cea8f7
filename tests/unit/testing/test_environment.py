"""Calls wait until the test runs them; then they go the whole way, in the order of time."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest

from qtasks import NonRetryable, QTasks, RetryPolicy, Snooze, TaskContext, chain, group, injected
from qtasks.broker.core import delivery_requests
from qtasks.broker.loops import single_attempts
from qtasks.errors import ConfigurationError, QTasksError, ResultTimeout, TaskCancelled, TaskExpired, TaskFailed
from qtasks.protocol.messages import SigningKeys
from qtasks.testing import Environment


def test_a_call_waits_until_it_is_drained(tasks: QTasks, qtasks: Environment) -> None:
    ran: list[int] = []

    @tasks.task
    def note(n: int) -> int:
        ran.append(n)
        return n * 2

    result = note.delay(21)
    assert ran == []
    assert [call.arguments for call in qtasks.pending] == [{"n": 21}]
    assert qtasks.drain() == 1
    assert ran == [21]
    assert result.get() == 42
    assert qtasks.pending == []


def test_an_async_task_is_run_and_not_only_called(tasks: QTasks, qtasks: Environment) -> None:
    ran: list[str] = []

    @tasks.task
    async def greet(name: str) -> str:
        ran.append(name)
        return f"hello {name}"

    result = greet.delay("Ada")
    qtasks.drain()
    assert ran == ["Ada"]
    assert result.get() == "hello Ada"


def test_a_coroutine_that_a_plain_function_returns_is_run_too(tasks: QTasks, qtasks: Environment) -> None:
    async def inner() -> str:
        return "awaited"

    @tasks.task
    def outer() -> str:
        return inner()  # type: ignore[return-value]  # as a decorator may do that hides an async function

    result = outer.delay()
    qtasks.drain()
    assert result.get() == "awaited"


def test_draining_runs_what_comes_of_it_too_and_leaves_the_clock_alone(tasks: QTasks, qtasks: Environment) -> None:
    @tasks.task
    def first(depth: int) -> None:
        if depth:
            first.delay(depth - 1)

    first.delay(3)
    first.using(delay="1s").delay(0)
    before = qtasks.now
    assert qtasks.drain() == 4
    assert qtasks.now == before
    assert len(qtasks.pending) == 1


def test_calls_run_one_at_a_time_in_the_order_in_which_they_were_sent(tasks: QTasks, qtasks: Environment) -> None:
    running: list[int] = []
    seen: list[int] = []

    @tasks.task
    def work(n: int) -> None:
        running.append(n)
        assert running == [n]
        seen.append(n)
        running.remove(n)

    work.map(range(40))
    qtasks.drain()
    assert seen == list(range(40))
    assert qtasks.dlq == []


def test_the_next_call_runs_alone(tasks: QTasks, qtasks: Environment) -> None:
    @tasks.task
    def note(n: int) -> int:
        return n

    one, two = note.delay(1), note.delay(2)
    ran = qtasks.run_next()
    assert ran is not None
    assert ran.arguments == {"n": 1}
    assert (one.status, two.status) == ("succeeded", "queued")
    qtasks.run_next()
    assert qtasks.run_next() is None


def test_time_passes_when_it_is_told_to(tasks: QTasks, qtasks: Environment) -> None:
    seen: list[tuple[str, datetime]] = []

    @tasks.task
    def note(what: str) -> None:
        seen.append((what, qtasks.now))

    start = qtasks.now
    note.using(delay="2h").delay("late")
    note.using(delay="30m").delay("soon")
    assert qtasks.advance(hours=1) == 1
    assert qtasks.now == start + timedelta(hours=1)
    assert qtasks.advance("3h") == 1
    assert seen == [("soon", start + timedelta(minutes=30)), ("late", start + timedelta(hours=2))]


def test_the_clock_starts_where_the_marker_says(qtasks: Environment) -> None:
    assert abs(qtasks.now - datetime.now(UTC)) < timedelta(minutes=1)  # noqa: TID251 - the real time
    with Environment(QTasks(), start="2030-03-31T01:30:00+01:00") as other:
        assert other.now == datetime(2030, 3, 31, 0, 30, tzinfo=UTC)
    with pytest.raises(ConfigurationError, match="has no time zone"):
        Environment(QTasks(), start="2030-03-31T01:30:00")


def test_an_hour_of_retries_passes_in_a_moment(tasks: QTasks, qtasks: Environment) -> None:
    at: list[timedelta] = []
    start = qtasks.now

    @tasks.task(retries=4)
    def flaky(ctx: TaskContext = injected) -> str:
        at.append(qtasks.now - start)
        if not ctx.is_last_attempt:
            raise ConnectionError("not yet")
        return f"attempt {ctx.attempt}"

    result = flaky.delay()
    qtasks.advance(days=1)
    assert result.get() == "attempt 5"
    assert at == [
        timedelta(),
        timedelta(seconds=12),
        timedelta(seconds=12 + 148),
        timedelta(seconds=12 + 148 + 1808),
        timedelta(seconds=12 + 148 + 1808 + 22026),
    ]


def test_jitter_is_the_same_in_every_run(tasks: QTasks) -> None:
    @tasks.task(retries=RetryPolicy(max=3, initial="10s", jitter=0.9))
    def flaky() -> None:
        raise ConnectionError

    def waits() -> list[datetime]:
        with Environment(tasks, start="2030-01-01T00:00:00Z") as qtasks:
            seen: list[datetime] = []

            @tasks.on_retry
            async def note(_: object) -> None:
                seen.append(qtasks.now)

            flaky.delay()
            qtasks.advance(days=1)
            tasks.runtime.hooks.retry.clear()
        return seen

    once = waits()
    assert len(once) == 3
    assert waits() == once


def test_what_fails_for_good_is_in_the_dead_letters(tasks: QTasks, qtasks: Environment) -> None:
    @tasks.task(retries=1)
    def pay(order: int) -> None:
        raise OSError(f"no card for {order}")

    @tasks.task
    def vanish() -> None:
        raise NonRetryable("gone")

    failed = pay.delay(7)
    vanish.delay()
    qtasks.drain()
    assert [dead.task for dead in qtasks.dlq] == ["vanish"]
    qtasks.advance(minutes=1)
    dead = qtasks.dlq[-1]
    assert (dead.task, dead.call.arguments, dead.status) == ("pay", {"order": 7}, 500)
    assert dead.error == "OSError: no card for 7"
    assert repr(dead) == "<DeadCall pay(7): OSError: no card for 7>"
    with pytest.raises(TaskFailed, match="no card for 7"):
        failed.get()


def test_hooks_snoozes_expiry_and_flows_work_as_ever(tasks: QTasks, qtasks: Environment) -> None:
    told: list[str] = []

    @tasks.task(retries=0)
    def fail() -> None:
        raise ValueError("no")

    @fail.on_failure
    async def note(event: object) -> None:
        told.append("failed")

    @tasks.task
    def wait(ctx: TaskContext = injected) -> int:
        if ctx.snoozed < 2:
            raise Snooze("1h")
        return ctx.snoozed

    @tasks.task
    def add(a: int, b: int) -> int:
        return a + b

    @tasks.task
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    fail.delay()
    waited = wait.delay()
    late = add.using(delay="10m", expires="5m").delay(1, 1)
    flow = chain(add.s(1, 1) | group(add.s(n) for n in range(3)) | total.s()).delay()
    qtasks.advance(hours=3)
    assert told == ["failed"]
    assert waited.get() == 2
    with pytest.raises(TaskExpired):
        late.get()
    assert flow.get() == 3 * 2 + 3


def test_a_cancelled_call_is_no_longer_pending_and_does_not_run(tasks: QTasks, qtasks: Environment) -> None:
    @tasks.task
    def note() -> None: ...

    result = note.using(delay="1h").delay()
    assert result.cancel()
    assert qtasks.pending == []
    assert qtasks.advance(hours=2) == 0
    assert len(qtasks.sent) == 1


def test_the_handle_of_a_flow_cancels_what_is_left_of_it(tasks: QTasks, qtasks: Environment) -> None:
    ran: list[int] = []

    @tasks.task
    def note(number: int) -> int:
        ran.append(number)
        return number

    @tasks.task
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    flow = chain(group(note.s(1), note.using(delay="1h").s(2), note.using(delay="2h").s(3)), total.s()).delay()
    qtasks.advance(minutes=1)
    assert total.result(flow.id).cancel()  # also from its id alone
    assert flow.cancel()
    qtasks.advance(hours=3)
    assert ran == [1]
    assert qtasks.pending == []
    with pytest.raises(TaskCancelled):
        flow.get()
    assert tasks.runtime.results().open_flows(1) == []
    done = chain(note.s(4), note.s()).delay()
    qtasks.drain()
    assert not done.cancel()


def test_results_are_handles_in_the_order_of_the_calls(tasks: QTasks, qtasks: Environment) -> None:
    @tasks.task
    def double(n: int) -> int:
        return 2 * n

    double.map(range(3))
    qtasks.drain()
    assert [result.get() for result in qtasks.results] == [0, 2, 4]


def test_results_are_deleted_when_the_application_deletes_them(tasks: QTasks, qtasks: Environment) -> None:
    @tasks.task
    def one() -> int:
        return 1

    result = one.delay()
    qtasks.advance(hours=23)
    one.delay()
    qtasks.drain()
    assert result.get() == 1
    qtasks.advance(days=2)
    one.delay()
    qtasks.drain()
    with pytest.raises(ResultTimeout, match="deleted after the application's result_ttl"):
        result.get()


def test_a_chord_keeps_its_results_for_a_member_that_ends_long_after_the_others() -> None:
    tasks = QTasks(result_ttl="1h")

    @tasks.task
    def add(a: int, b: int) -> int:
        return a + b

    @tasks.task
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    with Environment(tasks) as qtasks:
        early = add.delay(0, 0)
        flow = chain(group(add.s(1, 1), add.using(delay="3d").s(2, 2)), total.s()).delay()
        for _ in range(73):
            qtasks.advance(hours=1)
        assert flow.get() == 6
        qtasks.advance(days=2)
        add.delay(0, 0)
        qtasks.advance(hours=2)
        backend = tasks.runtime.results()
        assert backend.read(early.id) is None
        assert backend.read(flow.id) is None  # the flow has ended: it keeps nothing
        assert backend.open_flows(10) == []


def test_a_delivery_whose_signature_is_not_good_runs_nothing(
    tasks: QTasks, qtasks: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    signed_request = delivery_requests.signed_request
    forged = SigningKeys("sig_" + "f" * 40, "sig_" + "g" * 40)

    @tasks.task(retries=0)
    def touch() -> None:
        ran.append(1)

    monkeypatch.setattr(
        single_attempts, "signed_request", lambda message, keys, **facts: signed_request(message, forged, **facts)
    )
    touch.delay()
    qtasks.drain()
    assert ran == []
    assert [dead.status for dead in qtasks.dlq] == [401]


def test_a_call_that_calls_itself_for_ever_is_stopped_with_its_name(
    tasks: QTasks, qtasks: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qtasks.testing.brokers.stepper.MOST", 20)

    @tasks.task
    def again(n: int) -> None:
        again.delay(n + 1)

    again.delay(0)
    with pytest.raises(QTasksError, match=r"20 attempts were made in one run.*again\("):
        qtasks.drain()


def test_a_task_that_drains_hears_that_it_cannot(tasks: QTasks, qtasks: Environment) -> None:
    @tasks.task(retries=0)
    def impatient() -> None:
        qtasks.drain()

    impatient.delay()
    qtasks.drain()
    assert "calls are running already" in qtasks.dlq[0].error


def test_what_leaves_the_application_is_seen_and_answered_by_the_test(tasks: QTasks, qtasks: Environment) -> None:
    @tasks.task(callback="https://hooks.example.com/done")
    def work() -> str:
        return "done"

    qtasks.answer("https://hooks.example.com/", {"ok": True})
    work.delay()
    qtasks.drain()
    assert [request.url for request in qtasks.outside] == ["https://hooks.example.com/done"]
    assert [call.task for call in qtasks.sent] == ["work"]


def test_nobody_outside_is_reached(tasks: QTasks, qtasks: Environment) -> None:
    @tasks.task(failure_callback="http://127.0.0.1:9/dead", retries=0)
    def work() -> None:
        raise ValueError

    work.delay()
    qtasks.drain()
    assert [request.url for request in qtasks.outside] == ["http://127.0.0.1:9/dead"]


def test_an_environment_is_gone_when_it_is_left(tasks: QTasks) -> None:
    with Environment(tasks) as qtasks:
        runtime = tasks.runtime
    assert tasks.runtime is not runtime
    with pytest.raises(QTasksError, match="not open"):
        qtasks.drain()
    with pytest.raises(ConfigurationError, match="unknown mode 'eager'"):
        Environment(tasks, mode="eager")  # type: ignore[arg-type]


def test_a_call_from_another_thread_is_seen(tasks: QTasks, qtasks: Environment) -> None:
    @tasks.task
    def note() -> None: ...

    thread = threading.Thread(target=note.delay)
    thread.start()
    thread.join()
    qtasks.assert_enqueued(note)
