"""Calls of LLM tasks: the request to the provider, its callback URL, and what is refused in a declaration."""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any

import pytest
from fastapi import Depends
from pydantic import BaseModel, ConfigDict, Field

from qtasks import QTasks, RetryPolicy, TaskContext, TaskRouter, chain, injected
from qtasks.errors import ArgumentsError, ConfigurationError, DefinitionError
from qtasks.llm import (
    ChatMessage,
    Provider,
    Usage,
    anthropic,
    assistant,
    custom,
    openai,
    system,
    upstash,
    user,
)
from qtasks.protocol.messages import FlowControl, Redaction
from qtasks.tasks.llm import callback_url, model_request
from qtasks.tasks.llm.llm_task import LlmTask
from tests.support.tasks import BASE_URL, application
from tests.unit.tasks.manual_broker import ManualBroker

pytestmark = pytest.mark.anyio

KEY = "sk-of-the-tests"


class Summary(BaseModel):
    title: str
    points: list[str] = []


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


def summariser(tasks: QTasks, provider: Provider | None = None, **options: Any) -> LlmTask[[str], Summary]:
    @tasks.llm(provider=provider or openai(), model="gpt", output=Summary, **options)
    def summarise(text: str) -> list[ChatMessage]:
        return [system("Be brief."), user(f"Summarise: {text}")]

    return summarise


# --- the request


def test_openai_is_asked_in_its_form(broker: ManualBroker) -> None:
    summariser(broker.tasks, temperature=0.5, max_tokens=100, top_p=1, stop=["END"], seed=7, strict=True).delay("abc")
    message = broker.take()
    assert message.url == "https://api.openai.com/v1/chat/completions"
    assert json.loads(message.body) == {
        "model": "gpt",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Summarise: abc"}],
        "temperature": 0.5,
        "max_completion_tokens": 100,
        "top_p": 1,
        "stop": ["END"],
        "seed": 7,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "Summary", "schema": Summary.model_json_schema(), "strict": True},
        },
    }
    assert message.options.forward == (("Authorization", f"Bearer {KEY}"),)
    assert (message.options.method, message.options.content_type) == ("POST", "application/json")


def test_a_compatible_service_has_a_key_only_where_one_is_given(
    broker: ManualBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROUTER_KEY", "of the router")
    for number, (provider, line) in enumerate(
        [
            (custom("http://127.0.0.1:11434/v1"), ()),
            (custom("http://127.0.0.1:11434", "mine"), (("Authorization", "Bearer mine"),)),
            (custom("http://127.0.0.1:11434", variable="ROUTER_KEY"), (("Authorization", "Bearer of the router"),)),
        ]
    ):
        summariser(broker.tasks, provider, name=f"summarise{number}", max_tokens=9).delay("abc")
        message = broker.take()
        assert message.url == "http://127.0.0.1:11434/v1/chat/completions"
        assert message.options.forward == line
        assert json.loads(message.body)["max_tokens"] == 9


def test_anthropic_is_asked_in_its_form(broker: ManualBroker) -> None:
    @broker.tasks.llm(provider=anthropic(), model="claude", output=Summary, stop="END")
    def summarise(text: str) -> list[ChatMessage]:
        return [system("Be brief."), system("Be kind."), user("Hi"), assistant("Hello"), user(text)]

    summarise.delay("abc")
    message = broker.take()
    assert message.url == "https://api.anthropic.com/v1/messages"
    assert json.loads(message.body) == {
        "model": "claude",
        "max_tokens": 4096,
        "system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}],
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "abc"},
        ],
        "stop_sequences": ["END"],
        "tools": [{"name": "Summary", "description": "Takes the answer.", "input_schema": Summary.model_json_schema()}],
        "tool_choice": {"type": "tool", "name": "Summary"},
    }
    assert dict(message.options.forward) == {"X-Api-Key": KEY, "Anthropic-Version": "2023-06-01"}


def test_the_service_itself_is_asked_where_no_provider_is_named(broker: ManualBroker) -> None:
    @broker.tasks.llm(model="any")
    def say(text: str) -> list[ChatMessage]:
        return [user(text)]

    say.delay("hello")
    message = broker.take()
    assert message.url == "api/llm"
    assert json.loads(message.body) == {"model": "any", "messages": [{"role": "user", "content": "hello"}]}
    assert message.options.forward == ()
    assert message.options.redact is None


def test_parts_and_further_members_go_out_as_they_are(broker: ManualBroker) -> None:
    @broker.tasks.llm(provider=openai(), model="gpt", extra={"reasoning_effort": "low", "model": "other"})
    def look(url: str) -> list[ChatMessage]:
        return [user([{"type": "image_url", "image_url": {"url": url}}])]

    look.delay("https://e.com/a.png")
    body = json.loads(broker.take().body)
    assert (body["reasoning_effort"], body["model"]) == ("low", "other")
    assert body["messages"][0]["content"] == [{"type": "image_url", "image_url": {"url": "https://e.com/a.png"}}]


def test_a_call_may_ask_another_model_in_another_way(broker: ManualBroker) -> None:
    summarise = summariser(broker.tasks, temperature=0.5)
    summarise.using(model="gpt-large", temperature=0, delay="10s", label="x").delay("abc")
    message = broker.take()
    body = json.loads(message.body)
    assert (body["model"], body["temperature"]) == ("gpt-large", 0)
    assert (message.options.delay_ms, message.options.labels) == (10_000, ("x",))
    summarise.delay("abc")
    assert json.loads(broker.take().body)["model"] == "gpt"


def test_what_tasks_can_say_about_their_calls_is_about_the_request(broker: ManualBroker) -> None:
    summarise = summariser(
        broker.tasks, key="openai", parallelism=5, retries=RetryPolicy(max=2, initial="1s"), timeout="1m", queue="q"
    )
    summarise.delay("abc")
    message = broker.take()
    assert message.options.flow_control == FlowControl("openai", 5)
    assert (message.options.retries, message.options.timeout_ms, message.queue) == (2, 60_000, "q")
    assert message.options.retry_delay == "min(86400000, 1000 * pow(2, retried))"


def test_many_requests_go_out_together(broker: ManualBroker) -> None:
    summariser(broker.tasks).map(["a", "b"])
    [sent] = broker.embedded.transport.requests
    assert sent.url.endswith("/v2/batch")
    assert [json.loads(message.body)["messages"][1]["content"] for message in broker.messages] == [
        "Summarise: a",
        "Summarise: b",
    ]
    assert {message.url for message in broker.messages} == {"https://api.openai.com/v1/chat/completions"}


async def test_async_code_asks_without_blocking(broker: ManualBroker) -> None:
    result = await summariser(broker.tasks).adelay("abc")
    assert result.message_id == broker.take().message_id


# --- the way back


def test_the_url_vouches_for_the_call_in_the_header(broker: ManualBroker) -> None:
    result = summariser(broker.tasks).delay("abc")
    options = broker.take().options
    assert options.callback is not None
    assert options.callback_options is not None
    address, _, query = options.callback.partition("?")
    assert address == f"{BASE_URL}/summarise"
    [(name, call)] = options.callback_options.forward
    assert name == "Qtasks-Call"
    assert callback_url.read(query) == callback_url.CallbackQuery(result.id, model_request.digest(call))
    envelope = json.loads(base64.urlsafe_b64decode(call))
    assert envelope == {"v": 1, "id": result.id, "args": ["abc"], "kwargs": {}, "retries": 3}
    assert options.failure_callback == options.callback + "&failed=1"
    assert options.failure_callback_options == options.callback_options


def test_the_completion_has_a_delivery_of_its_own(broker: ManualBroker) -> None:
    summarise = summariser(broker.tasks, retries=9, timeout="2h")

    @summarise.on_completion(
        retries=RetryPolicy(max=1, initial="2s", jitter=0.5), timeout="5s", key="db", parallelism=2
    )
    def store(summary: Summary) -> None: ...

    summarise.delay("abc")
    options = broker.take().options.callback_options
    assert options is not None
    assert (options.retries, options.timeout_ms) == (1, 5_000)
    assert options.flow_control == FlowControl("db", 2)
    envelope = json.loads(base64.urlsafe_b64decode(options.forward[0][1]))
    assert (envelope["retries"], envelope["timeout_ms"], envelope["jitter"]) == (1, 5_000, 0.5)


def test_the_key_is_redacted_and_nowhere_but_in_its_header(broker: ManualBroker) -> None:
    summariser(broker.tasks).delay("abc")
    message = broker.take()
    assert message.options.redact == Redaction(headers=("Authorization",))
    [sent] = broker.embedded.transport.requests
    bearing = [name for name, value in sent.headers if KEY in value]
    assert bearing == ["Upstash-Forward-Authorization"]
    assert KEY.encode() not in sent.body
    back = message.options.callback_options
    assert back is not None
    assert back.redact == Redaction(body=True)
    assert KEY not in repr(openai(KEY))


def test_redacted_arguments_are_hidden_on_both_ways(broker: ManualBroker) -> None:
    summariser(broker.tasks, redact=True).delay("abc")
    options = broker.take().options
    everything = Redaction(body=True, all_headers=True)
    assert options.redact == everything
    assert options.callback_options is not None
    assert options.callback_options.redact == everything


@pytest.mark.parametrize(("provider", "variable"), [(openai(), "OPENAI_API_KEY"), (anthropic(), "ANTHROPIC_API_KEY")])
def test_a_key_that_is_missing_is_named_where_the_call_is_made(
    broker: ManualBroker, monkeypatch: pytest.MonkeyPatch, provider: Provider, variable: str
) -> None:
    summarise = summariser(broker.tasks, provider)
    monkeypatch.delenv(variable)
    with pytest.raises(ConfigurationError, match=f"{variable} is not set") as caught:
        summarise.delay("abc")
    assert caught.value.code == "QT210"
    assert broker.messages == []
    monkeypatch.setenv(variable, "late")  # read now, not when it was declared
    summarise.delay("abc")
    assert "late" in str(broker.take().options.forward)


def test_arguments_too_large_for_a_header_are_kept_by_the_result_backend(broker: ManualBroker) -> None:
    result = summariser(broker.tasks).delay("x" * 10_000)
    options = broker.take().options
    assert options.callback is not None
    assert options.callback_options is not None
    assert options.callback_options.forward == ()
    digest = callback_url.read(options.callback.partition("?")[2]).digest
    record = broker.tasks.runtime.results().read(model_request.key_of(digest))
    assert record is not None
    assert record.value is not None
    assert model_request.digest(record.value) == digest
    assert model_request.decode(record.value).call_id == result.id


async def test_without_a_backend_they_are_refused_at_the_call() -> None:
    tasks = application(results=None)
    told: list[Exception] = []

    @tasks.send_middleware
    def watch(message: Any) -> Any:
        try:
            yield message
        except Exception as error:
            told.append(error)
            raise

    summarise = summariser(tasks)
    with tasks:
        with pytest.raises(ArgumentsError, match="do not fit into a header") as caught:
            summarise.delay("x" * 10_000)
        with pytest.raises(ArgumentsError, match="do not fit into a header"):
            await summarise.adelay("x" * 10_000)
    assert caught.value.code == "QT162"
    assert "QTASKS_RESULTS" in str(caught.value)
    assert len(told) == 2


async def test_async_code_keeps_them_as_well(broker: ManualBroker) -> None:
    await summariser(broker.tasks).adelay("x" * 10_000)
    options = broker.take().options
    assert options.callback is not None
    digest = callback_url.read(options.callback.partition("?")[2]).digest
    assert broker.tasks.runtime.results().read(model_request.key_of(digest)) is not None


def test_what_middleware_gives_along_is_vouched_for_too(broker: ManualBroker) -> None:
    @broker.tasks.send_middleware
    def tenant(message: Any) -> Any:
        yield message.carrying({"tenant": "acme"})

    summariser(broker.tasks).delay("abc")
    options = broker.take().options
    assert options.callback is not None
    assert options.callback_options is not None
    [(_, call)] = options.callback_options.forward
    assert json.loads(base64.urlsafe_b64decode(call))["carried"] == {"tenant": "acme"}
    assert callback_url.read(options.callback.partition("?")[2]).digest == model_request.digest(call)


def test_the_same_arguments_are_asked_about_once(broker: ManualBroker) -> None:
    summarise = summariser(broker.tasks, unique=True)
    first, second = summarise.delay("abc"), summarise.delay("abc")
    assert len(broker.messages) == 1
    assert (second.id, second.deduplicated) == (first.id, True)


# --- what cannot be meant


def test_arguments_are_checked_before_anything_is_asked(broker: ManualBroker) -> None:
    asked: list[str] = []

    @broker.tasks.llm(provider=openai(), model="gpt")
    def say(text: str, times: int = 1) -> list[ChatMessage]:
        asked.append(text)
        return [user(text * times)]

    with pytest.raises(ArgumentsError, match="argument 'times' expects int"):
        say.delay("abc", times="many")  # type: ignore[arg-type]
    assert asked == []
    say.delay("ab", times="2")  # type: ignore[arg-type]  # as everywhere, what can be read as a number is one
    assert json.loads(broker.take().body)["messages"][0]["content"] == "abab"
    with pytest.raises(ArgumentsError, match=r"the request to gpt has 3,000,\d+ bytes; 1,048,576 are allowed"):
        say.delay("abc", times=10**6)


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("text", "expected a list of messages, not str"),
        ([], "expected a list of messages"),
        ([{"role": "user"}], "a role and a content"),
        (["text"], "a role and a content"),
        ([{"role": "user", "content": object()}], "cannot be written as JSON"),
        ([{"role": "user", "content": float("nan")}], "cannot be written as JSON"),
    ],
)
def test_what_is_no_conversation_is_refused_at_the_call(broker: ManualBroker, returned: Any, reason: str) -> None:
    @broker.tasks.llm(provider=openai(), model="gpt")
    def say() -> Any:
        return returned

    with pytest.raises(ArgumentsError, match=reason) as caught:
        say.delay()
    assert caught.value.code == "QT161"


def test_calling_it_builds_the_messages_and_asks_nobody(broker: ManualBroker) -> None:
    assert summariser(broker.tasks)("abc")[1] == {"role": "user", "content": "Summarise: abc"}
    assert broker.messages == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"callback": "https://e.com"}, "callback is the URL for the model's answer"),
        ({"failure_callback": "https://e.com"}, "failure_callback is the URL"),
        ({"retries": RetryPolicy(give_up_on=ValueError)}, "cannot depend on the error"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"max_tokens": 1.5}, "max_tokens=1.5"),
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"delay": "1s"}, "no option 'delay'"),
        ({"provider": "openai"}, "a provider of qtasks.llm"),
        ({"model": ""}, "expected a provider of qtasks.llm and a model name"),
        ({"provider": anthropic(), "seed": 1}, "anthropic has no option 'seed'"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused(broker: ManualBroker, options: dict[str, Any], reason: str) -> None:
    def build(text: str) -> list[ChatMessage]:
        return [user(text)]

    with pytest.raises(DefinitionError, match=reason):
        broker.tasks.llm(**{"provider": openai(), "model": "gpt", **options})(build)


def test_a_call_cannot_say_what_its_provider_does_not_know(broker: ManualBroker) -> None:
    summarise = summariser(broker.tasks, anthropic())
    with pytest.raises(DefinitionError, match="has no option 'seed'"):
        summarise.using(seed=1)


def test_the_output_is_an_object(broker: ManualBroker) -> None:
    @broker.tasks.llm(provider=openai(), model="gpt", output=list[str])
    def words(text: str) -> list[ChatMessage]:
        return [user(text)]

    with pytest.raises(DefinitionError, match="is not an object in JSON") as caught:
        words.delay("abc")
    assert caught.value.code == "QT159"
    with pytest.raises(DefinitionError, match="is not an object in JSON"):
        words.ready()


def test_a_model_that_refers_to_itself_is_an_object(broker: ManualBroker) -> None:
    class Node(BaseModel):
        model_config = ConfigDict(title="Node")
        name: str
        children: list[Node] = Field(default_factory=list)

    Node.model_rebuild(_types_namespace={"Node": Node})

    @broker.tasks.llm(provider=openai(), model="gpt", output=Node)
    def tree(text: str) -> list[ChatMessage]:
        return [user(text)]

    tree.delay("abc")
    assert "$defs" in json.loads(broker.take().body)["response_format"]["json_schema"]["schema"]


def test_the_function_is_a_plain_one_that_asks_for_nothing(broker: ManualBroker) -> None:
    llm: Any = broker.tasks.llm(provider=openai(), model="gpt")

    async def slow(text: str) -> list[ChatMessage]:
        return [user(text)]

    with pytest.raises(DefinitionError, match="written with def"):
        llm(slow)

    @llm
    def with_context(text: str, ctx: TaskContext = injected) -> list[ChatMessage]:
        return [user(text)]

    with pytest.raises(DefinitionError, match="'ctx' cannot be injected"):
        with_context.delay("abc")


def get_db() -> str:
    return "db"


def test_a_completion_names_what_it_takes(broker: ManualBroker) -> None:
    def unknown(summary: Summary, subject: str) -> None: ...
    def nothing() -> None: ...
    def all_of_it(*everything: Any) -> None: ...
    def context_first(ctx: TaskContext = injected, summary: Summary | None = None) -> None: ...

    for number, (function, reason) in enumerate(
        [
            (unknown, "takes 'subject'; it can take the output first, then text"),
            (all_of_it, "does not name its parameters"),
            (context_first, "does not name its parameters"),
        ]
    ):
        summarise = summariser(broker.tasks, name=f"s{number}")
        summarise.on_completion(function)
        with pytest.raises(DefinitionError, match=reason) as caught:
            summarise.ready()
        assert caught.value.code == "QT160"
    summarise = summariser(broker.tasks, name="other")
    with pytest.raises(DefinitionError, match="a function that takes the output"):
        summarise.on_completion(nothing)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="there is no option 'queue'"):
        summarise.on_completion(queue="q")(unknown)  # type: ignore[call-overload]


def test_there_is_one_completion(broker: ManualBroker) -> None:
    summarise = summariser(broker.tasks)

    @summarise.on_completion
    def store(
        summary: Summary, text: str, *, usage: Usage = injected, db: Annotated[str, Depends(get_db)] = ""
    ) -> None: ...

    summarise.ready()
    with pytest.raises(DefinitionError, match="has a completion already"):
        summarise.using(delay="1s").on_completion(lambda summary: None)
    assert summarise.completion.declared.function is store


def test_routers_have_llm_tasks_as_well(broker: ManualBroker) -> None:
    router = TaskRouter(prefix="texts.")

    @router.llm(model="any", aliases=["speak"])
    def say(text: str) -> list[ChatMessage]:
        return [user(text)]

    broker.tasks.include_router(router)
    say.delay("abc")
    callback = broker.take().options.callback
    assert callback is not None
    assert callback.startswith(f"{BASE_URL}/texts.say?")


def test_what_a_call_says_to_its_model_does_not_travel_in_a_flow(broker: ManualBroker) -> None:
    summarise = summariser(broker.tasks)
    with pytest.raises(DefinitionError, match="temperature of one call cannot be set for a step of a flow"):
        chain(summarise.s("a"), summarise.using(temperature=1).s()).delay()
    chain(summarise.using(temperature=1).s("a"), summarise.s()).delay()  # the first call is made here
    assert json.loads(broker.take().body)["temperature"] == 1


def test_providers_are_values() -> None:
    assert openai("a") == openai("a")
    assert upstash().url == "api/llm"
    assert anthropic(base_url="http://127.0.0.1:1/").url == "http://127.0.0.1:1/v1/messages"
