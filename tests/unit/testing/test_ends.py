"""Ends that the dispatcher did not see: the broker reports them, and the call ends as any other does."""

from __future__ import annotations

import pytest

from qtasks import QTasks, Snooze, TaskEvent
from qtasks.errors import TaskCancelled, TaskFailed
from qtasks.llm import ChatMessage, user
from qtasks.qstash import dlq, message
from qtasks.tasks.results.backend import ResultStatus
from qtasks.tasks.task import SyncTask
from qtasks.testing import Environment
from qtasks.testing.llm import fake_llm


@pytest.fixture
def failures(tasks: QTasks) -> list[TaskEvent]:
    seen: list[TaskEvent] = []
    tasks.on_failure(seen.append)
    return seen


@pytest.fixture
def work(tasks: QTasks) -> SyncTask[..., int]:
    @tasks.task(retries=0, interrupted_for=0)
    def work(n: int = 1) -> int:
        return n

    return work


def retry_dead_letters(qtasks: Environment, tasks: QTasks) -> None:
    """Send every dead letter again, as the console does."""
    for dead in qtasks.dlq:
        tasks.runtime.publisher().call(dlq.retry(dead.letter.id, {}), "the retry")


def test_a_call_whose_process_dies_in_the_last_attempt_has_failed(
    qtasks: Environment, work: SyncTask[..., int], failures: list[TaskEvent]
) -> None:
    qtasks.crash_next(work)
    handle = work.delay(7)
    assert qtasks.drain() == 1
    with pytest.raises(TaskFailed, match="failed on attempt 1: DeliveryFailed: the response was lost"):
        handle.get()
    [failure] = failures
    assert (failure.context.task, failure.context.call_id) == ("work", handle.id)
    assert (failure.context.message_id, failure.context.attempt) == (handle.message_id, 1)
    assert failure.arguments == {}
    assert failure.reason.startswith("DeliveryFailed: ")


def test_the_report_is_no_call_of_the_test(qtasks: Environment, work: SyncTask[..., int]) -> None:
    qtasks.fail_next(work, status=502)
    handle = work.delay()
    assert qtasks.drain() == 1
    assert [call.id for call in qtasks.sent] == [handle.id]
    assert [dead.call.id for dead in qtasks.dlq] == [handle.id]
    assert (qtasks.pending, qtasks.outside) == ([], [])
    assert (
        handle.error
        == 'DeliveryFailed: a proxy answered 502 in place of the dispatcher: {"error":"ordered by the test"}'
    )


def test_an_end_that_the_dispatcher_has_seen_is_not_ended_again(
    qtasks: Environment, tasks: QTasks, failures: list[TaskEvent]
) -> None:
    @tasks.task(retries=1, retry_delay="10s")
    def fails() -> None:
        raise ValueError("no")

    handle = fails.delay()
    qtasks.advance("1h")
    assert handle.error == "ValueError: no"
    assert [failure.context.attempt for failure in failures] == [2]


def test_a_lost_answer_does_not_end_a_call_that_has_succeeded(
    qtasks: Environment, work: SyncTask[..., int], failures: list[TaskEvent]
) -> None:
    qtasks.drop_response_next(work)
    handle = work.delay(7)
    qtasks.drain()
    assert len(qtasks.dlq) == 1
    assert handle.get() == 7
    assert failures == []


def test_a_unique_key_is_free_again(qtasks: Environment, tasks: QTasks) -> None:
    @tasks.task(retries=0, interrupted_for=0, unique=True)
    def once(n: int) -> int:
        return n

    qtasks.crash_next(once)
    once.delay(1)
    qtasks.drain()
    again = once.delay(1)
    assert not again.deduplicated
    qtasks.drain()
    assert again.get() == 1


def test_a_message_that_is_cancelled_at_the_broker_cancels_its_call(
    qtasks: Environment, tasks: QTasks, failures: list[TaskEvent]
) -> None:
    @tasks.task(unique=True)
    def once() -> None: ...

    handle = once.delay()
    assert handle.message_id is not None
    tasks.runtime.publisher().cancel(handle.message_id)
    qtasks.drain()
    with pytest.raises(TaskCancelled, match="cancelled at the broker"):
        handle.get()
    assert failures == []
    assert not once.delay().deduplicated


def test_a_dead_letter_that_is_sent_again_is_a_new_round(
    qtasks: Environment, tasks: QTasks, work: SyncTask[..., int], failures: list[TaskEvent]
) -> None:
    qtasks.crash_next(work)
    handle = work.delay(7)
    qtasks.drain()
    qtasks.advance("1m")
    qtasks.fail_next(work, status=502)  # the application is not there: the second message leaves no trace
    retry_dead_letters(qtasks, tasks)
    qtasks.drain()
    assert [failure.context.call_id for failure in failures] == [handle.id] * 2
    assert len({failure.context.message_id for failure in failures}) == 2
    retry_dead_letters(qtasks, tasks)
    qtasks.drain()
    assert handle.get() == 7
    assert len(failures) == 2


def test_a_snoozed_call_ends_with_its_last_message(
    qtasks: Environment, tasks: QTasks, failures: list[TaskEvent]
) -> None:
    @tasks.task(retries=0, interrupted_for=0)
    def later() -> None:
        raise Snooze("1m")

    handle = later.delay()
    qtasks.drain()
    qtasks.fail_next(later, status=502)
    qtasks.advance("1m")
    assert handle.status is ResultStatus.FAILED
    assert len(failures) == 1


def test_the_runs_of_a_schedule_end_too(qtasks_app: QTasks, failures: list[TaskEvent]) -> None:
    @qtasks_app.every("1h", retries=0, interrupted_for=0)
    def hourly() -> None: ...

    with Environment(qtasks_app) as qtasks:
        qtasks.fail_next(hourly, status=502)
        qtasks.advance("1h")
        [run] = qtasks.sent
        assert run.result.status is ResultStatus.FAILED
        assert [failure.context.call_id for failure in failures] == [run.id]


@pytest.mark.parametrize("cancelled", [False, True])
def test_the_end_of_an_answer_that_never_arrived_is_the_end_of_its_call(
    qtasks: Environment, tasks: QTasks, cancelled: bool
) -> None:
    @tasks.llm(model="any")
    def ask() -> list[ChatMessage]:
        return [user("?")]

    @ask.on_completion(retries=1, retry_delay="1m")
    def store(answer: str) -> None: ...

    qtasks.use_model(fake_llm("42"))
    qtasks.fail_next(ask, times=2)
    handle = ask.delay()
    qtasks.drain()
    if cancelled:
        assert tasks.runtime.publisher().call(message.cancel_all(None, None), "the cancel") == 1
    qtasks.advance("1m")
    assert handle.status is (ResultStatus.CANCELLED if cancelled else ResultStatus.FAILED)
