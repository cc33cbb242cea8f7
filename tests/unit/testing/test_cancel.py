"""Cancel in an environment: at once, for calls that wait and for calls that run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qtasks import QTasks, TaskContext, injected
from qtasks.errors import TaskCancelled
from qtasks.llm import ChatMessage, openai, user
from qtasks.qstash import message
from qtasks.testing import Environment
from qtasks.testing.llm import fake_llm


def test_a_call_that_waits_is_cancelled_by_its_stored_id(qtasks: Environment, tasks: QTasks) -> None:
    ran: list[int] = []

    @tasks.task
    def note() -> None:
        ran.append(1)

    sent = note.using(delay="1h").delay()
    stored = note.result(sent.id)
    assert stored.cancel() is True
    assert stored.status == "cancelled"
    assert qtasks.pending == []
    qtasks.advance("2h")
    assert ran == []
    with pytest.raises(TaskCancelled, match="by its caller"):
        sent.get()


def test_a_unique_key_is_free_after_a_cancel_by_a_stored_id(qtasks: Environment, tasks: QTasks) -> None:
    @tasks.task(unique=True)
    def note() -> None: ...

    note.result(note.delay().id).cancel()
    assert not note.delay().deduplicated


def test_a_call_cancels_one_that_runs(qtasks: Environment, tasks: QTasks) -> None:
    steps: list[str] = []

    @tasks.task
    async def long() -> None:
        stopper.delay(long_call.id)
        try:
            await stopped.result(stopped_id).aget()
        finally:
            steps.append("closed")

    @tasks.task
    async def stopper(call_id: str) -> bool:
        return await long.result(call_id).acancel()

    @tasks.task
    def stopped() -> None: ...

    stopped_id = stopped.using(delay="1h").delay().id
    long_call = long.delay()
    qtasks.drain()
    assert steps == ["closed"]
    assert long_call.status == "cancelled"
    assert [result.get() for result in qtasks.results if result.task == "stopper"] == [True]


@pytest.mark.anyio
async def test_a_test_cancels_a_call_that_runs(qtasks: Environment, tasks: QTasks) -> None:
    begun = asyncio.Event()

    @tasks.task
    async def long() -> None:
        begun.set()
        await asyncio.Event().wait()

    handle = long.delay()
    running = asyncio.create_task(qtasks.adrain())
    await begun.wait()
    assert await handle.acancel() is True
    assert await running == 1
    assert handle.status == "cancelled"
    assert qtasks.dlq == []


def test_a_function_in_a_thread_learns_why_it_should_end(qtasks: Environment, tasks: QTasks) -> None:
    seen: list[tuple[bool, bool]] = []

    @tasks.task
    def work(ctx: TaskContext = injected) -> str:
        work.result(ctx.call_id).cancel()
        seen.append((ctx.should_stop, ctx.is_cancelled))
        return "a part"

    handle = work.delay()
    qtasks.drain()
    assert seen == [(True, True)]
    assert handle.status == "cancelled"


@pytest.mark.parametrize("fails", [True, False])
def test_a_cancel_at_the_broker_during_a_run_ends_the_call_with_the_attempt(
    qtasks: Environment, tasks: QTasks, fails: bool
) -> None:
    """Anybody's, through the API: it does not reach the run, and no retry follows it."""

    @tasks.task
    def work(ctx: TaskContext = injected) -> int:
        tasks.runtime.publisher().call(message.cancel(ctx.message_id), "the cancellation")
        if fails:
            raise OSError("away")
        return 1

    handle = work.delay()
    assert qtasks.drain() == 1
    if fails:
        with pytest.raises(TaskCancelled, match="at the broker"):
            handle.get()
    else:
        assert handle.get() == 1
    assert qtasks.advance("1d") == 0


# --- language models


@pytest.fixture
def stored() -> list[str]:
    return []


@pytest.fixture
def chat(tasks: QTasks, stored: list[str]) -> Any:
    @tasks.llm(provider=openai(), model="gpt-4o-mini")
    def chat(text: str) -> list[ChatMessage]:
        return [user(text)]

    @chat.on_completion
    async def store(answer: str, text: str, *, ctx: TaskContext = injected) -> None:
        if text == "cancel me":
            await chat.result(ctx.call_id).acancel()
            await asyncio.Event().wait()
        stored.append(answer)

    return chat


def test_a_request_that_waits_is_not_made(qtasks: Environment, chat: Any, stored: list[str]) -> None:
    model = fake_llm("yes")
    qtasks.use_model(model)
    handle = chat.delay("hello")
    assert chat.result(handle.id).cancel() is True
    qtasks.drain()
    assert (model.asked, stored, handle.status) == ([], [], "cancelled")


@pytest.mark.parametrize("fresh", [True, False])
def test_the_completion_of_a_call_that_was_cancelled_meanwhile_does_not_run(
    qtasks: Environment, chat: Any, stored: list[str], fresh: bool
) -> None:
    qtasks.use_model(fake_llm("yes"))
    handle = chat.delay("hello")
    qtasks.run_next()  # the model has answered, and the callback waits
    assert (handle if fresh else chat.result(handle.id)).cancel() is True
    qtasks.drain()
    assert (stored, handle.status) == ([], "cancelled")


def test_a_completion_that_runs_is_cancelled(qtasks: Environment, chat: Any, stored: list[str]) -> None:
    qtasks.use_model(fake_llm("yes"))
    handle = chat.delay("cancel me")
    qtasks.drain()
    assert (stored, handle.status, handle.error) == ([], "cancelled", "cancelled by its caller")


def test_a_step_of_a_flow_that_was_cancelled_does_not_ask_its_model(qtasks: Environment, tasks: QTasks) -> None:
    model = fake_llm("yes")
    qtasks.use_model(model)

    @tasks.task
    def fetch() -> str:
        return "a text"

    @tasks.llm(provider=openai(), model="gpt-4o-mini")
    def summarise(text: str) -> list[ChatMessage]:
        assert end.cancel() is True  # while the step runs, before it is the turn of the model
        return [user(text)]

    end = (fetch.s() | summarise.s()).delay()
    qtasks.drain()
    assert (model.asked, end.status) == ([], "cancelled")
