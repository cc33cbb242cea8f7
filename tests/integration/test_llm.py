"""LLM tasks over real brokers: embedded, in processes of their own, with a provider on a socket, and with fakes."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from qtasks import Embedded, QTasks, TaskEvent, chain, group, injected
from qtasks.broker.llm.provider_fake import ProviderFake
from qtasks.broker.ports import DeliveryRequest
from qtasks.errors import TaskCancelled, TaskFailed
from qtasks.llm import ChatMessage, Usage, anthropic, custom, openai, system, user
from qtasks.qstash import QStash
from qtasks.tasks.llm.llm_task import LlmTask
from qtasks.testing.llm import RECORD, ProviderRequest, fake_llm, recorded_llm, refused
from tests.support.dev import Dev
from tests.support.provider import KEY, Provider
from tests.support.servers import BrokerServer, Dispatcher

PATIENCE_S = 20.0
AT_ONCE = timedelta(milliseconds=1)


class Summary(BaseModel):
    title: str
    points: list[str] = []


GOOD = {"title": "a title", "points": ["one"]}
FITS = Summary(title="a title", points=["one"])


class RecordedEvents:
    """What completions and hooks received."""

    def __init__(self) -> None:
        self.completed: list[tuple[Any, ...]] = []
        self.failed: list[TaskEvent] = []
        self.has_failed = threading.Event()

    def fail(self, event: TaskEvent) -> None:
        self.failed.append(event)
        self.has_failed.set()


@pytest.fixture
def recorded() -> RecordedEvents:
    return RecordedEvents()


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider(lambda body: GOOD)
    yield made
    made.close()


Opened = Callable[..., QTasks]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Applications on an embedded broker, with a file unless something else is said."""
    made: list[QTasks] = []

    def application(path: str = "", *, llm: ProviderFake | None = None) -> QTasks:
        made.append(QTasks(embedded=Embedded(path or tmp_path / "tasks.db", llm=llm)))
        return made[-1]

    yield application
    for tasks in made:
        tasks.close()


def summariser(tasks: QTasks, recorded: RecordedEvents, **options: Any) -> LlmTask[[str], Summary]:
    @tasks.llm(**{"provider": openai(), "model": "gpt", "output": Summary, "retry_delay": AT_ONCE, **options})
    def summarise(text: str) -> list[ChatMessage]:
        return [system("Be brief."), user(f"Summarise: {text}")]

    @summarise.on_completion
    async def store(summary: Summary, text: str, *, usage: Usage = injected) -> None:
        recorded.completed.append((summary, text, usage))

    summarise.on_failure(recorded.fail)
    made: LlmTask[[str], Summary] = summarise
    return made


# --- a provider on a socket, an embedded broker


def test_a_provider_is_asked_and_its_answer_comes_back(
    opened: Opened, provider: Provider, recorded: RecordedEvents
) -> None:
    summarise = summariser(opened(), recorded, provider=custom(provider.url, KEY))
    assert summarise.delay("abc").get(timeout=PATIENCE_S) == FITS
    assert recorded.completed == [(FITS, "abc", Usage("gpt-2026", 10, 5))]
    [asked] = provider.requests
    assert asked["messages"][1]["content"] == "Summarise: abc"


def test_so_is_one_that_speaks_anthropics_form(opened: Opened, provider: Provider, recorded: RecordedEvents) -> None:
    summarise = summariser(opened(), recorded, provider=anthropic(KEY, base_url=provider.url))
    assert summarise.delay("abc").get(timeout=PATIENCE_S) == FITS
    assert recorded.completed == [(FITS, "abc", Usage("gpt-2026", 7, 3))]
    assert provider.requests[0]["tool_choice"] == {"type": "tool", "name": "Summary"}


@pytest.mark.parametrize("make", [lambda url: custom(url, KEY), lambda url: anthropic(KEY, base_url=url)])
def test_a_wrong_answer_is_repaired(
    opened: Opened, provider: Provider, recorded: RecordedEvents, make: Callable[[str], Any]
) -> None:
    provider.reply = lambda body: GOOD if len(body["messages"]) > 2 else {"points": 1}
    summarise = summariser(opened(), recorded, provider=make(provider.url))
    assert summarise.delay("abc").get(timeout=PATIENCE_S) == FITS
    assert [usage.requests for _, _, usage in recorded.completed] == [2]
    assert "title: Field required" in json.dumps(provider.requests[1]["messages"][-1])


def test_a_second_wrong_answer_is_a_dead_letter_with_the_answer(
    opened: Opened, provider: Provider, recorded: RecordedEvents
) -> None:
    provider.reply = lambda body: "I would rather not."
    summarise = summariser(opened(), recorded, provider=custom(provider.url, KEY))
    with pytest.raises(TaskFailed, match="the answer does not fit Summary"):
        summarise.delay("abc").get(timeout=PATIENCE_S)
    assert recorded.has_failed.wait(PATIENCE_S)
    assert (len(recorded.failed), len(provider.requests), recorded.completed) == (1, 2, [])


def test_a_provider_that_is_busy_is_asked_again_when_it_says(
    opened: Opened, provider: Provider, recorded: RecordedEvents
) -> None:
    provider.reply = lambda body: GOOD if len(provider.requests) > 2 else (429, {"Retry-After": "0"}, "slow down")
    summarise = summariser(opened(), recorded, provider=custom(provider.url, KEY), retry_delay="1h")
    assert summarise.delay("abc").get(timeout=PATIENCE_S) == FITS
    assert len(provider.requests) == 3


def test_a_provider_that_goes_on_refusing_fails_the_call_once(
    opened: Opened, provider: Provider, recorded: RecordedEvents, caplog: pytest.LogCaptureFixture
) -> None:
    summarise = summariser(opened(), recorded, provider=custom(provider.url, "sk-wrong"), retries=2)
    result = summarise.delay("abc")
    with pytest.raises(TaskFailed, match=r"ProviderError: custom answered 401: Incorrect API key provided: \*\*\*"):
        result.get(timeout=PATIENCE_S)
    assert recorded.has_failed.wait(PATIENCE_S)
    assert (len(recorded.failed), recorded.failed[0].context.attempt) == (1, 3)
    assert "sk-wrong" not in caplog.text


def test_no_more_are_asked_at_once_than_the_key_allows(
    opened: Opened, provider: Provider, recorded: RecordedEvents
) -> None:
    lock, going, most = threading.Lock(), 0, 0
    both = threading.Barrier(2)

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        nonlocal going, most
        with lock:
            going += 1
            most = max(most, going)
        both.wait(PATIENCE_S)  # two are there, and no third comes
        with lock:
            going -= 1
        return GOOD

    provider.reply = reply
    summarise = summariser(opened(), recorded, provider=custom(provider.url, KEY), key="provider", parallelism=2)
    results = summarise.map([str(number) for number in range(6)])
    assert [result.get(timeout=PATIENCE_S) for result in results] == [FITS] * 6
    assert most == 2


def test_a_call_can_be_cancelled_before_it_is_made(
    opened: Opened, provider: Provider, recorded: RecordedEvents
) -> None:
    summarise = summariser(opened(), recorded, provider=custom(provider.url, KEY))
    result = summarise.using(delay="1h").delay("abc")
    assert result.cancel()
    with pytest.raises(TaskCancelled):
        result.get(timeout=PATIENCE_S)
    assert provider.requests == []


def test_models_take_part_in_flows(opened: Opened, provider: Provider, recorded: RecordedEvents) -> None:
    tasks = opened()
    provider.reply = lambda body: str(body["messages"][-1]["content"]).upper()

    @tasks.llm(provider=custom(provider.url, KEY), model="gpt", key="provider", parallelism=1)
    def say(text: str) -> list[ChatMessage]:
        return [user(text)]

    @tasks.task
    def join(texts: list[str]) -> str:
        return " ".join(texts)

    assert chain(group(say.s("a"), say.s("b")) | join.s() | say.s()).delay().get(timeout=PATIENCE_S) == "A B"
    assert len(provider.requests) == 3


def test_the_key_is_nowhere_but_in_the_message_that_asks(
    opened: Opened, provider: Provider, recorded: RecordedEvents, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the callback nor what the API shows, nor results nor logs, have it."""
    tasks = opened()
    summarise = summariser(tasks, recorded, provider=custom(provider.url, KEY))
    assert summarise.delay("abc").get(timeout=PATIENCE_S) == FITS
    connection = tasks.runtime._connection
    assert connection is not None
    with QStash(connection.token, base_url=connection.url, transport=connection.transport) as client:
        assert KEY not in repr(client.log.list())
    tasks.close()
    assert KEY not in caplog.text
    with sqlite3.connect(tmp_path / "tasks.db-results") as results:
        assert KEY not in str(results.execute("SELECT * FROM results").fetchall())


# --- the echo, out of the box


def test_an_embedded_home_answers_by_itself(opened: Opened, recorded: RecordedEvents) -> None:
    tasks = opened(":memory:")
    summarise = summariser(tasks, recorded, provider=None)
    assert "echo model" in summarise.delay("abc").get(timeout=PATIENCE_S).title
    assert recorded.completed[0][2].model == "qtasks-echo"


PROGRAM = """
from pydantic import BaseModel
from qtasks import task
from qtasks.llm import ChatMessage, Usage, user
from qtasks.tasks.default import default_app

class Summary(BaseModel):
    title: str

@default_app.llm(model="any", output=Summary)
def summarise(text: str) -> list[ChatMessage]:
    return [user(f"Summarise: {text}")]

@summarise.on_completion
def store(summary: Summary, text: str, usage: Usage) -> None:
    with open("completed.txt", "a") as file:
        file.write(f"{usage.model}: {text}\\n")
"""


def test_qtasks_dev_answers_by_itself(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(PROGRAM)
    with Dev(tmp_path, "tasks.py") as dev:
        dev.started()
        shown = dev.run("import tasks; print(tasks.summarise.delay('a text').get(timeout=15))")
        assert "echo model of qtasks, not a language model. You said: Summarise: a text" in shown
        large = dev.run("import tasks; print(len(tasks.summarise.delay('x' * 20_000).get(timeout=15).title))")
        assert int(large) > 20_000
        assert dev.stop() == 0
    assert (tmp_path / "completed.txt").read_text().startswith("qtasks-echo: a text\nqtasks-echo: xxx")


def test_a_broker_and_a_dispatcher_of_ones_own_do_so_where_the_operator_says(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(PROGRAM)
    with BrokerServer(tmp_path, "--db", "broker.db", QTASKS_LLM_URL="echo") as broker:
        broker.started()
        with Dispatcher(tmp_path, broker=broker) as dispatcher:
            dispatcher.started()
            shown = dispatcher.send("summarise", "a text", "--wait")
            assert "echo model" in shown
    assert (tmp_path / "completed.txt").read_text() == "qtasks-echo: a text\n"


def test_and_ask_the_server_that_he_names(tmp_path: Path, provider: Provider) -> None:
    program = PROGRAM.replace('model="any"', f'provider=custom("{provider.url}", variable="MY_KEY"), model="any"')
    (tmp_path / "tasks.py").write_text(program.replace("import ChatMessage", "import custom, ChatMessage"))
    with BrokerServer(tmp_path, "--db", "broker.db") as broker:
        broker.started()
        with Dispatcher(tmp_path, broker=broker, MY_KEY=KEY) as dispatcher:
            dispatcher.started()
            assert "a title" in dispatcher.send("summarise", "a text", "--wait")


# --- fakes and recordings


def test_a_fake_answers_in_place_of_every_provider_without_keys(
    opened: Opened, recorded: RecordedEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    model = fake_llm(FITS, GOOD, FITS, '{"title": "a title", "points": ["one"]}')
    tasks = opened(":memory:", llm=model)
    for number, provider in enumerate([openai(), anthropic(), None, custom("http://nobody.example")]):
        summarise = summariser(tasks, recorded, name=f"s{number}", provider=provider)
        assert summarise.delay(f"text {number}").get(timeout=PATIENCE_S) == FITS
    assert [asked.url for asked in model.asked] == [
        "https://api.openai.com/v1/chat/completions",
        "https://api.anthropic.com/v1/messages",
        "http://model.qtasks.internal/v1/chat/completions",
        "http://nobody.example/v1/chat/completions",
    ]
    assert (model.asked[0].model, model.asked[0].text) == ("gpt", "Summarise: text 0")
    assert model.asked[0].messages[0]["role"] == "system"


def test_a_schedule_asks_anew_at_every_run_by_what_the_function_says_then(opened: Opened) -> None:
    model = fake_llm("Fine.", "Better.")
    tasks = opened(":memory:", llm=model)
    days = iter(["Monday", "Tuesday"])

    @tasks.cron("0 9 * * *", args=["Ada"])
    @tasks.llm(model="gpt")
    def mood(name: str) -> list[ChatMessage]:
        return [user(f"How is {name} on {next(days)}?")]

    tasks.schedules.sync()
    answers = [mood.schedules[0].trigger().get(timeout=PATIENCE_S) for _ in range(2)]
    assert answers == ["Fine.", "Better."]
    assert [asked.text for asked in model.asked] == ["How is Ada on Monday?", "How is Ada on Tuesday?"]


def test_a_fake_refuses_and_misunderstands(opened: Opened, recorded: RecordedEvents) -> None:
    model = fake_llm(refused(429, "slow down", retry_after="0"), "What?", FITS)
    summarise = summariser(opened(":memory:", llm=model), recorded)
    assert summarise.delay("abc").get(timeout=PATIENCE_S) == FITS
    assert len(model.asked) == 3
    assert recorded.completed[0][2].requests == 2


async def answer_later(asked: ProviderRequest) -> Summary:
    return Summary(title=asked.text)


@pytest.mark.parametrize("function", [lambda asked: Summary(title=asked.text), answer_later])
def test_a_fake_may_be_a_function(opened: Opened, recorded: RecordedEvents, function: Any) -> None:
    summarise = summariser(opened(":memory:", llm=fake_llm(function)), recorded)
    assert summarise.delay("abc").get(timeout=PATIENCE_S).title == "Summarise: abc"


def broken(asked: ProviderRequest) -> str:
    raise LookupError("no such answer")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (fake_llm(), "it has 0 answers and got one more request: 'Summarise: abc'"),
        (fake_llm(broken), "fake_llm: LookupError: no such answer"),
        (fake_llm(object()), "fake_llm: PydanticSerializationError"),
    ],
)
def test_a_fake_that_cannot_answer_fails_the_call_at_once(
    opened: Opened, recorded: RecordedEvents, model: ProviderFake, words: str
) -> None:
    summarise = summariser(opened(":memory:", llm=model), recorded)
    with pytest.raises(TaskFailed) as caught:
        summarise.delay("abc").get(timeout=PATIENCE_S)
    assert words in caught.value.error


def test_a_fake_is_a_function_of_the_request_as_well() -> None:
    """For a transport that answers by functions, as that of the pytest plugin."""
    body = json.dumps({"model": "gpt", "messages": [user("How are you?")]}).encode()
    request = DeliveryRequest("https://api.openai.com/v1/chat/completions", "POST", (), body, 1000)
    model = fake_llm("Fine.", refused(429))
    said = [model(request) for _ in range(3)]
    assert [answer.status for answer in said] == [200, 429, 489]
    assert json.loads(said[0].body)["choices"][0]["message"]["content"] == "Fine."
    assert b"has no recording of this request to gpt" in recorded_llm("nowhere.json")(request).body


def test_what_a_provider_said_is_recorded_and_played_back(
    opened: Opened, provider: Provider, recorded: RecordedEvents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "recordings" / "summaries.json"
    monkeypatch.setenv("PROVIDER_KEY", KEY)
    monkeypatch.setenv(RECORD, "1")
    titles = iter(["first", "second"])
    provider.reply = lambda body: (
        (500, {"Retry-After": "0"}, "busy") if len(provider.requests) == 1 else {"title": next(titles)}
    )
    options = {"provider": custom(provider.url, variable="PROVIDER_KEY")}
    summarise = summariser(opened(":memory:", llm=recorded_llm(path)), recorded, **options)
    assert [summarise.delay("abc").get(timeout=PATIENCE_S).title for _ in range(2)] == ["first", "second"]
    assert KEY not in path.read_text()
    assert len(json.loads(path.read_text())) == 2  # failures are not kept

    for variable in ("PROVIDER_KEY", RECORD):  # neither the key nor the provider is needed any more
        monkeypatch.delenv(variable)
    count = len(provider.requests)
    again = summariser(opened(":memory:", llm=recorded_llm(path)), recorded, **options)
    assert [again.delay("abc").get(timeout=PATIENCE_S).title for _ in range(3)] == ["first", "second", "second"]
    assert len(provider.requests) == count
    with pytest.raises(TaskFailed) as caught:
        again.delay("another text").get(timeout=PATIENCE_S)
    assert f"{path} has no recording of this request to gpt: 'Summarise: another text'" in caught.value.error
    assert f"{RECORD}=1" in caught.value.error


def test_recordings_that_are_missing_are_added_and_others_left(
    opened: Opened, provider: Provider, recorded: RecordedEvents, tmp_path: Path
) -> None:
    path = tmp_path / "summaries.json"
    options = {"provider": custom(provider.url, KEY)}
    for texts in (["a"], ["a", "b"]):
        summarise = summariser(opened(":memory:", llm=recorded_llm(path, record=True)), recorded, **options)
        for text in texts:
            summarise.delay(text).get(timeout=PATIENCE_S)
    assert [body["messages"][1]["content"] for body in provider.requests] == ["Summarise: a", "Summarise: b"]
