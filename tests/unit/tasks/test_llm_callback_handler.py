"""How a call ends when the broker delivers the callbacks of its model: answers, repairs, refusals and forgeries."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Depends
from pydantic import BaseModel

from qtasks import NonRetryable, Snooze, TaskContext, TaskEvent, chain, injected
from qtasks.broker.ports import Failure
from qtasks.errors import OutputError, ProviderError, TaskExpired, TaskFailed
from qtasks.llm import ChatMessage, Usage, anthropic, openai, user
from qtasks.protocol.messages import Response
from qtasks.qstash.conversation.transport import Request
from qtasks.qstash.operations import publishing
from qtasks.tasks.llm import callback_url, model_request
from qtasks.tasks.llm.llm_task import LlmTask
from qtasks.tasks.results.backend import Lock
from qtasks.tasks.run.lease import BRIEF_LEASE_MS, LEASE_MS
from qtasks.testing.fakes.virtual_clock import TaskClock
from tests.support.tasks import BASE_URL, application, envelope
from tests.unit.tasks.manual_broker import ManualBroker, SentMessage, json_of
from tests.unit.tasks.scripted_provider import ScriptedProvider, openai_says, refuses

pytestmark = pytest.mark.anyio

KEY = "sk-of-the-tests"
GOOD = '{"title": "a title", "points": ["one"]}'


class Summary(BaseModel):
    title: str
    points: list[str] = []


FITS = Summary(title="a title", points=["one"])


class RecordedEvents:
    """What completions and hooks received."""

    def __init__(self) -> None:
        self.completed: list[tuple[Any, ...]] = []
        self.failed: list[TaskEvent] = []
        self.retried: list[TaskEvent] = []
        self.succeeded: list[TaskEvent] = []


@pytest.fixture(params=["memory", "sqlite"])
def broker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ManualBroker]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    made = ManualBroker(results="memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/r.db")
    yield made
    made.close()


@pytest.fixture
def provider(broker: ManualBroker) -> ScriptedProvider:
    return ScriptedProvider(broker)


@pytest.fixture
def recorded() -> RecordedEvents:
    return RecordedEvents()


@pytest.fixture
def summarise(broker: ManualBroker, recorded: RecordedEvents) -> LlmTask[..., Summary]:
    @broker.tasks.llm(provider=openai(), model="gpt", output=Summary, key="openai", parallelism=5)
    def summarise(text: str, times: int = 2) -> list[ChatMessage]:
        return [user(f"Summarise: {text}")]

    @summarise.on_completion
    async def store(summary: Summary, text: str, times: int, *, usage: Usage = injected) -> None:
        recorded.completed.append((summary, text, times, usage))

    summarise.on_failure(recorded.failed.append)
    summarise.on_retry(recorded.retried.append)
    summarise.on_success(recorded.succeeded.append)
    return summarise


# --- answers


async def test_the_completion_gets_the_output_and_the_arguments(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], recorded: RecordedEvents
) -> None:
    result = summarise.delay("abc")
    answer = await provider.answered(openai_says(GOOD))
    assert (answer.status, answer.json) == (200, {"title": "a title", "points": ["one"]})
    assert recorded.completed == [(FITS, "abc", 2, Usage("gpt", 10, 5))]
    assert await result.aget(timeout=1) == FITS
    [event] = recorded.succeeded
    assert event.value == FITS


async def test_without_a_completion_there_is_a_result(provider: ScriptedProvider) -> None:
    @provider.broker.tasks.llm(model="any")
    def say(text: str) -> list[ChatMessage]:
        return [user(text)]

    result = say.delay("abc")
    await provider.answered(openai_says("hello"))
    assert await result.aget(timeout=1) == "hello"

    @provider.broker.tasks.llm(model="any", output=Summary)
    def summarise(text: str) -> list[ChatMessage]:
        return [user(text)]

    formed = summarise.delay("abc")
    await provider.answered(openai_says(GOOD))
    assert await formed.aget(timeout=1) == FITS


async def test_a_completion_need_not_say_what_it_takes(provider: ScriptedProvider) -> None:
    @provider.broker.tasks.llm(model="any", output=Summary)
    def summarise(text: str) -> list[ChatMessage]:
        return [user(text)]

    seen: list[Any] = []

    @summarise.on_completion
    def store(summary, text):  # type: ignore[no-untyped-def]
        seen.append((summary, text))

    summarise.delay("abc")
    await provider.answered(openai_says(GOOD))
    assert seen == [(FITS, "abc")]


async def test_anthropic_answers_by_its_tool(provider: ScriptedProvider) -> None:
    @provider.broker.tasks.llm(provider=anthropic(), model="claude", output=Summary)
    def summarise(text: str) -> list[ChatMessage]:
        return [user(text)]

    usages: list[Usage] = []

    @summarise.on_completion
    def store(summary: Summary, usage: Usage) -> None:
        usages.append(usage)

    result = summarise.delay("abc")
    tool = {"type": "tool_use", "id": "toolu_1", "name": "Summary", "input": json.loads(GOOD)}
    await provider.answered(claude_says({"type": "text", "text": "Here it is."}, tool))
    assert await result.aget(timeout=1) == FITS
    assert usages == [Usage("claude-3", 7, 3)]


def claude_says(*blocks: dict[str, Any], stop: str = "tool_use") -> Response:
    document = {
        "model": "claude-3",
        "content": blocks,
        "stop_reason": stop,
        "usage": {"input_tokens": 7, "output_tokens": 3},
    }
    return Response(status=200, body=json.dumps(document).encode())


async def test_a_completion_is_retried_like_a_task(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], broker: ManualBroker
) -> None:
    @broker.tasks.llm(model="any")
    def say(text: str) -> list[ChatMessage]:
        return [user(text)]

    attempts: list[int] = []

    @say.on_completion(retries=1)
    def store(text: str, ctx: TaskContext = injected) -> None:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            raise OSError("the database is away")

    result = say.delay("abc")
    callbacks = provider.callbacks_of(provider.take_request(), openai_says("hello"))
    assert callbacks.callback.max_retries == 1
    assert (await provider.deliver(callbacks.callback)).status == 500
    assert result.status == "retrying"
    assert (await provider.deliver(callbacks.callback, retried=1)).status == 200
    assert attempts == [1, 2]
    assert await result.aget(timeout=1) == "hello"


async def test_a_completion_that_gives_up_fails_the_call(provider: ScriptedProvider, broker: ManualBroker) -> None:
    @broker.tasks.llm(model="any")
    def say(text: str) -> list[ChatMessage]:
        return [user(text)]

    events: list[TaskEvent] = []
    say.on_failure(events.append)

    @say.on_completion
    def store(text: str) -> None:
        raise NonRetryable(f"no place for {text}")

    result = say.delay("abc")
    answer = await provider.answered(openai_says("hello"))
    assert answer.status == 489
    with pytest.raises(TaskFailed, match="no place for hello"):
        await result.aget(timeout=1)
    assert [str(event.error) for event in events] == ["no place for hello"]


def opened() -> Iterator[str]:
    yield "a session"


async def test_a_completion_may_depend_on_things_and_defaults_are_filled_in(
    provider: ScriptedProvider, broker: ManualBroker
) -> None:
    @broker.tasks.llm(model="any")
    def say(text: str, tone: str = "kind") -> list[ChatMessage]:
        return [user(text)]

    seen: list[tuple[str, ...]] = []

    @say.on_completion
    def store(
        answer: str, tone: str, *, db: Annotated[str, Depends(opened)], ctx: TaskContext = injected, extra: str = "none"
    ) -> None:
        seen.append((answer, tone, db, ctx.task, extra))

    say.delay("abc")
    await provider.answered(openai_says("hello"))
    assert seen == [("hello", "kind", "a session", "say", "none")]


async def test_a_snoozed_completion_comes_back_with_its_answer(
    provider: ScriptedProvider, broker: ManualBroker
) -> None:
    @broker.tasks.llm(model="any")
    def say(text: str) -> list[ChatMessage]:
        return [user(text)]

    seen: list[tuple[str, str, int]] = []

    @say.on_completion
    def store(answer: str, text: str, ctx: TaskContext = injected) -> None:
        seen.append((answer, text, ctx.snoozed))
        if ctx.snoozed < 1:
            raise Snooze("1h")

    result = say.delay("abc")
    first = provider.take_request()
    answer = await provider.deliver(provider.callbacks_of(first, openai_says("hello")).callback)
    assert (answer.status, answer.json["code"]) == (200, "QT414")
    assert result.status == "queued"
    again = broker.take()
    assert again.options.delay_ms == 3_600_000
    callback = provider.callbacks_of(first, openai_says("hello")).callback
    message = replace(callback, url=again.url, headers=again.options.forward, body=again.body, id=again.message_id)
    assert (await provider.deliver(message)).status == 200
    assert seen == [("hello", "abc", 0), ("hello", "abc", 1)]
    assert await result.aget(timeout=1) == "hello"


async def test_a_deduplicated_call_has_the_result_of_the_first(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary]
) -> None:
    """Its handle knows the message that was sent, not the callback that brought the answer."""
    first = summarise.delay("abc")
    assert first.message_id is not None
    await provider.answered(openai_says(GOOD))
    assert await summarise.result(first.message_id).aget(timeout=1) == FITS


async def test_a_duplicate_of_a_callback_runs_nothing(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], recorded: RecordedEvents
) -> None:
    summarise.delay("abc")
    message = provider.take_request()
    callback = provider.callbacks_of(message, openai_says(GOOD)).callback
    first, second = [await provider.deliver(callback) for _ in range(2)]
    third = await provider.deliver(provider.callbacks_of(message, openai_says(GOOD)).callback)  # the broker tells again
    assert first.json == second.json == third.json == {"title": "a title", "points": ["one"]}
    assert second.headers["qtasks-duplicate"] == "true"
    assert len(recorded.completed) == 1


async def test_a_late_answer_to_an_expired_call_runs_nothing(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], recorded: RecordedEvents
) -> None:
    result = summarise.using(expires="1m").delay("abc")
    message = provider.take_request()
    provider.broker.clock.advance(61_000)
    answer = await provider.deliver(provider.callbacks_of(message, openai_says(GOOD)).callback)
    assert (answer.status, "expired" in answer.json) == (200, True)
    assert recorded.completed == []
    with pytest.raises(TaskExpired):
        await result.aget(timeout=1)


async def test_a_call_that_fails_after_it_has_expired_has_failed(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary]
) -> None:
    result = summarise.using(expires="1m").delay("abc")
    callbacks = provider.callbacks_of(provider.take_request(), refuses(500), last=True)
    assert callbacks.failure is not None
    provider.broker.clock.advance(61_000)
    await provider.deliver(callbacks.failure)
    assert result.status == "failed"


async def test_large_arguments_come_back_from_the_result_backend(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], recorded: RecordedEvents, broker: ManualBroker
) -> None:
    summarise.delay("x" * 10_000)
    callback = provider.callbacks_of(provider.take_request(), openai_says(GOOD)).callback
    assert (await provider.deliver(callback)).status == 200
    assert recorded.completed[0][1] == "x" * 10_000
    digest = callback_url.read(callback.url.partition("?")[2]).digest
    record = broker.tasks.runtime.results().read(model_request.key_of(digest))
    assert record is not None
    assert (record.status, record.value) == ("succeeded", None)  # it is kept no longer than it is needed


async def test_arguments_that_are_kept_no_more_fail_the_call_and_say_so(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], recorded: RecordedEvents
) -> None:
    result = summarise.delay("abc")
    callback = provider.callbacks_of(provider.take_request(), openai_says(GOOD)).callback
    for retried in range(4):
        answer = await provider.deliver(callback, headers={}, retried=retried)
        assert (answer.status, answer.json["code"]) == (500, "QT424")
    with pytest.raises(TaskFailed, match="not in the header, and the result store no longer has it"):
        await result.aget(timeout=1)
    assert len(recorded.failed) == 1
    assert recorded.completed == []


async def test_a_call_may_come_with_a_flow(provider: ScriptedProvider, broker: ManualBroker) -> None:
    @broker.tasks.llm(model="any", key="k", parallelism=1)
    def say(text: str) -> list[ChatMessage]:
        return [user(text)]

    @broker.tasks.task
    def shout(text: str) -> str:
        return text.upper()

    flow = chain(shout.s("hello"), say.s(), shout.s()).delay()
    await broker.deliver()
    plain = broker.take()
    assert plain.options.flow_control is None  # the limits are for the request
    for _ in range(2):  # delivered twice, it asks once
        answer = await broker.deliver(plain)
    assert (answer.status, json_of(answer)["asked"]) == (200, "its language model is asked")
    first, second = broker.messages
    broker.messages.clear()
    assert first.options.deduplication_id == second.options.deduplication_id
    assert json.loads(first.body)["messages"] == [{"role": "user", "content": "HELLO"}]
    assert first.options.flow_control is not None
    await provider.deliver(provider.callbacks_of(first, openai_says("an answer")).callback)
    await broker.deliver()
    assert await flow.aget(timeout=1) == "AN ANSWER"


async def test_a_failed_model_ends_a_flow(
    provider: ScriptedProvider, broker: ManualBroker, summarise: LlmTask[..., Summary]
) -> None:
    @broker.tasks.task
    def after(summary: Summary) -> None: ...

    flow = chain(summarise.s("abc"), after.s()).delay()
    callbacks = provider.callbacks_of(provider.take_request(), refuses(500), last=True)
    assert callbacks.failure is not None
    await provider.deliver(callbacks.failure)
    with pytest.raises(
        TaskFailed, match=r"the flow ended with \w+ call_\w+, attempt 1: ProviderError: OpenAI answered 500"
    ):
        await flow.aget(timeout=1)


async def test_a_key_that_is_missing_where_the_call_goes_on_is_waited_for(
    provider: ScriptedProvider, broker: ManualBroker, summarise: LlmTask[..., Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    dispatcher = broker.tasks.runtime.dispatcher()
    letter_body = envelope("abc")

    message = SentMessage(Request("POST", "/v2/publish/https://app.example.com/qtasks/summarise", (), letter_body), "m")
    answer = await dispatcher.answer(broker.delivery(message))
    assert answer.status == 500
    assert "OPENAI_API_KEY is not set" in json_of(answer)["error"]


# --- repairs


async def test_an_answer_that_does_not_fit_is_asked_for_once_more(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], recorded: RecordedEvents, broker: ManualBroker
) -> None:
    result = summarise.using(label="mine").delay("abc")
    first = provider.take_request()
    answer = await provider.deliver(provider.callbacks_of(first, openai_says('{"points": "none"}')).callback)
    assert (answer.status, "title: Field required" in answer.json["repaired"]) == (200, True)
    assert result.status == "queued"
    second = provider.take_request()
    assert second.url == first.url
    assert second.options.forward == (("Authorization", f"Bearer {KEY}"),)
    assert (second.options.labels, second.options.flow_control) == (("mine",), first.options.flow_control)
    asked = json.loads(second.body)
    assert asked["messages"][:2] == [
        {"role": "user", "content": "Summarise: abc"},
        {"role": "assistant", "content": '{"points": "none"}'},
    ]
    complaint = asked["messages"][2]["content"]
    assert "title: Field required; points: Input should be a valid array" in complaint
    assert '"title"' in complaint  # the schema
    assert {**asked, "messages": []} == {**json.loads(first.body), "messages": []}
    await provider.deliver(provider.callbacks_of(second, openai_says(GOOD)).callback)
    assert recorded.completed == [(FITS, "abc", 2, Usage("gpt", 20, 10, requests=2))]
    assert await result.aget(timeout=1) == FITS
    assert first.message_id != second.message_id
    assert await summarise.result(first.message_id).aget(timeout=1) == FITS


async def test_a_second_one_that_does_not_fit_fails_the_call(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], recorded: RecordedEvents
) -> None:
    result = summarise.delay("abc")
    await provider.answered(openai_says("Sorry, what?"))
    answer = await provider.answered(openai_says("Still no JSON"))
    assert (answer.status, answer.json["code"]) == (489, "QT421")
    assert answer.headers["upstash-nonretryable-error"] == "true"
    [event] = recorded.failed
    assert isinstance(event.error, OutputError)
    assert event.error.text == "Still no JSON"
    assert event.arguments == {"text": "abc", "times": 2}
    with pytest.raises(TaskFailed, match="the answer does not fit Summary: Invalid JSON"):
        await result.aget(timeout=1)
    assert recorded.completed == []
    assert provider.broker.messages == []


async def test_a_repair_is_asked_for_once_however_often_its_callback_comes(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary]
) -> None:
    summarise.delay("abc")
    message = provider.take_request()
    for _ in range(2):
        await provider.deliver(provider.callbacks_of(message, openai_says("no")).callback)
    first, second = provider.broker.messages
    assert first.options.deduplication_id == second.options.deduplication_id is not None


async def test_anthropic_is_told_of_a_mistake_as_the_result_of_its_tool(provider: ScriptedProvider) -> None:
    @provider.broker.tasks.llm(provider=anthropic(), model="claude", output=Summary)
    def summarise(text: str) -> list[ChatMessage]:
        return [user(text)]

    summarise.delay("abc")
    tool = {"type": "tool_use", "id": "toolu_1", "name": "Summary", "input": {}}
    await provider.answered(claude_says(tool))
    messages = json.loads(provider.take_request().body)["messages"]
    assert messages[1] == {"role": "assistant", "content": [tool]}
    [block] = messages[2]["content"]
    assert (block["type"], block["tool_use_id"], block["is_error"]) == ("tool_result", "toolu_1", True)
    assert "title: Field required" in block["content"]
    summarise.delay("abc")
    await provider.answered(claude_says({"type": "text", "text": "Well..."}, stop="end_turn"))
    assert "Invalid JSON" in json.loads(provider.take_request().body)["messages"][2]["content"]


@pytest.mark.parametrize("text", [f"```json\n{GOOD}\n```", f"```\n{GOOD}\n```\n", f"  {GOOD}\n"])
async def test_json_in_a_fence_is_json(provider: ScriptedProvider, summarise: LlmTask[..., Summary], text: str) -> None:
    result = summarise.delay("abc")
    await provider.answered(openai_says(text))
    assert await result.aget(timeout=1) == FITS


async def test_an_answer_that_was_cut_off_says_so(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], caplog: pytest.LogCaptureFixture, broker: ManualBroker
) -> None:
    summarise.delay("abc")
    answer = await provider.answered(openai_says('{"title": "a', finish="length"))
    assert "it was cut off at max_tokens" in answer.json["repaired"]
    provider.take_request()

    @broker.tasks.llm(model="any")
    def say(text: str) -> list[ChatMessage]:
        return [user(text)]

    result = say.delay("abc")
    await provider.answered(openai_says("Once upon", finish="length"))
    assert await result.aget(timeout=1) == "Once upon"
    assert "the answer to say was cut off at max_tokens" in caplog.text


@pytest.mark.parametrize(
    ("answer", "code", "reason"),
    [
        (openai_says(None, refusal="I must not."), "QT422", "the model refuses to answer: I must not."),
        (openai_says(None), "QT425", "not a chat completion with text"),
        (Response(status=200, body=b"<html>"), "QT425", "not a chat completion with text"),
        (Response(status=200, body=b"{}"), "QT425", "not a chat completion with text: KeyError: 'choices'"),
        (Response(status=200, body=b'{"choices": []}'), "QT425", "IndexError"),
        (Response(status=200, body=b'{"choices": [{"message": "x"}]}'), "QT425", "AttributeError"),
        (Response(status=204, body=b""), "QT425", "not a chat completion"),
    ],
)
async def test_what_cannot_be_repaired_fails_at_once(
    provider: ScriptedProvider,
    summarise: LlmTask[..., Summary],
    recorded: RecordedEvents,
    answer: Response,
    code: str,
    reason: str,
) -> None:
    result = summarise.delay("abc")
    told = await provider.answered(answer)
    assert (told.status, told.json["code"]) == (489, code)
    with pytest.raises(TaskFailed, match=reason.replace("'", ".")):
        await result.aget(timeout=1)
    assert len(recorded.failed) == 1
    assert provider.broker.messages == []


async def test_a_refusal_of_anthropic_is_one(provider: ScriptedProvider) -> None:
    @provider.broker.tasks.llm(provider=anthropic(), model="claude")
    def say(text: str) -> list[ChatMessage]:
        return [user(text)]

    say.delay("abc")
    assert (await provider.answered(claude_says(stop="refusal"))).json["code"] == "QT422"


@pytest.mark.parametrize("request_told", ["", "bm8=", "e30=", "W10="])
async def test_without_the_request_there_is_nothing_to_repair(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], request_told: str
) -> None:
    summarise.delay("abc")
    callback = provider.callbacks_of(provider.take_request(), openai_says("no")).callback
    body = json.dumps({**json.loads(callback.body), "sourceBody": request_told}).encode()
    assert (await provider.deliver(replace(callback, body=body))).json["code"] == "QT421"


@pytest.mark.parametrize("tokens", [None, -1, "many", 10**30, 1.5])
async def test_a_cost_that_is_none_counts_for_nothing(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], recorded: RecordedEvents, tokens: object
) -> None:
    usage = {"prompt_tokens": tokens, "completion_tokens": 5}
    choice = {"message": {"content": GOOD}}
    summarise.delay("abc")
    await provider.answered(openai_says("no"))
    await provider.answered(Response(status=200, body=json.dumps({"choices": [choice], "usage": usage}).encode()))
    assert recorded.completed[0][3] == Usage("gpt", 10, 10, requests=2)


async def test_a_repair_that_cannot_be_sent_is_tried_again(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], monkeypatch: pytest.MonkeyPatch, broker: ManualBroker
) -> None:
    summarise.delay("abc")
    callback = provider.callbacks_of(provider.take_request(), openai_says("no")).callback
    monkeypatch.delenv("OPENAI_API_KEY")
    answer = await provider.deliver(callback)
    assert (answer.status, answer.json["code"]) == (500, "QT210")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    dispatcher = broker.tasks.runtime.dispatcher()
    sends, dispatcher._executor._continuation._publish = dispatcher._executor._continuation._publish, None
    answer = await provider.deliver(callback, retried=1)
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    dispatcher._executor._continuation._publish = sends
    assert (await provider.deliver(callback, retried=2)).status == 200
    provider.take_request()


# --- providers that refuse


async def test_a_refused_attempt_is_a_retry_and_the_last_one_a_failure(
    provider: ScriptedProvider,
    summarise: LlmTask[..., Summary],
    recorded: RecordedEvents,
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = summarise.delay("abc")
    message = provider.take_request()
    callbacks = provider.callbacks_of(message, refuses(429, f"slow down, {KEY}"))
    assert (await provider.deliver(callbacks.callback)).status == 200
    assert result.status == "retrying"
    [event] = recorded.retried
    assert (event.context.attempt, event.reason) == (1, "ProviderError: OpenAI answered 429: slow down, ***")
    last = provider.callbacks_of(message, refuses(400, "bad schema"), retried=3, last=True)
    assert last.failure is not None
    assert (await provider.deliver(last.callback)).status == 200  # the failure callback says the same
    assert (recorded.failed, len(recorded.retried)) == ([], 1)
    for _ in range(2):
        assert (await provider.deliver(last.failure)).status == 200
    [event] = recorded.failed
    assert isinstance(event.error, ProviderError)
    assert (event.error.status, event.error.detail) == (400, "bad schema")
    assert (event.context.attempt, event.arguments) == (4, {"text": "abc", "times": 2})
    with pytest.raises(TaskFailed, match="failed on attempt 4: ProviderError: OpenAI answered 400: bad schema"):
        await result.aget(timeout=1)
    assert recorded.completed == []
    assert KEY not in caplog.text


async def test_callbacks_that_overtake_each_other_change_nothing(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], recorded: RecordedEvents
) -> None:
    result = summarise.delay("abc")
    message = provider.take_request()
    early = provider.callbacks_of(message, refuses(500)).callback
    last = provider.callbacks_of(message, refuses(500), retried=3, last=True)
    assert last.failure is not None
    await provider.deliver(last.failure)
    for late in (early, last.callback):
        assert (await provider.deliver(late)).status == 200
    assert (result.status, len(recorded.failed), len(recorded.retried)) == ("failed", 1, 0)


async def test_an_answer_waits_for_news_that_are_just_being_kept(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], broker: ManualBroker
) -> None:
    """If it were answered with a Retry-After, as a duplicate of a running call, it would be seconds late."""
    result = summarise.delay("abc")
    callback = provider.callbacks_of(provider.take_request(), openai_says(GOOD)).callback
    results, now_ms = broker.tasks.runtime.results(), broker.clock.now_ms()
    news = Lock(f"run:{result.id}", "somebody", now_ms + BRIEF_LEASE_MS)
    await asyncio.to_thread(results.lock, [news], now_ms=now_ms)
    answering = asyncio.create_task(provider.deliver(callback))
    done, _ = await asyncio.wait([answering], timeout=0.1)
    assert not done
    await asyncio.to_thread(results.write, (), [news])
    assert (await answering).status == 200
    assert await result.aget(timeout=1) == FITS


async def test_news_hold_a_call_for_a_moment_only(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], broker: ManualBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = summarise.delay("abc")
    message = provider.take_request()
    results = broker.tasks.runtime.results()
    lock = results.lock
    held: list[int] = []

    def noting(locks: Sequence[Lock], *, now_ms: int) -> list[Lock]:
        held.extend(lock.until_ms - now_ms for lock in locks if lock.key == f"run:{result.id}")
        return lock(locks, now_ms=now_ms)

    monkeypatch.setattr(results, "lock", noting)
    await provider.deliver(provider.callbacks_of(message, refuses(500)).callback)
    await provider.deliver(provider.callbacks_of(message, openai_says(GOOD)).callback)
    assert held == [BRIEF_LEASE_MS, LEASE_MS]


async def test_news_that_meet_a_run_are_no_news(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], recorded: RecordedEvents, broker: ManualBroker
) -> None:
    result = summarise.delay("abc")
    callback = provider.callbacks_of(provider.take_request(), refuses(500)).callback
    now_ms = broker.clock.now_ms()
    running = Lock(f"run:{result.id}", "somebody", now_ms + LEASE_MS)
    await asyncio.to_thread(broker.tasks.runtime.results().lock, [running], now_ms=now_ms)
    assert (await provider.deliver(callback)).status == 200
    assert (result.status, recorded.retried) == ("queued", [])


async def test_a_provider_that_cannot_be_reached_is_named(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary]
) -> None:
    result = summarise.delay("abc")
    callbacks = provider.callbacks_of(provider.take_request(), Failure("dns", "no such host", final=True), last=True)
    assert callbacks.failure is not None
    await provider.deliver(callbacks.failure)
    with pytest.raises(TaskFailed, match="ProviderError: OpenAI could not be reached: no such host"):
        await result.aget(timeout=1)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": "model not found"}', "model not found"),
        (b'{"detail": "x"}', '{"detail": "x"}'),
        (b"Bad gateway", "Bad gateway"),
        (b"\xff", "�"),
        (b"[1]", "[1]"),
    ],
)
async def test_a_providers_words_are_found_in_whatever_it_says(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], recorded: RecordedEvents, body: bytes, words: str
) -> None:
    summarise.delay("abc")
    await provider.answered(Response(status=502, body=body))
    assert recorded.retried[0].reason == f"ProviderError: OpenAI answered 502: {words}"


async def test_a_dead_letter_that_is_sent_again_succeeds_after_all(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], recorded: RecordedEvents
) -> None:
    result = summarise.delay("x" * 10_000)  # what was kept for it is still there
    message = provider.take_request()
    callbacks = provider.callbacks_of(message, refuses(500), last=True)
    assert callbacks.failure is not None
    await provider.deliver(callbacks.failure)
    assert result.status == "failed"
    await provider.deliver(provider.callbacks_of(message, openai_says(GOOD)).callback)
    assert await result.aget(timeout=1) == FITS
    assert len(recorded.completed) == 1


# --- what is not true


async def test_a_header_that_the_url_does_not_vouch_for_is_refused(
    provider: ScriptedProvider,
    summarise: LlmTask[..., Summary],
    recorded: RecordedEvents,
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = summarise.delay("abc")
    callback = provider.callbacks_of(provider.take_request(), openai_says(GOOD)).callback
    other = base64.urlsafe_b64encode(
        json.dumps({"v": 1, "id": result.id, "args": ["evil"], "kwargs": {}}).encode()
    ).decode()
    true = dict(callback.headers)["Qtasks-Call"]
    for forged in (other, true[:-2], true + " ", true.upper(), "\xff"):
        with caplog.at_level(logging.WARNING):
            answer = await provider.deliver(callback, headers={"Qtasks-Call": forged})
        assert (answer.status, answer.error) == (401, "invalid signature")
    assert "QT426" in caplog.text
    assert (recorded.completed, result.status) == ([], "queued")
    assert (await provider.deliver(callback)).status == 200


async def test_a_url_or_a_body_that_was_changed_is_refused(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], recorded: RecordedEvents
) -> None:
    summarise.delay("abc")
    message = provider.take_request()
    callback = provider.callbacks_of(message, openai_says(GOOD)).callback
    changed = [
        replace(callback, url=callback.url + "&failed=1"),
        replace(callback, url=callback.url.replace("call=", "call=x")),
        replace(callback, url=callback.url.partition("?")[0]),
        replace(callback, body=callback.body.replace(b'"status":200', b'"status":500')),
    ]
    for one in changed:
        assert (await provider.deliver(one, signed=callback)).status == 401
    assert recorded.completed == []


async def test_a_signature_for_one_call_is_no_good_for_another(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], recorded: RecordedEvents
) -> None:
    callbacks = []
    for text in ("first", "second"):
        summarise.delay(text)
        callbacks.append(provider.callbacks_of(provider.take_request(), openai_says(GOOD)).callback)
    first, second = callbacks
    mixed = replace(first, headers=second.headers)
    assert (await provider.deliver(mixed)).status == 401
    assert recorded.completed == []


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("x=1", "does not have the query of a callback for a call to a language model"),
        ("call=a&sha256=" + "0" * 63, "does not have the query"),
        ("call=a&sha256=" + "0" * 64 + "&failed=2", "does not have the query"),
        ("sha256=" + "0" * 64 + "&call=a", "does not have the query"),
        ("call=%61&sha256=" + "0" * 64, "does not have the query"),
    ],
)
async def test_a_signed_query_of_another_kind_is_a_dead_letter_that_says_so(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], query: str, reason: str
) -> None:
    summarise.delay("abc")
    callback = provider.callbacks_of(provider.take_request(), openai_says(GOOD)).callback
    answer = await provider.deliver(replace(callback, url=f"{callback.url.partition('?')[0]}?{query}"))
    assert answer.status == 489
    assert reason in answer.error


async def test_a_task_without_a_model_has_no_callbacks(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], broker: ManualBroker
) -> None:
    @broker.tasks.task
    def plain(n: int) -> None: ...

    summarise.delay("abc")
    callback = provider.callbacks_of(provider.take_request(), openai_says(GOOD)).callback
    answer = await provider.deliver(replace(callback, url=callback.url.replace("/summarise", "/plain")))
    assert (answer.status, answer.error) == (
        489,
        "PayloadError: plain is not a task for a language model, so its URL has no query",
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"status": "200"}',
        b'{"status": 200, "retried": 0, "maxRetries": 3, "sourceMessageId": "m", "body": "%%"}',
        b'{"status": 200, "retried": 0, "maxRetries": 3, "sourceMessageId": 1, "body": ""}',
        b'{"status": 200, "retried": "0", "maxRetries": 3, "sourceMessageId": "m", "body": ""}',
        b'{"status": 200, "retried": 0, "maxRetries": 3, "sourceMessageId": "", "body": ""}',
    ],
)
async def test_a_body_that_is_no_callback_is_a_dead_letter_that_says_so(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary], body: bytes
) -> None:
    summarise.delay("abc")
    callback = provider.callbacks_of(provider.take_request(), openai_says(GOOD)).callback
    answer = await provider.deliver(replace(callback, body=body))
    assert (answer.status, answer.json["code"]) == (489, "QT427")


async def test_a_header_of_another_call_is_noticed_though_its_hash_is_right(
    provider: ScriptedProvider, summarise: LlmTask[..., Summary]
) -> None:
    """Only a caller with the API token can make such a URL, but the two must still agree."""
    summarise.delay("abc")
    callback = provider.callbacks_of(provider.take_request(), openai_says(GOOD)).callback
    found = callback_url.read(callback.url.partition("?")[2])
    url = f"{callback.url.partition('?')[0]}?{replace(found, call_id='call_other').text()}"
    answer = await provider.deliver(replace(callback, url=url))
    assert (answer.status, answer.error) == (489, "PayloadError: the URL and the header belong to different calls")


async def test_without_a_result_backend_completions_run_all_the_same(recorded: RecordedEvents) -> None:
    no_results = ManualBroker()
    no_results.tasks = application(results=None)
    no_results.tasks.runtime.clock = TaskClock(no_results.clock)
    provider = ScriptedProvider(no_results)

    @no_results.tasks.llm(model="any", output=Summary)
    def summarise(text: str) -> list[ChatMessage]:
        return [user(text)]

    @summarise.on_completion
    def store(summary: Summary) -> None:
        recorded.completed.append((summary,))

    request = summarise.message(("abc",), {})
    target, options = request.addressed(BASE_URL)
    call = publishing.publish_raw(target, request.body, options, retry_id=None)
    message = SentMessage(Request("POST", call.path, call.headers, call.body), "msg_1")
    with no_results.tasks:
        answer = await provider.deliver(provider.callbacks_of(message, openai_says(GOOD)).callback)
        refused = provider.callbacks_of(message, refuses(500)).callback
        assert (await provider.deliver(refused)).status == 200
    assert answer.status == 200
    assert recorded.completed == [(FITS,)]
