"""Messages to language models: model, tokens, what became of the answer, and the conversation."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from qtasks.broker.console.console_context import Role
from qtasks.broker.console.views import llm_table
from qtasks.broker.core.observed import completions
from qtasks.broker.ports import DeliveryRequest
from qtasks.broker.store.verbs.insight import model_calls
from qtasks.protocol.messages import Response
from tests.support.api import Service
from tests.support.view_caller import Console

pytestmark = pytest.mark.anyio

MODEL = "http://127.0.0.1:8000/v1/chat/completions"
DONE = "http://127.0.0.1:8000/qtasks/done"


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    made = await Service.open(":memory:")
    made.transport.answer = model
    yield made
    await made.close()


@pytest.fixture
def console(service: Service) -> Console:
    return Console(service)


def model(request: DeliveryRequest) -> Response:
    """A provider that repeats the last message, and fails for good for the model ``broken``."""
    if request.url != MODEL:
        return Response(status=200)
    asked = json.loads(request.body)
    if asked["model"] == "broken":
        return Response(status=400, headers=(("Upstash-NonRetryable-Error", "true"),), body=b"no such model")
    answer = {
        "model": f"{asked['model']}-2026",
        "choices": [{"message": {"role": "assistant", "content": f"you said: {asked['messages'][-1]['content']}"}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }
    return Response(status=200, body=json.dumps(answer).encode())


async def ask(service: Service, text: str, name: str = "small", url: str = MODEL, **headers: str) -> str:
    """Publish a request to a model, whose answer goes to the task ``done``; its message id."""
    lines = {"Upstash-Callback": DONE, "Upstash-Callback-Qtasks-Interrupted-For": "1h"}
    lines |= {f"Upstash-{key.replace('_', '-')}": value for key, value in headers.items()}
    body = {"model": name, "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]}
    return str((await service.post(f"/v2/publish/{url}", lines, json.dumps(body)))["messageId"])


async def test_a_call_shows_its_model_its_tokens_and_where_the_answer_went(service: Service, console: Console) -> None:
    asked = await ask(service, "hello")
    [waiting] = (await console.see(llm_table.list_calls))["calls"]
    assert (waiting["model"], waiting["promptTokens"], waiting["callback"]) == ("small", None, None)
    await service.run()
    [call] = (await console.see(llm_table.list_calls))["calls"]
    assert (call["messageId"], call["status"], call["provider"]) == (asked, "delivered", "127.0.0.1:8000")
    assert (call["model"], call["promptTokens"], call["completionTokens"]) == ("small-2026", 7, 3)
    assert call["durationMs"] == 0
    assert (call["callback"]["destination"], call["callback"]["status"]) == (DONE, "delivered")


async def test_the_sums_are_by_model_of_the_last_day_and_say_if_there_were_more(
    service: Service, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ask(service, "long ago")
    await service.run()
    service.clock.advance(25 * 3_600_000)
    for name in ("small", "small", "broken"):
        await ask(service, "hello", name)
    await service.run()
    seen = await console.see(llm_table.list_calls)
    assert len(seen["calls"]) == 4
    sums = seen["sums"]
    assert (sums["hours"], sums["calls"], sums["isComplete"]) == (24, 3, True)
    by_model = {line["model"]: line for line in sums["models"]}
    assert by_model["small"] == {
        "model": "small",
        "provider": "127.0.0.1:8000",
        "calls": 2,
        "failed": 0,
        "promptTokens": 14,
        "completionTokens": 6,
        "p50Ms": 0,
        "p95Ms": 0,
    }
    assert (by_model["broken"]["failed"], by_model["broken"]["promptTokens"], by_model["broken"]["p50Ms"]) == (
        1,
        None,
        None,
    )
    monkeypatch.setattr(llm_table, "PORTION", 1)
    assert (await console.see(llm_table.list_calls))["sums"] == sums
    monkeypatch.setattr(llm_table, "MOST_SUMMED", 2)
    sums = (await console.see(llm_table.list_calls))["sums"]
    assert (sums["calls"], sums["isComplete"]) == (2, False)


async def test_pages_go_on_and_other_messages_are_no_calls(service: Service, console: Console) -> None:
    ids = [await ask(service, str(number)) for number in range(3)]
    await service.publish("http://127.0.0.1:8000/v1/messages", "{}")
    first = await console.see(llm_table.list_calls, count=2)
    rest = await console.see(llm_table.list_calls, count=2, cursor=first["cursor"])
    assert [call["messageId"] for call in first["calls"] + rest["calls"]] == ids[::-1]
    assert rest["cursor"] is None


async def test_large_requests_end_a_page_early(
    service: Service, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [await ask(service, "x" * 1000) for _ in range(3)]
    monkeypatch.setattr(model_calls, "PAGE_BYTES", 1500)
    seen = await console.see(llm_table.list_calls)
    assert [call["messageId"] for call in seen["calls"]] == ids[:0:-1]
    assert seen["sums"]["isComplete"] is False
    rest = await console.see(llm_table.list_calls, cursor=seen["cursor"])
    assert [call["messageId"] for call in rest["calls"]] == ids[:1]


async def test_a_conversation_has_the_prompts_and_the_answer(service: Service, console: Console) -> None:
    asked = await ask(service, "<b>hello</b>")
    await service.run()
    seen = await console.see(llm_table.show_call, asked)
    assert [(turn["role"], turn["text"]) for turn in seen["turns"]] == [
        ("system", "Be brief."),
        ("user", "<b>hello</b>"),
    ]
    assert seen["answer"] == "you said: <b>hello</b>"
    assert (await console.ask(llm_table.show_call, "msg_unknown"))[0] == 404


async def test_what_a_publisher_hides_is_not_read(service: Service, console: Console) -> None:
    hidden = await ask(service, "secret", Redact_Fields="body")
    answered = await ask(service, "hello", Callback_Redact_Fields="body")
    await service.run()
    seen = await console.see(llm_table.list_calls)
    by_id = {call["messageId"]: call for call in seen["calls"]}
    assert (by_id[hidden]["isRedacted"], by_id[hidden]["model"], by_id[hidden]["promptTokens"]) == (True, None, None)
    assert (by_id[answered]["isRedacted"], by_id[answered]["promptTokens"]) == (False, 7)
    assert "secret" not in str(await console.see(llm_table.show_call, hidden))
    conversation = await console.see(llm_table.show_call, answered)
    assert (conversation["turns"][-1]["text"], conversation["answer"]) == ("hello", None)


async def test_the_framework_redacts_a_callback_for_the_sake_of_the_key_and_not_of_the_answer(
    service: Service, console: Console
) -> None:
    lines = {"Qtasks-Call-Id": "call_1", "Upstash-Callback": DONE, "Upstash-Callback-Redact-Fields": "body"}
    lines |= {"Upstash-Forward-Authorization": "Bearer key", "Upstash-Redact-Fields": "header[Authorization]"}
    body = json.dumps({"model": "small", "messages": [{"role": "user", "content": "hello"}]})
    asked = str((await service.post(f"/v2/publish/{MODEL}", lines, body))["messageId"])
    await service.run()
    seen = await console.see(llm_table.show_call, asked)
    assert (seen["promptTokens"], seen["answer"]) == (7, "you said: hello")
    assert "Bearer" not in str(seen)


async def test_a_viewer_without_payloads_sees_figures_and_no_word(service: Service) -> None:
    console = Console(service, Role.METADATA)
    asked = await ask(service, "hello")
    await service.run()
    [call] = (await console.see(llm_table.list_calls))["calls"]
    assert (call["model"], call["promptTokens"]) == ("small-2026", 7)
    seen = await console.see(llm_table.show_call, asked)
    assert (seen["model"], seen["turns"], seen["answer"]) == ("small-2026", None, None)
    assert "hello" not in str(seen)


async def test_another_account_sees_none_of_them(service: Service) -> None:
    asked = await ask(service, "hello")
    await service.run()
    service.user = 1
    stranger = Console(service)
    assert (await stranger.see(llm_table.list_calls))["calls"] == []
    assert (await stranger.ask(llm_table.show_call, asked))[0] == 404


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, (None, None, None, None)),
        ([], (None, None, None, None)),
        (
            {
                "model": "c",
                "content": [{"type": "text", "text": "hi"}],
                "usage": {"input_tokens": 2, "output_tokens": 1},
            },
            ("c", 2, 1, "hi"),
        ),
        (
            {"content": [{"type": "tool_use", "input": {"a": 1}}], "usage": {"input_tokens": -1, "output_tokens": "x"}},
            (None, None, None, '{"type":"tool_use","input":{"a":1}}'),
        ),
        ({"choices": [{"message": {"content": None, "refusal": "no"}}], "usage": 5}, (None, None, None, "no")),
        ({"choices": [7], "model": ["x"]}, (None, None, None, None)),
        ({"choices": [{"message": "x"}]}, (None, None, None, "")),
    ],
)
def test_an_answer_of_any_form_is_read_as_far_as_it_goes(document: Any, expected: tuple[Any, ...]) -> None:
    answer = completions.read_answer(json.dumps(document).encode())
    assert (answer.model, answer.prompt_tokens, answer.completion_tokens, answer.text) == expected


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"status":200,"body":7}', b'{"status":200,"body":"?"}', b'{"status":500}']
)
def test_a_callback_without_an_answer_has_none(body: bytes) -> None:
    assert completions.read_callback(body) is None


def test_a_request_of_any_form_is_read_as_far_as_it_goes() -> None:
    turns = [7, {"content": [{"text": "a"}, {"image": 1}]}, {"role": "user"}]
    request = {"model": "m", "system": [{"type": "text", "text": "s"}], "messages": turns}
    question = completions.read_question(json.dumps(request).encode())
    texts = [(turn.role, turn.text) for turn in question.turns]
    assert texts == [("system", "s"), ("?", 'a\n{"image":1}'), ("user", "")]
    assert completions.read_question(b"\xff").turns == ()
    assert completions.provider_of("https://user:key@api.example.com:8443/v1/messages") == "api.example.com:8443"
